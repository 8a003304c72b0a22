"""Computes how many predicted points near depth edges are in mid-air between the two surfaces.

A depth edge is a border between a near and a far surface in the image. Error metrics are means over
pixels, so the few pixels at edges hardly affect them. But a point cloud with a curtain of points in
mid-air, between a car and the house behind it, is useless. The metric needs dense ground truth,
such as that of the built-in scenes. It is this project's own, inspired by the boundary errors of
Koch et al. 2018 (arXiv 1805.01328), which measure where edges are, not which depths are predicted
between the two surfaces.

Not covered: edges next to pixels without ground truth (the sky); and points nearer than the near
surface or farther than the far one, which are depth errors but not mid-air points.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


class MidAir(NamedTuple):
    """The fraction of mid-air points among the pixels near depth edges.

    Attributes:
        share: fraction of the pixels near edges whose predicted depth is in mid-air, i.e. between
            the near and the far surface, 0 to 1; NaN if there are no pixels near edges.
        pixels: number of pixels near edges.
    """

    share: float
    pixels: int


def mid_air(
    prediction: Tensor, truth: Tensor, jump: float = 1.25, radius: int = 2, tolerance: float = 0.05
) -> MidAir:
    """Computes the fraction of points near depth edges that are between the two sides of the edge.

    There is an edge between two vertically or horizontally adjacent pixels if their true depths
    differ by a factor of `jump` or more. A pixel is near an edge if the square around it, with a
    side of 2 `radius` + 1 pixels, contains both of these pixels, and the true depth of the whole
    square is known. The near and the far side of the edge are the minimum and the maximum true
    depth in the square. A predicted point is in mid-air if its depth is above (1 + `tolerance`) x
    near side and below (1 - `tolerance`) x far side.

    Args:
        prediction: (B, 1, H, W) float, metres.
        truth: (B, 1, H, W) float, metres; dense, 0 where unknown.
        jump: minimum ratio of two neighbouring depths at an edge.
        radius: number of pixels to each side of the square's centre, 1 or more.
        tolerance: minimum distance of a mid-air point from the near and the far side, relative to
            the side's depth.

    Returns:
        The fraction of such points, and the number of pixels near edges, over all images together.

    Raises:
        ValueError: the radius is below 1, or the shapes differ.
    """
    if radius < 1:
        raise ValueError(f"mid_air: radius must be 1 pixel or more, got {radius}")
    if prediction.shape != truth.shape or truth.dim() != 4:
        shapes = f"{tuple(prediction.shape)}, {tuple(truth.shape)}"
        raise ValueError(f"mid_air: needs two maps (B, 1, H, W), got {shapes}")
    near_edge, hanging = _masks(prediction, truth, jump, radius, tolerance)
    pixels = int(near_edge.sum())
    return MidAir(int(hanging.sum()) / pixels if pixels else float("nan"), pixels)


def edge_sums(prediction: Tensor, truth: Tensor) -> Tensor:
    """Sums a prediction's errors over the pixels near depth edges.

    Pixels near edges, and points in mid-air, are those of `mid_air` with its default arguments.

    Args:
        prediction: (B, 1, H, W) float, metres.
        truth: (B, 1, H, W) float, metres; dense, 0 where unknown.

    Returns:
        (3,) float64 on the same device: the number of pixels near edges, the sum of |prediction -
        truth| / truth over them, and the number of points in mid-air. A prediction that isn't
        finite has an infinite error.
    """
    near_edge, hanging = _masks(prediction, truth, jump=1.25, radius=2, tolerance=0.05)
    divisor = torch.where(near_edge, truth, 1).double()
    error = (prediction.double() - divisor).abs() / divisor
    error = torch.where(error.isfinite(), error, torch.inf)
    total = torch.where(near_edge, error, 0).sum()
    return torch.stack([near_edge.sum().double(), total, hanging.sum().double()])


def _masks(
    prediction: Tensor, truth: Tensor, jump: float, radius: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Returns masks of the pixels near edges and of the pixels predicted in mid-air.

    The arguments are those of `mid_air`.

    Returns:
        (near edges, in mid-air), both (B, 1, H, W) bool.
    """
    # Find the minimum and maximum true depth in the square around each pixel. Near an edge, these
    # are the depths of its two sides.
    known = torch.isfinite(truth) & (truth > 0)
    far = _largest(torch.where(known, truth, 0), radius)
    near = -_largest(torch.where(known, -truth, -torch.inf), radius)
    all_known = _largest((~known).float(), radius) == 0
    near_edge = _near_edges(truth, known, jump, radius) & all_known
    hanging = (
        (prediction > near * (1 + tolerance)) & (prediction < far * (1 - tolerance)) & near_edge
    )
    return near_edge, hanging


def _near_edges(truth: Tensor, known: Tensor, jump: float, radius: int) -> Tensor:
    """Returns a mask of the pixels near depth edges.

    A pixel is near an edge if the square around it contains both of the adjacent pixels between
    which the edge is.

    Args:
        truth: (B, 1, H, W), true depth, metres.
        known: (B, 1, H, W) bool, True where the true depth is known.
        jump: minimum ratio of two neighbouring depths at an edge.
        radius: number of pixels to each side of the square's centre.

    Returns:
        (B, 1, H, W) bool.
    """
    near = torch.zeros_like(known)
    for axis in (2, 3):
        # Mark both pixels of each pair of neighbours along `axis` whose depths differ by the factor
        # `jump` or more.
        length = truth.shape[axis] - 1
        first = truth.narrow(axis, 0, length)
        second = truth.narrow(axis, 1, length)
        both = known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
        differ = both & (torch.maximum(first, second) >= jump * torch.minimum(first, second))
        edges = torch.zeros_like(known)
        edges.narrow(axis, 0, length).logical_or_(differ)
        edges.narrow(axis, 1, length).logical_or_(differ)
        # An edge lies between two neighbouring pixels along `axis`. A pixel is near the edge if the
        # square of `radius` around the pixel contains both neighbours. So the nearer neighbour is
        # at most radius - 1 pixels away along `axis`, and at most `radius` across it.
        reach = (radius - 1, radius) if axis == 2 else (radius, radius - 1)
        near |= _largest(edges.float(), *reach) > 0
    return near


def _largest(values: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Returns for each pixel the maximum of a map in the rectangle around it.

    Args:
        values: (B, 1, H, W).
        rows: number of rows above and below the pixel that belong to the rectangle.
        columns: number of columns to the left and right of the pixel; None for as many as `rows`.

    Returns:
        (B, 1, H, W) float32.
    """
    columns = rows if columns is None else columns
    return max_pool2d(
        values.float(), (2 * rows + 1, 2 * columns + 1), stride=1, padding=(rows, columns)
    )
