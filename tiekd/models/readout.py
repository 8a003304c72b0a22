"""What is read out of a distribution over depth bins: a depth, and how sure it is.

The mean is what training learns and what `Network` returns. At the edge of a thing the distribution has two hills, and
the mean lies between them, in mid-air: `mode` and `local` stay on the higher hill. Plain differentiable torch on whole
(B, K, h, w) distributions, so for export at moderate sizes; `in_strips` is for prediction at any size, and holds some
64 MiB at once. Left out: bins that move with the image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.data.resize import picked
from tiekd.errors import RecipeError

READOUTS = ("mean", "mode", "local")
REACH = 2  # bins to each side of the mode
STRIP_BYTES = 16 << 20  # of a strip's distribution; reading it out takes three more of that size


def read_out(probabilities: Tensor, centres: Tensor, readout: str) -> Tensor:
    """Depth (B, 1, h, w) in metres from probabilities (B, K, h, w), summing to 1 over K, and bin centres (K,), metres.

    readout: "mean" over all bins; "mode", the centre of the likeliest bin; "local", the mean within REACH bins of it.
    Raises RecipeError for another one.
    """
    if readout not in READOUTS:
        raise RecipeError(f"readout: got {readout!r}; allowed: {', '.join(READOUTS)}")
    if readout == "mode":
        return centres[probabilities.argmax(1, keepdim=True)]
    if readout == "local":
        probabilities = torch.where(_near_mode(probabilities), probabilities, 0)
    weighted = (probabilities * centres.view(1, -1, 1, 1)).sum(1, keepdim=True)
    return weighted / probabilities.sum(1, keepdim=True)


def confidence(probabilities: Tensor) -> Tensor:
    """Probability that depth lies within REACH bins of the likeliest one: (B, 1, h, w), 0 to 1."""
    return torch.where(_near_mode(probabilities), probabilities, 0).sum(1, keepdim=True)


def margin(probabilities: Tensor) -> Tensor:
    """How much likelier the likeliest bin is than the next: (B, 1, h, w), 0 to 1; near 0 rounding chooses the mode."""
    first, second = probabilities.topk(2, dim=1).values.split(1, dim=1)
    return first - second


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_k p_k log p_k with 0 log 0 = 0: (B, 1, h, w), nats, 0 (certain) to log K (knows nothing)."""
    return -torch.xlogy(probabilities, probabilities).sum(1, keepdim=True)


def in_strips(
    read: Callable[[Tensor], Tensor], features: Tensor, probabilities: Callable[[Tensor], Tensor]
) -> Tensor:
    """`read` of the distribution of features (B, C, h, w), a few rows of one image at a time: (B, c, h, w).

    probabilities: a head's, (B, C, h, w) -> (B, K, h, w) float32, in which each pixel stands for itself. read:
    (B, K, h, w) -> (B, c, h, w), likewise.
    """
    per_pixel = probabilities(features[:1, :, :1, :1]).shape[1] * 4
    rows = max(1, STRIP_BYTES // (per_pixel * features.shape[3]))
    images = [
        torch.cat([read(probabilities(strip)) for strip in image[None].split(rows, dim=2)], dim=2)
        for image in features
    ]
    return torch.stack([image[0] for image in images])


def on_image_grid(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """A head's maps on the grid of the image that the network saw, corners aligned as in `Network`.

    Args:
        values: (B, 1, h, w).
        size: (H, W) of the image.
        smooth: bilinear; False takes the nearest, so that no depth is made up between two bins.

    Returns:
        (B, 1, H, W).
    """
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return spread_on_grid(values, size, smooth)


def spread_on_grid(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """`on_image_grid` that decides nothing by the sizes, so that a graph traced from it holds for any."""
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=True)
    return picked(values, size, _aligned_index)


def _aligned_index(coarse: int, fine: int, device: torch.device) -> Tensor:
    """(fine,) int64: the nearest of `coarse` cells, of two equally near the second, where first and last cells meet.

    Whole numbers, for a graph must choose as we do where two are equally near.
    """
    last = fine - 1
    return (2 * torch.arange(fine, device=device) * (coarse - 1) + last) // max(2 * last, 1)


def _near_mode(probabilities: Tensor) -> Tensor:
    bins = torch.arange(probabilities.shape[1], device=probabilities.device).view(1, -1, 1, 1)
    return (bins - probabilities.argmax(1, keepdim=True)).abs() <= REACH
