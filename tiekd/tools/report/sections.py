"""The sections of a report as HTML, each from the report's content.

A function returns the section's parts; an empty list leaves the section out. Figures have the
digits that bin/evaluate.py prints.
"""

import math
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tiekd.data import learned_from
from tiekd.evaluation import metrics
from tiekd.evaluation.agreement import LABEL
from tiekd.tools.report import measure
from tiekd.tools.report.content import Content, Evaluation
from tiekd.tools.report.line_chart import Curve, chart
from tiekd.tools.report.markup import Markup, facts, joined, picture, plain, table, tag
from tiekd.tools.report.records import Split
from tiekd.tools.report.shown_frames import LARGEST_ERROR, Shown
from tiekd.visualization import pictures

_FOLDERS_SHOWN = 8
_TILES = ("abs_rel", "rmse", "a1")
_UNITS = {"rmse": "m", "sq_rel": "m", "silog": "%"}
_KINDS = {
    "worst": "Worst frames",
    "median": "Median frames",
    "best": "Best frames",
}
_SPLITS = {"train": "training", "val": "validation"}


def summary(content: Content) -> list[Markup]:
    """Returns the main figures, warnings, and what is left out."""
    tiles = []
    found = content.validation
    if found is not None:
        figures = found.measured.result.metrics
        tiles += [(f"{key}{_unit(key)}", f"{figures[key]:.4f}") for key in _TILES]
        tiles.append(("validation frames", len(found.measured.frames)))
    tiles.append(("parameters", f"{content.parameters / 1e6:.2f} M"))
    timed = next((each for each in content.timings if each.median_ms is not None), None)
    if timed is not None:
        tiles.append((f"latency here, {timed.runtime}", f"{timed.median_ms:.1f} ms"))
    parts = [_label(found)] if found is not None else []
    parts.append(
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in tiles), class_="tiles")
    )
    if content.warnings:
        parts.append(_note("Read the figures with this in mind", content.warnings))
    if content.left_out:
        parts.append(_note("Left out of this report", content.left_out))
    return parts


def learned(content: Content) -> list[Markup]:
    """Returns what was learned from what: images, teachers, licences and digests."""
    records = content.records
    rows = [(_SPLITS.get(each.name, each.name), *_split_cells(each)) for each in records.splits]
    parts = []
    if rows:
        head = ("split", "images", "folders", "with depth files", "image files")
        parts.append(table(head, rows, "Images, as they were when the run began"))
        parts += [_folders(each) for each in records.splits if any(each.folders)]
    sizes = _sizes(content)
    data = content.recipe.data
    about = [
        ("data set", f"{data.get('name')}, {data.get('root', 'no data.root')}"),
        ("listed in", _listed(records.splits)),
        ("size of images", sizes),
        ("working resolution", str(content.resize)),
    ]
    parts.append(facts((name, value) for name, value in about if value))
    parts.append(tag("h3", "Teachers"))
    parts += _teachers(content)
    parts.append(tag("h3", "Digests"))
    parts.append(facts(_digests(content)))
    return parts


def curves(content: Content) -> list[Markup]:
    """Returns the learning curves of the run's log."""
    run = content.records.run
    if run is None:
        return []
    drawn = []
    keys = run.keys()
    terms = [key for key in keys if key.startswith("decode.loss_")]
    named = [Curve("loss", *run.curve("loss", "iteration"))] if "loss" in keys else []
    named += [
        Curve(key.removeprefix("decode.loss_"), *run.curve(key, "iteration")) for key in terms
    ]
    if named:
        values = [y for curve in named for y in curve.ys]
        # Terms of one loss may differ by powers of ten, and a loss below 0 has no logarithm.
        is_wide = min(values) > 0 and max(values) > 20 * min(values)
        drawn.append(chart("Loss and its weighted terms", named, "iteration", log_y=is_wide))
    if "lr" in keys:
        curve = Curve("learning rate", *run.curve("lr", "iteration"))
        drawn.append(chart("Learning rate", [curve], "iteration", y_from=0.0))
    metric = content.recipe.evaluation.save_best
    if any(row.mode == "val" and metric in row.values for row in run.rows):
        curve = Curve(metric, *run.curve(metric, "iteration"))
        said = f" ({LABEL})" if True in run.meanings(metric) else ""
        drawn.append(chart(f"Validation: {metric}{said}", [curve], "iteration"))
    if "grad_norm" in keys:
        curve = Curve("norm of the gradient", *run.curve("grad_norm", "iteration"))
        drawn.append(chart("Norm of the gradient", [curve], "iteration"))
    return [tag("div", *drawn, class_="charts")] if drawn else []


