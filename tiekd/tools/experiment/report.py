"""Writes the report of an experiment: Markdown, JSON, and plots.

All are made from one dict of results, which table.py computes, so they agree. The plots need
matplotlib (extra `plot`); if that isn't installed, they are left out, with a message.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiekd.errors import LaunchError
from tiekd.files import replace_bytes, replace_text
from tiekd.tools.experiment import cost_plot, networks
from tiekd.tools.experiment.table import as_number
from tiekd.visualization import figures

_TITLES = {
    "abs_rel": "abs_rel",
    "abs_rel_aligned": "abs_rel aligned",
    "silog": "silog %",
    "edge": "edge error",
}
# The plotted intervals: (key in the table, vertical offset, colour).
_MARKS = (
    ("over_seeds", -0.2, "#1f77b4"),
    ("over_both", 0.0, "#888888"),
    ("over_scenes", 0.2, "#d66814"),
)
_WIDTH = 900
_ROW_HEIGHT = 28


def write(table: Mapping, folder: Path) -> list[str]:
    """Writes report.md, report.json and, if matplotlib is installed, report.png and costs.png.

    costs.png is written only if rows differ in their network.

    Args:
        table: the results, as `table.compute` returns them.
        folder: the experiment's work dir.

    Returns:
        Lines of text that name the written files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "report.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    replace_text(folder / "report.md", markdown(table))
    told = [f"Written: {folder / 'report.md'} {folder / 'report.json'}"]
    try:
        figures.check_installed()
    except LaunchError as error:
        # Return without the plot if matplotlib isn't installed; the report with the numbers is
        # complete without it.
        return [*told, f"No report.png: {error}"]
    pngs = {
        "report.png": plot(table),
        "costs.png": cost_plot.draw(table, networks.read_latency(folder)),
    }
    for name, png in pngs.items():
        if png is not None:
            replace_bytes(folder / name, png)
            told[0] += f" {folder / name}"
        else:
            # Delete the plot of an earlier report, which would contradict this one.
            (folder / name).unlink(missing_ok=True)
    return told


def markdown(table: Mapping) -> str:
    """Formats an experiment's results as a Markdown document.

    Args:
        table: the results, as `table.compute` returns them.
    """
    # State once what applies to all tables.
    lines = [f"# {table['experiment']}", ""]
    seeds = ", ".join(map(str, table["seeds"]))
    lines += [
        f"{table['steps']} iterations a run, seeds {seeds}, weights: {table['weights']}, evaluated "
        f"on the {table['split']} frames. Every figure is the mean of scene means, then the mean "
        "over seeds; less is better.",
        "",
    ]
    # Report how often test lists were read. Only evaluations on test lists (headline evaluations)
    # have this entry.
    for name, count in table.get("test_readings", {}).items():
        lines += [f"The test list of {name} has been read {count} times.", ""]
    for name, each in table["sets"].items():
        lines += _set(name, each)
    lines += _not_finished(table)
    return "\n".join(lines).rstrip() + "\n"


def _not_finished(table: Mapping) -> list[str]:
    lines = []
    if table["failed"]:
        lines += ["## Failed runs", ""]
        lines += [f"- {run['run']}: {run['reason']} (`{run['log']}`)" for run in table["failed"]]
        lines.append("")
    if table["not_finished"]:
        lines += ["## Not finished", ""]
        lines += [f"- {label}" for label in table["not_finished"]]
        lines.append("")
    return lines


