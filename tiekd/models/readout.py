"""Computes a depth, or a measure of its certainty, from each pixel's distribution over depth bins.

Training optimises the distribution's mean, which `Network` returns. At object boundaries the
distribution has two modes, and the mean is a depth between foreground and background at which there
is no surface. The readouts `mode` and `local` give the depth of the higher mode instead. The
functions are plain torch operations on whole (B, K, h, w) distributions, so they can be exported;
`read_out` also takes (B, h, w, K).
`in_strips` applies them to strips, i.e. to a few image rows at a time, with about 64 MiB of
temporary memory at any image size. Not covered: bins that depend on the image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.data.resize import resized_by_index
from tiekd.errors import RecipeError

READOUTS = ("mean", "mode", "local")
# Number of bins to each side of the most probable bin that the readout "local" includes.
REACH = 2
# Maximum bytes of the distributions that `in_strips` computes in one step. To read depth from them
# takes up to three more tensors of this size.
STRIP_BYTES = 16 << 20


def read_out(probabilities: Tensor, centres: Tensor, readout: str, dim: int = 1) -> Tensor:
    """Computes one depth from each pixel's distribution over depth bins.

    Args:
        probabilities: (B, K, h, w) or, with `dim` -1, (B, h, w, K), up to a factor in each pixel.
        centres: (K,), bin centres, metres.
        readout: "mean", the mean over all bins; "mode", the centre of the most probable bin;
            "local", the mean over the most probable bin and the REACH bins on each side of it.
        dim: the dimension of the bins, 1 or, for (B, h, w, K), -1.

    Returns:
        (B, 1, h, w), or (B, h, w, 1) if the bins are last, metres.

    Raises:
        RecipeError: the readout is unknown.
    """
    if readout not in READOUTS:
        raise RecipeError(f"readout: got {readout!r}; allowed: {', '.join(READOUTS)}")
    if readout == "mode":
        return centres[probabilities.argmax(dim, keepdim=True)]
    if readout == "local":
        probabilities = torch.where(_near_mode(probabilities, dim), probabilities, 0)
    weighted = (probabilities * along(centres, dim)).sum(dim, keepdim=True)
    return weighted / probabilities.sum(dim, keepdim=True)


def along(values: Tensor, dim: int) -> Tensor:
    """Returns one value per bin as a view that multiplies distributions whose bins are along `dim`.

    Args:
        values: (K,).
        dim: 1 for distributions (B, K, h, w), 3 or -1 for (B, h, w, K).

    Returns:
        (1, K, 1, 1) or (1, 1, 1, K).
    """
    shape = [1] * 4
    shape[dim] = -1
    return values.view(shape)


def margin(probabilities: Tensor) -> Tensor:
    """Returns the difference between the two largest probabilities of each pixel.

    If it is near 0, rounding decides which bin is the most probable one.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), 0 to 1.
    """
    first, second = probabilities.topk(2, dim=1).values.split(1, dim=1)
    return first - second


def entropy(probabilities: Tensor) -> Tensor:
    """Returns the entropy of each pixel's distribution, -sum_k p_k log p_k with 0 log 0 = 0.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.

    Returns:
        (B, 1, h, w), nats, from 0 (certain) to log K (uniform).
    """
    return -torch.xlogy(probabilities, probabilities).sum(1, keepdim=True)


def in_strips(
    read: Callable[..., Tensor],
    features: Tensor,
    probabilities: Callable[[Tensor], Tensor],
    *maps: Tensor,
) -> Tensor:
    """Applies a function to a head's distributions over bins, for a few rows of an image at a time.

    As many rows are processed together as have distributions of at most STRIP_BYTES bytes. The
    functions `read` and `probabilities` must treat every pixel independently.

    Args:
        read: a function of distributions (B, K, h, w) that returns (B, c, h, w), such as
            `read_out` or `entropy`.
        features: (B, C, h, w), the head's input.
        probabilities: the head's function that computes distributions (B, K, h, w) float32 from
            features (B, C, h, w).
        *maps: (B, m, h, w) each, further arguments of `read`, which gets the same rows of them.

    Returns:
        (B, c, h, w).
    """
    per_pixel = probabilities(features[:1, :, :1, :1]).shape[1] * 4
    rows = max(1, STRIP_BYTES // (per_pixel * features.shape[3]))
    images = []
    for image, *own in zip(features, *maps, strict=True):
        strips = zip(*(each[None].split(rows, dim=2) for each in (image, *own)), strict=True)
        found = [read(probabilities(strip), *given) for strip, *given in strips]
        images.append(torch.cat(found, dim=2)[0])
    return torch.stack(images)


def resize_to_image(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes a map of one value per pixel of a head's output to the size of the input image.

    The centres of the corner pixels of map and image are aligned.

    Args:
        values: (B, 1, h, w), e.g. depths.
        size: (H, W) of the network's input image.
        smooth: True for bilinear interpolation; False for the nearest value, so that no depth
            between two bins is interpolated.

    Returns:
        (B, 1, H, W).
    """
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return resize_for_export(values, size, smooth)


def resize_for_export(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """Resizes a map as `resize_to_image` does, with aligned corners, but without an `if` on sizes.

    A graph that is traced from this function, e.g. for ONNX, is therefore valid for any size.

    Args:
        values: (B, 1, h, w), one value per pixel of a head's output.
        size: (H, W) of the network's input image.
        smooth: True for bilinear interpolation; False for the nearest value.

    Returns:
        (B, 1, H, W).
    """
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=True)
    return resized_by_index(values, size, _aligned_index)


def _aligned_index(coarse: int, fine: int, device: torch.device) -> Tensor:
    """Returns the index of the nearest of `coarse` values for each of `fine` positions.

    Along one axis, `fine` pixels of an image are assigned to `coarse` values of a head's output.
    The first and last value are aligned with the first and last pixel. If two values are equally
    near, the result is the second. Integer arithmetic makes an exported graph choose the same one.

    Args:
        coarse: number of values.
        fine: number of pixels.
        device: device of the result.

    Returns:
        (fine,) int64.
    """
    last = fine - 1
    return (2 * torch.arange(fine, device=device) * (coarse - 1) + last) // max(2 * last, 1)


def _near_mode(probabilities: Tensor, dim: int) -> Tensor:
    """Returns a mask of each pixel's most probable bin and the REACH bins on each side of it.

    Args:
        probabilities: (B, K, h, w) or, with `dim` -1, (B, h, w, K), distributions over K bins.
        dim: the dimension of the bins, 1 or -1.

    Returns:
        bool, shape of `probabilities`.
    """
    bins = along(torch.arange(probabilities.shape[dim], device=probabilities.device), dim)
    return (bins - probabilities.argmax(dim, keepdim=True)).abs() <= REACH
