"""The DPM head's arithmetic: the target distribution (`target`), and from features to depth and divergence.

`reference` is the definition; `chunked`, which `dpm` is, gives the same numbers on any device in little memory.
"""

from tiekd.kernels.chunked import dpm

__all__ = ["dpm"]