def _set(name: str, each: Mapping) -> list[str]:
    lines = [f"## {name}", "", f"{each['frames']} frames of {each['scenes']} scenes.", ""]
    if each["shared_scenes"]:
        told = ", ".join(each["shared_scenes"])
        lines += [f"**Evaluated on scenes that were also trained on:** {told}.", ""]
    if each["fold_overrides"]:
        lines += ["Overrides of folds:", ""]
        lines += [f"- {line}" for line in each["fold_overrides"]]
        lines.append("")
    if not each["rows"]:
        return [*lines, "No run is finished.", ""]
    every = [*each["rows"].items(), *((f"*{key}*", row) for key, row in each["floors"].items())]
    # Begin the main table, which has the smallest detectable difference beside each row.
    detectable = _number(each["smallest_detectable"])
    heads = ["row", "seeds", *_TITLES.values(), f"smallest detectable ({each['metric']})"]
    heads += ["parameters", "GMAC"]
    body = []
    for row, found in every:
        # Leave the columns for seeds and the detectable difference empty for floors, i.e. baselines
        # that don't look at the image: they aren't trained.
        is_floor = row.startswith("*")
        cells = [row, "" if is_floor else str(len(found["seeds"]))]
        cells += [_with_spread(found, metric) for metric in _TITLES]
        cells += ["", "", ""] if is_floor else [detectable, *_costs(found["network"])]
        body.append(cells)
    lines += [*_markdown_table(heads, body), ""]
    if not each["floors"]:
        lines += ["The floors are not computed yet.", ""]
    for floor, why in each["floors_left_out"].items():
        lines += [f"The floor *{floor}* is left out: {why}.", ""]
    # List the rows that don't beat every floor (a baseline that doesn't look at the image) before
    # the comparisons, since they support no conclusion.
    unjudged = [row for row in each["not_above_floors"] if len(each["rows"][row]["seeds"]) < 2]
    if unjudged:
        lines += [
            f"Not compared with the floors, which takes two seeds: {', '.join(unjudged)}.",
            "",
        ]
    for row, lost in each["not_above_floors"].items():
        if row in unjudged:
            continue
        which = "; ".join(
            f"{loss['floor']} on {loss['metric']} ({loss['verdict']}; difference "
            f"{_number(loss['difference'])}, over seeds {_interval(loss['over_seeds'])}, over "
            f"scenes {_interval(loss['over_scenes'])})"
            for loss in lost
        )
        lines += [f"**FAILED: {row}** does not beat: {which}.", ""]
    lines += [*_comparisons(each["comparisons"])]
    lines += _by_scene(every)
    lines += _by_range(every)
    return lines


def _costs(network: Mapping) -> list[str]:
    """Returns the cells of a network's parameters and multiply-adds."""
    gmac = network["gmac"]
    return [f"{network['parameters'] / 1e6:.2f} M", "-" if gmac is None else f"{gmac:.2f}"]


def _comparisons(comparisons: Sequence[Mapping]) -> list[str]:
    """Returns the table of the comparisons, and a line on those whose rows have no common seed."""
    waiting = [found for found in comparisons if found["num_seeds"] == 0]
    heads = ["comparison", "metric", "difference", "over seeds", "over scenes", "over both"]
    heads += ["p", "verdict"]
    body = [
        [
            f"**{found['row']} - {found['than']}** (primary)"
            if found["primary"]
            else f"{found['row']} - {found['than']}",
            found["metric"],
            _number(found["difference"]),
            *(_interval(found[key]) for key in ("over_seeds", "over_scenes", "over_both")),
            f"{found['p_corrected']:.3f}",
            found["verdict"],
        ]
        for found in comparisons
        if found["num_seeds"] > 0
    ]
    note = (
        "Intervals are of 95 %, not corrected. p is corrected by Holm's method for all comparisons "
        "of the set but the primary one."
    )
    lines = ["### Comparisons", "", *_markdown_table(heads, body), "", note, ""]
    if waiting:
        pairs = dict.fromkeys(f"{found['row']} - {found['than']}" for found in waiting)
        lines += [f"Without a common seed yet: {', '.join(pairs)}.", ""]
    return lines


