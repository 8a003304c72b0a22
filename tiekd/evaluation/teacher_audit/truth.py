"""Compares a teacher's depth maps with sparse or dense ground truth.

Both are compared after they were resized to the coarse grid of the audit (grid.py), whose elements
are called cells.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tiekd.evaluation.teacher_audit.edges import own_shares, rank_z, t_value
from tiekd.evaluation.teacher_audit.grid import AuditFrame
from tiekd.evaluation.teacher_audit.shape import rank_correlation_by_position

# A frame is compared if at least this number of grid cells has both the teacher's and a true depth.
MIN_CELLS = 50
# The approximate number of grid cells at which each frame's truth is compared with all frames'
# maps.
_COMPARED = 300
_SHARES = (0.0, 0.25, 0.5, 1.0)  # ends of the depth ranges, as fractions of max_depth_m


class FrameTruth(NamedTuple):
    """The comparison of one frame's depth map with its ground truth.

    Map and truth are compared in those cells of the audit's coarse grid in which both have a depth.
    All attributes are NaN if there are fewer than MIN_CELLS such cells.

    Attributes:
        abs_rel: Mean |teacher - truth| / truth.
        scale: Median of teacher / truth.
        aligned: Median |log(teacher / truth) - m|, where m is the median of log(teacher / truth).
        correlation: Rank correlation of teacher and truth.
        fit_scale: s of truth = s * teacher + t, a robust fit whose residuals are relative to depth.
        fit_shift: t of the fit truth = s * teacher + t, metres.
        shift_gain: Median |residual| / truth of this fit, divided by that of teacher / scale, i.e.
            of a correction without shift.
        relative_shift: |t| of the fit, divided by the median truth.
    """

    abs_rel: float
    scale: float
    aligned: float
    correlation: float
    fit_scale: float
    fit_shift: float
    shift_gain: float
    relative_shift: float


class TruthFigures(NamedTuple):
    """The comparison of all frames' depth maps with their ground truth.

    Attributes:
        frames: The comparison of each frame.
        count: Number of frames with enough ground truth, from which the attributes `mirror_t` to
            `swap_ratio` are computed.
        mirror_t: Mean over frames of log(error of the mirrored map / error of the map), divided by
            its standard error; below 0 if mirrored maps fit better.
        mirror_ratio: Median over frames of (error of the mirrored map / error of the map).
        own_z: z statistic of how often a frame's own map fits its truth better than other frames'
            maps (`edges.rank_z`); near 0 by chance.
        swap_t: Mean over frames of log(error with red and blue exchanged / error), divided by its
            standard error. Below 0 if the error is smaller with red and blue exchanged; NaN if the
            teacher wasn't called for such images.
        swap_ratio: Geometric mean over frames of (error with red and blue exchanged / error).
        ranges: (from_m, to_m, cells, bias_m, abs_rel) of each range of the ground truth, nearest
            first: its ends in metres, number of grid cells of all frames, mean of teacher - truth
            in metres, and mean of |teacher - truth| / truth.
    """

    frames: list[FrameTruth]
    count: int
    mirror_t: float
    mirror_ratio: float
    own_z: float
    swap_t: float
    swap_ratio: float
    ranges: list[tuple[float, float, int, float, float]]


def compare(frames: Sequence[AuditFrame], max_depth_m: float) -> TruthFigures:
    """Compares the teacher's depth maps of frames with their ground truth.

    Args:
        frames: The frames, whose maps have the same size.
        max_depth_m: The student's largest depth in metres, where the last depth range ends.

    Returns:
        The comparison of each frame, and statistics over the frames.
    """
    # Keep the frames with enough ground truth.
    each = [_frame_truth(frame.depth, frame.truth) for frame in frames]
    counted = [i for i, figures in enumerate(each) if np.isfinite(figures.aligned)]
    kept = [frames[i] for i in counted]
    # Compare the error of each map with that of its mirror image, of the map for the image with red
    # and blue exchanged, and of other frames' maps.
    own = np.array([each[i].aligned for i in counted])
    mirrored = np.array([aligned_error(f.depth[:, ::-1], f.truth) for f in kept])
    ratios = np.log((mirrored + 1e-4) / (own + 1e-4))
    swaps = np.array([_swap_ratio(frame) for frame in kept])
    fits = -_errors_of_all(kept) if kept else np.zeros((0, 0))
    return TruthFigures(
        frames=each,
        count=len(kept),
        mirror_t=t_value(ratios),
        mirror_ratio=float(np.exp(np.nanmedian(ratios))) if len(ratios) else float("nan"),
        own_z=rank_z(own_shares(np.nan_to_num(fits, nan=-1e9))) if len(kept) > 1 else float("nan"),
        swap_t=t_value(swaps),
        swap_ratio=_mean_ratio(swaps),
        ranges=_ranges(frames, max_depth_m),
    )


def aligned_error(depth: np.ndarray, truth: np.ndarray) -> float:
    """Returns the median error of a depth map after its scale is corrected.

    Args:
        depth: (h, w), metres, 0 where invalid.
        truth: (h, w), metres, 0 where not measured.

    Returns:
        The median of |r - m|, where r is log(depth / truth) of an element and m the median of r;
        NaN if fewer than MIN_CELLS elements have both depths.
    """
    ratio = _log_ratio(depth, truth)
    if ratio is None:
        return float("nan")
    return float(np.median(np.abs(ratio - np.median(ratio))))


def _errors_of_all(frames: Sequence[AuditFrame]) -> np.ndarray:
    """Returns the error of every frame's map relative to every frame's ground truth.

    Errors are those of `aligned_error`, but computed at no more than some 600 of a frame's cells
    with ground truth.

    Args:
        frames: N frames, whose maps have the same size.

    Returns:
        (N, N); element (i, j) is the error of frame j's map relative to frame i's ground truth, or
        NaN if too few cells have a depth in both.
    """
    logs = np.stack([np.where(f.depth > 0, f.depth, np.nan).ravel() for f in frames])
    logs = np.log(logs)
    errors = np.full((len(frames), len(frames)), np.nan)
    for row, frame in enumerate(frames):
        # Compare at about _COMPARED cells of a frame only, since N frames have N * N pairs of map
        # and truth.
        cells = np.flatnonzero(frame.truth > 0)
        cells = cells[:: max(1, len(cells) // _COMPARED)]
        truth = np.log(frame.truth.ravel()[cells].astype(float))
        ratios = logs[:, cells] - truth
        counted = np.isfinite(ratios).sum(1) >= min(MIN_CELLS, len(cells))
        # Remove each map's scale, i.e. subtract the median of its log ratios to the truth.
        ratios = ratios[counted]
        middles = np.nanmedian(ratios, 1, keepdims=True)
        errors[row, counted] = np.nanmedian(np.abs(ratios - middles), 1)
    return errors


def _mean_error(depth: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean error of a depth map after its scale is corrected.

    Args:
        depth: (h, w), metres, 0 where invalid.
        truth: (h, w), metres, 0 where not measured.

    Returns:
        The mean of |r - m|, where r is log(depth / truth) of an element and m the median of r;
        NaN if fewer than MIN_CELLS elements have both depths.
    """
    ratio = _log_ratio(depth, truth)
    return float("nan") if ratio is None else float(np.mean(np.abs(ratio - np.median(ratio))))


