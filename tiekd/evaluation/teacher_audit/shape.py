"""What depth maps alone tell: their slope, their planes, the camera's height above the ground.

Needs neither images nor ground truth. Depth falls towards the lower border of street and indoor
images, and 1 / depth, not depth, is linear in the pixels of a plane.
"""

from collections.abc import Sequence

import numpy as np

from tiekd.evaluation.teacher_audit.edges import t_value
from tiekd.evaluation.teacher_audit.grid import AuditFrame

_WINDOW = 24  # cells
_FLAT = 0.08  # relative residual up to which a window counts as a plane
_SLANTED = 1.3  # ratio of depths from which a window tells depth and its inverse apart
_UPRIGHT = 0.9  # cosine of the largest angle of the ground's normal to the image's columns
_ON_GROUND = 0.05  # relative
_GROUND_SHARE = 0.6


def row_correlation(depth: np.ndarray) -> float:
    """Returns the rank correlation of each row's median depth with the row's number.

    Below 0 where the upper rows are farther. NaN where fewer than 8 rows are known.
    """
    known = (depth > 0).sum(1) >= 0.5 * depth.shape[1]
    if known.sum() < 8:
        return float("nan")
    medians = np.array([np.median(row[row > 0]) for row in depth[known]])
    if np.ptp(medians) == 0:
        return float("nan")
    return rank_correlation(medians, np.arange(len(medians)))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation of two vectors; ties are ranked in their order."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def plane_preference(depth: np.ndarray) -> float:
    """Returns the log of how much flatter windows are in depth than in 1 / depth, median.

    Below 0 for true depth: planes are linear in its inverse. Above 0 where the map is an inverse.
    NaN without a slanted plane.
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
    """Returns the evidence, in standard errors, that maps are inverse depth: above 0 if they are.

    Adds the slope over rows and the preference of planes, each a mean over frames.
    """
    rows = t_value(np.array([row_correlation(depth) for depth in depths]))
    planes = t_value(np.array([plane_preference(depth) for depth in depths]))
    found = [value for value in (rows, planes) if np.isfinite(value)]
    return sum(found) if found else float("nan")


def camera_height(frame: AuditFrame) -> float:
    """Returns the camera's height in metres above the ground plane; NaN where none is found.

    The plane is fitted to 1 / depth in the middle of the lower third, which is linear there in the
    viewing ray: 1 / depth = n . ray, with |n| = 1 / height.
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
