"""From the figures of an audit to suspicions, each with its limit.

Ground truth counts first: where enough frames have it, the rules that guess without it only
report. The limits were set so that good teachers pass: the figures are in
tiekd/tools/TEACHER_AUDIT.md. Left out without ground truth: an affine error (depth = s * map + t),
and a scale that is off by less than a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from tiekd.evaluation.teacher_audit import shape, truth
from tiekd.evaluation.teacher_audit.edges import EdgeFigures, t_value
from tiekd.evaluation.teacher_audit.grid import AuditFrame
from tiekd.evaluation.teacher_audit.truth import TruthFigures

MIN_FRAMES = 8
_DENSE = 0.5  # share of cells with a depth from which maps have edges
UNITS = {"millimetres": 1000.0, "centimetres": 100.0, "hundreds of metres": 0.01}
UNITS |= {"kilometres": 0.001}


@dataclass(frozen=True)
class Limits:
    """The limits above which a figure is a suspicion.

    Attributes:
        scale: Factor by which the median scale may be off.
        unit: Factor within which a scale counts as that of another unit.
        focal: Ratio by which two sources of the focal length may differ.
        focal_scale: Factor within which a wrong scale counts as the ratio of focal lengths.
        aligned: Median over frames of the error that is left after the scale is removed.
        correlation: Rank correlation with the truth below which the map is an inverse.
        shift: Median |shift| by depth of the affine fit.
        shift_gain: What the affine fit must leave of the error at most, to be blamed.
        t: Standard errors of evidence for a mirrored map or exchanged channels.
        inverse_t: The same for an inverse without ground truth.
        own_z: Standard errors by which a frame's own map must fit better than others.
        variety: Median |log ratio| of two frames' maps from which the frames count as different; a
            camera that stands still can't tell whose map it is.
        swap_ratio: Error with exchanged channels by error without.
        mirror_ratio: Error of mirrored maps by error of maps.
        unrest_ratio: Effect of noise by that with exchanged channels.
        response: |Log ratio| of a covered region's response to that of its mirror image from which
            a teacher is known to see its image, as it is or mirrored.
        levels: Distinct depths of a map that count as 8 bits.
        beyond: Share of pixels beyond the student's range.
        at_top: Share of pixels at a map's largest depth.
        valid: Share of pixels with a depth.
        heights_m: The camera's smallest and largest height.
        median: The median depth's smallest share of the student's range.
    """

    scale: float = 1.35
    unit: float = 1.6
    focal: float = 1.2
    focal_scale: float = 1.3
    aligned: float = 0.4
    correlation: float = -0.3
    shift: float = 0.35
    shift_gain: float = 0.5
    t: float = 2.5
    inverse_t: float = 3.0
    own_z: float = 2.0
    variety: float = 0.04
    swap_ratio: float = 0.93
    mirror_ratio: float = 0.8
    unrest_ratio: float = 1.1
    response: float = 0.4
    levels: int = 256
    beyond: float = 0.5
    at_top: float = 0.6
    valid: float = 0.01
    heights_m: tuple[float, float] = (0.3, 3.0)
    median: float = 0.02


class Suspicion(NamedTuple):
    """A figure above its limit.

    Attributes:
        kind: One of "unit", "inverse", "affine", "mirrored", "bgr", "foreign", "focal", "scale",
            "range", "levels", "empty" and "error".
        message: The likely cause, with the figure.
    """

    kind: str
    message: str


@dataclass
class Verdict:
    """The outcome of an audit.

    Attributes:
        frames: Number of audited frames.
        figures: name -> value of every figure; NaN where it can't be told.
        suspicions: The most likely cause first; empty if nothing is above its limit.
        truth: The comparison with ground truth; None where too few frames have any.
        edges: The comparison of the edges; None for maps without any depth.
    """

    frames: int
    figures: dict[str, float]
    suspicions: list[Suspicion] = field(default_factory=list)
    truth: TruthFigures | None = None
    edges: EdgeFigures | None = None

    @property
    def certain(self) -> list[Suspicion]:
        """The suspicions that are certain enough to stop a run.

        Stored maps of a blurred network have no edges where the image has some, and so look like
        maps of other frames. Without ground truth, and without a network whose response to a
        covered part of the image shows more, that alone isn't enough.
        """
        if self.truth is not None or np.isfinite(self.figures["response"]):
            return self.suspicions
        return [suspicion for suspicion in self.suspicions if suspicion.kind != "foreign"]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the suspicions, in their order."""
        return [suspicion.kind for suspicion in self.suspicions]


