"""The fused DPM head's two backward kernels: logits are made again tile by tile, and their gradient is multiplied at
once with the weights or the features."""

import triton
import triton.language as tl

from tiekd.kernels.triton_layer import load_features, load_weight, logits_of, pixels_of
from tiekd.kernels.triton_target import BIG, in_span, load_cells, released_slope, target_mass


@triton.jit
def features_gradient(
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
    TAIL_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes features_grad, which lies in memory as the features do, of one tile."""
    image, p, inside = pixels_of(tl.program_id(0), layer, BLOCK_P)
    x = tl.trans(load_features(layer, image, p, inside, BLOCK_C))
    cells = load_cells(parts, image, p, inside, layer.pixels, N, TARGET)
    values = _load_maps(maps, image * layer.pixels + p, inside, cells, TARGET)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    whole = bins.count - bins.count % BLOCK_K if TAIL_K > 0 else bins.count
    for start in range(0, whole, BLOCK_K):
        w = load_weight(layer, start, BLOCK_K, BLOCK_C)
        logits = logits_of(x, w, layer, start, BLOCK_K, PRECISION)
        grad = _logits_gradient(logits, values, cells, layer, bins, parts, start, BLOCK_K, N, TARGET, PIECES)
        total = tl.dot(grad.to(w.dtype), w, total, input_precision=PRECISION)
    if TAIL_K > 0:
        w = load_weight(layer, whole, TAIL_K, BLOCK_C)
        logits = logits_of(x, w, layer, whole, TAIL_K, PRECISION)
        grad = _logits_gradient(logits, values, cells, layer, bins, parts, whole, TAIL_K, N, TARGET, PIECES)
        total = tl.dot(grad.to(w.dtype), w, total, input_precision=PRECISION)
    c = tl.arange(0, BLOCK_C)
    out = features_grad + image * layer.image_stride + c[None, :] * layer.channel_stride
    total = total.to(features_grad.dtype.element_ty)
    tl.store(out + p[:, None] * layer.pixel_stride, total, mask=inside[:, None] & (c < layer.channels)[None, :])


@triton.jit
def weight_gradient(
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
    TAIL_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes partial sums (splits, bins, channels + 1), the last the bias's: of one block of bins, over every
    `splits`-th tile. Neighbouring programs have the same tiles and other bins, so that L2 serves them all."""
    blocks = tl.cdiv(bins.count, BLOCK_K)
    split, splits = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    start = (tl.program_id(0) % blocks) * BLOCK_K
    c, k = tl.arange(0, BLOCK_C), start + tl.arange(0, BLOCK_K)
    w = load_weight(layer, start, BLOCK_K, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    bias_total = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    for tile in range(split, tiles, splits):
        image, p, inside = pixels_of(tile, layer, BLOCK_P)
        x = load_features(layer, image, p, inside, BLOCK_C)
        cells = load_cells(parts, image, p, inside, layer.pixels, N, TARGET)
        values = _load_maps(maps, image * layer.pixels + p, inside, cells, TARGET)
        logits = logits_of(tl.trans(x), w, layer, start, BLOCK_K, PRECISION)
        grad = _logits_gradient(logits, values, cells, layer, bins, parts, start, BLOCK_K, N, TARGET, PIECES)
        bias_total += grad
        total = tl.dot(x, grad.to(x.dtype), total, input_precision=PRECISION)
    out = partial + (split.to(tl.int64) * bins.count + k) * (layer.channels + 1)
    tl.store(out[None, :] + c[:, None], total, mask=(c < layer.channels)[:, None] & (k < bins.count)[None, :])
    tl.store(out + layer.channels, tl.sum(bias_total, 0), mask=k < bins.count)


@triton.jit
def _load_maps(maps, at, inside, cells, TARGET: tl.constexpr):
    """(P, 1) each; a pixel that doesn't exist has probability and gradients 0."""
    at, here = at[:, None], inside[:, None]
    depth_grad = tl.load(maps.depth_grad + at, mask=here, other=0.0)
    divergence_grad, slope = depth_grad, depth_grad
    if TARGET != "none":
        _, _, _, valid, _, _ = cells
        divergence_grad = tl.where(valid, tl.load(maps.divergence_grad + at, mask=here, other=0.0), 0.0)
    if TARGET == "released":
        slope = tl.load(maps.slope + at, mask=here, other=0.0)
    log_sum = tl.load(maps.log_sum + at, mask=here, other=BIG)
    return tl.load(maps.depth + at, mask=here, other=0.0), log_sum, slope, depth_grad, divergence_grad


@triton.jit
def _logits_gradient(
    logits,
    values,
    cells,
    layer,
    bins,
    parts,
    start,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
):
    """(P, K): g_kl (p_k - q_k) + g_d p_k (c_k - depth), or for the published target its derivative; values from
    `_load_maps`."""
    depth, log_sum, slope, depth_grad, divergence_grad = values
    p = tl.exp2(logits - log_sum)
    by_p = depth_grad * (tl.load(bins.centre + start + tl.arange(0, BLOCK_K))[None, :] - depth)
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        by_p += divergence_grad
    grad = p * by_p
    if TARGET != "none":
        if in_span(cells, bins, start, BLOCK_K):
            q = target_mass(cells, parts, bins, start, layer.pixels, BLOCK_K, N, TARGET, PIECES)
            if TARGET == "released":
                grad += divergence_grad * p * (released_slope(p, q) - slope)
            else:
                grad -= divergence_grad * q
    return grad
