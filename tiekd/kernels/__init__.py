"""The DPM head's arithmetic: the target distribution (`target`), and from features to depth and divergence.

`reference` is the definition; `chunked`, the default, gives the same numbers on any device in little memory.
"""

from collections.abc import Callable

from tiekd.errors import RecipeError
from tiekd.kernels import chunked, reference
from tiekd.kernels.chunked import dpm

__all__ = ["dpm", "find"]

KERNELS = {"chunked": chunked.dpm, "reference": reference.dpm}


def find(name: str) -> Callable:
    """The `dpm` function of one implementation, by name; all have the signature of `reference.dpm`."""
    if name not in KERNELS:
        raise RecipeError(f"kernel: {name!r} is not known; there are: {', '.join(KERNELS)}")
    return KERNELS[name]