def judge(
    frames: Sequence[AuditFrame], max_depth_m: float, limits: Limits | None = None
) -> Verdict:
    """Judges a teacher by the maps of some frames.

    Args:
        frames: The frames, on one grid.
        max_depth_m: The student's range in metres.
        limits: The limits of the figures.
    """
    return decide(measure(frames, max_depth_m), max_depth_m, limits)


def measure(frames: Sequence[AuditFrame], max_depth_m: float) -> Verdict:
    """Returns all figures, without suspicions."""
    verdict = Verdict(len(frames), _plain_figures(frames))
    figures = verdict.figures
    if not np.isfinite(figures["median_m"]):
        return verdict
    verdict.edges = EdgeFigures(frames)
    figures["inverse_t"] = shape.inverse_t([frame.depth for frame in frames])
    figures["variety"] = _variety(frames)
    # Sparse maps have no edges.
    dense = np.mean([frame.depth > 0 for frame in frames]) >= _DENSE
    figures["mirror_t"] = verdict.edges.mirror_t if dense else float("nan")
    figures["own_z"] = verdict.edges.own_z if dense else float("nan")
    figures["swap"] = _swap_change(frames)
    figures["unrest_ratio"], figures["unrest_t"] = _unrest(frames)
    compared = truth.compare(frames, max_depth_m)
    if compared.count >= MIN_FRAMES:
        verdict.truth = compared
        figures |= _truth_figures(compared)
    return verdict


def decide(verdict: Verdict, max_depth_m: float, limits: Limits | None = None) -> Verdict:
    """Returns the verdict with what is above its limit.

    Args:
        verdict: As `measure` returns it; without its `truth` ground truth doesn't count.
        max_depth_m: The student's range in metres.
        limits: The limits of the figures.
    """
    limits = limits or Limits()
    figures = verdict.figures
    if figures["valid"] < limits.valid or not np.isfinite(figures["median_m"]):
        text = f"only {figures['valid']:.0%} of the pixels have a depth"
        return replace(verdict, suspicions=[Suspicion("empty", text)])
    # Ground truth goes first.
    if verdict.truth is not None:
        found = _with_truth(figures, limits)
    else:
        found = _without_truth(figures, max_depth_m, limits)
    found += _either_way(figures, limits, {suspicion.kind for suspicion in found})
    return replace(verdict, suspicions=found)


def _plain_figures(frames: Sequence[AuditFrame]) -> dict[str, float]:
    medians = [np.median(f.depth[f.depth > 0]) for f in frames if (f.depth > 0).any()]
    heights = np.array([shape.camera_height(frame) for frame in frames])
    grounds = np.isfinite(heights)
    return {
        "valid": float(np.mean([frame.valid for frame in frames])),
        "median_m": float(np.median(medians)) if medians else float("nan"),
        "beyond": float(np.mean([frame.beyond for frame in frames])),
        "at_top": float(np.median([frame.at_top for frame in frames])),
        "levels": float(np.median([frame.levels for frame in frames])),
        "pixels": float(np.median([frame.pixels for frame in frames])),
        "camera_height_m": float(np.median(heights[grounds])) if any(grounds) else float("nan"),
        "ground_share": float(grounds.mean()),
        "flip": _median([frame.flip for frame in frames]),
        "zoom_scale": _median([frame.zoom and frame.zoom[0] for frame in frames]),
        "zoom": _median([frame.zoom and frame.zoom[1] for frame in frames]),
        "response": _median([frame.response for frame in frames]),
        "focal_ratio": _focal_ratio(frames),
    }


