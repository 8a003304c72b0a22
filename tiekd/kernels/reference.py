"""Reference implementation of the DPM head's arithmetic, which the faster ones are tested against.

A 1x1 convolution of the features gives one logit for each of K depth bins, and a softmax of the
logits the probabilities p. The depth is the mean of p. The divergence is KL(q || p) of a target
distribution q from p. Both are computed in the dtype of the bins' edges (float32 in training),
whatever the dtype of the weights.

Cost: memory for about eight (B, K, h, w) tensors at the peak of forward and backward. Not covered:
measures that save memory.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tiekd.errors import RecipeError
from tiekd.kernels.target import bin_centres, gaussian_target, released_target

TARGETS = ("gaussian", "released")
BEYOND = ("clamp", "ignore")
RELEASED_EPS = 1e-7


def dpm(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    target_depth: Tensor | None = None,
    sigma: float | Tensor = 0.5,
    target: str = "gaussian",
    beyond: str = "clamp",
    stride: int = 1,
    target_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Computes the DPM head's depth, and the divergence of a target distribution, from features.

    K is the number of depth bins. The target distribution q of an image pixel is a mixture of M
    components, one per teacher (usually M = 1). A cell is one pixel of the features; it covers
    stride x stride pixels of the image.

    Args:
        features: (B, C, h, w), the head's input.
        weight: (K, C, 1, 1), weight of the 1x1 convolution, in the features' float dtype.
        bias: (K,), bias of the 1x1 convolution, in the features' dtype.
        edges: (K + 1,) float32 or float64, edges of the bins, metres, increasing.
        target_depth: (B, M, H, W), metres, depth of each component, with h = ceil(H / stride) and
            w = ceil(W / stride); a component is valid where its depth is > 0. None computes no
            divergence.
        sigma: standard deviation of the components, metres, a number, a tuple of one number for
            each component, or (B, M, H, W).
        target: "gaussian"; or "released" for the target and the divergence of TIE-KD's released
            code, which need M = 1 and don't clamp depths.
        beyond: how target depths above the last edge are treated. "ignore" makes them invalid;
            "clamp" replaces them by the last bin's centre.
        stride: image pixels per side of a cell; a cell's q is the mean q of the valid pixels that
            it covers.
        target_weight: (B, M, H, W), non-negative weights of the components; None for equal weights.

    Returns:
        (depth, divergence), each (B, 1, h, w) in the dtype of edges: the mean depth in metres, and
        the divergence in nats, 0 in cells without a valid target. The divergence is None if
        `target_depth` is None.

    Raises:
        RecipeError: `target` or `beyond` is unknown, or sigma is too small for the bins.
    """
    check_choices(target, beyond)
    logits = F.conv2d(features, weight, bias).to(edges.dtype)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    # Multiply and sum instead of a matmul, which a GPU may run in TF32, i.e. with the precision of
    # three decimal digits.
    depth = (p * bin_centres(edges).view(1, -1, 1, 1)).sum(1, keepdim=True)
    if target_depth is None:
        return depth, None
    q, valid = cell_target(target_depth, sigma, target_weight, edges, target, beyond, stride)
    divergence = (
        gaussian_divergence(log_p, q) if target == "gaussian" else released_divergence(p, q)
    )
    return depth, divergence.masked_fill(~valid, 0)


def gaussian_divergence(log_p: Tensor, q: Tensor) -> Tensor:
    """Returns the divergence KL(q || p) = sum_k q_k (log q_k - log p_k), with 0 log 0 = 0.

    Args:
        log_p: (B, K, h, w), log-probabilities of the prediction.
        q: (B, K, h, w), target, summing to 1 over K.

    Returns:
        (B, 1, h, w), nats.
    """
    return (torch.xlogy(q, q) - q * log_p).sum(1, keepdim=True)


