"""The share of points that hang in mid-air at depth edges.

Error metrics are means over pixels and hardly see edges, while a point cloud with a curtain
between a car and the house behind it is useless. Needs dense ground truth; the built-in scenes
have it exactly. The definition is ours, after the boundary errors of Koch et al. 2018 (arXiv
1805.01328), which measure where edges are and not what lies between their sides.

Left out: edges against what has no depth (the sky), and points before the near or behind the far
side, which are wrong depths but no curtain.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


class MidAir(NamedTuple):
    """The result of `mid_air`.

    Attributes:
        share: points in mid-air among the pixels near edges, 0 to 1; NaN without such pixels.
        pixels: number of pixels near edges.
    """

    share: float
    pixels: int


def mid_air(
    prediction: Tensor, truth: Tensor, jump: float = 1.25, radius: int = 2, tolerance: float = 0.05
) -> MidAir:
    """Measures how many predicted points near depth edges lie between the two sides of the edge.

    An edge is where the truths of two vertical or horizontal neighbours differ by a factor of
    `jump` or more. A pixel is near an edge if both neighbours lie within `radius` pixels of it in
    both directions and all truth in that square is known. The near and the far side are the least
    and the greatest truth in the square. A point is in mid-air if it is more than `tolerance`
    behind the near side and more than `tolerance` before the far one.

    Args:
        prediction: (B, 1, H, W) float, metres.
        truth: (B, 1, H, W) float, metres; dense, 0 where there is none.
        jump: smallest ratio of two depths at an edge.
        radius: pixels, 1 or more.
        tolerance: relative distance from a side, as a share of its depth.

    Raises:
        ValueError: the radius is below 1, or the shapes differ.
    """
    if radius < 1:
        raise ValueError(f"mid_air: radius must be 1 pixel or more, got {radius}")
    if prediction.shape != truth.shape or truth.dim() != 4:
        shapes = f"{tuple(prediction.shape)}, {tuple(truth.shape)}"
        raise ValueError(f"mid_air: needs two maps (B, 1, H, W), got {shapes}")
    # The two sides of the edge: the extremes of the truth around each pixel.
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
    """Returns (B, 1, H, W) bool: True where the square around a pixel has both sides of an edge."""
    near = torch.zeros_like(known)
    for axis in (2, 3):
        # An edge belongs to both of its neighbours along this axis.
        length = truth.shape[axis] - 1
        first = truth.narrow(axis, 0, length)
        second = truth.narrow(axis, 1, length)
        both = known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
        differ = both & (torch.maximum(first, second) >= jump * torch.minimum(first, second))
        edges = torch.zeros_like(known)
        edges.narrow(axis, 0, length).logical_or_(differ)
        edges.narrow(axis, 1, length).logical_or_(differ)
        # Across the edge one less, because one of the two neighbours is a pixel nearer.
        reach = (radius - 1, radius) if axis == 2 else (radius, radius - 1)
        near |= _largest(edges.float(), *reach) > 0
    return near


def _largest(values: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Returns the greatest value within so many rows and columns of each pixel."""
    columns = rows if columns is None else columns
    return max_pool2d(
        values.float(), (2 * rows + 1, 2 * columns + 1), stride=1, padding=(rows, columns)
    )
