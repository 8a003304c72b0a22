"""Measures if the edges of depth maps are at the same positions as the edges of their images.

Most depth edges coincide with edges of the image. So this module correlates the edges of a frame's
image with those of its depth map and, as controls, with those of the mirrored map and of other
frames' maps: a map that belongs to its image correlates more than the controls. The mean edge map
over all frames is subtracted first, because edges that all frames share, such as the horizon, would
fit any map. Needs no ground truth.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from tiekd.evaluation.teacher_audit.grid import AuditFrame

# The weights of a Gaussian filter with a sigma of one map element, at distances of 0, 1 and 2
# elements.
_WEIGHTS = (0.4026, 0.2442, 0.0545)
_STRONG = 0.95  # gradients above this quantile of the magnitude are clipped to it


def t_value(values: np.ndarray) -> float:
    """Returns the t statistic of the finite values: their mean, divided by its standard error.

    Args:
        values: (N,), one value per frame; non-finite ones are left out.

    Returns:
        The t statistic; NaN for fewer than three finite values.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if len(known) < 3:
        return float("nan")
    return float(known.mean() / max(known.std(ddof=1) / len(known) ** 0.5, 1e-9))


def rank_z(shares: np.ndarray) -> float:
    """Returns the z statistic of `shares`: (their mean - 1/2) / standard error of the mean.

    The standard error is that of uniformly distributed shares, which are expected if a frame's own
    map fits no better than other frames' maps.

    Args:
        shares: (N,) from 0 to 1, as `own_shares` returns them; non-finite ones are left out.

    Returns:
        The z statistic; NaN without a finite share.
    """
    known = np.asarray(shares, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return float("nan")
    return float((known.mean() - 0.5) * (12 * len(known)) ** 0.5)


def own_shares(similarity: np.ndarray) -> np.ndarray:
    """Returns for each frame the fraction of other frames' maps that fit it worse than its own.

    A map that fits as well as the frame's own is counted as one half.

    Args:
        similarity: (N, N); element (i, j) says how well frame j's map fits frame i.

    Returns:
        (N,), 0 to 1.
    """
    own = np.diag(similarity)[:, None]
    others = similarity[~np.eye(len(similarity), dtype=bool)].reshape(len(similarity), -1)
    return (others < own).mean(1) + 0.5 * (others == own).mean(1)


class EdgeFigures:
    """Correlations of the edges of N frames' images with the edges of their depth maps.

    Attributes:
        own: (N,) correlation of each image's edges with those of its own map.
        mirrored: (N,) correlation of each image's edges with those of its mirrored map.
        mirror_t: Mean of own - mirrored over the frames, divided by its standard error; below 0 if
            mirrored maps fit better.
        own_z: z statistic of how often an image's own map fits better than other frames' maps
            (`rank_z` of `own_shares`); near 0 by chance.

    Args:
        frames: The frames, with images and maps of one size.
    """

    def __init__(self, frames: Sequence[AuditFrame]):
        images = _edges(_stacked([frame.image for frame in frames]))
        maps = _depth_edges(np.stack([frame.depth for frame in frames]))
        self.own = _correlations(images, maps).numpy()
        # Mirror the edges of the maps instead of computing the edges of mirrored maps, which are
        # the same.
        self.mirrored = _correlations(images, maps.flip(-1)).numpy()
        self.mirror_t = t_value(self.own - self.mirrored)
        self.own_z = rank_z(own_shares((images.flatten(1) @ maps.flatten(1).T).numpy()))


def _correlations(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((1, 2))


def _depth_edges(depths: np.ndarray) -> Tensor:
    return _edges(_stacked(np.log(_without_holes(depths))))


def _without_holes(depths: np.ndarray) -> np.ndarray:
    """Returns depth maps whose invalid elements are filled with a neighbour's depth.

    The map of e.g. a stereo camera has invalid elements beside near objects, where one of the two
    cameras doesn't see the background. The objects' depth edges are there. An invalid element gets
    the larger one of the nearest valid depths to its left and its right, i.e. that of the
    background. In a row without valid depth it gets the depth of the nearest row below that has
    one, or else above.

    Args:
        depths: (N, h, w), metres, 0 where invalid.

    Returns:
        (N, h, w), metres, above 0. A map without any valid depth becomes 1 m everywhere.
    """
    valid = depths > 0
    columns = np.arange(depths.shape[2])
    # Find the column of the nearest valid element to the left and to the right of each element.
    left = np.maximum.accumulate(np.where(valid, columns, 0), axis=2)
    right = np.where(valid, columns, columns[-1])[..., ::-1]
    right = np.minimum.accumulate(right, axis=2)[..., ::-1]
    ends = [np.take_along_axis(depths, index, axis=2) for index in (left, right)]
    filled = np.where(valid, depths, np.maximum(*ends))
    # Fill rows without a depth from the nearest row below that has one, or else from above.
    for rows in (range(depths.shape[1] - 2, -1, -1), range(1, depths.shape[1])):
        for row in rows:
            source = filled[:, row + 1 if rows.step < 0 else row - 1]
            filled[:, row] = np.where(filled[:, row] > 0, filled[:, row], source)
    return np.where(filled > 0, filled, 1)


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def _edges(maps: Tensor) -> Tensor:
    """Returns the gradient magnitudes of N maps, blurred before and normalised after.

    With more than two maps, the mean over the maps is subtracted. Then each map's own mean is
    subtracted, and the map is scaled to the Euclidean norm 1, so that the correlation of two maps
    is their dot product.

    Args:
        maps: (N, h, w) float32, images or log depths.

    Returns:
        (N, h, w) float32.
    """
    blurred = _blurred(_blurred(maps).transpose(1, 2)).transpose(1, 2)
    across = torch.zeros_like(blurred)
    down = torch.zeros_like(blurred)
    across[..., 1:-1] = blurred[..., 2:] - blurred[..., :-2]
    down[:, 1:-1] = blurred[:, 2:] - blurred[:, :-2]
    edges = (across**2 + down**2).sqrt()
    full = edges.flatten(1).quantile(_STRONG, dim=1).clamp(min=1e-6)
    edges = (edges / full[:, None, None]).clamp(max=1)
    if len(edges) > 2:
        edges = edges - edges.mean(0, keepdim=True)
    edges = edges - edges.mean((1, 2), keepdim=True)
    return normalize(edges.flatten(1), dim=1).view_as(edges)


def _blurred(maps: Tensor) -> Tensor:
    """Blurs maps (N, h, w) along the last axis by a Gaussian whose sigma is one element."""
    reach = len(_WEIGHTS) - 1
    padded = pad(maps, (reach, reach), mode="replicate")
    width = maps.shape[-1]
    total = _WEIGHTS[0] * maps
    for shift, weight in enumerate(_WEIGHTS[1:], start=1):
        left = padded[..., reach - shift : reach - shift + width]
        right = padded[..., reach + shift : reach + shift + width]
        total = total + weight * (left + right)
    return total