def figures(content: Content) -> list[Markup]:
    """Returns metrics, errors by range, edges, and the gap between training and validation."""
    found = content.validation
    if found is None:
        return []
    parts = [_label(found), tag("p", _protocol(found), class_="faint")]
    rows = [("validation", *_metric_cells(found))]
    for name, other in (("training", content.training), ("teacher", content.agreement)):
        if other is not None:
            count = len(other.measured.frames)
            what = "training frames" if name == "training" else "frames, against the teacher"
            rows.append((f"{count} {what}", *_metric_cells(other)))
    head = ("frames", *(f"{key}{_unit(key)}" for key in metrics.METRIC_NAMES))
    parts.append(table(head, rows, "Metrics, mean over images"))
    parts.append(_ranges(found))
    if content.agreement is not None:
        parts.append(tag("p", f"The row against the teacher is {LABEL}.", class_="label"))
    parts.append(tag("h3", "Edges"))
    parts.append(tag("p", _edges(found)))
    parts.append(tag("h3", "Scale"))
    aligned = mean_of([frame.abs_rel_aligned for frame in found.measured.frames])
    parts.append(
        tag(
            "p",
            f"With the best scale of each frame abs_rel would be {aligned:.4f}. Depth is "
            f"{abs(found.measured.relative_bias):.1%} too "
            f"{'far' if found.measured.relative_bias > 0 else 'near'} on average over pixels."
            + _flip_text(content),
        )
    )
    return parts


def frames(content: Content) -> list[Markup]:
    """Returns the pictures of the worst, median and best validation frames, with their scales."""
    if not content.shown:
        return []
    end = content.max_depth_m * LARGEST_ERROR
    steps = np.linspace(0, 1, 256)[None]
    # Depth's place on its scale is proportional to its root; 0 would be drawn as unknown.
    depths = pictures.colourise(
        np.maximum(content.max_depth_m * steps**2, 1e-6), content.max_depth_m
    )
    errors = pictures.paint_error(end * steps, end)
    parts = [
        _label(content.validation),
        tag(
            "div",
            _scale("depth", depths, f"{content.max_depth_m:g} m"),
            _scale("difference and sigma", errors, f"{end:.3g} m and more"),
            class_="scales",
        ),
        tag(
            "p",
            "Dark grey is unknown. A confident pixel is dark in the last picture; where the "
            "student knows its mistakes, the last two pictures look alike.",
            class_="faint",
        ),
    ]
    for kind, title in _KINDS.items():
        of_kind = [each for each in content.shown if each.chosen.kind == kind]
        if of_kind:
            parts.append(tag("h3", title))
            parts += [_frame(each) for each in of_kind]
    return parts


def confidence(content: Content) -> list[Markup]:
    """Returns how sigma compares with the errors: reliability and sparsification."""
    found = content.validation
    if found is None:
        return _calibrated(content)
    sigma, reliability = found.measured.sigma, found.measured.reliability
    if sigma is None or reliability is None:
        return [tag("p", "The student's head predicts no distribution, so it has no confidence.")]
    levels = list(measure.LEVELS)
    named = [
        Curve("as predicted", levels, reliability.observed),
        Curve("ideal", [0.0, 1.0], [0.0, 1.0], dashed=True),
    ]
    after = measure.reliability(found.measured.pixels, reliability.factor)
    named.insert(1, Curve(f"sigma x {reliability.factor:.2f}", levels, after.observed))
    dropped = np.arange(len(sigma.curve)) / len(sigma.curve)
    sparse = [
        Curve("by sigma", dropped.tolist(), sigma.curve.tolist()),
        Curve("by the error itself", dropped.tolist(), sigma.oracle.tolist(), dashed=True),
        Curve("at random", [0.0, float(dropped[-1])], [1.0, 1.0], dashed=True),
    ]
    drawn = [
        chart("Reliability: pixels within the interval", named, "stated probability", y_from=0.0),
        chart("Sparsification: error that is left", sparse, "share of pixels dropped", y_from=0.0),
    ]
    rows = [
        ("rank correlation with the error", _interval(sigma.correlation)),
        ("the same at equal depth", _interval(sigma.at_depth)),
        ("rank correlation of depth itself", _interval(sigma.of_depth)),
        ("sparsification gain: 1 as by the error, 0 by chance", _interval(sigma.gain)),
        ("errors by stated sigma", f"{reliability.factor:.3f}"),
    ]
    parts = [
        _label(found),
        tag(
            "p",
            f"From {sum(len(each.sigma) for each in found.measured.pixels)} pixels of "
            f"{len(found.measured.pixels)} frames, without flip averaging. Sigma is the half-width "
            f"of the predicted distribution. The error is that against {found.target}. Intervals "
            "are 95 % of a bootstrap over images, too narrow if many images show one place.",
            class_="faint",
        ),
        tag("div", *drawn, class_="charts"),
        table(("figure", "value"), rows),
    ]
    if sigma.ranges:
        parts.append(_factors(found))
    return parts + _calibrated(content)


