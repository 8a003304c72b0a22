"""Readouts of a distribution over depth bins: a depth, and measures of its certainty.

Training optimises the mean, which `Network` returns. At object boundaries the distribution has two
modes, and the mean is a depth between foreground and background at which there is no surface.
`mode` and `local` return a depth at the higher mode instead. The readouts are plain differentiable
torch operations on whole (B, K, h, w) distributions, so they can be exported, at moderate sizes.
`in_strips` predicts at any size with about 64 MiB of temporary memory. Left out: bins that depend
on the image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.data.resize import picked
from tiekd.errors import RecipeError

READOUTS = ("mean", "mode", "local")
REACH = 2  # bins to each side of the mode that `local` and `confidence` include
STRIP_BYTES = 16 << 20  # size of a strip's distribution; a readout needs three more such tensors


def read_out(probabilities: Tensor, centres: Tensor, readout: str) -> Tensor:
    """Computes one depth from each pixel's distribution.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.
        centres: (K,), bin centres, metres.
        readout: "mean", the mean over all bins; "mode", the centre of the most probable bin;
            "local", the mean over the bins within REACH of the most probable one.

    Returns:
        (B, 1, h, w), metres.

    Raises:
        RecipeError: the readout is unknown.
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
    """Returns the probability mass within REACH bins of the most probable bin.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), 0 to 1.
    """
    return torch.where(_near_mode(probabilities), probabilities, 0).sum(1, keepdim=True)


def margin(probabilities: Tensor) -> Tensor:
    """Returns the difference between the two largest probabilities.

    Where it is near 0, rounding decides which bin is the mode.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), 0 to 1.
    """
    first, second = probabilities.topk(2, dim=1).values.split(1, dim=1)
    return first - second


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy, -sum_k p_k log p_k with 0 log 0 = 0.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), nats, from 0 (certain) to log K (uniform).
    """
    return -torch.xlogy(probabilities, probabilities).sum(1, keepdim=True)


def in_strips(
    read: Callable[[Tensor], Tensor], features: Tensor, probabilities: Callable[[Tensor], Tensor]
) -> Tensor:
    """Applies a readout to a head's distribution, a strip of rows of one image at a time.

    Both functions must treat every pixel independently.

    Args:
        read: the readout, a function (B, K, h, w) -> (B, c, h, w).
        features: (B, C, h, w), the head's input.
        probabilities: the head's function (B, C, h, w) -> (B, K, h, w) float32.

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
    """Resizes a head's map to the size of the network's input image, with aligned corners.

    Args:
        values: (B, 1, h, w).
        size: (H, W) of the image.
        smooth: True for bilinear interpolation; False for the nearest cell, so that no depth
            between two bins is interpolated.

    Returns:
        (B, 1, H, W).
    """
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return spread_on_grid(values, size, smooth)


def spread_on_grid(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes like `on_image_grid`, but without a branch on the sizes.

    A traced graph is therefore valid for any size. The arguments are those of `on_image_grid`.
    """
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=True)
    return picked(values, size, _aligned_index)


def _aligned_index(coarse: int, fine: int, device: torch.device) -> Tensor:
    """Returns the index of the nearest of `coarse` cells for each of `fine` pixels.

    The first and last cell are aligned with the first and last pixel. Of two equally near cells it
    is the second. Integer arithmetic makes an exported graph choose the same cell.

    Returns:
        (fine,) int64.
    """
    last = fine - 1
    return (2 * torch.arange(fine, device=device) * (coarse - 1) + last) // max(2 * last, 1)


def _near_mode(probabilities: Tensor) -> Tensor:
    """Returns a mask (B, K, h, w), True for bins within REACH of the most probable one."""
    bins = torch.arange(probabilities.shape[1], device=probabilities.device).view(1, -1, 1, 1)
    return (bins - probabilities.argmax(1, keepdim=True)).abs() <= REACH
