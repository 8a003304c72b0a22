"""A 3x3 convolution of upsampled features, the first step of every level of DenseDepth's and AdaBins' decoders.

What is convolved is the largest tensor of its level. It isn't kept for backward: it is made again there, at the cost of
one more bilinear upsampling, from features that are kept anyway; the numbers are the same, bit for bit.

In half precision on a GPU the upsampling's gradient is two matrix products, which tensor cores do, with sums in fp32
and in one order. torch's own has four atomic additions a number, each of them rounded, and is slow in bf16 (pytorch
issue 140096).
"""

from functools import lru_cache

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
        if torch.is_grad_enabled() and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
            x = UpsampleByProducts.apply(x, size)
        else:
            x = _upsample(x, size)
        return super().forward(x if skip is None else torch.cat([x, skip], dim=1))


class UpsampleByProducts(torch.autograd.Function):
    """x (B, C, h, w) to `size`, bilinearly, corners aligned, with a gradient by products. Keeps nothing for it."""

    @staticmethod
    def forward(ctx, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.size = x.shape[2:]
        return _upsample(x, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (height, width), pixels = ctx.size, grad.permute(0, 2, 3, 1).contiguous()
        batch_size, rows, columns, channels = pixels.shape
        shares = _shares.__wrapped__ if torch.compiler.is_compiling() else _shares  # it would warn of the cache
        by_row = shares(height, rows, grad.dtype, grad.device).expand(batch_size, -1, -1)
        by_column = shares(width, columns, grad.dtype, grad.device).expand(batch_size * height, -1, -1)
        summed = torch.bmm(by_row, pixels.view(batch_size, rows, columns * channels))
        summed = torch.bmm(by_column, summed.view(batch_size * height, columns, channels))
        return summed.view(batch_size, height, width, channels).permute(0, 3, 1, 2), None


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


@lru_cache(maxsize=64)
def _shares(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much of each of `small` numbers is in each of the `large` interpolated ones: (small, large)."""
    place = torch.arange(large, dtype=torch.float64, device=device) * ((small - 1) / max(large - 1, 1))
    distance = (torch.arange(small, dtype=torch.float64, device=device)[:, None] - place).abs()
    return (1 - distance).clamp_(min=0).to(dtype)
