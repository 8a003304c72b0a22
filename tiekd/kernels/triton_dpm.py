"""The DPM head's arithmetic on a CUDA GPU, fused: the numbers of `reference` without stored logits.

Forward is one kernel with a program per tile of pixels. The tile of features stays on the chip
while the bins pass by in blocks, each a matrix product and a step of the running softmax. Four
numbers per pixel are written: depth, log-sum-exp, divergence, and for the published target the
mean slope. Backward goes through the pixels strip by strip, with two kernels. Logits are computed
again tile by tile, and

    dlogit_k = g_kl (p_k - q_k) + g_d p_k (c_k - depth)

is at once multiplied with the weights, which gives the features' gradient. It is also kept for the
strip in the features' dtype, to be multiplied with the features for the weights' gradient. There
every program sums its own fixed tiles, the partial sums are added in a fixed order, and there are
no atomics: the same numbers every time. Computing it a third time instead took longer, because
these kernels are bound by the arithmetic around the products, not by memory. Blocks of bins in
which no pixel of a tile has target mass cost no target arithmetic.

Cost: four matrix products and half of one for the bias's gradient, the features read three times,
and a strip's gradients, about STRIP_BYTES at most, written once and read once
(tools/benchmarks/head.py has the least that a head takes). Besides, for the weights' gradient
features are read once per block of bins from the L2 cache. float32 is multiplied as 3xTF32, which
has float32's digits. In half precision the kept gradients are rounded, and so the terms of the
bias's gradient. Left out: float64, more than 256 channels (128 in float32), more than 4
components, second derivatives.
"""

import contextlib

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from tiekd.kernels import reference
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

# So that tiles fit the shared memory of smaller GPUs, too.
MAX_CHANNELS = 256
MAX_CHANNELS_OF_4_BYTES = 128
MAX_COMPONENTS = 4
# By kernel and bytes per feature: pixels and bins of a tile, warps, pipeline stages, registers per
# thread (None: the compiler decides). In half precision these are the fastest of some dozens on an
# H100 and an H200 with 128 channels and 257 bins; in float32 they follow what the compiler reports
# for sm_90. Both kernels of backward have the same pixels.
TILES = {
    ("forward", 2): (64, 64, 4, 2, None),
    ("forward", 4): (64, 32, 4, 2, None),
    ("features", 2): (64, 64, 4, 2, 168),
    ("features", 4): (64, 32, 8, 1, None),
    ("weight", 2): (64, 64, 4, 3, None),
    ("weight", 4): (64, 64, 8, 1, None),
}
# Programs of the weights' gradient that are resident together and share features through L2.
PROGRAMS_PER_PROCESSOR = 2
# The most bytes of logits' gradients that are kept at a time, but for a tile.
STRIP_BYTES = 300 << 20


