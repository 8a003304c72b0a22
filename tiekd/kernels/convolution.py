"""Convolutions tuned for CPUs, by the settings that tiekd/kernels/layouts.py has for the CPU.

`Conv2d` is torch's convolution, but computes its weight gradient by matrix products if that module
has the setting PRODUCTS for this CPU. Without AVX-512, oneDNN's weight gradient is slow for
channels_last features: 19 GFLOP/s, against 74 for contiguous ones (128 -> 128 channels at 128x256,
one thread). One matrix product for each of the nine kernel positions and each group of rows reaches
88 GFLOP/s and copies nothing. Forward and the gradient of the features remain torch's.

`compute_in_fp32` is for bf16 on CPUs without bf16 arithmetic. Features and gradients are stored in
bf16; a convolution converts them to fp32, accumulates in fp32 as native bf16 arithmetic does, and
rounds the result to bf16.

Not covered: matrix products for strides, dilations and groups other than 1, and GPUs. Under
torch.compile, all convolutions use torch's own operators.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from tiekd.kernels import layouts

# Number of pixels that one matrix product of `weight_gradient` sums over. It is small enough for
# the features and gradients of 128 channels to fit into a core's L2 cache, and large enough for
# efficient products.
_STRIP_PIXELS = 4096

# Stride, padding, dilation and groups of the convolutions whose weight gradient `weight_gradient`
# can compute.
_3X3 = ((1, 1), (1, 1), (1, 1), 1)


class Conv2d(nn.Conv2d):
    """torch's Conv2d, whose weight gradient is computed by matrix products if that is faster.

    Arguments, weights and state dict are those of `nn.Conv2d`.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options = self.stride, self.padding, self.dilation, self.groups
        if options == _3X3 and wants_products(x, weight, x.shape[2:]):
            return _ByProducts.apply(x, weight, bias)
        return super()._conv_forward(x, weight, bias)


def is_large(pixels: int, in_channels: int, out_channels: int) -> bool:
    """Returns True if a 3x3 convolution has more input and output values than weights.

    Args:
        pixels: number of pixels of the input, of all images of a batch together.
        in_channels: number of input channels.
        out_channels: number of output channels.
    """
    return pixels * (in_channels + out_channels) > 9 * in_channels * out_channels


def compute_in_fp32(network: nn.Module) -> None:
    """Makes all half-precision convolutions of a network on a CPU compute in fp32, in place.

    Their inputs and outputs stay in half precision. The state dict doesn't change, and convolutions
    in fp32 or on a GPU aren't affected.

    Args:
        network: any module; its convolutions are the `nn.Conv2d` modules in it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str):
            module._conv_forward = partial(_in_fp32, module, module._conv_forward)


def weight_gradient(x: Tensor, grad: Tensor, strip_pixels: int = _STRIP_PIXELS) -> Tensor:
    """Returns the weight gradient of a 3x3 convolution with padding 1, by matrix products.

    Args:
        x: (B, C, H, W), the convolution's input; it is copied if it isn't channels_last.
        grad: (B, O, H, W), the gradient of the output; it is copied if it isn't channels_last.
        strip_pixels: approximate number of pixels that one matrix product sums over; it is rounded
            to whole rows.

    Returns:
        (O, C, 3, 3), in the dtype of x.
    """
    batch_size, in_channels, height, width = x.shape
    images = x.permute(0, 2, 3, 1).reshape(batch_size, height * width, in_channels)
    grads = grad.permute(0, 2, 3, 1).reshape(batch_size, height * width, grad.shape[1])
    total = x.new_zeros(3, 3, grad.shape[1], in_channels)
    strip = max(1, strip_pixels // width) * width
    for image, of_image in zip(images, grads, strict=True):
        for start in range(0, height * width, strip):
            for row, column in _TAPS:
                # Compute the distance in memory, in pixels, from an output pixel to the input pixel
                # at this row and column of the 3x3 kernel. At the left and right border, the pixel
                # at this distance is in an adjacent row; `_subtract_wrapped_products` later
                # subtracts the products with such pixels.
                offset = (row - 1) * width + column - 1
                first = max(start, -offset)
                end = min(start + strip, height * width, height * width - offset)
                if first < end:
                    total[row, column].addmm_(
                        of_image[first:end].T, image[first + offset : end + offset]
                    )
        _subtract_wrapped_products(
            total, image.view(height, width, -1), of_image.view(height, width, -1)
        )
    return total.permute(2, 3, 0, 1).contiguous()


_TAPS = [(row, column) for row in range(3) for column in range(3)]


def _subtract_wrapped_products(total: Tensor, image: Tensor, grad: Tensor) -> None:
    """Subtracts the products of pixels that are neighbours in memory but not in the image.

    In memory a row's first pixel follows the last pixel of the row above. So at the left and right
    border `weight_gradient` multiplied the gradient by a pixel of another row instead of by the
    padding, 0.

    Args:
        total: (3, 3, O, C), the image's contribution to the weight gradient, from which the
            products are subtracted in place.
        image: (H, W, C), one image's input.
        grad: (H, W, O), the gradient of its output.
    """
    height, width = image.shape[:2]
    for row in range(3):
        for column, at, wrapped, shift in ((0, 0, width - 1, row - 2), (2, width - 1, 0, row)):
            first = max(0, -shift)
            end = min(height, height - shift)
            if first < end:
                neighbours = image[first + shift : end + shift, wrapped]
                total[row, column].addmm_(grad[first:end, at].T, neighbours, alpha=-1)


class _ByProducts(torch.autograd.Function):
    """Autograd function for a 3x3 convolution with padding 1 that uses `weight_gradient`.

    The inputs are x (B, C, H, W), weight (O, C, 3, 3) and bias (O,) or None; the result is
    (B, O, H, W). The weight's gradient is computed by matrix products.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return gradients_by_products(grad, x, weight, ctx.needs_input_grad)


