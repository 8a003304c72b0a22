"""Plots training and validation curves from `.log.json` files of tiekd's or mmcv's runs.

A row is one line of such a file, a JSON object. Rows of training have `mode` train, and an `iter`
that either restarts with each epoch or counts over the run. Rows of validation have `mode` val, and
an `iter` that counts images. The number of iterations per epoch is only in the `.log` file beside
the `.log.json`. Without the `.log` file the number is estimated from the rows; the estimate can be
too small by up to one logging interval. Times are those of training only, because no row has the
time of an evaluation.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.data.image_io import write_image
from tiekd.errors import DataError, LaunchError
from tiekd.files import cause_of, check_readable
from tiekd.visualization import figures

AXES = ("iteration", "epoch", "time")
_X_LABELS = {"iteration": "iteration", "epoch": "epoch", "time": "hours of training"}
_NO_KEYS = ("mode", "epoch", "iter")
# Value of `mode` in the .log.json row that a run writes when it resumes with another number of
# training samples. The row states the new number of iterations per epoch.
_RENUMBERED = "epochs_renumbered"
_WIDTH = 640  # width of a chart in pixels
_HEIGHT = 400
# Colours of curves on a dark background. Neighbours in this list differ in lightness, so that
# colour-blind readers can distinguish them.
COLOURS = ("#56b4e9", "#e69f00", "#00be8c", "#f0e442", "#d55e3c", "#cc79a7", "#aaaaff")
_BACKGROUND = "#18181b"
_PLOT = "#202024"
_GRID = "#38383e"
_INK = "#ebebee"
_FAINT_INK = "#a0a0a8"
_DOTS_UP_TO = 40  # largest number of points of a curve that are all shown as dots


class Row(NamedTuple):
    """One row of a run's `.log.json`, with its coordinates on the possible x axes.

    Attributes:
        mode: "train" or "val".
        iteration: iterations since the beginning of the run.
        epoch: epochs since the beginning of the run.
        time: hours of training since the beginning of the run.
        values: the row's numbers, key -> value, such as "loss" or "abs_rel".
        is_agreement: True for an evaluation that compared with the teacher, not with ground truth.
    """

    mode: str
    iteration: float
    epoch: float
    time: float
    values: dict[str, float]
    is_agreement: bool = False


class Run(NamedTuple):
    """A training run whose curves are plotted.

    Attributes:
        name: the run's name in the legend.
        rows: the rows of its logs, in the order in which they were written.
    """

    name: str
    rows: list[Row]

    def keys(self) -> list[str]:
        """Returns the keys of all numbers in the rows, such as "loss", each key once."""
        return list(dict.fromkeys(key for row in self.rows for key in row.values))

    def curve(self, key: str, by: str) -> tuple[list[float], list[float]]:
        """Returns the curve of one key, as a list of x values and a list of y values.

        The values are those of training rows or, if no training row has the key, of validation
        rows.

        Args:
            key: a key of the rows, such as "loss".
            by: the x axis: an attribute of Row, "iteration", "epoch" or "time".
        """
        rows = self._rows_of(key)
        return [getattr(row, by) for row in rows], [row.values[key] for row in rows]

    def agreement_flags(self, key: str) -> set[bool]:
        """Returns the values of `is_agreement` that occur in the rows of one key's curve, as a set.

        It has both True and False if some evaluations compared with the teacher and others with
        ground truth.

        Args:
            key: a key of the rows, such as "abs_rel".
        """
        return {row.is_agreement for row in self._rows_of(key)}

    def _rows_of(self, key: str) -> list[Row]:
        modes = {row.mode for row in self.rows if key in row.values}
        mode = "train" if "train" in modes else "val"
        return [row for row in self.rows if row.mode == mode and key in row.values]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads the logs of several runs, one run per path.

    A run is named after its folder; if folders have equal names, after its file.

    Args:
        paths: for each run its `.log.json`, or its work dir, whose `.log.json` files are joined.

    Returns:
        The runs, in the order of the paths.

    Raises:
        DataError: a file can't be read, isn't a log, or has no training row.
    """
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in paths]
    choices = (
        [folder.name for folder in folders],
        [path.name.removesuffix(".log.json") for path in paths],
        [str(path) for path in paths],
    )
    # Name the runs by folder, file or path: by the first of these in which all runs differ.
    names = next((names for names in choices if len(set(names)) == len(names)), choices[-1])
    return [Run(name, _read_run(path)) for path, name in zip(paths, names, strict=True)]