def _by_scene(every: Sequence[tuple[str, Mapping]]) -> list[str]:
    # Take the scenes from the first row, since all rows were evaluated on the same frames.
    scenes = every[0][1]["by_scene"]
    heads = ["scene", "frames", *(row for row, _ in every)]
    lines = []
    for metric in ("abs_rel", "abs_rel_aligned"):
        body = [
            [
                scene,
                str(scenes[scene]["frames"]),
                *(_number(found["by_scene"][scene][metric]) for _, found in every),
            ]
            for scene in scenes
        ]
        lines += [f"### {_TITLES[metric]} by scene", "", *_markdown_table(heads, body), ""]
    return lines


def _by_range(every: Sequence[tuple[str, Mapping]]) -> list[str]:
    heads = ["range", "pixels", *(row for row, _ in every)]
    body = []
    for place, first in enumerate(every[0][1]["by_range"]):
        cells = [f"{first['from_m']:g} to {first['to_m']:g} m", str(first["pixels"])]
        for _, found in every:
            here = found["by_range"][place]
            cells.append(f"{_number(here['abs_rel'])} ({_number(here['bias_m'])} m)")
        body.append(cells)
    title = "### abs_rel by range, with the bias (means over pixels)"
    return [title, "", *_markdown_table(heads, body), ""]


def _markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *body]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _number(value: float | str | None) -> str:
    number = as_number(value)
    return "-" if math.isnan(number) else f"{number:.4f}"


def _with_spread(found: Mapping, metric: str) -> str:
    spread = found[f"{metric}_sd"]
    told = _number(found[metric])
    return told if spread is None else f"{told} ± {_number(spread)}"


def _interval(ends: Sequence) -> str:
    if ends[0] is None:
        return "none"
    return f"{_number(ends[0])} to {_number(ends[1])}"


def plot(table: Mapping) -> bytes | None:
    """Plots the differences in error between pairs of rows on all sets, with confidence intervals.

    A row is a recipe with overrides, a set is the data on which it is trained and evaluated.

    Args:
        table: the results, as `table.compute` returns them.

    Returns:
        The bytes of a PNG; None if there is no comparison yet.
    """
    sets = {
        name: [found for found in each["comparisons"] if found["difference"] is not None]
        for name, each in table["sets"].items()
    }
    # Make one plot for each metric of a set, since metrics have different units.
    plots = [
        (f"{name}: {metric}", [found for found in each if found["metric"] == metric])
        for name, each in sets.items()
        for metric in dict.fromkeys(found["metric"] for found in each)
    ]
    if not plots:
        return None
    heights = [_ROW_HEIGHT * (len(found) + 3) for _, found in plots]
    figure = figures.new_figure(_WIDTH, sum(heights))
    # Give each plot as much height as it has comparisons.
    axes = figure.subplots(len(plots), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, (title, found) in zip(axes, plots, strict=True):
        place.set_title(f"{title}; below 0: the first row is better", fontsize=9)
        place.axvline(0, color="#888888", linewidth=1)
        for line, each in enumerate(found):
            # Draw the three confidence intervals of a comparison beside each other, and the
            # difference as a dot.
            for key, shift, colour in _MARKS:
                low, high = map(as_number, each[key])
                # Skip an interval that is missing or has no finite ends.
                if math.isfinite(low) and math.isfinite(high):
                    place.plot([low, high], [line + shift] * 2, color=colour, linewidth=3)
            place.plot(as_number(each["difference"]), line, "o", color="black", markersize=4)
        labels = [f"{each['row']} - {each['than']}" for each in found]
        place.set_yticks(range(len(found)), labels, fontsize=8)
        place.set_ylim(len(found) - 0.4, -0.6)
    # Add empty lines to the legend, which stand for the intervals of all plots.
    for key, _, colour in _MARKS:
        axes[0].plot([], [], color=colour, label=f"95 % {key.replace('_', ' ')}")
    figure.legend(loc="outside lower center", ncols=len(_MARKS), fontsize=8)
    return figures.png_of(figure)
