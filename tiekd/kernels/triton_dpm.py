"""Fused CUDA implementation of the DPM head: the results of `reference`, without storing logits.

Forward is one kernel with one program per tile, i.e. per group of consecutive pixels of an image.
The tile's features stay on chip while the program loops over blocks of bins; each block is a matrix
product and an update of the online softmax. The kernel writes up to four numbers per pixel: depth,
log-sum-exp, divergence, and, for the target of TIE-KD's released code, the mean derivative of its
divergence.

Backward processes the pixels in strips, i.e. groups of consecutive tiles, with two kernels per
strip. The first recomputes the logits of each tile, and their gradient

    dlogit_k = g_kl (p_k - q_k) + g_d p_k (c_k - depth),

with the gradients g_kl and g_d of divergence and depth, probabilities p, target q and bin centres
c. It multiplies this gradient by the weights, which gives the features' gradient, and stores it for
the strip in the features' dtype. The second kernel multiplies it by the features, which gives the
weights' gradient. Each program sums a fixed set of tiles, and the partial sums are added in a fixed
order without atomics, so the result is deterministic. Recomputing the logits' gradient in the
second kernel was slower than storing it, because these kernels are bound by the arithmetic around
the matrix products, not by memory. Blocks of bins in which no pixel of a tile has target mass skip
the target's arithmetic.

Cost: four matrix products, and half of one for the bias's gradient. The features are read three
times; a strip's logits' gradients, at most about STRIP_BYTES, are written once and read once
(tools/benchmarks/head.py computes the lower bound of a head's time). The weights' gradient also
reads the features from the L2 cache once per block of bins. float32 is multiplied as 3xTF32, which
has float32's precision. In half precision the stored gradients are rounded, so the weights' and the
bias's gradient are sums of rounded terms. Not covered: float64, more than 256 channels (128 in
float32), more than 4 components, second derivatives.
"""

import contextlib

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from tiekd.kernels import reference
from tiekd.kernels.target import sigma_maps
from tiekd.kernels.triton_backward import features_gradient, weight_gradient
from tiekd.kernels.triton_forward import forward
from tiekd.kernels.triton_layer import LOG2_E, Layer, Maps
from tiekd.kernels.triton_target import (
    BIG,
    BINS_PADDED_TO,
    Parts,
    bins_of,
    cell_parts,
    series_pieces,
)

# Limits of the arguments that `supports` accepts: channels of the features (with 2 and with 4 bytes
# per value) and teachers in the target. With more channels, the features of one program's pixels
# wouldn't fit into the shared memory of smaller GPUs.
MAX_CHANNELS = 256
MAX_CHANNELS_OF_4_BYTES = 128
MAX_COMPONENTS = 4
# Maps (kernel, bytes per feature value) to (pixels per program, bins per iteration, warps, pipeline
# stages, registers per thread or None to let the compiler decide). In half precision these values
# are the fastest of some dozens measured on an H100 and an H200 with 128 channels and 257 bins; in
# float32 they follow from the register and shared memory use that the compiler reports for sm_90.
# The kernels "features" and "weight" must have the same number of pixels.
TILES = {
    ("forward", 2): (64, 64, 4, 2, None),
    ("forward", 4): (64, 32, 4, 2, None),
    ("features", 2): (64, 64, 4, 2, 168),
    ("features", 4): (64, 32, 8, 1, None),
    ("weight", 2): (64, 64, 4, 3, None),
    ("weight", 4): (64, 64, 8, 1, None),
}
# Number of programs per multiprocessor with which the kernel for the weights' gradient is launched:
# as many as run concurrently, so that they share the features in the L2 cache.
PROGRAMS_PER_PROCESSOR = 2
# Maximum bytes of the logits' gradients that backward stores at a time, for a group of pixels. A
# group has at least the pixels of one program, even if they take more.
STRIP_BYTES = 300 << 20


