"""The DPM head's arithmetic on a CUDA GPU, fused: the numbers of `reference`, and logits are never stored.

Forward is one kernel, a program per tile of pixels: the tile of features stays on the chip while the bins pass by in
blocks, each a matrix product and a step of the running softmax; four numbers per pixel are written (depth, log-sum-exp,
divergence, and for the published target the mean slope). Backward is two: logits are made again tile by tile, and

    dlogit_k = g_kl (p_k - q_k) + g_d p_k (c_k - depth)

is multiplied at once with the weights (features' gradient) or the features (weights' gradient; every program sums its
own fixed tiles, the partial sums are added in a fixed order, and there are no atomics: the same numbers every time).
Blocks of bins that no pixel of a tile has target mass in cost no target arithmetic.

Cost: see `roofline_seconds`; besides, features are read once per block of bins from the L2 cache for the weights'
gradient, and the last block of bins is computed in full. float32 is multiplied as 3xTF32, which has float32's digits.
Left out: float64, more than 256 channels, more than 4 components, second derivatives.
"""

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from tiekd.kernels import reference
from tiekd.kernels.triton_target import (
    BIG,
    BINS_PADDED_TO,
    EPS,
    LEAST_LOG_P,
    Parts,
    bins_of,
    cell_parts,
    in_span,
    load_part,
    series_pieces,
    target_mass,
    target_span,
)

LOG2_E = 1.4426950408889634
LOG2_E_GPU, LN_2 = tl.constexpr(LOG2_E), tl.constexpr(1 / LOG2_E)
MAX_CHANNELS = 256
MAX_COMPONENTS = 4
# By kernel and bytes per feature: pixels and bins of a tile, warps, pipeline stages, registers per thread (None: as the
# compiler likes). Chosen from what the compiler reports for sm_90 with 128 channels, not from measurements: nearly
# nothing spills, and two programs fit a processor in half precision.
TILES = {
    ("forward", 2): (128, 64, 8, 2, 128),
    ("forward", 4): (64, 16, 4, 2, None),
    ("features", 2): (128, 32, 8, 2, 128),
    ("features", 4): (64, 32, 8, 1, None),
    ("weight", 2): (64, 64, 4, 2, None),
    ("weight", 4): (16, 64, 8, 2, None),
}
PROGRAMS_PER_PROCESSOR = 2  # Of the weights' gradient, that are resident together and share features through L2.