def _mean_ratio(logs: np.ndarray) -> float:
    known = logs[np.isfinite(logs)]
    return float(np.exp(known.mean())) if len(known) else float("nan")


def _swap_ratio(frame: AuditFrame) -> float:
    """Returns log(a / b), with the errors a and b of the depth with red and blue exchanged or not.

    Args:
        frame: The frame. Its map `swapped` has the error a, its map `depth` the error b, as
            `_mean_error` computes them. If `swapped` is None or there is too little ground truth,
            the result is NaN.
    """
    if frame.swapped is None:
        return float("nan")
    errors = [_mean_error(depth, frame.truth) for depth in (frame.swapped, frame.depth)]
    return float(np.log((errors[0] + 1e-4) / (errors[1] + 1e-4)))


def _log_ratio(depth: np.ndarray, truth: np.ndarray) -> np.ndarray | None:
    both = (depth > 0) & (truth > 0)
    if both.sum() < MIN_CELLS:
        return None
    return np.log(depth[both].astype(float)) - np.log(truth[both].astype(float))


def _frame_truth(depth: np.ndarray, truth: np.ndarray) -> FrameTruth:
    ratio = _log_ratio(depth, truth)
    if ratio is None:
        return FrameTruth(*[float("nan")] * len(FrameTruth._fields))
    both = (depth > 0) & (truth > 0)
    teacher, true = depth[both].astype(float), truth[both].astype(float)
    # Compare the error that is left after correcting the map by a scale alone with the error after
    # correcting it by scale and shift.
    scale = float(np.exp(np.median(ratio)))
    fit_scale, fit_shift = _affine_fit(teacher, true)
    by_scale = np.median(np.abs(teacher / scale - true) / true)
    by_fit = np.median(np.abs(fit_scale * teacher + fit_shift - true) / true)
    return FrameTruth(
        abs_rel=float(np.mean(np.abs(teacher - true) / true)),
        scale=scale,
        aligned=float(np.median(np.abs(ratio - np.median(ratio)))),
        correlation=rank_correlation_by_position(teacher, true)
        if np.ptp(teacher) and np.ptp(true)
        else 0.0,
        fit_scale=fit_scale,
        fit_shift=fit_shift,
        shift_gain=float(by_fit / max(by_scale, 1e-6)),
        relative_shift=float(abs(fit_shift) / np.median(true)),
    )


def _affine_fit(teacher: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Fits true = s * teacher + t by reweighted least squares of the errors relative to `true`.

    Args:
        teacher: (N,), the teacher's depths, metres.
        true: (N,), the true depths, metres.

    Returns:
        (s, t), s without unit, t in metres.
    """
    unit = float(np.median(teacher)) or 1.0
    columns = np.stack([teacher / unit, np.ones(len(teacher))], 1)
    weights = 1 / true
    solution = np.zeros(2)
    for _ in range(8):
        solution = np.linalg.lstsq(columns * weights[:, None], true * weights, rcond=None)[0]
        error = np.abs(columns @ solution - true) / true
        limit = 2 * max(float(np.median(error)), 1e-6)
        weights = np.sqrt(np.minimum(1, limit / np.maximum(error, 1e-9))) / true
    return float(solution[0] / unit), float(solution[1])


def _ranges(
    frames: Sequence[AuditFrame], max_depth_m: float
) -> list[tuple[float, float, int, float, float]]:
    depth = np.concatenate([frame.depth.ravel() for frame in frames]).astype(float)
    truth = np.concatenate([frame.truth.ravel() for frame in frames]).astype(float)
    rows = []
    for low, high in zip(_SHARES[:-1], _SHARES[1:], strict=True):
        start, end = low * max_depth_m, high * max_depth_m
        inside = (depth > 0) & (truth > start) & (truth <= end)
        error = depth[inside] - truth[inside]
        bias, relative = float("nan"), float("nan")
        if len(error):
            bias = float(error.mean())
            relative = float(np.mean(np.abs(error) / truth[inside]))
        rows.append((start, end, int(inside.sum()), bias, relative))
    return rows
