"""A 3x3 convolution of upsampled features: each level of the DenseDepth and AdaBins decoders.

It is a level's first convolution. Where a 1x1 convolution that adds channels comes right before
it, the two are computed as one 3x3 convolution of fewer channels, whose weights are a matrix
product of theirs; upsampling commutes with the 1x1 convolution. The published MobileNetV2 students
have 320 -> 2048 -> 512 channels there, 39 of their 171 GMAC at 352x704, of which 9 are left.

The convolution's input is the largest tensor of its level. It isn't saved for backward but
computed again there, at the cost of one more bilinear upsampling, from features that are saved
anyway. The numbers are the same, bit for bit.

On a CPU without AVX-512 the gradients are matrix products (tiekd/kernels/layouts.py), those of
upsampled channels at the size before upsampling. A backward of 128 channels, 88x176 to 176x352,
takes 0.53 of what it takes with the products of all pixels.

In half precision on a GPU the upsampling's gradient is two matrix products, which run on tensor
cores, with sums in fp32 and in one order. torch's own has four atomic additions a number, each of
them rounded, and is slow in bf16 (pytorch issue 140096).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate
from torch.utils.checkpoint import checkpoint

from tiekd.kernels import convolution
from tiekd.kernels.convolution import Conv2d


class PointwiseConv(nn.Conv2d):
    """1x1 convolution that the next convolution can be merged with.

    Weights and state dict are those of an `nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    @property
    def adds_channels(self) -> bool:
        """True if the next convolution is cheaper when merged with this one.

        That holds for 320 -> 2048 -> 512 channels, which the published MobileNetV2 students have,
        from some 350 pixels on, counted over all images of a batch.
        """
        return self.in_channels < self.out_channels

    def forward(
        self, x: Tensor | None, next_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns (B, out_channels, h, w), or with next_weight the result of `merged`.

        Merging goes through forward because ZeRO-3 has a module's weights at hand only there.

        Args:
            x: (B, in_channels, h, w); None with next_weight.
            next_weight: as for `merged`, or None.
        """
        return super().forward(x) if next_weight is None else self.merged(next_weight)

    def merged(self, next_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Merges this convolution into the next one.

        Args:
            next_weight: of the next convolution, (O, out_channels + S, k, k), S channels being
                others'.

        Returns:
            The next convolution's weight for this one's input, (O, in_channels + S, k, k), and its
            weight for a map of ones, (O, 1, k, k). The map of ones stands for this one's bias,
            which doesn't reach over the edge, where there are zeros.
        """
        parameters = next_weight, self.weight, self.bias
        return self._merged(*parameters) if _keeps_all() else _checkpoint(self._merged, *parameters)

    def _merged(self, next_weight: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Computes `merged` from the three parameters, so that a checkpoint sees them."""
        ours, others = next_weight.split(
            [self.out_channels, next_weight.shape[1] - self.out_channels], dim=1
        )
        columns = torch.cat([weight[:, :, 0, 0], bias[:, None]], dim=1)
        product = (ours.permute(0, 2, 3, 1) @ columns).permute(0, 3, 1, 2)
        by_channel, of_bias = product.split([self.in_channels, 1], dim=1)
        # Contiguous, as all weights are: a convolution takes its layout from either operand.
        others = others.to(product.dtype)
        return torch.cat([by_channel, others], dim=1).contiguous(), of_bias.contiguous()


class UpsampledConv(Conv2d):
    """3x3 convolution of bilinearly upsampled features, concatenated with a skip connection.

    Weights and state dict are those of an `nn.Conv2d`.

    Attributes:
        plain: True computes it by its definition, without the savings of memory and time.
    """

    plain = False

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.register_buffer("bias_weight", None, persistent=False)

    def forward(
        self,
        x: Tensor,
        size: tuple[int, int],
        skip: Tensor | None = None,
        pointwise: PointwiseConv | None = None,
    ) -> Tensor:
        """Returns (B, out_channels, H, W).

        Args:
            x: (B, C, h, w), features that are resized to `size` bilinearly with aligned corners.
            size: (H, W).
            skip: (B, S, H, W), concatenated after the upsampled x, or None (S = 0).
            pointwise: a 1x1 convolution to apply to x before upsampling, or None. C is its number
                of input channels, and its output channels + S are `in_channels`; without it
                C + S = `in_channels`.
        """
        # Merge the 1x1 convolution, or apply it.
        weight, bias_weight = self.weight, self.bias_weight
        if pointwise is not None:
            if pointwise.adds_channels and not self.plain:
                weight, bias_weight = pointwise(None, weight)
            else:
                x = pointwise(x)
        arguments = x, size, skip, weight
        if not (self.plain or _keeps_all()) and convolution.wants_products(x, weight, size):
            y = _ByProducts.apply(x, size, skip, weight, self.bias)
        else:
            y = (
                self._convolve(*arguments)
                if self.plain or _keeps_all()
                else _checkpoint(self._convolve, *arguments)
            )
        if bias_weight is None:
            return y
        return y.add_(conv2d(y.new_ones(1, 1, *size), bias_weight, padding=1))

    @torch.no_grad()
    def take_in(self, pointwise: PointwiseConv) -> None:
        """Merges `pointwise` into this convolution permanently, in place, for inference.

        Afterwards x must have the input channels of `pointwise`, and the state dict has changed.
        """
        weight, self.bias_weight = pointwise.merged(self.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.in_channels = weight.shape[1]

    def _convolve(
        self, x: Tensor, size: tuple[int, int], skip: Tensor | None, weight: Tensor
    ) -> Tensor:
        """Upsamples, concatenates and convolves; arguments as for `forward`."""
        if (
            not self.plain
            and torch.is_grad_enabled()
            and x.is_cuda
            and x.dtype in (torch.float16, torch.bfloat16)
        ):
            x = UpsampleByProducts.apply(x, size)
        else:
            x = _upsample(x, size)
        return self._conv_forward(
            x if skip is None else torch.cat([x, skip], dim=1), weight, self.bias
        )


class _ByProducts(torch.autograd.Function):
    """`UpsampledConv._convolve` with the weights' gradient by matrix products.

    A checkpoint around that gradient's own function would convolve once more in backward. Around
    torch's operator it only upsamples.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        size: tuple[int, int],
        skip: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ):
        ctx.save_for_backward(x, skip, weight)
        ctx.size = size
        return conv2d(_merge(x, size, skip), weight, bias, padding=1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, skip, weight = ctx.saved_tensors
        of_x, _, of_skip, of_weight, of_bias = ctx.needs_input_grad
        channels = x.shape[1]

        # Upsampled to less than three times the pixels: the products of all pixels.
        if ctx.size[0] * ctx.size[1] < 3 * x.shape[2] * x.shape[3]:
            needs = of_x or of_skip, of_weight, of_bias
            merged = _merge(x, ctx.size, skip)
            of_merged, of_weight, of_bias = convolution.gradients_by_products(
                grad, merged, weight, needs
            )
            of_x = _upsample_backward(of_merged[:, :channels], x.shape) if of_x else None
            return of_x, None, of_merged[:, channels:] if of_skip else None, of_weight, of_bias
        # Else the upsampled channels' products are computed at the size before upsampling.
        needs = of_skip, of_weight and skip is not None, of_bias
        of_x, of_upsampled = (
            _before_upsampling(grad, x, weight) if of_x or of_weight else (None, None)
        )
        of_skip, of_others, of_bias = convolution.gradients_by_products(
            grad, skip, weight[:, channels:], needs
        )
        of_weight = torch.cat([of_upsampled, of_others], dim=1) if needs[1] else of_upsampled
        return of_x, None, of_skip, of_weight, of_bias


def _before_upsampling(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and of its channels' weights from that of the result.

    Upsampling is linear and the same for all channels, so it commutes with the products over
    channels. The gradient of each kernel tap is first propagated back through the upsampling; the
    matrix products are then over the pixels of x, e.g. a quarter of the upsampled ones.
    """
    batch_size, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    of_pixels = x.new_zeros(pixels.shape)
    of_weight = x.new_empty(3, 3, grad.shape[1], channels)
    shifted = torch.empty_like(grad, memory_format=torch.channels_last)
    rows, columns = grad.shape[2:]
    for row in range(3):
        for column in range(3):
            # Shift the gradient by the tap's offset (row - 1, column - 1), with zeros outside.
            down, right = row - 1, column - 1
            top = max(0, down)
            bottom = min(rows, rows + down)
            left = max(0, right)
            end = min(columns, columns + right)
            shifted.zero_()
            shifted[:, :, top:bottom, left:end] = grad[
                :, :, top - down : bottom - down, left - right : end - right
            ]
            of_tap = _upsample_backward(shifted, (batch_size, grad.shape[1], height, width))
            of_tap = of_tap.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])
            of_pixels.addmm_(of_tap, weight[:, :channels, row, column])
            torch.mm(of_tap.T, pixels, out=of_weight[row, column])
    of_x = of_pixels.view(batch_size, height, width, channels).permute(0, 3, 1, 2)
    return of_x, of_weight.permute(2, 3, 0, 1).contiguous()


def _upsample_backward(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns the gradient of the input of `_upsample`, which has the given shape."""
    return torch.ops.aten.upsample_bilinear2d_backward(grad, grad.shape[2:], shape, True)


def _merge(x: Tensor, size: tuple[int, int], skip: Tensor | None) -> Tensor:
    """Returns x, upsampled, with the channels of skip after its own."""
    x = _upsample(x, size)
    return x if skip is None else torch.cat([x, skip], dim=1)


class UpsampleByProducts(torch.autograd.Function):
    """Bilinear upsampling, corners aligned, with a gradient by products.

    Saves nothing for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns (B, C, *size) from x (B, C, h, w)."""
        ctx.size = x.shape[2:]
        return _upsample(x, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient of x: a product over the rows, then one over the columns."""
        height, width = ctx.size
        pixels = grad.permute(0, 2, 3, 1).contiguous()
        batch_size, rows, columns, channels = pixels.shape
        # A compiler would warn of the cache.
        shares = _shares.__wrapped__ if torch.compiler.is_compiling() else _shares
        by_row = shares(height, rows, grad.dtype, grad.device).expand(batch_size, -1, -1)
        by_column = shares(width, columns, grad.dtype, grad.device)
        by_column = by_column.expand(batch_size * height, -1, -1)
        summed = torch.bmm(by_row, pixels.view(batch_size, rows, columns * channels))
        summed = torch.bmm(by_column, summed.view(batch_size * height, columns, channels))
        return summed.view(batch_size, height, width, channels).permute(0, 3, 1, 2), None


def _keeps_all() -> bool:
    """True if activations aren't recomputed in backward: without gradients or under torch.compile.

    A compiler decides itself what to save and what to recompute.
    """
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


def _checkpoint(function: Callable, *arguments) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


@lru_cache(maxsize=64)
def _shares(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the matrix (small, large) of the weights of linear interpolation, corners aligned.

    Column j has the weights of the `small` input values in output value j.
    """
    step = (small - 1) / max(large - 1, 1)
    place = torch.arange(large, dtype=torch.float64, device=device) * step
    distance = (torch.arange(small, dtype=torch.float64, device=device)[:, None] - place).abs()
    return (1 - distance).clamp_(min=0).to(dtype)