class Layer(NamedTuple):
    """What is multiplied, and how it lies in memory: features (B, C, P) by their strides. weight: (K, C), padded with
    zeros to whole blocks. bias: (K,) float32, likewise padded with -BIG, times LOG2_E: logits are in bits here."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    image_stride: int
    channel_stride: int
    pixel_stride: int
    pixels: int
    channels: int


class Maps(NamedTuple):
    """One number per pixel each, (B, 1, h, w) float32. slope: of the published divergence by the logits, its mean."""

    depth: Tensor
    log_sum: Tensor
    slope: Tensor
    divergence: Tensor | None = None
    depth_grad: Tensor | None = None
    divergence_grad: Tensor | None = None


def supports(features: Tensor, target_depth: Tensor | None, edges: Tensor) -> bool:
    """Whether `dpm` takes these arguments, as far as device, dtypes and sizes go."""
    return (
        features.is_cuda
        and features.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and edges.dtype == torch.float32
        and features.shape[1] <= MAX_CHANNELS
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


def roofline_seconds(
    images: int,
    channels: int,
    bins: int,
    height: int,
    width: int,
    bytes_per_feature: int,
    bytes_per_s: float,
    flops_per_s: float,
) -> dict[str, float]:
    """Least seconds of forward and backward on a device that moves bytes_per_s and multiplies flops_per_s.

    Forward reads the features and a target depth and writes three numbers per pixel, and has one product of
    2 channels x bins flops per pixel; backward reads the features and six numbers, writes the features' gradient, and
    has three products. Each takes the longer of its bytes and its flops. The weights are small change.
    """
    pixels = images * height * width
    volume, product = pixels * channels * bytes_per_feature, 2.0 * pixels * channels * bins
    forward = max((volume + 16 * pixels) / bytes_per_s, product / flops_per_s)
    backward = max((2 * volume + 24 * pixels) / bytes_per_s, 3 * product / flops_per_s)
    return {"forward_s": forward, "backward_s": backward, "total_s": forward + backward}


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
    depth, log_sum, divergence, slope = (edges.new_empty(features.shape[0], 1, *features.shape[2:]) for _ in range(4))
    if target_depth is None:
        divergence, parts = edges.new_empty(0), Parts(*(edges.new_empty(0) for _ in range(3)), sigma)
    else:
        spread = sigma if sigma_map is None else sigma_map
        parts = cell_parts(target_depth, spread, target_weight, edges, target, beyond, stride)
    if target_depth is None or target != "released":
        slope = edges.new_empty(0)
    constants = _constants("forward", features, edges, parts, target)
    layer, maps = _layer(features, weight, bias), Maps(depth, log_sum, slope, divergence)
    tiles = features.shape[0] * triton.cdiv(layer.pixels, constants["BLOCK_P"])
    with _on(features):
        _forward[tiles,](layer, bins_of(edges)[0], parts, maps, **constants)
    return depth, divergence, log_sum, slope, *parts[:3]


@dpm_forward.register_fake
def _(features, weight, bias, edges, target_depth, sigma, sigma_map, target_weight, target, beyond, stride):
    one = edges.new_empty(features.shape[0], 1, *features.shape[2:])
    none, depth, log_sum = edges.new_empty(0), torch.empty_like(one), torch.empty_like(one)
    if target_depth is None:
        return depth, none, log_sum, *(torch.empty_like(none) for _ in range(4))
    slope, spread = (one if target == "released" else none), none
    maps = [one.new_empty(one.shape[0], target_depth.shape[1] * stride**2, *one.shape[2:]) for _ in range(3)]
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
    parts = Parts(*parts, sigma)
    flat = _flat_pixels(features)
    grads = [torch.zeros_like(depth) if g is None else g.contiguous() for g in (depth_grad, divergence_grad)]
    layer, maps = _layer(flat, weight, bias), Maps(depth, log_sum, slope, None, *grads)
    features_grad, weight_grad, bias_grad = (features.new_empty(0) for _ in range(3))
    bins = bins_of(edges)[0]
    with _on(features):
        if needs_features:
            features_grad = torch.empty_like(flat)
            constants = _constants("features", flat, edges, parts, target)
            tiles = flat.shape[0] * triton.cdiv(layer.pixels, constants["BLOCK_P"])
            _features_grad[tiles,](layer, bins, parts, maps, features_grad, **constants)
        if needs_weight:
            constants = _constants("weight", flat, edges, parts, target)
            tiles = flat.shape[0] * triton.cdiv(layer.pixels, constants["BLOCK_P"])
            blocks = triton.cdiv(bins.count, constants["BLOCK_K"])
            splits = max(1, min(tiles, _programs(features) // blocks))
            partial = depth.new_empty(splits, bins.count, layer.channels + 1)
            _weight_grad[blocks * splits,](layer, bins, parts, maps, partial, tiles, **constants)
            sums = partial.sum(0)
            weight_grad = sums[:, :-1].to(weight.dtype).contiguous().view_as(weight)
            bias_grad = sums[:, -1].to(bias.dtype, copy=True)
    return features_grad, weight_grad, bias_grad


@dpm_backward.register_fake
def _(depth_grad, divergence_grad, features, weight, bias, edges, saved, sigma, target, needs_features, needs_weight):
    flat, none = _flat_pixels(features), features.new_empty(0)
    if not needs_weight:
        return torch.empty_like(flat) if needs_features else none, torch.empty_like(none), torch.empty_like(none)
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
    return *(g if need else None for g, need in zip(gradients, needs[:3], strict=True)), *(None,) * 8


dpm_forward.register_autograd(_gradients, setup_context=_keep)


def _flat_pixels(features: Tensor) -> Tensor:
    """Features whose pixels (h, w) are one dimension in memory, as they are in both usual layouts; else a copy."""
    if features.stride(2) == features.shape[3] * features.stride(3):
        return features
    return features.contiguous()


def _on(features: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(features.device) if features.is_cuda else contextlib.nullcontext()


def _programs(features: Tensor) -> int:
    """How many programs share the weights' gradient: fixed for a device, and so is the order of its sums."""
    if not features.is_cuda:
        return 8
    return torch.cuda.get_device_properties(features.device).multi_processor_count * PROGRAMS_PER_PROCESSOR


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
    channels = features.shape[1]
    block_p, block_k, warps, stages, registers = TILES[kernel, features.element_size()]
    pieces = 0
    if not parts.position.numel():
        target = "none"
    elif target == "gaussian" and parts.spread.numel():
        target = "gaussian_map"
    elif target == "gaussian":
        pieces = series_pieces(parts.sigma, bins_of(edges)[1])
    return {
        "N": parts.position.shape[1] if target != "none" else 0,
        "TARGET": target,
        "PIECES": pieces,
        "BLOCK_P": block_p,
        "BLOCK_K": block_k,
        "BLOCK_C": _block_of(channels),
        "PRECISION": "tf32x3" if features.dtype == torch.float32 else "ieee",
        "num_warps": warps * 2 if channels > 128 else warps,
        "num_stages": stages,
        "maxnreg": None if channels > 128 else registers,
        "enable_fp_fusion": True,
    }


