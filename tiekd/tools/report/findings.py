"""Takes the figures from which suggestions follow out of a report's content."""

import math
import statistics

from tiekd.tools.report.content import Content
from tiekd.tools.report.sections.parts import mean_of
from tiekd.tools.report.symptoms import Findings

_METRIC = "abs_rel"


def findings_of(content: Content, focal: float | None) -> Findings:
    """Returns the figures of a run, for the rules of `symptoms`.

    Args:
        content: The content of the report, with an evaluation of the validation frames.
        focal: Median focal length of the frames at the working resolution; None if unknown.
    """
    found = content.validation
    measured = found.measured
    result = measured.result
    # The same frames of a training compare with the same target.
    trained = content.training
    gain = None if measured.excess is None else measured.excess.gain.high
    flips = [each.teacher_flip for each in content.shown if each.teacher_flip is not None]
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
    """Returns the validation metric of the log: iterations and values."""
    run, name = content.records.run, content.data_set.name
    # The log has the metric of each data set beside that which chooses the best weights.
    key = f"{name}/{_METRIC}" if name else _METRIC
    rows = [] if run is None else [r for r in run.rows if r.mode == "val" and key in r.values]
    return [row.iteration for row in rows], [row.values[key] for row in rows]


def _worst_ratio(values: list[float]) -> float:
    """Returns the largest of some values by their median; NaN without one."""
    known = [value for value in values if not math.isnan(value)]
    middle = statistics.median(known) if known else 0.0
    return max(known) / middle if middle > 0 else math.nan
