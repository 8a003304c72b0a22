"""The fused DPM head's backward kernels, strip by strip of tiles.

Logits are computed again. Their gradient is at once multiplied with the weights, and kept for the
strip, to be multiplied with the features.
"""

import triton
import triton.language as tl

from tiekd.kernels.triton_layer import load_features, load_weight, logits_of, pixels_of
from tiekd.kernels.triton_target import BIG, in_span, load_cells, released_slope, target_mass


@triton.jit(do_not_specialize=["first"])
def features_gradient(
    layer,
    bins,
    parts,
    maps,
    features_grad,
    kept,
    first,
    width,
    GRAD: tl.constexpr,
    KEEP: tl.constexpr,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TAIL_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes the gradients of the tiles from `first` on.

    With GRAD it writes features_grad, which has the features' layout in memory. With KEEP it writes
    the logits' gradients to `kept` (tiles P, width), 0 where there is no pixel.
    """
    image, p, inside = pixels_of(first + tl.program_id(0), layer, BLOCK_P, WHOLE)
    x = tl.trans(load_features(layer, image, p, inside, BLOCK_C))
    cells, values = _load_tile(maps, parts, layer, image, p[:, None], inside[:, None], N, TARGET)
    rows = _kept_rows(kept, tl.program_id(0), width, BLOCK_P)
    # The bins pass by in blocks, the last of them of another size.
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    whole = bins.count - bins.count % BLOCK_K if TAIL_K > 0 else bins.count
    for start in range(0, whole, BLOCK_K):
        total = _add_block(
            total, rows, x, values, cells, layer, bins, parts, start, width, GRAD, KEEP, BLOCK_K,
            N, TARGET, PIECES, EVEN, BLOCK_C, PRECISION,
        )  # fmt: skip
    if TAIL_K > 0:
        total = _add_block(
            total, rows, x, values, cells, layer, bins, parts, whole, width, GRAD, KEEP, TAIL_K,
            N, TARGET, PIECES, EVEN, BLOCK_C, PRECISION,
        )  # fmt: skip
    if GRAD:
        c = tl.arange(0, BLOCK_C)
        out = features_grad + image * layer.image_stride + c[None, :] * layer.channel_stride
        total = total.to(features_grad.dtype.element_ty)
        tl.store(
            out + p[:, None] * layer.pixel_stride,
            total,
            mask=inside[:, None] & (c < layer.channels)[None, :],
        )


@triton.jit
def _add_block(
    total,
    rows,
    x,
    values,
    cells,
    layer,
    bins,
    parts,
    start,
    width,
    GRAD: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds one block of bins to a tile's features' gradient (P, C).

    With KEEP it stores the block's own gradient in `rows`.
    """
    w = load_weight(layer, start, BLOCK_K, BLOCK_C)
    logits = logits_of(x, w, layer, start, BLOCK_K, PRECISION)
    k = start + tl.arange(0, BLOCK_K)[None, :]
    grad = _logits_gradient(
        logits, values, cells, layer, bins, parts, k, start, BLOCK_K, N, TARGET, PIECES, EVEN
    )
    grad = grad.to(w.dtype)
    if GRAD:
        total = tl.dot(grad, w, total, input_precision=PRECISION)
    if KEEP:
        tl.store(rows + k, grad, mask=k < width)
    return total


@triton.jit(do_not_specialize=["first", "tiles"])
def weight_gradient(
    layer,
    kept,
    partial,
    first,
    tiles,
    width,
    count,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TAIL_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds a strip's gradients to the partial sums.

    The partial sums are (splits, bins, channels + 1), the last channel being the bias's. A program
    computes one block of bins (and the rest after the last block) over every `splits`-th of the
    strip's tiles. Neighbouring programs have the same tiles and other bins, so that L2 serves them
    all.
    """
    blocks = count // BLOCK_K if TAIL_K > 0 else tl.cdiv(count, BLOCK_K)
    split, splits = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    block = tl.program_id(0) % blocks
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    # Their product is the bias's sum; 64 rows are the least that Hopper multiplies in one
    # instruction.
    ones = tl.full((64, BLOCK_P), 1.0, kept.dtype.element_ty)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    bias_total = tl.zeros((64, BLOCK_K), tl.float32)
    if TAIL_K > 0:
        over = blocks * BLOCK_K + tl.arange(0, TAIL_K)
        over_total = tl.zeros((BLOCK_C, TAIL_K), tl.float32)
        over_bias = tl.zeros((64, TAIL_K), tl.float32)
    # Sums over this program's tiles, always in the same order.
    for tile in range(split, tiles, splits):
        image, p, inside = pixels_of(first + tile, layer, BLOCK_P, WHOLE)
        x = load_features(layer, image, p, inside, BLOCK_C)
        rows = _kept_rows(kept, tile, width, BLOCK_P)
        grad = tl.load(rows + k[None, :], mask=(k < width)[None, :], other=0.0)
        total = tl.dot(x, grad, total, input_precision=PRECISION)
        bias_total = tl.dot(ones, grad, bias_total, input_precision=PRECISION)
        if TAIL_K > 0:
            grad = tl.load(rows + over[None, :], mask=(over < width)[None, :], other=0.0)
            over_total = tl.dot(x, grad, over_total, input_precision=PRECISION)
            over_bias = tl.dot(ones, grad, over_bias, input_precision=PRECISION)
    _add_partial(partial, total, bias_total, split, k, count, layer.channels, BLOCK_C)
    if TAIL_K > 0:
        if block == blocks - 1:
            _add_partial(
                partial, over_total, over_bias, split, over, count, layer.channels, BLOCK_C
            )


@triton.jit
def _kept_rows(kept, tile, width, BLOCK_P: tl.constexpr):
    """Returns where a tile's kept gradients (P, 1) begin, the strip's tiles counted from 0."""
    return kept + (tile * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]) * width


@triton.jit
def _add_partial(partial, total, bias_total, split, k, count, channels, BLOCK_C: tl.constexpr):
    """Adds one program's sums for bins k; every row of bias_total is the bias's."""
    c = tl.arange(0, BLOCK_C)
    at = partial + (split.to(tl.int64) * count + k) * (channels + 1)
    here = (c < channels)[:, None] & (k < count)[None, :]
    before = tl.load(at[None, :] + c[:, None], mask=here)
    tl.store(at[None, :] + c[:, None], before + total, mask=here)
    before = tl.load(at + channels, mask=k < count)
    tl.store(at + channels, before + tl.max(bias_total, 0), mask=k < count)


@triton.jit
def _load_tile(maps, parts, layer, image, p, here, N: tl.constexpr, TARGET: tl.constexpr):
    """Loads the targets of the cells p (P, 1) and their saved numbers.

    The numbers are depth, log_sum, slope and the gradients by depth and divergence, (P, 1) each. A
    pixel that doesn't exist has probability and gradients 0.
    """
    cells = load_cells(parts, image * N * layer.pixels + p, here, layer.pixels, N, TARGET)
    at = image * layer.pixels + p
    depth_grad = tl.load(maps.depth_grad + at, mask=here, other=0.0)
    divergence_grad, slope = depth_grad, depth_grad
    if TARGET != "none":
        divergence_grad = tl.load(maps.divergence_grad + at, mask=here, other=0.0)
    if TARGET == "released":
        slope = tl.load(maps.slope + at, mask=here, other=0.0)
    log_sum = tl.load(maps.log_sum + at, mask=here, other=BIG)
    return cells, (
        tl.load(maps.depth + at, mask=here, other=0.0),
        log_sum,
        slope,
        depth_grad,
        divergence_grad,
    )


@triton.jit
def _logits_gradient(
    logits,
    values,
    cells,
    layer,
    bins,
    parts,
    k,
    start,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Returns the gradient of the logits, (P, K).

    It is g_kl (p_k - q_k) + g_d p_k (c_k - depth), or for the published target its derivative.
    Cells and values are from `_load_tile`, k is (1, K).
    """
    # The part of the depth, and of -log p in the divergence; both are multiples of p.
    depth, log_sum, slope, depth_grad, divergence_grad = values
    p = tl.exp2(logits - log_sum)
    by_p = -depth_grad * depth
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        by_p += divergence_grad
    by_p += depth_grad * tl.load(bins.centre + k)
    grad = p * by_p
    # The part of the target, in blocks where it has mass.
    if TARGET != "none":
        if in_span(cells, bins, start, BLOCK_K):
            q = target_mass(
                cells, parts, bins, k, start, layer.pixels, BLOCK_K, N, TARGET, PIECES, EVEN
            )
            if TARGET == "released":
                grad += divergence_grad * p * (released_slope(p, q) - slope)
            else:
                grad -= divergence_grad * q
    return grad