@triton.jit
def _load_features(layer, image, p, inside, BLOCK_C: tl.constexpr):
    """(C, P) of one tile; channels and pixels that don't exist are 0."""
    c = tl.arange(0, BLOCK_C)
    at = layer.features + image * layer.image_stride + c[:, None] * layer.channel_stride
    return tl.load(
        at + p[None, :] * layer.pixel_stride, mask=(c < layer.channels)[:, None] & inside[None, :], other=0.0
    )


@triton.jit
def _load_weight(layer, k, BLOCK_C: tl.constexpr):
    """(K, C) of one block of bins."""
    return tl.load(layer.weight + k[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :])


@triton.jit
def _forward(
    layer,
    bins,
    parts,
    maps,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pixels = layer.pixels
    tiles = tl.cdiv(pixels, BLOCK_P)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < pixels
    x = tl.trans(_load_features(layer, image, p, inside, BLOCK_C))
    at, here = (image * N * pixels + p)[:, None], inside[:, None]
    low, high = 0.0, 0.0
    if TARGET != "none":
        first = load_part(parts, 0, at, here, pixels, TARGET)
        valid, low, high = target_span(parts, at, here, pixels, N, TARGET)
    largest = tl.full((BLOCK_P,), -BIG, tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    moment, divergence, slope = total, total, total
    for start in range(0, bins.count, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w, b = _load_weight(layer, k, BLOCK_C), tl.load(layer.bias + k)
        logits = tl.dot(x, tl.trans(w), input_precision=PRECISION) * LOG2_E_GPU + b[None, :]
        new = tl.maximum(largest, tl.max(logits, 1))
        shrink, p_k = tl.exp2(largest - new), tl.exp2(logits - new[:, None])
        total = total * shrink + tl.sum(p_k, 1)
        moment = moment * shrink + tl.sum(p_k * tl.load(bins.centre + k)[None, :], 1)
        largest = new
        if TARGET == "gaussian" or TARGET == "gaussian_map":
            if in_span(low, high, bins, start, BLOCK_K):
                q = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
                q = target_mass(q, parts, first, at, here, pixels, bins, k[None, :], N, TARGET, PIECES)
                divergence += tl.sum(q * (tl.log2(tl.maximum(q, 1e-37)) - logits), 1)
    log_sum = largest + tl.log2(total)
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        divergence = (divergence + log_sum) * LN_2
    if TARGET == "released":
        if low < high:  # Its logarithm takes probabilities: the bins pass by again, with their sum known.
            for start in range(0, bins.count, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                w, b = _load_weight(layer, k, BLOCK_C), tl.load(layer.bias + k)
                logits = tl.dot(x, tl.trans(w), input_precision=PRECISION) * LOG2_E_GPU + b[None, :]
                q = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
                q = target_mass(q, parts, first, at, here, pixels, bins, k[None, :], N, TARGET, PIECES)
                log_p = logits - log_sum[:, None]
                p_k = tl.exp2(log_p)
                terms = q * tl.log(q / (p_k + EPS) + EPS)
                divergence += tl.sum(tl.where(log_p > LEAST_LOG_P * LOG2_E_GPU, terms, 0.0), 1)
                slope += tl.sum(p_k * _released_slope(p_k, q), 1)
        tl.store(maps.slope + image * pixels + p, slope, mask=inside)
    out = image * pixels + p
    tl.store(maps.depth + out, moment / total, mask=inside)
    tl.store(maps.log_sum + out, log_sum, mask=inside)
    if TARGET != "none":
        tl.store(maps.divergence + out[:, None], tl.where(valid, divergence[:, None], 0.0), mask=here)


@triton.jit
def _released_slope(p, q):
    """Derivative of the published divergence by p_k."""
    return -q * q / ((p + EPS) * (q + EPS * (p + EPS)))


@triton.jit
def _load_maps(maps, at, inside, TARGET: tl.constexpr):
    """Numbers of every pixel in the shape of `at`; a pixel that doesn't exist has probability and gradients 0."""
    depth_grad = tl.load(maps.depth_grad + at, mask=inside, other=0.0)
    divergence_grad, slope = depth_grad, depth_grad
    if TARGET != "none":
        divergence_grad = tl.load(maps.divergence_grad + at, mask=inside, other=0.0)
    if TARGET == "released":
        slope = tl.load(maps.slope + at, mask=inside, other=0.0)
    log_sum = tl.load(maps.log_sum + at, mask=inside, other=BIG)
    return tl.load(maps.depth + at, mask=inside, other=0.0), log_sum, slope, depth_grad, divergence_grad


@triton.jit
def _logits_grad(
    logits,
    values,
    low,
    high,
    parts,
    first,
    at,
    inside,
    layer,
    bins,
    start,
    k,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradient by the logits of a tile. values (from `_load_maps`), first and at have the shape of the tile's pixels, k
    that of its bins, and both broadcast to the logits'."""
    depth, log_sum, slope, depth_grad, divergence_grad = values
    p = tl.exp2(logits - log_sum)
    by_p = depth_grad * (tl.load(bins.centre + k) - depth)
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        by_p += divergence_grad
    grad = p * by_p
    if TARGET != "none":
        if in_span(low, high, bins, start, BLOCK_K):
            q = tl.zeros(logits.shape, tl.float32)
            q = target_mass(q, parts, first, at, inside, layer.pixels, bins, k, N, TARGET, PIECES)
            if TARGET == "released":
                grad += divergence_grad * p * (_released_slope(p, q) - slope)
            else:
                grad -= divergence_grad * q
    return grad


@triton.jit
def _features_grad(
    layer,
    bins,
    parts,
    maps,
    features_grad,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(layer.pixels, BLOCK_P)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    p = (tl.program_id(0) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < layer.pixels
    x = tl.trans(_load_features(layer, image, p, inside, BLOCK_C))
    at, here = (image * N * layer.pixels + p)[:, None], inside[:, None]
    values = _load_maps(maps, (image * layer.pixels + p)[:, None], here, TARGET)
    low, high, first = 0.0, 0.0, values[0]
    if TARGET != "none":
        first = load_part(parts, 0, at, here, layer.pixels, TARGET)
        valid, low, high = target_span(parts, at, here, layer.pixels, N, TARGET)
        values = values[0], values[1], values[2], values[3], tl.where(valid, values[4], 0.0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, bins.count, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w, b = _load_weight(layer, k, BLOCK_C), tl.load(layer.bias + k)
        logits = tl.dot(x, tl.trans(w), input_precision=PRECISION) * LOG2_E_GPU + b[None, :]
        grad = _logits_grad(
            logits,
            values,
            low,
            high,
            parts,
            first,
            at,
            here,
            layer,
            bins,
            start,
            k[None, :],
            N,
            TARGET,
            PIECES,
            BLOCK_K,
        )
        total = tl.dot(grad.to(w.dtype), w, total, input_precision=PRECISION)
    c = tl.arange(0, BLOCK_C)
    out = features_grad + image * layer.image_stride + c[None, :] * layer.channel_stride
    total = total.to(features_grad.dtype.element_ty)
    tl.store(out + p[:, None] * layer.pixel_stride, total, mask=here & (c < layer.channels)[None, :])


@triton.jit
def _weight_grad(
    layer,
    bins,
    parts,
    maps,
    partial,
    tiles,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial sums (splits, bins, channels + 1), the last the bias's. Neighbouring programs have the same tiles and
    other bins. Bins come first here (K, P), so that the gradient by the logits is a product's left side as it is."""
    blocks = tl.cdiv(bins.count, BLOCK_K)
    split, splits = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    start = (tl.program_id(0) % blocks) * BLOCK_K
    k, c = start + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    tiles_per_image = tl.cdiv(layer.pixels, BLOCK_P)
    w, b = _load_weight(layer, k, BLOCK_C), tl.load(layer.bias + k)
    total = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    bias_total = tl.zeros((BLOCK_K,), tl.float32)
    for tile in range(split, tiles, splits):
        image = (tile // tiles_per_image).to(tl.int64)
        p = (tile % tiles_per_image) * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = p < layer.pixels
        x = _load_features(layer, image, p, inside, BLOCK_C)
        at, here = (image * N * layer.pixels + p)[None, :], inside[None, :]
        values = _load_maps(maps, (image * layer.pixels + p)[None, :], here, TARGET)
        low, high, first = 0.0, 0.0, values[0]
        if TARGET != "none":
            first = load_part(parts, 0, at, here, layer.pixels, TARGET)
            valid, low, high = target_span(parts, at, here, layer.pixels, N, TARGET)
            values = values[0], values[1], values[2], values[3], tl.where(valid, values[4], 0.0)
        logits = tl.dot(w, x, input_precision=PRECISION) * LOG2_E_GPU + b[:, None]
        grad = _logits_grad(
            logits,
            values,
            low,
            high,
            parts,
            first,
            at,
            here,
            layer,
            bins,
            start,
            k[:, None],
            N,
            TARGET,
            PIECES,
            BLOCK_K,
        )
        bias_total += tl.sum(grad, 1)
        total = tl.dot(grad.to(x.dtype), tl.trans(x), total, input_precision=PRECISION)
    out = partial + (split.to(tl.int64) * bins.count + k) * (layer.channels + 1)
    tl.store(out[:, None] + c[None, :], total, mask=(k < bins.count)[:, None] & (c < layer.channels)[None, :])
    tl.store(out + layer.channels, bias_total, mask=k < bins.count)