def speed(content: Content) -> list[Markup]:
    """Returns size and latency of the exported files on this machine."""
    rows = []
    for each in content.timings:
        shown = "" if each.size is None else f"{each.size[0]}x{each.size[1]}"
        latency = each.problem or f"{each.median_ms:.1f} ms"
        runs = "" if each.median_ms is None else each.runs
        threads = "" if each.median_ms is None else each.threads
        size = f"{each.num_bytes / 1e6:.2f} MB"
        rows.append((each.name, size, each.runtime, shown, latency, runs, threads))
    head = ("file", "size", "run by", "image", "median latency", "runs", "threads")
    said = f"One image, on the CPU of this machine, {content.time}"
    return [table(head, rows, said)] if rows else []


def try_next(content: Content) -> list[Markup]:
    """Returns what to try next, by symptom."""
    if content.validation is None:
        return []
    if not content.suggestions:
        return [tag("p", "No figure stands out. The largest gain may be in more images.")]
    items = []
    for each in content.suggestions:
        options = [tag("pre", f"--set {' '.join(map(shlex.quote, each.options))}")]
        items.append(
            tag(
                "li",
                tag("strong", each.symptom),
                tag("p", each.advice),
                *(options if each.options else ()),
            )
        )
    said = "Rules of thumb from this run's figures. Whether one helps, the next run shows."
    return [tag("p", said, class_="faint"), tag("ol", *items)]


def repeat(content: Content) -> list[Markup]:
    """Returns the commands that repeat everything, and the plan and recipe that were used."""
    parts = []
    for what, command in content.commands:
        parts.append(tag("h3", f"{what[0].upper()}{what[1:]}"))
        parts.append(tag("pre", command))
    return parts


def environment(content: Content) -> list[Markup]:
    """Returns how the run went, on what it ran, and its recipe."""
    records = content.records
    outcome = records.outcome
    pairs = []
    if outcome is not None:
        done = f"{outcome.outcome}, {outcome.iteration} of {outcome.total_iterations} iterations"
        pairs.append(("run", f"{done}, {outcome.time}"))
        if outcome.reason:
            pairs.append(("reason", outcome.reason))
    if records.launch is not None:
        pairs.append(("ranks", f"{records.launch.world_size}, by {records.launch.launcher}"))
    pairs += records.environment.items()
    parts = [facts(pairs)]
    for title, path in (("Plan", content.place.plan), ("Recipe", _saved_recipe(content))):
        if path is not None:
            told = path.read_text(encoding="utf-8", errors="replace")
            summary_tag = tag("summary", f"{title}: {path.name}")
            parts.append(tag("details", summary_tag, tag("pre", told)))
    return parts


def _label(found: Evaluation | None) -> Markup:
    """Returns the line that says that figures are no accuracy; empty if they are."""
    if found is None or not found.is_agreement:
        return Markup("")
    return tag("p", f"{found.protocol.reference.label.upper()}", class_="label")


def _note(title: str, lines: Iterable[str]) -> Markup:
    items = tag("ul", *(tag("li", line) for line in lines))
    return tag("div", tag("strong", title), items, class_="note")


