"""The two backward kernels of the fused DPM head, launched once per strip of tiles.

`features_gradient` recomputes the logits and multiplies their gradient by the weights. It also
stores the logits' gradient of the strip, which `weight_gradient` multiplies by the features.
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
    """Computes the gradients of one tile per program; program 0 has the tile with index `first`.

    With GRAD it writes features_grad, which has the features' memory layout. With KEEP it writes
    the logits' gradient to `kept`, (tiles of the strip * BLOCK_P, width), 0 in rows without a
    pixel. N is the number of parts of a cell's target; the other constants are explained in
    `triton_dpm._constants`.
    """
    image, p, inside = pixels_of(first + tl.program_id(0), layer, BLOCK_P, WHOLE)
    x = tl.trans(load_features(layer, image, p, inside, BLOCK_C))
    cells, values = _load_tile(maps, parts, layer, image, p[:, None], inside[:, None], N, TARGET)
    rows = _kept_rows(kept, tl.program_id(0), width, BLOCK_P)
    # Loop over blocks of bins; the last block may have another size (TAIL_K).
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
    """Adds one block of bins to `total`, the gradient of a tile's features (P, C); returns it.

    With KEEP it stores the block's logits' gradient (P, K) at the pointers `rows` (P, 1).
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
    """Adds the gradients of weight and bias from one strip of tiles to the partial sums.

    `partial` is (splits, bins, channels + 1), with the bias's gradient in the last channel. A
    program sums one block of bins over every `splits`-th tile of the strip; the program of the last
    block also sums the tail of TAIL_K bins. Neighbouring programs process the same tiles with
    different bins, so that the tiles are read from the L2 cache.
    """
    blocks = count // BLOCK_K if TAIL_K > 0 else tl.cdiv(count, BLOCK_K)
    split, splits = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    block = tl.program_id(0) % blocks
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    # ones @ grad is the bias's gradient, in every row. 64 rows are the minimum of Hopper's matrix
    # instruction.
    ones = tl.full((64, BLOCK_P), 1.0, kept.dtype.element_ty)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    bias_total = tl.zeros((64, BLOCK_K), tl.float32)
    if TAIL_K > 0:
        over = blocks * BLOCK_K + tl.arange(0, TAIL_K)
        over_total = tl.zeros((BLOCK_C, TAIL_K), tl.float32)
        over_bias = tl.zeros((64, TAIL_K), tl.float32)
    # Sum over this program's tiles in a fixed order, so that results are deterministic.
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
    """Returns pointers (P, 1) to a tile's rows of `kept`; `tile` is its index in the strip."""
    return kept + (tile * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]) * width


@triton.jit
def _add_partial(partial, total, bias_total, split, k, count, channels, BLOCK_C: tl.constexpr):
    """Adds one program's sums for the bins k (K,) to `partial`.

    total (C, K) is the weight's gradient; every row of bias_total (64, K) is the bias's.
    """
    c = tl.arange(0, BLOCK_C)
    at = partial + (split.to(tl.int64) * count + k) * (channels + 1)
    here = (c < channels)[:, None] & (k < count)[None, :]
    before = tl.load(at[None, :] + c[:, None], mask=here)
    tl.store(at[None, :] + c[:, None], before + total, mask=here)
    before = tl.load(at + channels, mask=k < count)
    tl.store(at + channels, before + tl.max(bias_total, 0), mask=k < count)


@triton.jit
def _load_tile(maps, parts, layer, image, p, here, N: tl.constexpr, TARGET: tl.constexpr):
    """Loads the targets and the saved values of a tile's pixels.

    Args:
        maps: the saved values and the incoming gradients.
        parts: the parts of all targets.
        layer: the operands of the convolution.
        image: index of the image.
        p: (P, 1), indices of the pixels.
        here: (P, 1) bool, False for indices beyond the image's last pixel.
        N: number of parts of a cell's target.
        TARGET: kind of target.

    Returns:
        (cells, values): the targets as `load_cells` returns them, and (depth, log_sum, slope,
        gradient with respect to depth, gradient with respect to divergence), (P, 1) each. Where
        `here` is False, they make probabilities and gradients 0.
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

    It is g_d p_k (c_k - depth) + g_kl (p_k - q_k); for the published target the second term is
    g_kl p_k (slope_k - mean slope). `cells` and `values` are from `_load_tile`; k (1, K) are the
    indices of the block's bins.
    """
    # Add the terms that are multiples of p: from the depth, and g_kl p_k from the divergence.
    depth, log_sum, slope, depth_grad, divergence_grad = values
    p = tl.exp2(logits - log_sum)
    by_p = -depth_grad * depth
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        by_p += divergence_grad
    by_p += depth_grad * tl.load(bins.centre + k)
    grad = p * by_p
    # Add the terms that depend on q, only in blocks where some target has mass.
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
