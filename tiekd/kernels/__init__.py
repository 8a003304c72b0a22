"""The arithmetic of the DPM head: the target distribution, depth and divergence.

`target` makes the target distribution; `dpm` computes depth and divergence from features. There is
one contract and three implementations. `reference` is the definition. `chunked` gives the same
numbers on any device and in any dtype, in little memory. `triton_dpm` is fused, for CUDA. `dpm`
takes the fastest that accepts the arguments.
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

    The arguments are those of the reference. There are no second derivatives.
    """
    compute = implementation(features, target_depth, edges)
    return compute(features, weight, bias, edges, target_depth, sigma, **options)


def implementation(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> Callable:
    """Returns the `dpm` that is fastest for such arguments."""
    if features.is_cuda:
        fused = _triton_dpm()
        if fused is not None and fused.supports(features, target_depth, edges):
            return fused.dpm
    return chunked.dpm


@cache
def _triton_dpm() -> ModuleType | None:
    """Returns the Triton kernels, imported at the first call; None without Triton."""
    if find_spec("triton") is None:
        return None
    from tiekd.kernels import triton_dpm

    return triton_dpm


__all__ = ["dpm", "implementation"]
