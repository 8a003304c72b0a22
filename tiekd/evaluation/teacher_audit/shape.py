"""Measures properties of depth maps: their slope over rows, planes, the camera's height.

Needs neither images nor ground truth. The measurements use two facts: depth decreases towards the
lower border of street and indoor images; and on a plane, 1 / depth is a linear function of the
pixel's position, whereas depth isn't.
"""

from collections.abc import Sequence

import numpy as np

from tiekd.evaluation.teacher_audit.edges import t_value
from tiekd.evaluation.teacher_audit.grid import AuditFrame

_WINDOW = 24  # side of the square windows of a map to which planes are fitted, in cells
_FLAT = 0.08  # relative residual of the fit up to which a window counts as a plane
_SLANTED = 1.3  # minimum ratio of depths in a window for it to distinguish depth from inverse depth
# The cosine of the largest angle between a ground plane's normal and the image's vertical axis.
_UPRIGHT = 0.9
_ON_GROUND = 0.05  # relative error of inverse depth up to which a cell fits the ground plane
_GROUND_SHARE = 0.6


def row_correlation(depth: np.ndarray) -> float:
    """Returns the rank correlation of each row's median depth with the row's index from the top.

    Rows with a valid depth in less than half of their elements are left out.

    Args:
        depth: (h, w), depth map, metres, 0 where invalid.

    Returns:
        -1 to 1; below 0 if the upper rows are farther. NaN if fewer than 8 rows are left or all
        have the same depth.
    """
    known = (depth > 0).sum(1) >= 0.5 * depth.shape[1]
    if known.sum() < 8:
        return float("nan")
    medians = np.array([np.median(row[row > 0]) for row in depth[known]])
    if np.ptp(medians) == 0:
        return float("nan")
    return rank_correlation_by_position(medians, np.arange(len(medians)))


def rank_correlation_by_position(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation of two vectors, -1 to 1.

    Equal values are ranked in the order of their positions.

    Args:
        first: (N,).
        second: (N,).
    """
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def plane_preference(depth: np.ndarray) -> float:
    """Measures if planes are linear functions of the position in a map, or in the map's inverse.

    In square windows of the map, linear functions are fitted to the map and to its inverse. A
    window is used if one of the two fits is good, and the depths in it vary enough to distinguish
    the fits.

    Args:
        depth: (h, w), depth map, 0 where invalid.

    Returns:
        Median over the windows of log(residual of the fit to the inverse / residual of the fit to
        the map). It is below 0 if the map is depth, since planes are linear in inverse depth, and
        above 0 if the map is inverse depth. NaN if no window is used.
    """
    height, width = depth.shape
    window = min(_WINDOW, height, width)
    line = np.linspace(-1, 1, window)
    columns = [np.ones(window * window), np.tile(line, window), np.repeat(line, window)]
    basis = np.linalg.qr(np.stack(columns, 1))[0]
    patches = np.lib.stride_tricks.sliding_window_view(depth, (window, window))
    patches = patches[:: window // 2, :: window // 2].reshape(-1, window * window).astype(float)
    patches = patches[(patches > 0).all(1)]
    if not len(patches):
        return float("nan")
    flat, inverse = _residual(patches, basis), _residual(1 / patches, basis)
    kept = (np.minimum(flat, inverse) < _FLAT) & (patches.max(1) > _SLANTED * patches.min(1))
    if not kept.any():
        return float("nan")
    return float(np.median(np.log(inverse[kept] + 1e-6) - np.log(flat[kept] + 1e-6)))


def _residual(patches: np.ndarray, basis: np.ndarray) -> np.ndarray:
    relative = patches / patches.mean(1, keepdims=True)
    rest = relative - (relative @ basis) @ basis.T
    return np.sqrt((rest**2).mean(1))


def inverse_t(depths: Sequence[np.ndarray]) -> float:
    """Returns a statistic that is above 0 if the maps are inverse depth, and below 0 if depth.

    It is the sum of the t statistics of `row_correlation` and `plane_preference` over the frames.
    A statistic that is NaN is left out; if both are NaN, the result is NaN.

    Args:
        depths: One map (h, w) per frame, of depth or inverse depth, 0 where invalid.
    """
    rows = t_value(np.array([row_correlation(depth) for depth in depths]))
    planes = t_value(np.array([plane_preference(depth) for depth in depths]))
    found = [value for value in (rows, planes) if np.isfinite(value)]
    return sum(found) if found else float("nan")


def camera_height(frame: AuditFrame) -> float:
    """Returns the camera's height in metres above the ground plane of a frame.

    The plane is fitted to the depth in the middle of the map's lower third. On a plane with unit
    normal n at the distance `height` from the camera, 1 / depth = n . ray / height, where ray is
    the viewing ray (x, y, 1) of a pixel.

    Args:
        frame: The frame, of which the depth and the intrinsics are used.

    Returns:
        The height; NaN if the intrinsics aren't known or no horizontal plane fits.
    """
    matrix, depth = frame.intrinsics, frame.depth
    if not np.isfinite(matrix).all():
        return float("nan")
    rows, columns = depth.shape
    inside = np.zeros(depth.shape, bool)
    inside[2 * rows // 3 :, columns // 4 : columns - columns // 4] = True
    y, x = np.nonzero(inside & (depth > 0))
    if len(y) < 50:
        return float("nan")
    rays = np.stack(
        [
            (x - matrix[0, 2]) / matrix[0, 0],
            (y - matrix[1, 2]) / matrix[1, 1],
            np.ones(len(x)),
        ],
        1,
    )
    inverse = 1 / depth[y, x].astype(float)
    kept = np.ones(len(x), bool)
    normal = np.zeros(3)
    for _ in range(4):
        normal = np.linalg.lstsq(rays[kept], inverse[kept], rcond=None)[0]
        error = np.abs(rays @ normal - inverse) / inverse
        kept = error <= max(_ON_GROUND, float(np.median(error)))
    length = float(np.linalg.norm(normal))
    is_ground = (error <= _ON_GROUND).mean() >= _GROUND_SHARE
    if not is_ground or length == 0 or normal[1] < _UPRIGHT * length:
        return float("nan")
    return 1 / length
