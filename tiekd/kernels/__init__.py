"""The arithmetic of the DPM (depth probability map) head, and convolutions tuned for CPUs.

`target` computes the target distribution; `dpm` computes depth and divergence from features.
There are three implementations with the same signature. `reference` is the definition. `chunked`
computes the same in tiles, on any device and in any dtype, with little memory. `triton_dpm` is a
fused implementation for CUDA. `dpm` calls the fastest one that supports the arguments.
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
    """Computes `tiekd.kernels.reference.dpm` with the fastest implementation for the arguments.

    Arguments, results and errors are those of the reference. Gradients of features, weight and bias
    are supported, second derivatives aren't.
    """
    compute = implementation(features, target_depth, edges)
    return compute(features, weight, bias, edges, target_depth, sigma, **options)


def implementation(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> Callable:
    """Returns the fastest implementation of `dpm` that supports arguments like these."""
    if features.is_cuda:
        fused = _triton_dpm()
        if fused is not None and fused.supports(features, target_depth, edges):
            return fused.dpm
    return chunked.dpm


@cache
def _triton_dpm() -> ModuleType | None:
    """Imports the Triton implementation at the first call; returns None if Triton is missing."""
    if find_spec("triton") is None:
        return None
    from tiekd.kernels import triton_dpm

    return triton_dpm


__all__ = ["dpm", "implementation"]
