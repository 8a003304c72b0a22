"""The two backward kernels of the fused DPM head.

The kernels process tiles, i.e. groups of BLOCK_P consecutive pixels of an image. They are launched
once per strip, i.e. per group of consecutive tiles, so that the logits' gradient, which is stored
between the two kernels, stays small. `features_gradient` recomputes the strip's logits, and
multiplies their gradient by the weights, which gives the features' gradient. It also stores the
logits' gradient, which `weight_gradient` multiplies by the features.
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
    """Computes the gradients of the features and logits of one tile, i.e. of BLOCK_P pixels.

    Args:
        layer: a `Layer`: features, and weight and bias of the 1x1 convolution.
        bins: a `Bins`: centres, widths and edges of the depth bins.
        parts: a `Parts`: the components of the target distributions.
        maps: a `Maps`: the results of forward and the incoming gradients.
        features_grad: the features' gradient, written if GRAD, in the features' memory layout.
        kept: (tiles of this launch * BLOCK_P, width), the logits' gradient, written if KEEP: one
            row per pixel of a tile, and 0 where the tile extends beyond the image's last pixel.
        first: index of program 0's tile among the tiles of all images.
        width: number of columns of `kept`: number of bins, rounded up to a multiple of 16.
        GRAD: True to write features_grad.
        KEEP: True to write `kept`.
        N: number of components of each target distribution.
        TARGET: kind of target distribution: "none", "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).
        PIECES: number of equal pieces into which a bin is split to compute its target mass by a
            Taylor series (`series_pieces`); 0 to compute the mass by erfc.
        EVEN: True if all bins may use the first bin's width.
        BLOCK_P: number of pixels of a tile.
        BLOCK_K: number of bins of a block, which are processed together.
        TAIL_K: number of bins of the last block, if BLOCK_K doesn't divide the number of bins; else
            0.
        BLOCK_C: number of channels, padded to a power of 2.
        WHOLE: True if BLOCK_P divides the number of an image's pixels.
        PRECISION: input_precision of tl.dot, "ieee" or "tf32x3".
    """
    image, p, inside = pixels_of(first + tl.program_id(0), layer, BLOCK_P, WHOLE)
    x = tl.trans(load_features(layer, image, p, inside, BLOCK_C))
    cells, values = _load_tile(maps, parts, layer, image, p[:, None], inside[:, None], N, TARGET)
    rows = _kept_rows(kept, tl.program_id(0), width, BLOCK_P)
    # Loop over blocks of BLOCK_K bins. The last block has TAIL_K bins if BLOCK_K doesn't divide the
    # number of bins.
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
    """Adds one block of K bins to the gradient of the features of P pixels, and returns the sum.

    Args:
        total: (P, C), the gradient of the features so far.
        rows: (P, 1), pointers to the rows, one per pixel, in which the logits' gradient is stored
            if KEEP.
        x: (P, C), the pixels' features.
        values: the pixels' saved values and incoming gradients, from `_load_tile`.
        cells: the pixels' target distributions, from `_load_tile`.
        layer: `Layer`: features, and weight and bias of the 1x1 convolution.
        bins: `Bins`, centres, widths and edges of the depth bins.
        parts: `Parts`, the components of all target distributions.
        start: index of the block's first bin.
        width: number of elements of a row of the logits' gradient: the number of bins, rounded up
            to a multiple of 16.
        GRAD: True to update `total`.
        KEEP: True to store the logits' gradient.
        BLOCK_K: K, number of bins of the block.
        N: number of components of each target distribution.
        TARGET: kind of target distribution: "none", "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).
        PIECES: number of equal pieces into which a bin is split to compute its target mass by a
            Taylor series (`series_pieces`); 0 to compute the mass by erfc.
        EVEN: True if all bins may use the first bin's width.
        BLOCK_C: C, number of channels, padded to a power of 2.
        PRECISION: input_precision of tl.dot, "ieee" or "tf32x3".
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
    """Sums the gradients of weight and bias over some tiles, and adds them to partial sums.

    A tile is a group of BLOCK_P consecutive pixels. Each program computes the gradients for one
    block of BLOCK_K bins, summed over every `splits`-th tile, where `splits` is the first dimension
    of `partial`. The program of the last block also processes the TAIL_K bins after it.
    Neighbouring programs process the same tiles with different bins, so that the features of a tile
    are read from the L2 cache.

    Args:
        layer: `Layer`: features, and weight and bias of the 1x1 convolution.
        kept: (tiles * BLOCK_P, width), the logits' gradient, written by `features_gradient`.
        partial: (splits, count, channels + 1) float32, partial sums that are updated. The last
            column is the bias's gradient, the others are the weight's.
        first: index of the first of these tiles among the tiles of all images.
        tiles: number of tiles whose gradients are in `kept`.
        width: number of columns of `kept`.
        count: number of bins.
        BLOCK_P: number of pixels of a tile.
        BLOCK_K: number of bins of a block.
        TAIL_K: 16 if 1 to 16 bins remain after the last whole block of BLOCK_K bins; they are
            processed together with that block. 0 if none remain, or more, which form a block of
            their own.
        BLOCK_C: number of channels, padded to a power of 2.
        WHOLE: True if BLOCK_P divides the number of an image's pixels.
        PRECISION: input_precision of tl.dot, "ieee" or "tf32x3".
    """
    blocks = count // BLOCK_K if TAIL_K > 0 else tl.cdiv(count, BLOCK_K)
    split, splits = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    block = tl.program_id(0) % blocks
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)
    # Compute the bias's gradient, the sum of the logits' gradient over the pixels, as ones @ grad.
    # All 64 rows of the result are equal; 64 rows are the minimum of Hopper's matrix instruction.
    ones = tl.full((64, BLOCK_P), 1.0, kept.dtype.element_ty)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    bias_total = tl.zeros((64, BLOCK_K), tl.float32)
    if TAIL_K > 0:
        over = blocks * BLOCK_K + tl.arange(0, TAIL_K)
        over_total = tl.zeros((BLOCK_C, TAIL_K), tl.float32)
        over_bias = tl.zeros((64, TAIL_K), tl.float32)
    # Sum over this program's tiles (groups of BLOCK_P pixels) in a fixed order, so that results are
    # deterministic.
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
    """Returns pointers (P, 1) to the rows of `kept` that hold the logits' gradient of P pixels.

    Args:
        kept: (number of tiles * BLOCK_P, width), the logits' gradient.
        tile: index of the group of P pixels in `kept`.
        width: number of columns of `kept`.
        BLOCK_P: P, number of pixels of a tile.
    """
    return kept + (tile * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]) * width


