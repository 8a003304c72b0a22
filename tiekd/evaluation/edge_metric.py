"""How a predicted depth map behaves at the edges of things: whether its points hang in mid-air there.

Error metrics are means over pixels and hardly see edges, while a cloud of points with a curtain between a car and the
house behind it is useless. Needs dense ground truth; the built-in scenes have it exactly. The definition is ours, after
the boundary errors of Koch et al. 2018 (arXiv 1805.01328), who look at where edges are and not at what is between.
Left out: edges against what has no depth (the sky), and points before the near or behind the far side, which are wrong
depths but no curtain.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


class MidAir(NamedTuple):
    """share: of the pixels near edges, how many have a predicted point in mid-air, 0 to 1 (NaN without such pixels);
    pixels: how many there are."""

    share: float
    pixels: int


def mid_air(
    prediction: Tensor, truth: Tensor, jump: float = 1.25, radius: int = 2, tolerance: float = 0.05
) -> MidAir:
    """How many of the predicted points near depth edges lie between the two sides of the edge and on neither.

    prediction, truth: (B, 1, H, W) float, metres; truth dense, 0 where there is none.

    An edge is where the truths of two neighbours, one above or beside the other, differ by a factor of `jump` or more.
    A pixel is near an edge when both neighbours lie within `radius` pixels of it in both directions and all truth in
    that square is known; the near and the far side are the least and the greatest truth in it. A point is in mid-air
    when it is more than `tolerance` behind the near side and more than `tolerance` before the far one.
    """
    if radius < 1:
        raise ValueError(f"mid_air: radius must be 1 pixel or more, got {radius}")
    if prediction.shape != truth.shape or truth.dim() != 4:
        raise ValueError(
            f"mid_air: needs two maps (B, 1, H, W), got {tuple(prediction.shape)}, {tuple(truth.shape)}"
        )
    known = torch.isfinite(truth) & (truth > 0)
    far = _largest(torch.where(known, truth, 0), radius)
    near = -_largest(torch.where(known, -truth, -torch.inf), radius)
    all_known = _largest((~known).float(), radius) == 0
    near_edge = _near_edges(truth, known, jump, radius) & all_known
    hanging = (
        (prediction > near * (1 + tolerance)) & (prediction < far * (1 - tolerance)) & near_edge
    )
    pixels = int(near_edge.sum())
    return MidAir(int(hanging.sum()) / pixels if pixels else float("nan"), pixels)


def _near_edges(truth: Tensor, known: Tensor, jump: float, radius: int) -> Tensor:
    """(B, 1, H, W) bool: whether the square around a pixel holds both neighbours of an edge."""
    near = torch.zeros_like(known)
    for axis in (2, 3):
        length = truth.shape[axis] - 1
        first, second = truth.narrow(axis, 0, length), truth.narrow(axis, 1, length)
        both = known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
        differ = both & (torch.maximum(first, second) >= jump * torch.minimum(first, second))
        edges = torch.zeros_like(known)
        edges.narrow(axis, 0, length).logical_or_(differ)
        edges.narrow(axis, 1, length).logical_or_(differ)
        # Across the edge one less: there the one neighbour is nearer than the other.
        reach = (radius - 1, radius) if axis == 2 else (radius, radius - 1)
        near |= _largest(edges.float(), *reach) > 0
    return near


def _largest(values: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """The greatest value within so many rows and columns."""
    columns = rows if columns is None else columns
    return max_pool2d(
        values.float(), (2 * rows + 1, 2 * columns + 1), stride=1, padding=(rows, columns)
    )
