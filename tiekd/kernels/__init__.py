"""The DPM head's arithmetic: the target distribution (`target`), and from features to depth and divergence (`dpm`).

One contract, three implementations: `reference` is the definition; `chunked` gives the same numbers on any device and
in any dtype, in little memory; `triton_dpm` is fused, for CUDA. `dpm` takes the fastest that takes the arguments.
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
    """As `tiekd.kernels.reference.dpm`, argument by argument; the gradients' gradients can't be had."""
    compute = implementation(features, target_depth, edges)
    return compute(features, weight, bias, edges, target_depth, sigma, **options)


def implementation(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> Callable:
    """The `dpm` that is fastest for such arguments."""
    if features.is_cuda:
        fused = _triton_dpm()
        if fused is not None and fused.supports(features, target_depth, edges):
            return fused.dpm
    return chunked.dpm


@cache
def _triton_dpm() -> ModuleType | None:
    """The Triton kernels, which are imported where there is a GPU for them; None without Triton."""
    if find_spec("triton") is None:
        return None
    from tiekd.kernels import triton_dpm

    return triton_dpm


__all__ = ["dpm", "implementation"]