@triton.jit
def _add_partial(partial, total, bias_total, split, k, count, channels, BLOCK_C: tl.constexpr):
    """Adds one program's gradients of weight and bias, for K bins, to `partial`.

    Args:
        partial: (splits, count, channels + 1), the partial sums, of which the last column belongs
            to the bias.
        total: (C, K), the weight's gradient.
        bias_total: (64, K), the bias's gradient, the same in every row.
        split: index in the first dimension of `partial` of the sums to update.
        k: (K,), indices of the bins.
        count: number of all bins; larger indices are ignored.
        channels: number of channels without padding.
        BLOCK_C: C, number of channels, padded to a power of 2.
    """
    c = tl.arange(0, BLOCK_C)
    at = partial + (split.to(tl.int64) * count + k) * (channels + 1)
    mask = (c < channels)[:, None] & (k < count)[None, :]
    before = tl.load(at[None, :] + c[:, None], mask=mask)
    tl.store(at[None, :] + c[:, None], before + total, mask=mask)
    before = tl.load(at + channels, mask=k < count)
    tl.store(at + channels, before + tl.max(bias_total, 0), mask=k < count)


@triton.jit
def _load_tile(maps, parts, layer, image, p, inside, N: tl.constexpr, TARGET: tl.constexpr):
    """Loads the target distributions, saved values and incoming gradients of P pixels.

    Args:
        maps: `Maps`, the results of forward and the incoming gradients of all pixels.
        parts: `Parts`, the components of all target distributions.
        layer: `Layer`: features, and weight and bias of the 1x1 convolution.
        image: index of the image.
        p: (P, 1), indices of the pixels.
        inside: (P, 1) bool, False for indices beyond the image's last pixel.
        N: number of components of each target distribution.
        TARGET: kind of target distribution: "none", "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).

    Returns:
        (cells, values). `cells` are the target distributions as `load_cells` returns them. `values`
        are five tensors (P, 1): the attributes depth, log_sum (log-sum-exp of the logits), slope
        (for the target "released" the mean derivative of the divergence), depth_grad and
        divergence_grad of `Maps`. Where `inside` is False, `values` is such that probabilities and
        gradients become 0.
    """
    cells = load_cells(parts, image * N * layer.pixels + p, inside, layer.pixels, N, TARGET)
    at = image * layer.pixels + p
    depth_grad = tl.load(maps.depth_grad + at, mask=inside, other=0.0)
    divergence_grad, slope = depth_grad, depth_grad
    if TARGET != "none":
        divergence_grad = tl.load(maps.divergence_grad + at, mask=inside, other=0.0)
    if TARGET == "released":
        slope = tl.load(maps.slope + at, mask=inside, other=0.0)
    log_sum = tl.load(maps.log_sum + at, mask=inside, other=BIG)
    return cells, (
        tl.load(maps.depth + at, mask=inside, other=0.0),
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
    """Returns the gradient with respect to the logits of P pixels and K bins, (P, K).

    With the incoming gradients g_d of the depth and g_kl of the divergence, and the bin centres
    c_k, the result is g_d p_k (c_k - depth) + g_kl (p_k - q_k). For the target "released" the
    second term is g_kl p_k (s_k - mean of s under p), with the derivative s_k of the divergence of
    TIE-KD's released code with respect to p_k.

    Args:
        logits: (P, K), in bits, i.e. multiplied by log2(e).
        values: the pixels' saved values and incoming gradients, from `_load_tile`.
        cells: the pixels' target distributions, from `_load_tile`.
        layer: `Layer`: features, and weight and bias of the 1x1 convolution.
        bins: `Bins`, centres, widths and edges of the depth bins.
        parts: `Parts`, the components of all target distributions.
        k: (1, K), indices of the bins.
        start: index of the first of these bins.
        BLOCK_K: K, number of these bins.
        N: number of components of each target distribution.
        TARGET: kind of target distribution: "none", "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).
        PIECES: number of equal pieces into which a bin is split to compute its target mass by a
            Taylor series (`series_pieces`); 0 to compute the mass by erfc.
        EVEN: True if all bins may use the first bin's width.
    """
    # Compute the terms of the logits' gradient that are multiples of the probabilities p: the
    # depth's term, and g_kl p_k of the divergence's, where g_kl is `divergence_grad`.
    depth, log_sum, slope, depth_grad, divergence_grad = values
    p = tl.exp2(logits - log_sum)
    by_p = -depth_grad * depth
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        by_p += divergence_grad
    by_p += depth_grad * tl.load(bins.centre + k)
    grad = p * by_p
    # Add the terms that depend on the target distribution q, if a target of these pixels has mass
    # in this block of bins.
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