def supports(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> bool:
    """Returns True if this module's `dpm` supports the arguments' device, dtypes and sizes.

    Args:
        features: (B, C, h, w), the head's input.
        target_depth: (B, M, H, W), depths of M teachers, metres, or None.
        edges: (K + 1,), edges of the depth bins, metres.
    """
    return (
        features.is_cuda
        and features.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and edges.dtype == torch.float32
        and features.shape[1]
        <= (MAX_CHANNELS if features.element_size() == 2 else MAX_CHANNELS_OF_4_BYTES)
        and (target_depth is None or target_depth.shape[1] <= MAX_COMPONENTS)
    )


def dpm(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    target_depth: Tensor | None = None,
    sigma: float | tuple[float, ...] | Tensor = 0.5,
    target: str = "gaussian",
    beyond: str = "clamp",
    stride: int = 1,
    target_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Computes depth and divergence of the DPM head on a GPU.

    The results are those of `tiekd.kernels.reference.dpm`. `supports` must be True for features,
    target_depth and edges.

    Args:
        features: (B, C, h, w), the head's input.
        weight: (K, C, 1, 1), weight of the 1x1 convolution that gives the logits of K depth bins.
        bias: (K,), bias of this convolution.
        edges: (K + 1,) float32, edges of the bins, metres, increasing.
        target_depth: (B, M, H, W), metres, depths of M teachers at the image's size; None computes
            no divergence.
        sigma: standard deviation of the Gaussian around each target depth, metres, a number, one
            number for each teacher, or (B, M, H, W).
        target: kind of the target distribution, "gaussian" or "released", as for `reference.dpm`.
        beyond: treatment of target depths above the last edge, "clamp" or "ignore", as for
            `reference.dpm`.
        stride: image pixels per side of a pixel of the features.
        target_weight: (B, M, H, W), weights of the teachers in the target; None for equal weights.

    Returns:
        (depth, divergence), each (B, 1, h, w) in the dtype of edges: the mean depth, metres, and
        the divergence of the target from the predicted distribution, nats, None if `target_depth`
        is None.

    Raises:
        RecipeError: `target` or `beyond` is unknown, or sigma is too small for the bins.
    """
    reference.check_choices(target, beyond)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features = features.to(dtype)
        weight = weight.to(dtype)
        bias = bias.to(dtype)
    # Split sigma into a number (0.0 if sigma is a map) and a map (None if it is a number), because
    # an operator registered with torch has arguments of fixed types.
    if isinstance(sigma, tuple):
        sigma = sigma_maps(sigma, target_depth)
    number, sigma_map = (0.0, sigma) if isinstance(sigma, Tensor) else (float(sigma), None)
    depth, divergence, *_ = dpm_forward(
        features,
        weight,
        bias,
        edges,
        target_depth,
        number,
        sigma_map,
        target_weight,
        target,
        beyond,
        stride,
    )
    return depth, None if target_depth is None else divergence


# Register forward and backward as torch operators, so that torch.compile doesn't trace into them
# and autograd saves the parameters themselves. Saving tensors computed from the parameters would
# fail under ZeRO-3, which frees the parameters' storage after forward and gathers it before the
# owning module's backward.
@torch.library.custom_op("tiekd::dpm_forward", mutates_args=())
def dpm_forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    target_depth: Tensor | None,
    sigma: float,
    sigma_map: Tensor | None,
    target_weight: Tensor | None,
    target: str,
    beyond: str,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launches the forward kernel, which computes depth and divergence of the DPM head.

    Args:
        features: (B, C, h, w), the head's input.
        weight: (K, C, 1, 1), weight of the 1x1 convolution that gives the logits of K depth bins.
        bias: (K,), bias of this convolution.
        edges: (K + 1,) float32, edges of the bins, metres, increasing.
        target_depth: (B, M, H, W), metres, depths of M teachers at the image's size; None computes
            no divergence.
        sigma: standard deviation of the Gaussian around each target depth, metres; 0 if there is a
            `sigma_map`.
        sigma_map: (B, M, H, W), one standard deviation per target depth, metres; None if `sigma` is
            used.
        target_weight: (B, M, H, W), weights of the teachers in the target; None for equal weights.
        target: kind of the target distribution, "gaussian" or "released", as for `reference.dpm`.
        beyond: treatment of target depths above the last edge, "clamp" or "ignore", as for
            `reference.dpm`.
        stride: image pixels per side of a pixel of the features.

    Returns:
        Seven tensors: depth, divergence, log-sum-exp of the logits, and slope (a mean derivative of
        the divergence), each (B, 1, h, w) float32, as described in `Maps`; then position, share and
        spread of the N components of each pixel's target, each (B, N, h, w) float32, as described
        in `Parts`. Unused results have shape (0,).
    """
    # Allocate the outputs, and compute the components of the target distributions.
    features = _flat_pixels(features)
    depth, log_sum, divergence, slope = (
        edges.new_empty(features.shape[0], 1, *features.shape[2:]) for _ in range(4)
    )
    if target_depth is None:
        divergence = edges.new_empty(0)
        parts = Parts(*(edges.new_empty(0) for _ in range(3)), sigma)
    else:
        spread = sigma if sigma_map is None else sigma_map
        with _device_of(features):
            parts = cell_parts(target_depth, spread, target_weight, edges, target, beyond, stride)
    if target_depth is None or target != "released":
        slope = edges.new_empty(0)
    # Launch one program per tile, i.e. per group of BLOCK_P pixels of an image.
    constants = _constants("forward", features, edges, parts, target)
    layer = _layer(features, weight, bias)
    maps = Maps(depth, log_sum, slope, divergence)
    tiles = features.shape[0] * triton.cdiv(layer.pixels, constants["BLOCK_P"])
    with _device_of(features):
        forward[tiles,](layer, bins_of(edges)[0], parts, maps, **constants)
    return depth, divergence, log_sum, slope, *parts[:3]


@dpm_forward.register_fake
def _(
    features,
    weight,
    bias,
    edges,
    target_depth,
    sigma,
    sigma_map,
    target_weight,
    target,
    beyond,
    stride,
):
    one = edges.new_empty(features.shape[0], 1, *features.shape[2:])
    none = edges.new_empty(0)
    depth = torch.empty_like(one)
    log_sum = torch.empty_like(one)
    if target_depth is None:
        return depth, none, log_sum, *(torch.empty_like(none) for _ in range(4))
    slope = one if target == "released" else none
    spread = none
    maps = [
        one.new_empty(one.shape[0], target_depth.shape[1] * stride**2, *one.shape[2:])
        for _ in range(3)
    ]
    if target != "released" and sigma_map is None:
        maps[2] = torch.empty_like(spread)
    return depth, torch.empty_like(one), log_sum, slope, *maps


@torch.library.custom_op("tiekd::dpm_backward", mutates_args=())
def dpm_backward(
    depth_grad: Tensor | None,
    divergence_grad: Tensor | None,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    edges: Tensor,
    saved: list[Tensor],
    sigma: float,
    target: str,
    needs_features: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the kernels that compute the gradients of the DPM head's features, weight and bias.

    Args:
        depth_grad: (B, 1, h, w), gradient with respect to depth; None if the loss doesn't depend on
            it.
        divergence_grad: (B, 1, h, w), gradient with respect to divergence; None if the loss doesn't
            depend on it.
        features: (B, C, h, w), the head's input, as for `dpm_forward`.
        weight: (K, C, 1, 1), weight of the 1x1 convolution, as for `dpm_forward`.
        bias: (K,), bias of the 1x1 convolution, as for `dpm_forward`.
        edges: (K + 1,), edges of the depth bins, metres, as for `dpm_forward`.
        saved: six results of `dpm_forward`: depth, log-sum-exp, slope, position, share and spread.
        sigma: the target's sigma, metres; not used if forward had a map of sigmas.
        target: kind of the target distribution, "gaussian" or "released".
        needs_features: True if the features' gradient is needed.
        needs_weight: True if the gradient of weight or bias is needed.

    Returns:
        Three tensors, the gradients of features, weight and bias; shape (0,) for those that aren't
        needed.
    """
    # Unpack the tensors that forward saved. Set the divergence's incoming gradient to 0 at pixels
    # without a valid target, where the divergence is the constant 0.
    depth, log_sum, slope, *parts = saved
    if divergence_grad is None:
        parts = [edges.new_empty(0) for _ in parts]
    else:
        divergence_grad = divergence_grad.where(parts[1].sum(1, keepdim=True) > 0, 0)
    parts = Parts(*parts, sigma)
    flat = _flat_pixels(features)
    grads = [
        torch.zeros_like(depth) if g is None else g.contiguous()
        for g in (depth_grad, divergence_grad)
    ]
    layer = _layer(flat, weight, bias)
    maps = Maps(depth, log_sum, slope, None, *grads)
    of_features, of_weight = (
        _constants(kernel, flat, edges, parts, target) for kernel in ("features", "weight")
    )
    # Split the tiles (groups of BLOCK_P pixels) into strips of equal numbers of tiles, such that
    # the logits' gradients of a strip take at most STRIP_BYTES.
    bins = bins_of(edges)[0]
    block_p = of_features["BLOCK_P"]
    tiles = flat.shape[0] * triton.cdiv(layer.pixels, block_p)
    width = triton.cdiv(bins.count, 16) * 16
    strips = 1
    if needs_weight:
        strips = triton.cdiv(tiles * block_p * width * flat.element_size(), STRIP_BYTES)
    strip = max(1, triton.cdiv(tiles, max(1, strips)))
    assert of_weight["BLOCK_P"] == block_p, "a strip's rows are those of both kernels' tiles"
    kept = flat.new_empty(strip * block_p if needs_weight else 0, width)
    features_grad = torch.empty_like(flat) if needs_features else features.new_empty(0)
    # Allocate the partial sums of the weights' gradient, and count the blocks of bins. Bins that
    # remain after the last whole block are processed with that block (if TAIL_K > 0) or form one
    # more block.
    blocks = bins.count // of_weight["BLOCK_K"] + bool(
        bins.count % of_weight["BLOCK_K"] and not of_weight["TAIL_K"]
    )
    splits = max(1, min(strip, _programs(features) // blocks))
    partial = depth.new_zeros(splits if needs_weight else 0, bins.count, layer.channels + 1)

    # Launch both backward kernels once per strip, i.e. per group of `strip` tiles.
    with _device_of(features):
        for first in range(0, tiles, strip):
            some = min(strip, tiles - first)
            needs = {"GRAD": needs_features, "KEEP": needs_weight}
            features_gradient[some,](
                layer, bins, parts, maps, features_grad, kept, first, width, **needs, **of_features
            )
            if needs_weight:
                programs = blocks * splits
                weight_gradient[programs,](
                    layer, kept, partial, first, some, width, bins.count, **of_weight
                )
    if not needs_weight:
        return features_grad, features.new_empty(0), features.new_empty(0)
    sums = partial.sum(0)
    weight_grad = sums[:, :-1].to(weight.dtype).contiguous().view_as(weight)
    return features_grad, weight_grad, sums[:, -1].to(bias.dtype, copy=True)


@dpm_backward.register_fake
def _(
    depth_grad,
    divergence_grad,
    features,
    weight,
    bias,
    edges,
    saved,
    sigma,
    target,
    needs_features,
    needs_weight,
):
    flat = _flat_pixels(features)
    none = features.new_empty(0)
    if not needs_weight:
        return (
            torch.empty_like(flat) if needs_features else none,
            torch.empty_like(none),
            torch.empty_like(none),
        )
    features_grad = torch.empty_like(flat) if needs_features else none
    return features_grad, weight.new_empty(weight.shape), torch.empty_like(bias)


def _save_for_backward(ctx, inputs: tuple, output: tuple) -> None:
    """Saves the inputs and outputs of `dpm_forward` that its backward needs in `ctx`.

    Args:
        ctx: the autograd context.
        inputs: the arguments of `dpm_forward`.
        output: the results of `dpm_forward`.
    """
    features, weight, bias, edges, target_depth, ctx.sigma, _, _, ctx.target, *_ = inputs
    ctx.has_target = target_depth is not None
    depth, _, log_sum, slope, *parts = output
    ctx.save_for_backward(features, weight, bias, edges, depth, log_sum, slope, *parts)
    ctx.set_materialize_grads(False)


def _gradients(ctx, depth_grad: Tensor | None, divergence_grad: Tensor | None, *_):
    """Returns the gradients of `dpm_forward`'s eleven arguments.

    Only the first three, features, weight and bias, are differentiable; the others get None.

    Args:
        ctx: the autograd context, as `_save_for_backward` filled it.
        depth_grad: (B, 1, h, w), gradient with respect to depth; None if the loss doesn't depend on
            it.
        divergence_grad: (B, 1, h, w), gradient with respect to divergence; None if the loss doesn't
            depend on it.
        *_: gradients of the other results, which aren't differentiable.
    """
    features, weight, bias, edges, *saved = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if not ctx.has_target:
        divergence_grad = None
    gradients = dpm_backward(
        depth_grad,
        divergence_grad,
        features,
        weight,
        bias,
        edges,
        saved,
        ctx.sigma,
        ctx.target,
        needs[0],
        needs[1] or needs[2],
    )
    needed = [g if need else None for g, need in zip(gradients, needs[:3], strict=True)]
    return *needed, *[None] * 8


dpm_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _flat_pixels(features: Tensor) -> Tensor:
    """Returns `features` in a memory layout that the kernels support, copied if necessary.

    The kernels address features by the strides of batch, channel and flattened (h, w). Contiguous
    and channels_last features aren't copied.

    Args:
        features: (B, C, h, w), any memory layout.

    Returns:
        (B, C, h, w), `features` itself or a contiguous copy.
    """
    if features.stride(2) != features.shape[3] * features.stride(3):
        return features.contiguous()
    # Return the features as they are only if a new tensor of this shape has the same strides, i.e.
    # if they are dense in memory and not a view into a larger tensor. The backward kernel writes
    # the gradient with the features' strides.
    if torch.empty_like(features).stride() == features.stride():
        return features
    return features.contiguous()


def _device_of(features: Tensor) -> contextlib.AbstractContextManager:
    """Returns a context manager within which kernels are launched on the GPU of `features`."""
    return torch.cuda.device(features.device) if features.is_cuda else contextlib.nullcontext()


def _programs(features: Tensor) -> int:
    """Returns the number of programs with which the kernel `weight_gradient` should be launched.

    It is PROGRAMS_PER_PROCESSOR times the number of multiprocessors of the GPU of `features`, or 8
    if they are on the CPU. The number depends on the device only, so the order of summation is the
    same in every step.
    """
    if not features.is_cuda:
        return 8
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count
    return processors * PROGRAMS_PER_PROCESSOR


def _layer(features: Tensor, weight: Tensor, bias: Tensor) -> Layer:
    """Packs features, weight and bias of the head's 1x1 convolution into a `Layer`.

    The number of bins K is padded to a multiple of BINS_PADDED_TO, and the weight's number of
    channels C to a power of 2, as `Layer` describes.

    Args:
        features: (B, C, h, w), the convolution's input, from `_flat_pixels`.
        weight: (K, C, 1, 1), the convolution's weight.
        bias: (K,), the convolution's bias.
    """
    image, channel, _, pixel = features.stride()
    _, channels, height, width = features.shape
    more = -len(bias) % BINS_PADDED_TO
    weight = F.pad(weight.flatten(1), (0, _block_of(channels) - channels, 0, more))
    bias = F.pad(bias.float() * LOG2_E, (0, more), value=-BIG.value)
    return Layer(features, weight, bias, image, channel, pixel, height * width, channels)


def _block_of(channels: int) -> int:
    """Returns the number of channels after padding: the next power of 2, at least 16.

    Triton needs powers of 2 for the shapes of blocks, and its tl.dot at least 16.

    Args:
        channels: the number of channels without padding.
    """
    return max(16, triton.next_power_of_2(channels))


def _constants(kernel: str, features: Tensor, edges: Tensor, parts: Parts, target: str) -> dict:
    """Returns a kernel's compile-time constants and launch options, as a dict by name.

    Args:
        kernel: "forward", "features" (backward, features' gradient) or "weight" (backward, weights'
            gradient).
        features: (B, C, h, w), the head's input.
        edges: (K + 1,), edges of the depth bins.
        parts: the components of the target distributions; `position` is (0,) without a target.
        target: kind of the target distribution, "gaussian" or "released".

    Returns:
        Triton's options (num_warps, num_stages, maxnreg, enable_fp_fusion) and: BLOCK_P, number of
        pixels per tile; BLOCK_C, number of channels, padded to a power of 2; BLOCK_K, number of
        bins of a block, which a kernel processes together; TAIL_K, number of bins, padded, that are
        processed after the last whole block, 0 for none; WHOLE, True if BLOCK_P divides the number
        of an image's pixels; PRECISION, tl.dot's input_precision. Except for "weight" also: N,
        number of components of each target distribution, 0 without a target; TARGET, "none",
        "gaussian", "gaussian_map" (Gaussian with a map of sigmas) or "released"; PIECES, number of
        pieces into which a bin is split to compute its target mass by a Taylor series, 0 to compute
        it by erfc; EVEN, True if all bins may use the first bin's width.
    """
    channels = features.shape[1]
    half = features.element_size() == 2
    block_p, block_k, warps, stages, registers = TILES[kernel, features.element_size()]
    table, widest, even = bins_of(edges)
    constants = {
        "BLOCK_P": block_p,
        "BLOCK_C": _block_of(channels),
        "WHOLE": features.shape[2] * features.shape[3] % block_p == 0,
        "PRECISION": "ieee" if half else "tf32x3",
        "num_warps": warps * 2 if channels > 128 else warps,
        "num_stages": stages if channels <= 128 else 1,
        "maxnreg": None if channels > 128 else registers,
    }
    if kernel == "weight":
        # Process the bins that remain after the last whole block of BLOCK_K bins with that block if
        # there are at most 16; more form a block of their own.
        block_k = min(block_k, _block_of(table.count))
        over = table.count % block_k
        return constants | {
            "BLOCK_K": block_k,
            "TAIL_K": 16 if table.count > block_k and 0 < over <= 16 else 0,
        }
    # In the other kernels, process the bins that remain after the last whole block of BLOCK_K bins
    # as a block of their own, whose size is a power of 2.
    over = table.count % block_k
    tail = min(block_k, max(16, triton.next_power_of_2(over))) if over else 0
    pieces = 0
    if not parts.position.numel():
        target = "none"
    elif target == "gaussian" and parts.spread.numel():
        target = "gaussian_map"
    elif target == "gaussian":
        pieces = series_pieces(parts.sigma, widest)
    return constants | {
        "BLOCK_K": block_k,
        "TAIL_K": tail,
        "enable_fp_fusion": True,
        "N": parts.position.shape[1] if target != "none" else 0,
        "TARGET": target,
        "PIECES": pieces,
        # Use the first bin's width for all bins only in half precision. Edges are rounded to
        # float32, so this has a relative error of 2e-5, which is too large for float32.
        "EVEN": even and half,
    }