def released_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Returns the divergence of q from p as TIE-KD's released code computes it.

    It is sum_k [p_k != 0] q_k log(q_k / (p_k + 1e-7) + 1e-7), where [p_k != 0] is 1 if p_k is not
    0, else 0.

    Args:
        p: (B, K, h, w), probabilities of the prediction.
        q: (B, K, h, w), target, summing to 1 over K.

    Returns:
        (B, 1, h, w), nats.
    """
    terms = q * torch.log(q / (p + RELEASED_EPS) + RELEASED_EPS)
    return terms.masked_fill(p == 0, 0).sum(1, keepdim=True)


@torch.no_grad()
def cell_target(
    depth: Tensor,
    sigma: float | Tensor,
    weight: Tensor | None,
    edges: Tensor,
    target: str = "gaussian",
    beyond: str = "clamp",
    stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Returns the target distribution of each cell, i.e. of each pixel of the head's output.

    Args:
        depth: (B, M, H, W), target depths of M teachers at the image's size, metres, 0 where not
            valid.
        sigma: standard deviation of the Gaussian around each target depth, metres, a number or
            (B, M, H, W).
        weight: (B, M, H, W), weights of the teachers in the target; None for equal weights.
        edges: (K + 1,), edges of the depth bins, metres.
        target: kind of the target distribution, "gaussian" or "released", as for `dpm`.
        beyond: treatment of target depths above the last edge, "clamp" or "ignore", as for `dpm`.
        stride: image pixels per side of a cell.

    Returns:
        (q, valid): the distribution over K bins, (B, K, h, w), in the dtype of edges; and (B, 1, h,
        w) bool, True for cells with at least one valid pixel. For other cells q has no meaning.
    """
    q, pixels = 0.0, 0
    # Average the distributions of the stride x stride image pixels that each pixel of the head's
    # output covers. Process one position in this square at a time, so that only its distributions
    # are in memory.
    for d, s, w in pixels_of_cells(depth, sigma, weight, edges, beyond, stride):
        valid = (d > 0).any(1, keepdim=True)
        if target == "gaussian":
            q_pixel = gaussian_target(d, s, w, edges)
        else:
            q_pixel = released_target(d, s, edges, bin_centres(edges))
        q = q_pixel if stride == 1 else q + q_pixel * valid
        pixels = pixels + valid
    return q / pixels.clamp_min(1) if stride > 1 else q, pixels > 0


def pixels_of_cells(
    depth: Tensor,
    sigma: float | Tensor,
    weight: Tensor | None,
    edges: Tensor,
    beyond: str,
    stride: int,
) -> Iterator[tuple[Tensor, float | Tensor, Tensor | None]]:
    """Yields target depth, sigma and weight of one image pixel per cell, stride^2 times.

    A cell is a pixel of the head's output; it covers a square of stride x stride pixels of the
    image. The first result has the top left pixel of every square, the second the pixel to its
    right, and so on, row by row.

    Args:
        depth: (B, M, H, W), target depths of M components, metres, 0 or NaN where not valid.
        sigma: standard deviation of the components, metres, a number or (B, M, H, W).
        weight: (B, M, H, W), weights of the components, or None.
        edges: (K + 1,), edges of the depth bins, metres.
        beyond: "ignore" to set depths above the last edge to 0, or "clamp" to leave them.
        stride: image pixels per side of a cell.

    Yields:
        (depth, sigma, weight), each (B, M, h, w), except for a sigma that is a number and a weight
        that is None, which are yielded unchanged. Depth is 0 where it isn't valid, also where the
        pixel is beyond the image's border.
    """
    depth = torch.nan_to_num(depth.to(edges.dtype))
    if beyond == "ignore":
        depth = depth.masked_fill(depth > edges[-1], 0)
    maps = [_pad(t, stride, value) for t, value in ((depth, 0), (sigma, 1), (weight, 0))]
    for i in range(stride):
        for j in range(stride):
            yield tuple(
                t[:, :, i::stride, j::stride] if isinstance(t, Tensor) and t.ndim == 4 else t
                for t in maps
            )


def check_choices(target: str, beyond: str) -> None:
    """Checks the options `target` and `beyond` of the DPM head.

    Args:
        target: the target distribution, one of TARGETS.
        beyond: the treatment of depths above the last edge, one of BEYOND.

    Raises:
        RecipeError: `target` or `beyond` is unknown.
    """
    if target not in TARGETS:
        raise RecipeError(f"target: {target!r} is not known; there are: {', '.join(TARGETS)}")
    if beyond not in BEYOND:
        raise RecipeError(f"beyond: {beyond!r} is not known; there are: {', '.join(BEYOND)}")


def _pad(values: float | Tensor | None, stride: int, value: float) -> float | Tensor | None:
    """Pads a map at the right and bottom, so that its height and width are multiples of `stride`.

    Then map[:, :, i::stride, j::stride] has the same shape for all i and j below `stride`.

    Args:
        values: (B, M, H, W); a number or None is returned unchanged.
        stride: the number whose multiples height and width become.
        value: value of the added pixels.

    Returns:
        (B, M, H', W'), the padded map, with H' >= H and W' >= W.
    """
    if not isinstance(values, Tensor) or values.ndim != 4:
        return values
    return F.pad(values, (0, -values.shape[3] % stride, 0, -values.shape[2] % stride), value=value)
