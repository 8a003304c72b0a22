"""The arithmetic of the DPM (depth probability map) head, and convolutions tuned for CPUs.

The head predicts a distribution over depth bins for each pixel. From the head's input features,
`dpm` computes the mean depth, and the KL divergence of a target distribution from the prediction.
The module `target` computes the target distribution from a teacher's depth.

`dpm` has three implementations with the same signature. `reference` evaluates the formulas on
whole tensors. `chunked` computes the same results a few image rows at a time, on any device and in
any dtype, with little memory. `triton_dpm` is a fused implementation for CUDA. `dpm` calls the
fastest one that supports the arguments.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from tiekd.kernels import chunked


def dpm(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    target_depth: Tensor | None = None,
    sigma: float | Tensor = 0.5,
    **options,
) -> tuple[Tensor, Tensor | None]:
    """Computes depth and divergence of the DPM head by the fastest suitable implementation.

    The head predicts a distribution p over K depth bins for each pixel of its features; the depth
    is the mean of p. A target distribution q follows from `target_depth`, and the divergence is
    KL(q || p). The results equal those of `tiekd.kernels.reference.dpm` up to rounding. Gradients
    with respect to features, weight and bias are supported; second derivatives aren't.

    Args:
        features: (B, C, h, w), the head's input, i.e. the decoder's output.
        weight: (K, C, 1, 1), weight of the 1x1 convolution that gives the logits of K bins.
        bias: (K,), bias of this convolution.
        edges: (K + 1,) float32 or float64, edges of the bins, metres, increasing.
        target_depth: (B, M, H, W), metres, depths of M teachers at the image's size, i.e. h =
            ceil(H / stride) and w = ceil(W / stride); None computes no divergence.
        sigma: standard deviation, in metres, of the Gaussian around each target depth; a number, a
            tuple of one number for each teacher, or (B, M, H, W).
        **options: further arguments of `tiekd.kernels.reference.dpm`: `target` (kind of target
            distribution), `beyond` (treatment of target depths above the last edge), `stride`
            (image pixels per side of a pixel of the features) and `target_weight` (weights of the
            teachers).

    Returns:
        (depth, divergence): the mean depth, (B, 1, h, w), metres; and the divergence, (B, 1, h, w),
        nats, which is None if `target_depth` is None.

    Raises:
        RecipeError: an option is unknown, or sigma is too small for the bins.
    """
    compute = implementation(features, target_depth, edges)
    return compute(features, weight, bias, edges, target_depth, sigma, **options)


def implementation(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> Callable:
    """Returns the fastest implementation of `dpm` that supports the given arguments.

    Args:
        features: (B, C, h, w), the head's input.
        target_depth: (B, M, H, W), depths of M teachers at the image's size, metres, or None.
        edges: (K + 1,), edges of the depth bins, metres.

    Returns:
        `triton_dpm.dpm` if Triton is installed and that function supports the arguments' shapes,
        dtypes and device; otherwise `chunked.dpm`.
    """
    if features.is_cuda:
        fused = _triton_dpm()
        if fused is not None and fused.supports(features, target_depth, edges):
            return fused.dpm
    return chunked.dpm


@cache
def _triton_dpm() -> ModuleType | None:
    """Returns the module `tiekd.kernels.triton_dpm`, or None if Triton isn't installed.

    The module is imported at the first call.
    """
    if find_spec("triton") is None:
        return None
    from tiekd.kernels import triton_dpm

    return triton_dpm


__all__ = ["dpm", "implementation"]