def plot(
    runs: Sequence[Run],
    keys: Sequence[str],
    by: str = "iteration",
    smooth: int = 1,
    log_y: bool = False,
):
    """Plots one chart per key and one curve per run, at most two charts beside each other.

    Args:
        runs: the runs, as `read_runs` returns them.
        keys: the rows' keys to plot, such as "loss".
        by: the x axis: "iteration", "epoch" or "time".
        smooth: number of rows over which a running mean is plotted; the rows' own values are
            plotted in a pale colour. 1 for no running mean.
        log_y: True for logarithmic y axes.

    Returns:
        An image, (height, width, 3) uint8.

    Raises:
        LaunchError: a run doesn't have a key, a key is accuracy in one run and agreement with the
            teacher in another, or matplotlib isn't installed.
    """
    for run in runs:
        known = run.keys()
        if missing := [key for key in keys if key not in known]:
            raise LaunchError(
                f"--keys: {run.name} has no {missing[0]!r}; it has: {', '.join(known)}"
            )
    titles = [_title(runs, key) for key in keys]
    x_label = _X_LABELS[by]
    x_unit = 1.0
    if by == "time" and max(run.rows[-1].time for run in runs) < 2:
        x_label = "minutes of training"
        x_unit = 60.0
    columns = min(len(keys), 2)
    lines = -(-len(keys) // columns)
    figure = figures.new_figure(_WIDTH * columns, _HEIGHT * lines)
    figure.set_facecolor(_BACKGROUND)
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    for key, title, axes in zip(keys, titles, places, strict=False):
        _draw(axes, runs, key, by, x_unit, smooth)
        axes.set_title(title, loc="left", color=_INK, parse_math=False)
        axes.set_xlabel(x_label, color=_FAINT_INK)
        if log_y:
            axes.set_yscale("log", nonpositive="mask")
    # Remove the axes of grid cells without a chart, as the last one if the number of charts is odd.
    for axes in places[len(keys) :]:
        axes.remove()
    return figures.pixels_of(figure)


def _title(runs: Sequence[Run], key: str) -> str:
    """Returns a chart's title, which states if the key's values are agreement with the teacher.

    Args:
        runs: the runs whose curves are in the chart.
        key: the key of the rows, such as "abs_rel".

    Raises:
        LaunchError: the values are agreement with the teacher in some evaluations, and accuracy in
            others.
    """
    found = [(run.name, meaning) for run in runs for meaning in run.agreement_flags(key)]
    ours, others = ([name for name, each in found if each is kind] for kind in (True, False))
    if ours and others:
        raise LaunchError(
            f"--keys: {key} of {ours[0]} is agreement with the teacher, that of {others[0]} is "
            "accuracy against ground truth, and the two can't be compared; plot them apart"
        )
    return f"{key} (agreement with the teacher, not accuracy)" if ours else key


def write(path: Path, pixels: np.ndarray) -> None:
    """Writes an image as PNG, atomically.

    Args:
        path: the file; its folder is created.
        pixels: (height, width, 3) uint8.

    Raises:
        DataError: the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, pixels)
    except OSError as error:
        raise DataError(
            f"{path}: can't be written ({cause_of(error)}); give --out a place that can be"
        ) from None


def _draw(axes, runs: Sequence[Run], key: str, by: str, x_unit: float, smooth: int) -> None:
    """Plots the curves of one key, one for each run, with a legend.

    Args:
        axes: the matplotlib axes.
        runs: the runs.
        key: the key of the rows, such as "loss".
        by: the x axis: "iteration", "epoch" or "time".
        x_unit: the factor that converts x values to the axis's unit, such as 60 for minutes.
        smooth: number of rows over which a running mean is plotted; 1 for none.
    """
    axes.set_facecolor(_PLOT)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_FAINT_INK)
    axes.spines[:].set_color(_GRID)
    lines = []
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        xs, ys = run.curve(key, by)
        xs = [x * x_unit for x in xs]
        if smooth > 1:
            axes.plot(xs, ys, color=colour, alpha=0.33, zorder=2.1)
            ys = _running_mean(ys, smooth)
        lines += axes.plot(xs, ys, color=colour, linewidth=2, zorder=2.2)
        lines[-1].set(marker="o", markersize=5, markevery=_dot_indices(ys))
    # Give names and curves to the legend explicitly, since matplotlib omits labels that begin with
    # an underscore, as a run's name may.
    legend = axes.legend(
        lines,
        [run.name for run in runs],
        loc="best",
        facecolor=_PLOT,
        edgecolor=_GRID,
        labelcolor=_INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _dot_indices(ys: Sequence[float]) -> list[int]:
    """Returns the indices of the points of a curve that are also shown as dots.

    In a short curve these are all points. In a long curve these are points without finite
    neighbours, because no line connects them to others.

    Args:
        ys: the y values of the curve.
    """
    if len(ys) <= _DOTS_UP_TO:
        return list(range(len(ys)))
    finite = [False, *map(math.isfinite, ys), False]
    return [i for i in range(len(ys)) if finite[i : i + 3] == [False, True, False]]


def _running_mean(ys: Sequence[float], count: int) -> list[float]:
    """Returns the running mean of a curve: for each value the mean of it and the values before it.

    Values that aren't finite are left out of a mean. A mean is NaN if no value of it is finite.

    Args:
        ys: the y values of the curve.
        count: number of values over which a mean is taken; fewer at the start of the curve.
    """
    parts = (np.asarray(ys[max(i + 1 - count, 0) : i + 1], dtype=float) for i in range(len(ys)))
    finite = (part[np.isfinite(part)] for part in parts)
    return [float(part.mean()) if len(part) else math.nan for part in finite]


def _read_run(path: Path) -> list[Row]:
    files = sorted(path.glob("*.log.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{path}: has no .log.json; give a work dir of a run that has begun, or such a file"
        )
    parts = [_read_json_lines(file) for file in files]
    lines = [line for part in parts for line in part]
    if not any(line["mode"] == "train" for line in lines):
        raise DataError(
            f"{path}: has no row of training yet; a run writes one every log.interval iterations"
        )
    by_epoch, per_epoch = _iteration_counting(lines, files)
    rows: list[Row] = []
    for part in parts:
        per_epoch = next((line["of"] for line in part if line["mode"] == _RENUMBERED), per_epoch)
        part = [line for line in part if line["mode"] != _RENUMBERED]
        # Drop the earlier files' rows of iterations that this file (`part`) repeats, as after a
        # resume from an earlier iteration.
        first = next(
            (_iteration(line, by_epoch, per_epoch) for line in part if line["mode"] == "train"),
            math.inf,
        )
        rows = [row for row in rows if row.iteration < first]
        rows += _locate_rows(part, by_epoch, per_epoch, rows)
    return rows


def _read_json_lines(path: Path) -> list[dict]:
    """Returns the rows of a `.log.json` file that belong to the curves, in order.

    These are rows of training and validation, and rows with `mode` _RENUMBERED, which are returned
    as {"mode", "of": the new number of iterations per epoch}. A partly written last line is
    ignored.

    Args:
        path: the file.

    Raises:
        DataError: the file can't be read, or a line isn't a row of such a file.
    """
    check_readable(path, "log of a run", DataError)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise DataError(
            f"{path}: can't be read ({reason}); give a .log.json or a work dir"
        ) from None
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row.get("mode") in ("train", "val"):
                found.append(row | {"epoch": int(row["epoch"]), "iter": int(row["iter"])})
            elif row.get("mode") == _RENUMBERED:
                found.append({"mode": _RENUMBERED, "of": int(row["now"]["of"])})
        except (ValueError, KeyError, TypeError, AttributeError):
            # Ignore a last line without a newline, which is still being written; any other invalid
            # line is an error.
            if number < len(lines) or text.endswith("\n"):
                raise DataError(
                    f"{path}: line {number} is no row of a .log.json; give that file of the run, "
                    "or its work dir"
                ) from None
    return found


def _iteration_counting(lines: list[dict], files: Sequence[Path]) -> tuple[bool, float]:
    """Finds out if the `iter` of a run's training rows restarts with each epoch.

    Args:
        lines: the rows of all files, as `_read_json_lines` returns them.
        files: the `.log.json` files, beside which there may be `.log` files.

    Returns:
        True if `iter` restarts with each epoch, False if it counts over the run; and the number of
        iterations per epoch, which is estimated if no `.log` file states it.
    """
    train = [line for line in lines if line["mode"] == "train"]
    texts = [file.with_suffix("") for file in files]  # the .log file of x.log.json is x.log
    stated = next(
        filter(None, (_read_iterations_per_epoch(text) for text in texts if text.is_file())), None
    )
    falls = any(
        b["epoch"] > a["epoch"] and b["iter"] <= a["iter"]
        for a, b in zip(train, train[1:], strict=False)
    )
    if stated or falls or max(line["epoch"] for line in train) == 1:
        return True, stated or max(line["iter"] for line in train)
    # Estimate the number of iterations per epoch, per_epoch. `iter` counts over the run, so in
    # every row (epoch - 1) * per_epoch < iter <= epoch * per_epoch.
    return False, max(line["iter"] / line["epoch"] for line in train)


def _read_iterations_per_epoch(path: Path) -> int | None:
    """Reads the number of iterations per epoch from a `.log` file; None if it isn't stated.

    The number is M in the first text of the form `Epoch [1][50/M]`.

    Args:
        path: the `.log` file.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if found := re.search(r"Epoch \[\d+\]\[\d+/(\d+)\]", line):
                return int(found[1])
    return None


def _locate_rows(
    lines: list[dict], by_epoch: bool, per_epoch: float, before: list[Row]
) -> list[Row]:
    """Returns the rows of one file with their iteration, epoch and time since the run's start.

    An evaluation gets the iteration of the training row before it. If no more training rows of its
    epoch follow, it gets the end of the epoch.

    Args:
        lines: the rows, as `_read_json_lines` returns them.
        by_epoch: True if `iter` restarts with each epoch.
        per_epoch: the number of iterations per epoch.
        before: the rows of the run's earlier files, after which these rows continue.
    """
    rows: list[Row] = []
    trained = next((row for row in reversed(before) if row.mode == "train"), None)
    iteration = trained.iteration if trained else 0.0
    hours = trained.time if trained else 0.0
    passed = iteration
    # Compute each row's time from the seconds per iteration that the rows state, so that the time
    # between two starts of the run isn't included.
    for index, line in enumerate(lines):
        values = {
            k: float(v) for k, v in line.items() if k not in _NO_KEYS and isinstance(v, int | float)
        }
        if line["mode"] == "train":
            iteration = _iteration(line, by_epoch, per_epoch)
            hours += max(iteration - passed, 0) * values.get("time", 0.0) / 3600
            passed = iteration
        elif by_epoch and not _continues_epoch(lines[index + 1 :], line["epoch"]):
            iteration = max(line["epoch"] * per_epoch, iteration)
        place = iteration, iteration / per_epoch, hours
        rows.append(Row(line["mode"], *place, values, line.get("against") == "teacher"))
    return rows


def _iteration(line: dict, by_epoch: bool, per_epoch: float) -> float:
    """Returns the iteration of a training row, counted from the beginning of the run.

    Args:
        line: the row, as `_read_json_lines` returns it.
        by_epoch: True if `iter` restarts with each epoch.
        per_epoch: the number of iterations per epoch.
    """
    return line["iter"] + (line["epoch"] - 1) * per_epoch * by_epoch


def _continues_epoch(later: list[dict], epoch: int) -> bool:
    """Returns True if later rows contain training of the same epoch.

    Args:
        later: the rows that follow a row, as `_read_json_lines` returns them.
        epoch: number of the epoch, from 1.
    """
    following = next((line for line in later if line["mode"] == "train"), None)
    return following is not None and following["epoch"] == epoch
