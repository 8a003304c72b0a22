"""Readouts of a distribution over depth bins: a depth, and how certain it is.

Training learns the mean, and `Network` returns it. At an object's edge the distribution has two
peaks, and the mean lies between them, in mid-air; `mode` and `local` stay at the higher peak. The
readouts are plain differentiable torch on whole (B, K, h, w) distributions, so they can be
exported, at moderate sizes. `in_strips` is for prediction at any size and holds some 64 MiB at
once. Left out: bins that move with the image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.data.resize import picked
from tiekd.errors import RecipeError

READOUTS = ("mean", "mode", "local")
REACH = 2  # bins to each side of the mode
STRIP_BYTES = 16 << 20  # of a strip's distribution; the readout takes three more of that size


def read_out(probabilities: Tensor, centres: Tensor, readout: str) -> Tensor:
    """Returns the depth of each pixel's distribution.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.
        centres: (K,) bin centres, metres.
        readout: "mean" over all bins; "mode", the centre of the likeliest bin; "local", the mean
            within REACH bins of it.

    Returns:
        (B, 1, h, w), metres.

    Raises:
        RecipeError: there is no such readout.
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
    """Returns the probability that depth lies within REACH bins of the likeliest one.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), 0 to 1.
    """
    return torch.where(_near_mode(probabilities), probabilities, 0).sum(1, keepdim=True)


def margin(probabilities: Tensor) -> Tensor:
    """Returns the difference of the two largest probabilities.

    Where it is near 0, rounding decides the mode.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), 0 to 1.
    """
    first, second = probabilities.topk(2, dim=1).values.split(1, dim=1)
    return first - second


def entropy(probabilities: Tensor) -> Tensor:
    """Returns -sum_k p_k log p_k with 0 log 0 = 0.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), nats, from 0 (certain) to log K (uniform).
    """
    return -torch.xlogy(probabilities, probabilities).sum(1, keepdim=True)


def in_strips(
    read: Callable[[Tensor], Tensor], features: Tensor, probabilities: Callable[[Tensor], Tensor]
) -> Tensor:
    """Reads out the distribution of features, a few rows of one image at a time.

    Args:
        read: (B, K, h, w) -> (B, c, h, w), pixel by pixel.
        features: (B, C, h, w).
        probabilities: a head's, (B, C, h, w) -> (B, K, h, w) float32, pixel by pixel.

    Returns:
        (B, c, h, w).
    """
    per_pixel = probabilities(features[:1, :, :1, :1]).shape[1] * 4
    rows = max(1, STRIP_BYTES // (per_pixel * features.shape[3]))
    images = [
        torch.cat([read(probabilities(strip)) for strip in image[None].split(rows, dim=2)], dim=2)
        for image in features
    ]
    return torch.stack([image[0] for image in images])


def on_image_grid(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes a head's maps to the network's input image, corners aligned as in `Network`.

    Args:
        values: (B, 1, h, w).
        size: (H, W) of the image.
        smooth: True: bilinear; False: nearest, so that no depth is made up between two bins.

    Returns:
        (B, 1, H, W).
    """
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return spread_on_grid(values, size, smooth)


def spread_on_grid(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes as `on_image_grid`, without a branch on the sizes.

    So a graph traced from it holds for any size.
    """
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=True)
    return picked(values, size, _aligned_index)


def _aligned_index(coarse: int, fine: int, device: torch.device) -> Tensor:
    """Returns the nearest of `coarse` cells for each of `fine` ones, first and last aligned.

    Of two equally near cells it is the second. Integers, because an exported graph must choose the
    same one.

    Returns:
        (fine,) int64.
    """
    last = fine - 1
    return (2 * torch.arange(fine, device=device) * (coarse - 1) + last) // max(2 * last, 1)


def _near_mode(probabilities: Tensor) -> Tensor:
    """Returns (B, K, h, w) bool: True within REACH bins of the likeliest bin."""
    bins = torch.arange(probabilities.shape[1], device=probabilities.device).view(1, -1, 1, 1)
    return (bins - probabilities.argmax(1, keepdim=True)).abs() <= REACH