def _split_cells(split: Split) -> tuple[object, ...]:
    depth = "" if split.with_depth is None else split.with_depth
    size = "" if split.num_bytes is None else f"{split.num_bytes / 1e6:.1f} MB"
    return split.count, len(split.folders) or "", depth, size


def _folders(split: Split) -> Markup:
    """Returns the number of frames in the largest folders of a split, which fold away."""
    largest = split.folders.most_common(_FOLDERS_SHOWN)
    rows = [(name or ".", count) for name, count in largest]
    rest = len(split.folders) - len(rows)
    if rest:
        left = split.count - sum(count for _, count in largest)
        rows.append((f"{rest} more folders", left))
    title = tag("summary", f"Folders of the {_SPLITS.get(split.name, split.name)} frames")
    return tag("details", title, table(("folder", "images"), rows))


def _listed(splits: Sequence[Split]) -> str:
    return ", ".join(dict.fromkeys(each.source for each in splits if each.source))


def _sizes(content: Content) -> str:
    """Returns the sizes of the images that were evaluated."""
    found = content.validation or content.training
    if found is None:
        return ""
    sizes = found.measured.sizes.most_common(_FOLDERS_SHOWN)
    told = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes)
    more = len(found.measured.sizes) - len(sizes)
    return f"{told} and {more} more sizes" if more else told


def _teachers(content: Content) -> list[Markup]:
    teachers = content.records.teachers
    if teachers is None:
        told = [tag("p", "The weights don't say from which teachers they learned.")]
    elif not teachers:
        told = [tag("p", "None: the weights learned from measured depth alone.")]
    else:
        told = [tag("ul", *(tag("li", learned_from.describe(each)) for each in teachers))]
    notice = learned_from.licence_notice(teachers)
    return told if notice is None else [*told, tag("p", notice, class_="label")]


def _digests(content: Content) -> list[tuple[str, str]]:
    records = content.records
    found = [(f"{records.weights.name}, SHA-256", records.weights_digest)]
    for teacher in records.teachers or ():
        if teacher.get("digest"):
            model = teacher.get("model") or teacher["name"]
            found.append((f"{model}, the teacher", teacher["digest"]))
    if records.inputs is not None:
        for name, (path, crc) in records.inputs["files"].items():
            where = os.path.basename(str(path))
            found.append((f"{name}, CRC-32", f"{_hexadecimal(crc)} {where}"))
        for path, crc in records.inputs["recipe_files"].items():
            found.append((f"{os.path.basename(path)}, CRC-32", _hexadecimal(crc)))
    return found


def _hexadecimal(crc: object) -> str:
    return f"{crc:08x}" if isinstance(crc, int) else plain(crc)


def _unit(metric: str) -> str:
    return f", {_UNITS[metric]}" if metric in _UNITS else ""


def _metric_cells(found: Evaluation) -> list[str]:
    values = found.measured.result.metrics
    return [f"{values[name]:.4f}" for name in metrics.METRIC_NAMES]


def _protocol(found: Evaluation) -> str:
    protocol, rows = found.protocol, found.measured.result.frames
    with_target = sum(map(bool, rows.pixels))
    flip = "on" if protocol.settings.flip else "off"
    against = "" if protocol.reference is None else f" of {protocol.reference.name}"
    return (
        f"{len(rows.names)} {protocol.split} frames, {with_target} of them with {found.target} "
        f"that counts{against}, {sum(rows.pixels)} pixels; {protocol.min_depth:g} < d < "
        f"{protocol.cap:g} m, crop {protocol.settings.crop}, flip averaging {flip}."
    )


def _ranges(found: Evaluation) -> Markup:
    rows = []
    for each in found.measured.result.ranges:
        place = f"{each.from_m:g} - {each.to_m:g} m"
        if each.pixels:
            told = (f"{each.bias_m:+.3f}", f"{each.abs_rel:.4f}", f"{each.rmse_m:.3f}")
        else:
            told = ("no pixel", "", "")
        rows.append((place, each.pixels, *told))
    head = ("range", "pixels", "bias, m", "abs_rel", "rmse, m")
    caption = f"By range of {found.target}, mean over pixels; a bias below 0 is too near"
    return table(head, rows, caption)


