"""3x3 convolution of upsampled features, with less time and memory than torch's operators.

`UpsampledConv` is the first convolution of each level in the DenseDepth and AdaBins decoders.

If a 1x1 convolution that adds channels comes directly before the upsampling, it and the 3x3
convolution are computed as one 3x3 convolution with fewer input channels. The weights of this
convolution are a matrix product of the weights of the two. This is possible because bilinear
upsampling commutes with the 1x1 convolution. In the published MobileNetV2 students these
convolutions have 320 -> 2048 -> 512 channels and take 39 of 171 GMAC at 352x704; merged, they take
9.

The convolution's input is the largest tensor of its level. It isn't saved for backward. Instead,
backward recomputes it from features that are saved anyway, at the cost of one more bilinear
upsampling. The gradients are the same, bit for bit.

On a CPU without AVX-512 the weight gradient is computed by matrix products, as
tiekd/kernels/layouts.py chooses.
For upsampled channels, these products are computed at the size before upsampling. The backward
pass of 128 channels from 88x176 to 176x352 then takes 0.53 of the time of products at the full
size.

In half precision on a GPU the gradient of the upsampling is computed as two matrix products. They
run on tensor cores and sum in fp32 in a fixed order. torch's operator uses four atomic additions
per value, each of them rounded, and is slow in bf16 (pytorch issue 140096).
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
    """1x1 convolution that can be merged into the convolution after it.

    Weights and state dict are those of an `nn.Conv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    @property
    def adds_channels(self) -> bool:
        """True if this convolution has more output than input channels.

        Merging it into the next convolution then saves computation.

        For the published MobileNetV2 students (320 -> 2048 -> 512 channels), merging is faster if x
        has more than some 350 pixels in all images of a batch together.
        """
        return self.in_channels < self.out_channels

    def forward(
        self, x: Tensor | None, next_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Applies the convolution to x, or, with next_weight, merges it into the next convolution.

        Merging is part of forward because ZeRO-3 gathers a module's weights only for its forward.

        Args:
            x: (B, in_channels, h, w); None if `next_weight` is given.
            next_weight: (O, out_channels + S, k, k), the next convolution's weight, as for
                `merged`; None to apply this convolution to x.

        Returns:
            (B, out_channels, h, w); with `next_weight` the two weights that `merged` returns.
        """
        return super().forward(x) if next_weight is None else self.merged(next_weight)

    def merged(self, next_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Merges this convolution into the next one.

        Args:
            next_weight: weight of the next convolution, (O, out_channels + S, k, k): a k x k
                convolution to O channels, whose last S input channels are those of a skip
                connection.

        Returns:
            (merged, of_ones): the merged weight (O, in_channels + S, k, k); and a weight
            (O, 1, k, k) for an additional input channel that is 1 everywhere. This channel adds the
            effect of this convolution's bias, which differs near the border, because the next
            convolution's zero padding has no bias.
        """
        parameters = next_weight, self.weight, self.bias
        return (
            self._merged(*parameters)
            if _recomputes_nothing()
            else _checkpoint(self._merged, *parameters)
        )

    def _merged(self, next_weight: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the results of `merged`, with this module's weight and bias as arguments.

        Activation checkpointing, which calls this method again in backward, must know all tensors
        from which gradients are computed, so they are arguments.

        Args:
            next_weight: (O, out_channels + S, k, k), weight of the next convolution.
            weight: (out_channels, in_channels, 1, 1), this module's weight.
            bias: (out_channels,), this module's bias.

        Returns:
            (merged, of_ones) of shapes (O, in_channels + S, k, k) and (O, 1, k, k), see `merged`.
        """
        ours, others = next_weight.split(
            [self.out_channels, next_weight.shape[1] - self.out_channels], dim=1
        )
        columns = torch.cat([weight[:, :, 0, 0], bias[:, None]], dim=1)
        product = (ours.permute(0, 2, 3, 1) @ columns).permute(0, 3, 1, 2)
        by_channel, of_bias = product.split([self.in_channels, 1], dim=1)
        # Make the merged weights contiguous. A convolution runs in channels_last if its input or
        # its weight has this memory layout.
        others = others.to(product.dtype)
        return torch.cat([by_channel, others], dim=1).contiguous(), of_bias.contiguous()


class UpsampledConv(Conv2d):
    """3x3 convolution of bilinearly upsampled features, concatenated with an encoder's feature.

    Weights and state dict are those of an `nn.Conv2d`.

    Attributes:
        plain: True to upsample, concatenate and convolve by torch's operators, without merging
            convolutions and without recomputing anything in backward.

    Args:
        in_channels: number of channels of the upsampled features and the encoder's feature
            together.
        out_channels: number of output channels.
        bias: True for a bias.
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
        """Upsamples x, concatenates `skip` and applies the convolution.

        Args:
            x: (B, C, h, w), features that are resized to `size` bilinearly with aligned corners.
            size: (H, W) of the output.
            skip: (B, S, H, W), the encoder's feature, concatenated after the upsampled x; None for
                none (S = 0).
            pointwise: a 1x1 convolution to apply to x before upsampling; None for none. With it, C
                is its number of input channels, and its output channels + S = `in_channels`.
                Without it, C + S = `in_channels`.

        Returns:
            (B, out_channels, H, W).
        """
        # Merge the 1x1 convolution if this saves computation; otherwise apply it.
        weight, bias_weight = self.weight, self.bias_weight
        if pointwise is not None:
            if pointwise.adds_channels and not self.plain:
                weight, bias_weight = pointwise(None, weight)
            else:
                x = pointwise(x)
        arguments = x, size, skip, weight
        if not (self.plain or _recomputes_nothing()) and convolution.wants_products(
            x, weight, size
        ):
            y = _ByProducts.apply(x, size, skip, weight, self.bias)
        else:
            y = (
                self._convolve(*arguments)
                if self.plain or _recomputes_nothing()
                else _checkpoint(self._convolve, *arguments)
            )
        if bias_weight is None:
            return y
        return y.add_(conv2d(y.new_ones(1, 1, *size), bias_weight, padding=1))

    @torch.no_grad()
    def merge_pointwise(self, pointwise: PointwiseConv) -> None:
        """Merges a 1x1 convolution into this convolution permanently, in place, for inference.

        This changes the state dict. Afterwards the argument x of `forward` must have the number of
        channels that `pointwise` takes.

        Args:
            pointwise: the 1x1 convolution that was applied before the upsampling; it isn't changed.
        """
        weight, self.bias_weight = pointwise.merged(self.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.in_channels = weight.shape[1]

    def _convolve(
        self, x: Tensor, size: tuple[int, int], skip: Tensor | None, weight: Tensor
    ) -> Tensor:
        """Upsamples x, concatenates `skip` and applies a 3x3 convolution with this module's bias.

        Args:
            x: (B, C, h, w), features that are resized to `size` bilinearly with aligned corners.
            size: (H, W) of the output.
            skip: (B, S, H, W), concatenated after the upsampled x; None for none (S = 0).
            weight: (O, C + S, 3, 3), weight of the convolution.

        Returns:
            (B, O, H, W).
        """
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
    """Computes `UpsampledConv._convolve`, with weight gradients by matrix products.

    This autograd function saves the features before upsampling, and repeats only the upsampling in
    backward. Activation checkpointing would repeat the convolution, too.
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

        # Compute the gradients by matrix products over all upsampled pixels if these are less than
        # three times as many as the pixels before upsampling.
        if ctx.size[0] * ctx.size[1] < 3 * x.shape[2] * x.shape[3]:
            needs = of_x or of_skip, of_weight, of_bias
            merged = _merge(x, ctx.size, skip)
            of_merged, of_weight, of_bias = convolution.gradients_by_products(
                grad, merged, weight, needs
            )
            of_x = _upsample_backward(of_merged[:, :channels], x.shape) if of_x else None
            return of_x, None, of_merged[:, channels:] if of_skip else None, of_weight, of_bias
        # Otherwise compute the gradients of the upsampled channels by matrix products over the
        # pixels before upsampling, and those of the encoder's feature over its own pixels.
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
    """Returns the gradients of x and of the weights of its channels, by matrix products.

    Upsampling is linear and the same for all channels, so it commutes with the products over
    channels. For each position in the 3x3 kernel, the output's gradient is first propagated back
    through the upsampling; the matrix products then sum over the pixels of x, e.g. a quarter of the
    upsampled pixels.

    Args:
        grad: (B, O, H, W), the gradient of the convolution's output.
        x: (B, C, h, w), the features before they are upsampled to (H, W).
        weight: (O, C + S, 3, 3), the convolution's weight; its first C input channels are those of
            x.

    Returns:
        (gradient of x, gradient of weight[:, :C]), shapes (B, C, h, w) and (O, C, 3, 3).
    """
    batch_size, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    of_pixels = x.new_zeros(pixels.shape)
    of_weight = x.new_empty(3, 3, grad.shape[1], channels)
    shifted = torch.empty_like(grad, memory_format=torch.channels_last)
    rows, columns = grad.shape[2:]
    for row in range(3):
        for column in range(3):
            # Shift the gradient by the offset of this kernel position from the kernel's centre,
            # with zeros at the border.
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
    """Returns the gradient of the input of `_upsample`, i.e. of bilinear upsampling.

    Args:
        grad: (B, C, H, W), the gradient of the upsampled features.
        shape: (B, C, h, w), the shape of the features before upsampling.

    Returns:
        (B, C, h, w).
    """
    return torch.ops.aten.upsample_bilinear2d_backward(grad, grad.shape[2:], shape, True)


def _merge(x: Tensor, size: tuple[int, int], skip: Tensor | None) -> Tensor:
    """Upsamples features, and concatenates an encoder's feature.

    Args:
        x: (B, C, h, w), features that are resized to `size` bilinearly with aligned corners.
        size: (H, W) of the result.
        skip: (B, S, H, W), the encoder's feature; None for none (S = 0).

    Returns:
        (B, C + S, H, W), the upsampled features first.
    """
    x = _upsample(x, size)
    return x if skip is None else torch.cat([x, skip], dim=1)


class UpsampleByProducts(torch.autograd.Function):
    """Bilinear upsampling with aligned corners, whose gradient is computed by matrix products.

    It saves no tensor for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Upsamples x to `size`, bilinearly with aligned corners.

        Args:
            ctx: the autograd context, which stores (h, w) for backward.
            x: (B, C, h, w).
            size: (H, W) of the result.

        Returns:
            (B, C, H, W).
        """
        ctx.size = x.shape[2:]
        return _upsample(x, size)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """Computes the gradient of x by a matrix product over the rows and one over the columns.

        Args:
            ctx: the autograd context, as `forward` filled it.
            grad: (B, C, H, W), the gradient of the upsampled features.

        Returns:
            (gradient of x, None): (B, C, h, w); and None, because `size` has no gradient.
        """
        height, width = ctx.size
        pixels = grad.permute(0, 2, 3, 1).contiguous()
        batch_size, rows, columns, channels = pixels.shape
        # torch.compile warns about functions with a cache, so call the uncached function.
        shares = _shares.__wrapped__ if torch.compiler.is_compiling() else _shares
        by_row = shares(height, rows, grad.dtype, grad.device).expand(batch_size, -1, -1)
        by_column = shares(width, columns, grad.dtype, grad.device)
        by_column = by_column.expand(batch_size * height, -1, -1)
        summed = torch.bmm(by_row, pixels.view(batch_size, rows, columns * channels))
        summed = torch.bmm(by_column, summed.view(batch_size * height, columns, channels))
        return summed.view(batch_size, height, width, channels).permute(0, 3, 1, 2), None


def _recomputes_nothing() -> bool:
    """Returns True if no intermediate tensor should be recomputed in backward.

    This is the case without gradients, and under torch.compile, which decides itself what to save
    and what to recompute.
    """
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


def _checkpoint(function: Callable, *arguments) -> Any:
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


@lru_cache(maxsize=64)
def _shares(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the matrix of linear interpolation from `small` to `large` values along one axis.

    The first and the last value are the same before and after (aligned corners).

    Args:
        small: number of input values.
        large: number of output values.
        dtype: dtype of the result.
        device: device of the result.

    Returns:
        (small, large); column j has the weights with which the input values are summed to output
        value j.
    """
    step = (small - 1) / max(large - 1, 1)
    position = torch.arange(large, dtype=torch.float64, device=device) * step
    distance = (torch.arange(small, dtype=torch.float64, device=device)[:, None] - position).abs()
    return (1 - distance).clamp_(min=0).to(dtype)