class _InFp32(torch.autograd.Function):
    """Autograd function for a convolution of half-precision tensors that computes in fp32.

    The inputs are features, weight and bias in half precision, and the `nn.Conv2d` that has stride,
    padding, dilation and groups; the result has the features' dtype. Only half-precision tensors
    are saved for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = module.stride, module.padding, module.dilation, module.groups
        bias = None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            return conv2d(x.float(), weight.float(), bias, *ctx.options).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        grad = grad.float()
        x32 = x.float()
        weight32 = weight.float()
        if ctx.options == _3X3 and _suits_products(x, weight, x.shape[2:]):
            gradients = gradients_by_products(grad, x32, weight32, needs)
        else:
            gradients = _gradients(grad, x32, weight32, *ctx.options, list(needs))
        return *(None if g is None else g.to(x.dtype) for g in gradients), None


def _in_fp32(module: nn.Conv2d, original, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes a module's half-precision convolution in fp32, in place of its `_conv_forward`.

    Args:
        module: the convolution.
        original: the module's original `_conv_forward`, a function that is called instead for fp32,
            on GPUs and under torch.compile.
        x: (B, C, H, W), the features.
        weight: the convolution's weight.
        bias: the convolution's bias, or None.

    Returns:
        (B, O, H', W'), the convolution's output in its half-precision dtype.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if x.device.type != "cpu" or dtype == torch.float32 or torch.compiler.is_compiling():
        return original(x, weight, bias)
    # Round the operands to the autocast dtype before computing in fp32, so that the results equal
    # those of native bf16 arithmetic.
    bias = None if bias is None else bias.to(dtype)
    return _InFp32.apply(x.to(dtype), weight.to(dtype), bias, module)


def wants_products(x: Tensor, weight: Tensor, size: tuple[int, int]) -> bool:
    """Returns True if a 3x3 convolution should compute its weight gradient by matrix products.

    The convolution must have padding 1, and stride, dilation and groups 1.

    Args:
        x: (B, C, h, w), the convolution's input, or a smaller tensor that is upsampled to it; its
            batch size, dtype, device and memory layout are considered.
        weight: (O, C, 3, 3), the convolution's weight.
        size: (H, W) of the convolution's input.
    """
    if (
        torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    return _suits_products(x, weight, size)


def gradients_by_products(
    grad: Tensor, x: Tensor | None, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of x, weight and bias of a 3x3 convolution with padding 1.

    The weight's gradient is computed by matrix products (`weight_gradient`).

    Args:
        grad: (B, O, H, W), the gradient of the output.
        x: (B, C, H, W), the input; may be None if neither its gradient nor the weight's is needed.
        weight: (O, C, 3, 3), the convolution's weight.
        needs: for each of x, weight and bias in this order, True if its gradient is needed.

    Returns:
        Three gradients, each of the shape of x, weight and bias; None for those that aren't needed.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    of_x = _gradients(grad, x, weight, *_3X3, [True, False, False])[0] if needs[0] else None
    of_weight = weight_gradient(x, grad) if needs[1] else None
    return of_x, of_weight, grad.sum((0, 2, 3)) if needs[2] else None


def _suits_products(x: Tensor, weight: Tensor, size: tuple[int, int]) -> bool:
    """Returns True if matrix products are the fastest method for a convolution's weight gradient.

    That is the case if the setting for large 3x3 convolutions on this CPU is PRODUCTS, i.e. this
    method (tiekd/kernels/layouts.py), the kernel is 3x3, x is channels_last, and `is_large` is True
    for the convolution.

    Args:
        x: (B, C, h, w), the convolution's input, or a smaller tensor that is upsampled to it.
        weight: (O, C, kernel height, kernel width).
        size: (H, W) of the convolution's input.
    """
    if layouts.setting(layouts.LARGE_TRAINING, layouts.FP32) != layouts.PRODUCTS:
        return False
    if weight.shape[2:] != (3, 3):
        return False
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return is_large(x.shape[0] * size[0] * size[1], weight.shape[1], weight.shape[0])


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride,
    padding,
    dilation,
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns a convolution's gradients of x, weight and bias, computed by torch's operator.

    Args:
        grad: (B, O, H', W'), the gradient of the output.
        x: (B, C, H, W), the input; may be None if only its own gradient is wanted.
        weight: (O, C / groups, kernel height, kernel width).
        stride: the convolution's stride, (rows, columns).
        padding: the convolution's padding, (rows, columns).
        dilation: the convolution's dilation, (rows, columns).
        groups: number of groups.
        mask: for each of x, weight and bias in this order, True if its gradient is wanted.

    Returns:
        Three gradients, each of the shape of x, weight and bias; None for those that aren't wanted.
    """
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, mask
    )


def prepare_bf16(network: nn.Module) -> None:
    """Makes a network's bf16 convolutions compute in fp32, in place, if that is faster on this CPU.

    It is faster if the setting of bf16 convolutions in tiekd/kernels/layouts.py is IN_FP32 for this
    CPU. Otherwise the network isn't changed.

    Args:
        network: any module that contains `nn.Conv2d` modules.
    """
    if layouts.setting(layouts.ANY, layouts.BF16) == layouts.IN_FP32:
        compute_in_fp32(network)
