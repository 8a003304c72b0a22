"""Makes the section on errors: metrics, errors by range, near edges, and of scale.

Metrics have the same digits as in bin/evaluate.py.
"""

import math
from collections.abc import Mapping

import numpy as np

from tiekd.evaluation import metrics
from tiekd.evaluation.agreement import LABEL
from tiekd.tools.report.content import Content, Evaluation
from tiekd.tools.report.markup import Markup, table, tag
from tiekd.tools.report.sections.parts import label, mean_of, unit_of


def errors_section(content: Content) -> list[Markup]:
    """Returns the HTML of the section on errors, of validation and of some training frames.

    It has metrics, errors by depth range, near edges, and of scale.

    Args:
        content: The content of the report; without an evaluation the result is an empty list.
    """
    found = content.validation
    if found is None:
        return []
    parts = [label(found), tag("p", _protocol(found), class_="faint")]
    rows = [("validation", *_metric_cells(found))]
    # Add a row for some training frames, and one for the comparison with the teacher.
    for what, other in (
        ("training frames", content.training),
        ("validation frames, against the teacher", content.agreement),
    ):
        if other is not None:
            count = f"{len(other.measured.frames)} of {other.num_split_frames}"
            rows.append((f"{count} {what}", *_metric_cells(other)))
    if found.measured.floor is not None:
        rows.append(("validation, median map", *_cells(found.measured.floor)))
    head = ("frames", *(f"{key}{unit_of(key)}" for key in metrics.METRIC_NAMES))
    parts.append(table(head, rows, "Metrics, mean over images"))
    if found.measured.floor is not None:
        told = f"The median map is that of {found.target} of some training frames"
        parts.append(tag("p", f"{told}; it ignores the image.", class_="faint"))
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


def _metric_cells(found: Evaluation) -> list[str]:
    return _cells(found.measured.result.metrics)


def _cells(values: Mapping[str, float]) -> list[str]:
    return [f"{values[name]:.4f}" for name in metrics.METRIC_NAMES]


def _protocol(found: Evaluation) -> str:
    protocol, rows = found.protocol, found.measured.result.frames
    with_target = sum(map(bool, rows.pixels))
    flip = "on" if protocol.settings.flip else "off"
    against = "" if protocol.reference is None else f" ({protocol.reference.name})"
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
    """Returns a sentence on depth edges: the share of pixels between an edge's two sides.

    Args:
        found: The evaluation of the validation frames.
    """
    edges = found.measured.result.edges
    if edges is not None:
        told = str(edges)
        return f"{told[0].upper()}{told[1:]}."
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
        teacher = [
            each.teacher_flip for each in content.frame_pictures if each.teacher_flip is not None
        ]
        if teacher:
            told += f", the teacher's by {float(np.median(teacher)):.1%} in the frames below"
        told += "."
    return told
