"""Whether maps and images show the same scene: do their edges lie at the same places?

Most depth edges are image edges, too. So the edges of a frame's image are correlated with those of
its map, of the map's mirror image, and of the other frames' maps. What all frames share, such as
the horizon, is subtracted first, since it fits any frame. Needs no ground truth.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize, pad

from tiekd.evaluation.teacher_audit.grid import AuditFrame

_WEIGHTS = (0.4026, 0.2442, 0.0545)  # a Gaussian of one cell, at 0, 1 and 2 cells
_STRONG = 0.95  # quantile of the gradient that counts as a full edge


def t_value(values: np.ndarray) -> float:
    """Returns the mean in standard errors, NaN for fewer than three values that are known."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if len(known) < 3:
        return float("nan")
    return float(known.mean() / max(known.std(ddof=1) / len(known) ** 0.5, 1e-9))


def rank_z(shares: np.ndarray) -> float:
    """Returns by how many standard errors the mean of `shares` is above 1/2.

    Under the null hypothesis each is uniform in 0..1, as the rank of one of many equals is.
    """
    known = np.asarray(shares, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return float("nan")
    return float((known.mean() - 0.5) * (12 * len(known)) ** 0.5)


def own_shares(similarity: np.ndarray) -> np.ndarray:
    """Returns for each row of (N, N) the share of other columns that the diagonal exceeds.

    Ties count half.
    """
    own = np.diag(similarity)[:, None]
    others = similarity[~np.eye(len(similarity), dtype=bool)].reshape(len(similarity), -1)
    return (others < own).mean(1) + 0.5 * (others == own).mean(1)


class EdgeFigures:
    """How well the edges of maps fit those of images.

    Attributes:
        own: (N,) correlation of each image's edges with its own map's.
        mirrored: (N,) correlation with the mirror image of its own map.
        mirror_t: Mean of own - mirrored over the frames, in standard errors; below 0 where the
            mirror images fit better.
        own_z: How often an image's own map fits better than other frames' maps, in standard errors
            above chance.
    """

    def __init__(self, frames: Sequence[AuditFrame]):
        images = _edges(_stacked([frame.image for frame in frames]), None)
        maps = _depth_edges(np.stack([frame.depth for frame in frames]))
        self.own = _correlations(images, maps).numpy()
        # The mirror image's edges are the edges' mirror image.
        self.mirrored = _correlations(images, maps.flip(-1)).numpy()
        self.mirror_t = t_value(self.own - self.mirrored)
        self.own_z = rank_z(own_shares((images.flatten(1) @ maps.flatten(1).T).numpy()))


def _correlations(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((1, 2))


def _depth_edges(depths: np.ndarray) -> Tensor:
    valid = depths > 0
    logs = np.log(np.where(valid, depths, 1))
    if valid.all():
        return _edges(_stacked(logs), None)
    # A flat fill has no edges within, and those at its border are masked.
    means = (logs * valid).sum((1, 2)) / np.maximum(valid.sum((1, 2)), 1)
    logs = np.where(valid, logs, means[:, None, None])
    return _edges(_stacked(logs), _stacked(valid))


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32))


def _edges(maps: Tensor, valid: Tensor | None) -> Tensor:
    """Returns (N, h, w) gradient magnitudes, without the frames' mean, each of length 1."""
    blurred = _blurred(_blurred(maps).transpose(1, 2)).transpose(1, 2)
    across = torch.zeros_like(blurred)
    down = torch.zeros_like(blurred)
    across[..., 1:-1] = blurred[..., 2:] - blurred[..., :-2]
    down[:, 1:-1] = blurred[:, 2:] - blurred[:, :-2]
    edges = (across**2 + down**2).sqrt()
    if valid is not None:
        reach = 2 * len(_WEIGHTS) - 1
        holes = max_pool2d(1 - valid[:, None], reach + 2, 1, reach // 2 + 1)[:, 0]
        edges = torch.where(holes > 0, 0.0, edges)
    full = edges.flatten(1).quantile(_STRONG, dim=1).clamp(min=1e-6)
    edges = (edges / full[:, None, None]).clamp(max=1)
    if len(edges) > 2:
        edges = edges - edges.mean(0, keepdim=True)
    edges = edges - edges.mean((1, 2), keepdim=True)
    return normalize(edges.flatten(1), dim=1).view_as(edges)


def _blurred(maps: Tensor) -> Tensor:
    """Returns (N, h, w) blurred along its last axis by a Gaussian of one cell."""
    reach = len(_WEIGHTS) - 1
    padded = pad(maps, (reach, reach), mode="replicate")
    width = maps.shape[-1]
    total = _WEIGHTS[0] * maps
    for shift, weight in enumerate(_WEIGHTS[1:], start=1):
        left = padded[..., reach - shift : reach - shift + width]
        right = padded[..., reach + shift : reach + shift + width]
        total = total + weight * (left + right)
    return total