def _median(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _focal_ratio(frames: Sequence[AuditFrame]) -> float:
    """Returns the listed focal length by another source's, the median; NaN without another."""
    ratios = []
    for frame in frames:
        listed = frame.focals.get("listed", float("nan"))
        others = [value for key, value in frame.focals.items() if key != "listed"]
        ratios += [listed / other for other in others if other > 0]
    return _median(ratios)


def _variety(frames: Sequence[AuditFrame]) -> float:
    """Returns how much the maps of neighbouring frames differ, without their scales, the median."""
    pairs = zip(frames, [*frames[1:], frames[0]], strict=True)
    return _median([truth.aligned_error(one.depth, other.depth) for one, other in pairs])


def _swap_change(frames: Sequence[AuditFrame]) -> float:
    """Returns how much depth changes when red and blue are exchanged, the median over frames."""
    changes = []
    for frame in frames:
        if frame.swapped is not None:
            both = (frame.depth > 0) & (frame.swapped > 0)
            ratios = np.log(frame.swapped[both]) - np.log(frame.depth[both])
            changes.append(float(np.median(np.abs(ratios))) if ratios.size else float("nan"))
    return _median(changes)


def _unrest(frames: Sequence[AuditFrame]) -> tuple[float, float]:
    """Returns how much less noise changes depth with red and blue exchanged.

    Returns:
        (ratio, t): the ratio of the change as it is to that with exchanged channels, a geometric
        mean; and the mean of its log in standard errors.
    """
    pairs = np.array([frame.unrest or (np.nan, np.nan) for frame in frames], float)
    if not (pairs > 0).all():
        return float("nan"), float("nan")
    logs = np.log(pairs[:, 0] / pairs[:, 1])
    return float(np.exp(logs.mean())), t_value(logs)


def _truth_figures(compared: TruthFigures) -> dict[str, float]:
    columns = {
        name: np.array([getattr(frame, name) for frame in compared.frames], float)
        for name in compared.frames[0]._fields
    }
    figures = {
        name: float(np.nanmedian(columns[name]))
        for name in ("aligned", "correlation", "fit_scale", "fit_shift", "shift_gain")
    }
    figures["abs_rel"] = float(np.nanmean(columns["abs_rel"]))
    logs = np.log(columns["scale"])
    figures["scale"] = float(np.exp(np.nanmedian(logs)))
    figures["scale_spread"] = float(np.nanstd(logs))
    figures["relative_shift"] = float(np.nanmedian(columns["relative_shift"]))
    for name in ("mirror_t", "mirror_ratio", "own_z", "swap_t", "swap_ratio"):
        figures[f"truth_{name}"] = getattr(compared, name)
    return figures


def _with_truth(figures: dict[str, float], limits: Limits) -> list[Suspicion]:
    found = []
    # What is wrong with the shape of the maps, the most specific cause first.
    mirrored = (
        figures["truth_mirror_t"] < -limits.t
        and figures["truth_mirror_ratio"] < limits.mirror_ratio
    )
    if figures["correlation"] < limits.correlation:
        text = f"they fall where the truth rises (rank correlation {figures['correlation']:.2f})"
        found.append(Suspicion("inverse", f"inverse depth or disparity taken for depth: {text}"))
    elif mirrored:
        text = f"mirrored back, their error is {figures['truth_mirror_ratio']:.2g} times as large"
        found.append(Suspicion("mirrored", f"mirrored maps: {text}"))
    elif _is_foreign(figures, limits):
        text = "a frame's map fits its truth no better than other frames' maps"
        found.append(Suspicion("foreign", f"maps of other frames: {text}"))
    elif figures["relative_shift"] > limits.shift and figures["shift_gain"] < limits.shift_gain:
        fit = f"{figures['fit_scale']:.3g} * map + {figures['fit_shift']:.3g} m"
        found.append(Suspicion("affine", f"an affine map taken for depth: {fit} fits better"))
    elif figures["aligned"] > limits.aligned:
        text = f"{figures['aligned']:.2f} is left of it when each frame's scale is removed"
        found.append(Suspicion("error", f"a large error, cause unknown: {text}"))
    if figures["truth_swap_t"] < -limits.t and figures["truth_swap_ratio"] < limits.swap_ratio:
        text = f"with them exchanged the error is {figures['truth_swap_ratio']:.2f} times as large"
        found.append(Suspicion("bgr", f"red and blue exchanged (BGR): {text}"))
    if not found or found[0].kind != "inverse":
        found += _scale(figures, limits)
    return found


def _is_foreign(figures: dict[str, float], limits: Limits) -> bool:
    """Returns True if neither errors nor edges tell a frame's own map from other frames' maps.

    A weak network's errors hardly depend on the frame, and its edges still do. One that is seen to
    respond to its image gives no other frame's map.
    """
    return (
        not abs(figures["response"]) > limits.response
        and figures["truth_own_z"] < limits.own_z
        and not figures["own_z"] >= limits.own_z + 1
        and figures["variety"] > limits.variety
    )


def _scale(figures: dict[str, float], limits: Limits) -> list[Suspicion]:
    """Judges the scale to ground truth: another unit, another focal length, or unknown."""
    scale = figures["scale"]
    if _is_near(scale, 1, limits.scale):
        return []
    for unit, factor in UNITS.items():
        if _is_near(scale, factor, limits.unit):
            return [Suspicion("unit", f"{unit} taken for metres: the scale is {scale:.3g}")]
    ratio = figures["focal_ratio"]
    told = not _is_near(ratio, 1, limits.focal) and np.isfinite(ratio)
    if told and _is_near(scale, ratio, limits.focal_scale):
        text = f"the scale is {scale:.2f}, and the focal length {ratio:.2f} times another source's"
        return [Suspicion("focal", f"a wrong focal length: {text}")]
    return [Suspicion("scale", f"scale off by {scale:.2f}, cause unknown")]


def _is_near(value: float, wanted: float, factor: float) -> bool:
    """Returns True if two numbers above 0 differ by at most a factor; False for NaN."""
    return value > 0 and wanted > 0 and abs(np.log(value / wanted)) <= np.log(factor)


def _without_truth(
    figures: dict[str, float], max_depth_m: float, limits: Limits
) -> list[Suspicion]:
    found = []
    if figures["inverse_t"] > limits.inverse_t:
        text = f"they rise towards the lower border ({figures['inverse_t']:.1f} standard errors)"
        found.append(Suspicion("inverse", f"inverse depth or disparity taken for depth: {text}"))
    else:
        found += _unit(figures, max_depth_m, limits)
    # A teacher that is seen to respond to its image needs no edges, and those of maps that are cut
    # off at one depth say nothing.
    responds = abs(figures["response"]) > limits.response
    if figures["at_top"] < limits.at_top and not responds:
        if figures["mirror_t"] < -limits.t:
            text = f"their edges fit mirrored images better by {-figures['mirror_t']:.1f} errors"
            found.append(Suspicion("mirrored", f"mirrored maps: {text}"))
        elif figures["own_z"] < limits.own_z and figures["variety"] > limits.variety:
            text = "their edges fit their own images no better than others'"
            found.append(Suspicion("foreign", f"maps of other frames: {text}"))
    if figures["unrest_t"] > limits.t and figures["unrest_ratio"] > limits.unrest_ratio:
        text = (
            f"noise changes depth {figures['unrest_ratio']:.2f} times as much as with them swapped"
        )
        found.append(Suspicion("bgr", f"red and blue exchanged (BGR): {text}"))
    return found


def _unit(figures: dict[str, float], max_depth_m: float, limits: Limits) -> list[Suspicion]:
    """Judges the size of the depths: do they suit the student's range, and a camera's height?"""
    median = figures["median_m"]
    likely = max_depth_m * 0.15
    nearest = min(UNITS, key=lambda unit: abs(np.log(median / UNITS[unit] / likely)))
    if median > max_depth_m or figures["beyond"] > limits.beyond:
        text = f"median depth {median:.3g}, with a range of {max_depth_m:g} m"
        return [Suspicion("unit", f"{nearest} taken for metres: {text}")]
    if figures["at_top"] > limits.at_top:
        text = f"{figures['at_top']:.0%} of the pixels have the largest depth"
        return [Suspicion("unit", f"another unit taken for metres, and cut off: {text}")]
    if median < max_depth_m * limits.median:
        text = f"median depth {median:.3g}, with a range of {max_depth_m:g} m"
        return [Suspicion("unit", f"{nearest} taken for metres, or inverse depth: {text}")]
    low, high = limits.heights_m
    height = figures["camera_height_m"]
    if figures["ground_share"] >= 0.5 and not low <= height <= high:
        text = f"the camera would be {height:.2f} m above the ground"
        return [Suspicion("scale", f"a wrong scale or focal length: {text}")]
    return []


def _either_way(figures: dict[str, float], limits: Limits, kinds: set[str]) -> list[Suspicion]:
    """Judges what needs no ground truth and is as certain without it."""
    found = []
    ratio = figures["focal_ratio"]
    if "focal" not in kinds and np.isfinite(ratio) and not _is_near(ratio, 1, limits.focal):
        text = f"the listed one is {ratio:.2f} times another source's"
        found.append(Suspicion("focal", f"a wrong focal length: {text}"))
    if "mirrored" not in kinds and figures["response"] < -limits.response:
        text = "covering one side of the image changes the other side of the map"
        found.append(Suspicion("mirrored", f"mirrored maps: {text}"))
    if figures["levels"] <= limits.levels and figures["pixels"] >= 16 * limits.levels:
        text = f"{figures['levels']:.0f} distinct depths a frame"
        found.append(Suspicion("levels", f"8-bit maps: {text}"))
    if "unit" not in kinds and figures["beyond"] > limits.beyond:
        text = f"{figures['beyond']:.0%} of the depths are beyond the student's range"
        found.append(Suspicion("range", f"another range: {text}"))
    return found
