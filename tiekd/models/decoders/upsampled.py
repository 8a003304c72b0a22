"""A 3x3 convolution of upsampled features, the first step of every level of DenseDepth's and AdaBins' decoders.

Where a 1x1 convolution that adds channels stands right before it, the two are one 3x3 convolution of fewer channels,
whose weights are a matrix product of theirs: upsampling leaves such a convolution what it is. The published MobileNetV2
students have 320 -> 2048 -> 512 channels there, 39 of their 171 GMAC at 352x704, of which 9 are left.

What is convolved is the largest tensor of its level. It isn't kept for backward: it is made again there, at the cost of
one more bilinear upsampling, from features that are kept anyway; the numbers are the same, bit for bit.

In half precision on a GPU the upsampling's gradient is two matrix products, which tensor cores do, with sums in fp32
and in one order. torch's own has four atomic additions a number, each of them rounded, and is slow in bf16 (pytorch
issue 140096).
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate
from torch.utils.checkpoint import checkpoint


class PointwiseConv(nn.Conv2d):
    """1x1 convolution, with the weights and the state dict of an `nn.Conv2d`, that the next one can take in."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    @property
    def adds_channels(self) -> bool:
        """Whether the next convolution is cheaper with this one in it."""
        return self.in_channels < self.out_channels

    def forward(self, x: Tensor | None, following: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x: (B, in_channels, h, w). Returns (B, out_channels, h, w).

        With following, the (O, out_channels + S, k, k) weight of the convolution that comes next, x isn't needed.
        Returned are that convolution's weight for x itself, (O, in_channels + S, k, k), and its (O, 1, k, k) weight for
        a map of ones, which stands for this one's bias. ZeRO 3 has a module's weights at hand in its forward only.
        """
        if following is None:
            return super().forward(x)
        taken, others = following.split([self.out_channels, following.shape[1] - self.out_channels], dim=1)
        rows = taken.permute(0, 2, 3, 1).contiguous()  # once, for both products
        of_x, of_ones = (rows @ each for each in (self.weight[:, :, 0, 0], self.bias[:, None]))
        of_x = torch.cat([of_x, others.permute(0, 2, 3, 1).to(of_x.dtype)], dim=3)
        return of_x.permute(0, 3, 1, 2), of_ones.permute(0, 3, 1, 2)


class UpsampledConv(nn.Conv2d):
    """3x3 convolution, with the weights and the state dict of an `nn.Conv2d`. `plain`: computed as it is defined."""

    plain = False

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.register_buffer("of_ones", None, persistent=False)

    def forward(
        self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None, before: PointwiseConv | None = None
    ) -> Tensor:
        """x: (B, C, h, w), brought to size (H, W) bilinearly, corners aligned; skip: (B, S, H, W), what is concatenated
        to it. C + S are the `in_channels`; with `before`, what x has yet to go through, x has its input channels.
        Returns (B, out_channels, H, W)."""
        weight, of_ones = self.weight, self.of_ones
        if before is not None:
            if before.adds_channels and not self.plain:
                weight, of_ones = before(None, weight)
            else:
                x = before(x)
        arguments = x, size, skip, weight
        if self.plain or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            y = self._convolve(*arguments)  # a compiler chooses itself what it keeps
        else:
            y = checkpoint(self._convolve, *arguments, use_reentrant=False, preserve_rng_state=False)
        return y if of_ones is None else y.add_(conv2d(y.new_ones(1, 1, *size), of_ones, padding=1))

    @torch.no_grad()
    def take_in(self, before: PointwiseConv) -> None:
        """In place and for good, for use without learning: from here on x has `before`'s input channels."""
        weight, self.of_ones = before(None, self.weight)
        self.weight, self.in_channels = nn.Parameter(weight.contiguous(), requires_grad=False), weight.shape[1]

    def _convolve(self, x: Tensor, size: tuple[int, int], skip: Tensor | None, weight: Tensor) -> Tensor:
        if not self.plain and torch.is_grad_enabled() and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
            x = UpsampleByProducts.apply(x, size)
        else:
            x = _upsample(x, size)
        return self._conv_forward(x if skip is None else torch.cat([x, skip], dim=1), weight, self.bias)


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
