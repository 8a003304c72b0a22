"""Decides from the audit's measurements which mistakes a teacher is suspected of.

Each rule compares measurements, called figures, with limits. If at least MIN_FRAMES frames have
ground truth, rules that use it replace the less certain rules that don't. The limits were set such
that good teachers pass; tiekd/tools/TEACHER_AUDIT.md lists the figures of such teachers. Not found
without ground truth: an affine error (depth = s * map + t), and a scale that is wrong by less than
the factor between two units.
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
_DENSE = 0.5  # minimum fraction of a map's cells with a depth for its edges to be compared
UNITS = {"millimetres": 1000.0, "centimetres": 100.0, "hundreds of metres": 0.01}
UNITS |= {"kilometres": 0.001}


@dataclass(frozen=True)
class Limits:
    """The limits with which the audit's figures, i.e. measurements, are compared.

    Attributes:
        scale: Largest factor between the teacher's depth and ground truth that isn't suspicious.
        unit: Another unit, e.g. millimetres, is suspected if the ratio of the teacher's depth to
            ground truth is the number of such units in a metre, up to this factor.
        focal: Largest factor between the dataset's focal length and another source's, e.g. EXIF's,
            that isn't suspicious.
        estimate: Like `focal`, but for the focal length that the teacher itself estimates, which is
            less certain.
        focal_scale: A wrong focal length is suspected as the cause of a wrong scale if the scale
            differs from the ratio of the two focal lengths by at most this factor.
        aligned: Largest `truth.aligned_error`, i.e. error after each frame's scale is corrected,
            that isn't suspicious; median over frames.
        correlation: Inverse depth is suspected if the rank correlation with the truth is below
            this.
        shift: Smallest |t| of the fit truth = s * depth + t, relative to depth, that is suspicious.
        shift_gain: The shift t is suspected only if the error of the fit is smaller than this
            fraction of the error of a fit without t.
        t: Mirrored maps are suspected if maps fit better after mirroring by more than this number
            of standard errors; and exchanged colour channels if maps fit better with red and blue
            exchanged.
        inverse_t: Without ground truth, inverse depth is suspected if `shape.inverse_t` is above
            this number of standard errors.
        own_z: Maps are suspected to belong to other frames if frames' own maps fit better than
            other frames' maps by less than this number of standard errors.
        min_map_difference: Maps of other frames are suspected only if the maps of consecutive
            frames differ by a median |log ratio| above this. Those of a camera that stands still
            differ by less.
        swap_ratio: Exchanged colour channels are suspected only if exchanging red and blue
            multiplies the error by less than this.
        mirror_ratio: Mirrored maps are suspected only if mirroring the maps multiplies their error
            by less than this.
        swap: Without ground truth, exchanged colour channels are suspected only if exchanging red
            and blue changes depth by more than this fraction. A teacher that was trained with
            strong changes of colour may be calmer with them exchanged.
        noise_ratio: Without ground truth, exchanged colour channels are suspected only if noise in
            the image changes depth by more than this factor times the change with red and blue
            exchanged.
        response: A teacher's maps depend on their image if |`AuditFrame.response`| is above this,
            and are mirrored if the response is below minus this.
        levels: A map with at most this number of distinct depths is taken for 8-bit data.
        beyond: Largest fraction of depths above the student's largest depth that isn't suspicious.
        at_top: Largest fraction of pixels with the map's largest depth that isn't suspicious.
        valid: Smallest fraction of pixels with a depth that isn't suspicious.
        heights_m: The smallest and the largest height of the camera above the ground that isn't
            suspicious, metres.
        median: Smallest median depth that isn't suspicious, as a fraction of the student's largest
            depth.
    """

    scale: float = 1.35
    unit: float = 1.6
    focal: float = 1.2
    estimate: float = 1.35
    focal_scale: float = 1.3
    aligned: float = 0.4
    correlation: float = -0.3
    shift: float = 0.35
    shift_gain: float = 0.5
    t: float = 2.5
    inverse_t: float = 3.0
    own_z: float = 2.0
    min_map_difference: float = 0.04
    swap_ratio: float = 0.93
    mirror_ratio: float = 0.8
    swap: float = 0.05
    noise_ratio: float = 1.1
    response: float = 0.4
    levels: int = 256
    beyond: float = 0.5
    at_top: float = 0.6
    valid: float = 0.01
    heights_m: tuple[float, float] = (0.3, 3.0)
    median: float = 0.02


class Suspicion(NamedTuple):
    """A mistake of a teacher that the audit suspects.

    Attributes:
        kind: "unit" (not metres), "inverse" (inverse depth), "affine" (depth = s * map + t),
            "mirrored", "bgr" (red and blue exchanged), "foreign" (maps of other frames), "focal"
            (wrong focal length), "estimate" (the teacher itself estimates another focal length),
            "scale" (wrong scale of unknown cause), "range" (depths beyond the student's range),
            "levels" (8-bit maps), "empty" (hardly any depth) or "error" (large error of unknown
            cause).
        message: The likely cause, and the measurement that indicates it.
    """

    kind: str
    message: str


@dataclass
class Verdict:
    """The result of a teacher's audit.

    Attributes:
        frames: Number of audited frames.
        figures: name of a measurement -> value; NaN if it couldn't be made. Measurements that need
            ground truth are missing if `truth` is None, and most are if no map has a depth.
        suspicions: The suspected mistakes, the most likely first; empty if all figures are within
            their limits.
        truth: The comparison with ground truth; None if fewer than MIN_FRAMES frames have enough of
            it.
        edges: The comparison of the maps' edges with the images'; None for maps without any depth.
    """

    frames: int
    figures: dict[str, float]
    suspicions: list[Suspicion] = field(default_factory=list)
    truth: TruthFigures | None = None
    edges: EdgeFigures | None = None

    @property
    def certain(self) -> list[Suspicion]:
        """The suspicions that are certain enough to stop a training run.

        All are, with two exceptions. One is the kind "estimate", a focal length that only the
        teacher's own estimate contradicts. The other is "foreign", maps of other frames, if the
        maps are stored and there is no ground truth: it is then based on edges alone, and blurred
        maps have no edges even if they are of the right frames. For a teacher that is a network,
        maps for partly covered images are also compared.
        """
        unsure = {"estimate"}
        if self.truth is None and not np.isfinite(self.figures["response"]):
            unsure.add("foreign")
        return [suspicion for suspicion in self.suspicions if suspicion.kind not in unsure]

    @property
    def kinds(self) -> list[str]:
        """The attribute `kind` of each of `suspicions`, in their order."""
        return [suspicion.kind for suspicion in self.suspicions]


def judge(
    frames: Sequence[AuditFrame], max_depth_m: float, limits: Limits | None = None
) -> Verdict:
    """Audits a teacher: measures its depth maps of some frames, and decides what is suspicious.

    Args:
        frames: The frames, whose maps have the same size.
        max_depth_m: The student's largest depth in metres.
        limits: The limits of the measurements; None for the default ones.

    Returns:
        The measurements, and the suspected mistakes.
    """
    return decide(measure(frames, max_depth_m), max_depth_m, limits)


def measure(frames: Sequence[AuditFrame], max_depth_m: float) -> Verdict:
    """Makes all measurements of the depth maps of some frames.

    Args:
        frames: The frames, whose maps have the same size.
        max_depth_m: The student's largest depth in metres.

    Returns:
        The measurements as a `Verdict` without suspicions, which `decide` adds.
    """
    verdict = Verdict(len(frames), _plain_figures(frames))
    figures = verdict.figures
    if not np.isfinite(figures["median_m"]):
        return verdict
    verdict.edges = EdgeFigures(frames)
    figures["inverse_t"] = shape.inverse_t([frame.depth for frame in frames])
    figures["variety"] = _map_difference(frames)
    # Set the edge statistics to NaN if the maps are sparse, since such maps have no edges.
    dense = np.mean([frame.depth > 0 for frame in frames]) >= _DENSE
    figures["mirror_t"] = verdict.edges.mirror_t if dense else float("nan")
    figures["own_z"] = verdict.edges.own_z if dense else float("nan")
    figures["swap"] = _swap_change(frames)
    figures["unrest_ratio"], figures["unrest_t"] = _noise_ratio(frames)
    compared = truth.compare(frames, max_depth_m)
    if compared.count >= MIN_FRAMES:
        verdict.truth = compared
        figures |= _truth_figures(compared)
    return verdict


def decide(verdict: Verdict, max_depth_m: float, limits: Limits | None = None) -> Verdict:
    """Returns a copy of `verdict` with the suspicions that follow from its measurements.

    Args:
        verdict: The measurements, as `measure` returns them. If its `truth` is None, only the rules
            that need no ground truth are used.
        max_depth_m: The student's largest depth in metres.
        limits: The limits of the measurements; None for the default ones.
    """
    limits = limits or Limits()
    figures = verdict.figures
    if figures["valid"] < limits.valid or not np.isfinite(figures["median_m"]):
        text = f"only {figures['valid']:.0%} of the pixels have a depth"
        return replace(verdict, suspicions=[Suspicion("empty", text)])
    # Apply the rules that use ground truth or, if there is none, those less certain ones that
    # don't.
    if verdict.truth is not None:
        found = _with_truth(figures, limits)
    else:
        found = _without_truth(figures, max_depth_m, limits)
    # Add the suspicions of rules that don't depend on whether there is ground truth.
    found += _independent_of_truth(figures, limits, {suspicion.kind for suspicion in found})
    return replace(verdict, suspicions=found)


def _plain_figures(frames: Sequence[AuditFrame]) -> dict[str, float]:
    medians = [np.median(f.depth[f.depth > 0]) for f in frames if (f.depth > 0).any()]
    # Compute the camera's height in each frame; it is NaN if the frame shows no ground plane.
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
        "focal_ratio": _focal_ratio(frames, of_teacher=False),
        "estimate_ratio": _focal_ratio(frames, of_teacher=True),
    }


def _median(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _focal_ratio(frames: Sequence[AuditFrame], *, of_teacher: bool) -> float:
    """Returns the median ratio of the dataset's focal length to that from another source.

    Args:
        frames: The frames, whose attribute `focals` has the focal lengths. The median is over all
            frames and all sources.
        of_teacher: True for the ratio to the teacher's own estimate, False for the ratios to all
            other sources, e.g. EXIF.

    Returns:
        The ratio; NaN if no frame has a focal length both of the dataset and from such a source.
    """
    ratios = []
    for frame in frames:
        listed = frame.focals.get("listed", float("nan"))
        others = [
            value
            for key, value in frame.focals.items()
            if key != "listed" and (key == "teacher") == of_teacher
        ]
        ratios += [listed / other for other in others if other > 0]
    return _median(ratios)


def _map_difference(frames: Sequence[AuditFrame]) -> float:
    """Returns the median difference between the maps of consecutive frames.

    Args:
        frames: The frames; the last one is compared with the first.

    Returns:
        Median over the pairs of frames of `truth.aligned_error`, i.e. of the error after the scale
        is corrected; NaN if no pair can be compared.
    """
    pairs = zip(frames, [*frames[1:], frames[0]], strict=True)
    return _median([truth.aligned_error(one.depth, other.depth) for one, other in pairs])


def _swap_change(frames: Sequence[AuditFrame]) -> float:
    """Returns how much a teacher's depth changes if red and blue are exchanged.

    Args:
        frames: The frames; those whose attribute `swapped` is None are left out.

    Returns:
        Median over frames of the frame's median |log ratio| of the depths with and without the
        exchange; NaN if no frame is left.
    """
    changes = []
    for frame in frames:
        if frame.swapped is not None:
            both = (frame.depth > 0) & (frame.swapped > 0)
            ratios = np.log(frame.swapped[both]) - np.log(frame.depth[both])
            changes.append(float(np.median(np.abs(ratios))) if ratios.size else float("nan"))
    return _median(changes)


def _noise_ratio(frames: Sequence[AuditFrame]) -> tuple[float, float]:
    """Compares how much image noise changes depth with and without red and blue exchanged.

    Args:
        frames: The frames, whose attribute `noise_change` has the two changes.

    Returns:
        (ratio, t): the geometric mean over frames of (change for the image as it is / change for
        the image with red and blue exchanged); and the mean of its logarithm, divided by its
        standard error. Both are NaN if a frame has no `noise_change`.
    """
    pairs = np.array([frame.noise_change or (np.nan, np.nan) for frame in frames], float)
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
    # Search for mistakes that no scale corrects. Only the first one that is found is reported, so
    # the rules with the most specific causes come first.
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
    """Returns True if maps seem to belong to other frames than the ones they are stored for.

    The criterion is that neither errors nor edges distinguish a frame's own map from other frames'
    maps. Both are compared, because a weak network's errors hardly depend on the frame, but its
    edges do. The result is False if the teacher's depth responds to a covered part of its image, or
    if the maps of the frames hardly differ.

    Args:
        figures: name -> value of every measurement, those with ground truth included.
        limits: The limits of the measurements.
    """
    return (
        not abs(figures["response"]) > limits.response
        and figures["truth_own_z"] < limits.own_z
        and not figures["own_z"] >= limits.own_z + 1
        and figures["variety"] > limits.min_map_difference
    )


def _scale(figures: dict[str, float], limits: Limits) -> list[Suspicion]:
    """Returns the suspicion, if any, that follows from the maps' scale relative to ground truth.

    Its kind is "unit", "focal" (another focal length), or "scale" if the cause isn't known.

    Args:
        figures: name -> value of every measurement, those with ground truth included.
        limits: The limits of the measurements.
    """
    scale = figures["scale"]
    if _is_near(scale, 1, limits.scale):
        return []
    for unit, factor in UNITS.items():
        if _is_near(scale, factor, limits.unit):
            return [Suspicion("unit", f"{unit} taken for metres: the scale is {scale:.3g}")]
    # A wrong focal length is the cause if the scale error equals the ratio of two focal lengths:
    # the one in use and another source's, or the teacher's own estimate.
    for name, limit, source in (
        ("focal_ratio", limits.focal, "another source's"),
        ("estimate_ratio", limits.estimate, "the teacher's own estimate"),
    ):
        ratio = figures[name]
        differs = not _is_near(ratio, 1, limit) and np.isfinite(ratio)
        if differs and _is_near(scale, ratio, limits.focal_scale):
            text = f"the scale is {scale:.2f}, and the focal length {ratio:.2f} times {source}"
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
    # Compare edges, unless the maps are cut off at one depth, which removes edges, or the teacher's
    # response to a covered part of the image has already shown that its maps are of this frame.
    responds = abs(figures["response"]) > limits.response
    if figures["at_top"] < limits.at_top and not responds:
        if figures["mirror_t"] < -limits.t:
            text = f"their edges fit mirrored images better by {-figures['mirror_t']:.1f} errors"
            found.append(Suspicion("mirrored", f"mirrored maps: {text}"))
        elif figures["own_z"] < limits.own_z and figures["variety"] > limits.min_map_difference:
            text = "their edges fit their own images no better than others'"
            found.append(Suspicion("foreign", f"maps of other frames: {text}"))
    is_calmer = figures["unrest_t"] > limits.t and figures["unrest_ratio"] > limits.noise_ratio
    if is_calmer and figures["swap"] > limits.swap:
        text = (
            f"noise changes depth {figures['unrest_ratio']:.2f} times as much as with them swapped"
        )
        found.append(Suspicion("bgr", f"red and blue exchanged (BGR): {text}"))
    return found


def _unit(figures: dict[str, float], max_depth_m: float, limits: Limits) -> list[Suspicion]:
    """Returns the suspicion, if there is one, that depths are in another unit or scale.

    It needs no ground truth: it compares the depths with the student's largest depth, and the
    camera's height above the ground, which is computed from the depths, with usual heights.

    Args:
        figures: name -> value of every measurement.
        max_depth_m: The student's largest depth in metres.
        limits: The limits of the measurements.
    """
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


def _independent_of_truth(
    figures: dict[str, float], limits: Limits, kinds: set[str]
) -> list[Suspicion]:
    """Returns the suspicions of rules that don't depend on whether there is ground truth.

    Args:
        figures: name -> value of every measurement.
        limits: The limits of the measurements.
        kinds: Kinds of the suspicions found so far; no second suspicion of such a kind is returned.
    """
    found = []
    ratio = figures["focal_ratio"]
    if "focal" not in kinds and np.isfinite(ratio) and not _is_near(ratio, 1, limits.focal):
        text = f"the listed one is {ratio:.2f} times another source's"
        found.append(Suspicion("focal", f"a wrong focal length: {text}"))
    elif "focal" not in kinds:
        ratio = figures["estimate_ratio"]
        if np.isfinite(ratio) and not _is_near(ratio, 1, limits.estimate):
            text = f"the listed one is {ratio:.2f} times the teacher's own estimate"
            found.append(Suspicion("estimate", f"perhaps a wrong focal length: {text}"))
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
