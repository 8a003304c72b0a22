"""Collects the measurements in a report's content from which suggestions are derived."""

import math
import statistics

from tiekd.tools.report.content import Content
from tiekd.tools.report.sections.parts import mean_of
from tiekd.tools.report.symptoms import Findings

_METRIC = "abs_rel"


def findings_of(content: Content, focal: float | None) -> Findings:
    """Returns the measurements of a run on which the rules in `symptoms` are based.

    Args:
        content: The content of the report, with an evaluation of the validation frames.
        focal: Median focal length of the frames in pixels of the student's input; None if unknown.
    """
    found = content.validation
    measured = found.measured
    result = measured.result
    # Use the evaluation on training frames, which has the same target (ground truth or the
    # teacher).
    trained = content.training
    gain = None if measured.excess is None else measured.excess.gain.high
    flips = [each.teacher_flip for each in content.frame_pictures if each.teacher_flip is not None]
    return Findings(
        recipe=content.data_set.recipe.node,
        resize=content.resize,
        is_agreement=found.is_agreement,
        frames=sum(map(bool, result.frames.pixels)),
        abs_rel=result.metrics[_METRIC],
        aligned=mean_of(frame.abs_rel_aligned for frame in measured.frames),
        relative_bias=measured.relative_bias,
        ranges=result.ranges,
        mid_air=_mid_air(content),
        reliability=measured.reliability,
        is_calibrated=content.records.temperature is not None,
        excess_gain=math.nan if gain is None else gain,
        floor_abs_rel=math.nan if measured.floor is None else measured.floor[_METRIC],
        trained_abs_rel=math.nan if trained is None else trained.measured.result.metrics[_METRIC],
        teacher_flip=statistics.median(flips) if flips else None,
        focal=focal,
        metric=_metric(content),
        worst_ratio=_worst_ratio([frame.abs_rel for frame in measured.frames]),
    )


def _mid_air(content: Content) -> float:
    edges = content.validation.measured.result.edges
    if edges is not None:
        return edges.mid_air
    return mean_of(frame.edge for frame in content.validation.measured.frames)


def _metric(content: Content) -> tuple[list[float], list[float]]:
    """Returns the iterations of the evaluations in the run's log, and the abs_rel of each.

    Args:
        content: The content of the report; both lists are empty if it has no log.
    """
    run, name = content.records.run, content.data_set.name
    # With several data sets, the log has the metric of each beside that which chooses the best
    # weights.
    key = f"{name}/{_METRIC}" if name else _METRIC
    rows = [] if run is None else [r for r in run.rows if r.mode == "val" and key in r.values]
    return [row.iteration for row in rows], [row.values[key] for row in rows]


def _worst_ratio(values: list[float]) -> float:
    """Returns the largest of some values divided by their median.

    Args:
        values: The values. Those that are NaN are ignored.

    Returns:
        The ratio; NaN if there are no values or their median is 0.
    """
    known = [value for value in values if not math.isnan(value)]
    middle = statistics.median(known) if known else 0.0
    return max(known) / middle if middle > 0 else math.nan
