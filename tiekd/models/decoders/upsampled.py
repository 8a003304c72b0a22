"""A 3x3 convolution of upsampled features, the first step of every level of DenseDepth's and AdaBins' decoders.

What is convolved is the largest tensor of its level. It isn't kept for backward: it is made again there, at the cost of
one more bilinear upsampling, from features that are kept anyway; the numbers are the same, bit for bit.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint


class UpsampledConv(nn.Conv2d):
    """3x3 convolution, with the weights and the state dict of an `nn.Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        """x: (B, C, h, w), brought to size (H, W) bilinearly, corners aligned; skip: (B, S, H, W), what is concatenated
        to it. C + S are the `in_channels`. Returns (B, out_channels, H, W)."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler chooses itself what it keeps
            return self._convolve(x, size, skip)
        return checkpoint(self._convolve, x, size, skip, use_reentrant=False, preserve_rng_state=False)

    def _convolve(self, x: Tensor, size: tuple[int, int], skip: Tensor | None) -> Tensor:
        x = interpolate(x, size=size, mode="bilinear", align_corners=True)
        return super().forward(x if skip is None else torch.cat([x, skip], dim=1))