def _edges(found: Evaluation) -> str:
    """Returns a sentence on the depth near edges."""
    edges = found.measured.result.edges
    if edges is not None:
        return f"{edges}."
    shares = [frame.edge for frame in found.measured.frames if not math.isnan(frame.edge)]
    if not shares:
        return "No frame has ground truth that is dense enough to have edges."
    return (
        f"{mean_of(shares):.1%} of the pixels near edges of the ground truth are in mid-air, "
        f"between the two sides; mean over the {len(shares)} frames with dense ground truth."
    )


def _flip_text(content: Content) -> str:
    found = content.validation.measured
    told = ""
    if found.flip is not None:
        told += f" The student's depth changes by {found.flip:.1%} if the image is mirrored"
        teacher = [each.teacher_flip for each in content.shown if each.teacher_flip is not None]
        if teacher:
            told += f", the teacher's by {float(np.median(teacher)):.1%} in the frames below"
        told += "."
    return told


def _scale(name: str, pixels: np.ndarray, end: str) -> Markup:
    """Returns a colour scale with its name above it and its ends below.

    Args:
        name: What it is the scale of.
        pixels: (1, W, 3) uint8, its colours.
        end: The value at its right end.
    """
    bar = picture(np.repeat(pixels, 8, axis=0), f"colour scale of {name} from 0 m to {end}")
    ends = tag("div", tag("span", "0 m"), tag("span", end), class_="ends")
    return tag("div", tag("div", name), bar, ends, class_="scale")


def _frame(shown: Shown) -> Markup:
    """Returns the pictures of one frame with their titles."""
    name = shown.chosen.name
    cells = [
        tag("figure", picture(cell, f"{title} of {plain(name)}"), tag("figcaption", title))
        for title, cell in shown.cells.items()
    ]
    caption = joined([tag("code", name), f", abs_rel {shown.chosen.abs_rel:.4f}"])
    style = "panels wide" if shown.is_wide else "panels"
    return tag("div", tag("p", caption), tag("div", *cells, class_=style), class_="frame")


def _interval(found) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _factors(found: Evaluation) -> Markup:
    rows = [
        (
            f"{each.from_m:g} - {each.to_m:g} m",
            each.pixels,
            _interval(each.factor),
            f"{each.covered:.1%}",
        )
        for each in found.measured.sigma.ranges
    ]
    head = ("predicted depth", "pixels", "factor", "within factor x sigma")
    return table(head, rows, "Errors by stated sigma, by range; 68 % within it if Gaussian")


def _calibrated(content: Content) -> list[Markup]:
    """Returns the figures of the calibrated confidence, before and after; nothing without any."""
    found = content.calibration
    if found is None:
        return []
    about = f"Temperature {found.temperature:.4g}, fitted against {found.against}"
    if found.band is not None:
        about += f"; confidence is the probability that depth is within {found.band:.0%}"
    parts = [tag("h3", "Calibrated confidence"), tag("p", f"{about}.")]
    known = content.records.iteration
    is_stale = found.iteration is not None and known is not None and found.iteration != known
    if found.weights != content.records.weights.name or is_stale:
        of = f"{found.weights} of iteration {found.iteration}"
        parts.append(tag("p", f"It is of other weights: {of}. Calibrate again.", class_="label"))
    if found.remarks:
        parts.append(_note("Of these figures", found.remarks))
    if found.curves[0][0] and found.curves[1][0]:
        named = [
            Curve("before", *found.curves[0]),
            Curve("after", *found.curves[1]),
            Curve("ideal", [0.0, 1.0], [0.0, 1.0], dashed=True),
        ]
        drawn = chart("Reliability of confidence", named, "stated confidence", y_from=0.0)
        parts.append(tag("div", drawn, class_="charts"))
    rows = [
        (key.replace("_", " "), f"{before:.4f}", f"{after:.4f}")
        for key, (before, after) in found.figures.items()
    ]
    head = ("figure", "temperature 1", f"temperature {found.temperature:.4g}")
    return [*parts, table(head, rows)] if rows else parts


def _saved_recipe(content: Content) -> Path | None:
    path = content.place.work_dir / "config.yaml"
    return path if path.is_file() else None


def mean_of(values: Iterable[float]) -> float:
    """Returns the mean of the values that aren't NaN; NaN without one.

    Args:
        values: The values.
    """
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
