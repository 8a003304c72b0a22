"""The DPM head's arithmetic on a CUDA GPU, fused: the numbers of `reference`, and logits are never stored.

Forward is one kernel, a program per tile of pixels: the tile of features stays on the chip while the bins pass by in
blocks, each a matrix product and a step of the running softmax; four numbers per pixel are written (depth, log-sum-exp,
divergence, and for the published target the mean slope). Backward goes through the pixels strip by strip, with two
kernels: logits are made again tile by tile, and

    dlogit_k = g_kl (p_k - q_k) + g_d p_k (c_k - depth)

is at once multiplied with the weights, which is the features' gradient, and kept for the strip in the features' dtype,
to be multiplied with the features for the weights' (every program sums its own fixed tiles, the partial sums are added
in a fixed order, and there are no atomics: the same numbers every time). To make it a third time instead took longer:
the arithmetic around the products is what these kernels wait for, not memory. Blocks of bins that no pixel of a tile
has target mass in cost no target arithmetic.

Cost: four matrix products and the bias's gradient as half of one, the features read three times, and a strip's
gradients, about STRIP_BYTES at most, written once and read once (tools/benchmarks/head.py has the least that a head
takes). Besides, for the weights' gradient features are read once per block of bins from the L2 cache. float32 is
multiplied as 3xTF32, which has float32's digits; in half precision what is kept, and so what the bias's gradient sums,
is rounded. Left out: float64, more than 256 channels (128 in float32), more than 4 components, second derivatives.
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

MAX_CHANNELS, MAX_CHANNELS_OF_4_BYTES = (
    256,
    128,
)  # So that tiles fit the shared memory of smaller GPUs, too.
MAX_COMPONENTS = 4
# By kernel and bytes per feature: pixels and bins of a tile, warps, pipeline stages, registers per thread (None: as the
# compiler likes). In half precision the fastest on an H100 and an H200 with 128 channels and 257 bins, of some dozens;
# in float32 by what the compiler reports for sm_90. Both kernels of backward have the same pixels.
TILES = {
    ("forward", 2): (64, 64, 4, 2, None),
    ("forward", 4): (64, 32, 4, 2, None),
    ("features", 2): (64, 64, 4, 2, 168),
    ("features", 4): (64, 32, 8, 1, None),
    ("weight", 2): (64, 64, 4, 3, None),
    ("weight", 4): (64, 64, 8, 1, None),
}
PROGRAMS_PER_PROCESSOR = (
    2  # Of the weights' gradient, that are resident together and share features through L2.
)
STRIP_BYTES = (
    300 << 20
)  # Of the logits' gradients that are kept at a time, at most, but for a tile.


def supports(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> bool:
    """Whether `dpm` takes these arguments, as far as device, dtypes and sizes go."""
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
    """As `tiekd.kernels.reference.dpm`, argument by argument, for float32 edges and what `supports` says."""
    reference.check_choices(target, beyond)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
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


# Operators of PyTorch's, so that torch.compile takes them as they are, and autograd keeps the parameters themselves:
# under ZeRO-3 their storage is released after forward and gathered again before the owning module's backward.
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
    """Depth, divergence, log-sum-exp, mean slope (all (B, 1, h, w)), and the target's three maps; (0,) where unused."""
    features = _flat_pixels(features)
    depth, log_sum, divergence, slope = (
        edges.new_empty(features.shape[0], 1, *features.shape[2:]) for _ in range(4)
    )
    if target_depth is None:
        divergence, parts = (
            edges.new_empty(0),
            Parts(*(edges.new_empty(0) for _ in range(3)), sigma),
        )
    else:
        spread = sigma if sigma_map is None else sigma_map
        with _on(features):
            parts = cell_parts(target_depth, spread, target_weight, edges, target, beyond, stride)
    if target_depth is None or target != "released":
        slope = edges.new_empty(0)
    constants = _constants("forward", features, edges, parts, target)
    layer, maps = _layer(features, weight, bias), Maps(depth, log_sum, slope, divergence)
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
    none, depth, log_sum = edges.new_empty(0), torch.empty_like(one), torch.empty_like(one)
    if target_depth is None:
        return depth, none, log_sum, *(torch.empty_like(none) for _ in range(4))
    slope, spread = (one if target == "released" else none), none
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
    """Gradients of features, weight and bias; (0,) for those that nobody needs."""
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
    layer, maps = _layer(flat, weight, bias), Maps(depth, log_sum, slope, None, *grads)
    of_features, of_weight = (
        _constants(kernel, flat, edges, parts, target) for kernel in ("features", "weight")
    )
    bins, block_p = bins_of(edges)[0], of_features["BLOCK_P"]
    tiles, width = (
        flat.shape[0] * triton.cdiv(layer.pixels, block_p),
        triton.cdiv(bins.count, 16) * 16,
    )
    strips = (
        triton.cdiv(tiles * block_p * width * flat.element_size(), STRIP_BYTES)
        if needs_weight
        else 1
    )
    strip = max(1, triton.cdiv(tiles, max(1, strips)))
    assert of_weight["BLOCK_P"] == block_p, "a strip's rows are those of both kernels' tiles"
    kept = flat.new_empty(strip * block_p if needs_weight else 0, width)
    features_grad = torch.empty_like(flat) if needs_features else features.new_empty(0)
    # What is over after the last block of bins is a tail, or one more block.
    blocks = bins.count // of_weight["BLOCK_K"] + bool(
        bins.count % of_weight["BLOCK_K"] and not of_weight["TAIL_K"]
    )
    splits = max(1, min(strip, _programs(features) // blocks))
    partial = depth.new_zeros(splits if needs_weight else 0, bins.count, layer.channels + 1)
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
    flat, none = _flat_pixels(features), features.new_empty(0)
    if not needs_weight:
        return (
            torch.empty_like(flat) if needs_features else none,
            torch.empty_like(none),
            torch.empty_like(none),
        )
    features_grad = torch.empty_like(flat) if needs_features else none
    return features_grad, weight.new_empty(weight.shape), torch.empty_like(bias)


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    features, weight, bias, edges, target_depth, ctx.sigma, _, _, ctx.target, *_ = inputs
    ctx.has_target = target_depth is not None
    depth, _, log_sum, slope, *parts = output
    ctx.save_for_backward(features, weight, bias, edges, depth, log_sum, slope, *parts)
    ctx.set_materialize_grads(False)


def _gradients(ctx, depth_grad: Tensor | None, divergence_grad: Tensor | None, *_):
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
    return *(g if need else None for g, need in zip(gradients, needs[:3], strict=True)), *(
        None,
    ) * 8


dpm_forward.register_autograd(_gradients, setup_context=_keep)


def _flat_pixels(features: Tensor) -> Tensor:
    """Features whose pixels (h, w) are one dimension in memory without gaps, as in both usual layouts; else a copy."""
    if features.stride(2) != features.shape[3] * features.stride(3):
        return features.contiguous()
    # A gradient is to lie as they do, and a new tensor has their strides only where no element lies beside them.
    return (
        features
        if torch.empty_like(features).stride() == features.stride()
        else features.contiguous()
    )


def _on(features: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(features.device) if features.is_cuda else contextlib.nullcontext()


def _programs(features: Tensor) -> int:
    """How many programs share the weights' gradient: fixed for a device, and so is the order of its sums."""
    if not features.is_cuda:
        return 8
    return (
        torch.cuda.get_device_properties(features.device).multi_processor_count
        * PROGRAMS_PER_PROCESSOR
    )


def _layer(features: Tensor, weight: Tensor, bias: Tensor) -> Layer:
    image, channel, _, pixel = features.stride()
    _, channels, height, width = features.shape
    more = -len(bias) % BINS_PADDED_TO
    weight = F.pad(weight.flatten(1), (0, _block_of(channels) - channels, 0, more))
    bias = F.pad(bias.float() * LOG2_E, (0, more), value=-BIG.value)
    return Layer(features, weight, bias, image, channel, pixel, height * width, channels)


def _block_of(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))


def _constants(kernel: str, features: Tensor, edges: Tensor, parts: Parts, target: str) -> dict:
    """Compile-time constants of a kernel, and how it is to be compiled."""
    channels, half = features.shape[1], features.element_size() == 2
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
        # A few bins over are a tail beside the last block; more are a block of their own.
        block_k = min(block_k, _block_of(table.count))
        over = table.count % block_k
        return constants | {
            "BLOCK_K": block_k,
            "TAIL_K": 16 if table.count > block_k and 0 < over <= 16 else 0,
        }
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
        # One width for all is off by float32 edges' rounding, 2e-5 of it: too much for float32 alone.
        "EVEN": even and half,
    }