def supports(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> bool:
    """True if `dpm` accepts these arguments, as far as device, dtypes and sizes go."""
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
    sigma: float | Tensor = 0.5,
    target: str = "gaussian",
    beyond: str = "clamp",
    stride: int = 1,
    target_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Computes `tiekd.kernels.reference.dpm` for float32 edges and what `supports` accepts.

    The arguments are those of the reference.
    """
    reference.check_choices(target, beyond)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features = features.to(dtype)
        weight = weight.to(dtype)
        bias = bias.to(dtype)
    # The operator takes sigma as a number and as a map, of which one is used.
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


# Registered operators, so that torch.compile takes them as they are, and autograd saves the
# parameters themselves: under ZeRO-3 their storage is released after forward and gathered again
# before the owning module's backward.
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
    """Returns depth, divergence, log-sum-exp and mean slope, and the target's three maps.

    The first four are (B, 1, h, w); unused ones are (0,).
    """
    # Outputs, and the parts of the target.
    features = _flat_pixels(features)
    depth, log_sum, divergence, slope = (
        edges.new_empty(features.shape[0], 1, *features.shape[2:]) for _ in range(4)
    )
    if target_depth is None:
        divergence = edges.new_empty(0)
        parts = Parts(*(edges.new_empty(0) for _ in range(3)), sigma)
    else:
        spread = sigma if sigma_map is None else sigma_map
        with _on(features):
            parts = cell_parts(target_depth, spread, target_weight, edges, target, beyond, stride)
    if target_depth is None or target != "released":
        slope = edges.new_empty(0)
    # One program per tile.
    constants = _constants("forward", features, edges, parts, target)
    layer = _layer(features, weight, bias)
    maps = Maps(depth, log_sum, slope, divergence)
    tiles = features.shape[0] * triton.cdiv(layer.pixels, constants["BLOCK_P"])
    with _on(features):
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
    """Returns the gradients of features, weight and bias; (0,) for those that aren't needed."""
    # What forward saved, and the gradients per pixel.
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
    # Strips: as many tiles as STRIP_BYTES hold the logits' gradients of, in equal numbers.
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
    # Partial sums of the weights' gradient. The bins after the last whole block are a tail, or one
    # more block.
    blocks = bins.count // of_weight["BLOCK_K"] + bool(
        bins.count % of_weight["BLOCK_K"] and not of_weight["TAIL_K"]
    )
    splits = max(1, min(strip, _programs(features) // blocks))
    partial = depth.new_zeros(splits if needs_weight else 0, bins.count, layer.channels + 1)

    # Both kernels, strip by strip.
    with _on(features):
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


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    """Saves for backward what autograd needs."""
    features, weight, bias, edges, target_depth, ctx.sigma, _, _, ctx.target, *_ = inputs
    ctx.has_target = target_depth is not None
    depth, _, log_sum, slope, *parts = output
    ctx.save_for_backward(features, weight, bias, edges, depth, log_sum, slope, *parts)
    ctx.set_materialize_grads(False)


def _gradients(ctx, depth_grad: Tensor | None, divergence_grad: Tensor | None, *_):
    """Returns the gradients of `dpm_forward`'s eleven arguments; only the first three have any."""
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


dpm_forward.register_autograd(_gradients, setup_context=_keep)


def _flat_pixels(features: Tensor) -> Tensor:
    """Returns features whose pixels (h, w) are one dimension in memory without gaps.

    Both usual layouts are so; others are copied.
    """
    if features.stride(2) != features.shape[3] * features.stride(3):
        return features.contiguous()
    # The gradient must have the features' strides, and a new tensor has them only if the features
    # are no view of a larger tensor.
    if torch.empty_like(features).stride() == features.stride():
        return features
    return features.contiguous()


def _on(features: Tensor) -> contextlib.AbstractContextManager:
    """Returns the context in which kernels run on the features' device."""
    return torch.cuda.device(features.device) if features.is_cuda else contextlib.nullcontext()


def _programs(features: Tensor) -> int:
    """Returns how many programs share the weights' gradient.

    It is fixed for a device, and so is the order of the sums.
    """
    if not features.is_cuda:
        return 8
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count
    return processors * PROGRAMS_PER_PROCESSOR


def _layer(features: Tensor, weight: Tensor, bias: Tensor) -> Layer:
    """Returns the kernels' operands, padded to whole blocks."""
    image, channel, _, pixel = features.stride()
    _, channels, height, width = features.shape
    more = -len(bias) % BINS_PADDED_TO
    weight = F.pad(weight.flatten(1), (0, _block_of(channels) - channels, 0, more))
    bias = F.pad(bias.float() * LOG2_E, (0, more), value=-BIG.value)
    return Layer(features, weight, bias, image, channel, pixel, height * width, channels)


def _block_of(channels: int) -> int:
    """Returns the number of channels of a block: a power of 2, at least 16."""
    return max(16, triton.next_power_of_2(channels))


def _constants(kernel: str, features: Tensor, edges: Tensor, parts: Parts, target: str) -> dict:
    """Returns the compile-time constants of a kernel, and the options of its compilation."""
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
        # Up to 16 bins after the last whole block are a tail to it; more are a block of their own.
        block_k = min(block_k, _block_of(table.count))
        over = table.count % block_k
        return constants | {
            "BLOCK_K": block_k,
            "TAIL_K": 16 if table.count > block_k and 0 < over <= 16 else 0,
        }
    # In the other kernels the bins after the last whole block are a smaller block.
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
        # One width for all bins is off by the rounding of float32 edges, 2e-5 of it. Only float32
        # needs better.
        "EVEN": even and half,
    }
