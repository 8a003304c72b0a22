"""The fused DPM head's forward kernel.

Each program keeps the features of BLOCK_P pixels in on-chip memory and loops over blocks of depth
bins with an online softmax.
"""

import triton
import triton.language as tl

from tiekd.kernels.triton_layer import (
    LN_2,
    LOG2_E_GPU,
    load_features,
    load_weight,
    log2,
    logits_of,
    pixels_of,
)
from tiekd.kernels.triton_target import (
    BIG,
    EPS,
    LEAST_LOG_P,
    in_span,
    load_cells,
    released_slope,
    target_mass,
)


@triton.jit
def forward(
    layer,
    bins,
    parts,
    maps,
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
    """Computes depth, log-sum-exp of the logits and, with a target, divergence of BLOCK_P pixels.

    For the target "released" the kernel also writes the attribute `slope` of `Maps`, a mean
    derivative of the divergence. Each program processes one tile, i.e. BLOCK_P consecutive pixels
    of an image.

    Args:
        layer: a `Layer`: features, and weight and bias of the 1x1 convolution.
        bins: a `Bins`: centres, widths and edges of the depth bins.
        parts: a `Parts`: the components of the target distributions.
        maps: a `Maps`: the results, which the kernel writes.
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
    # Load the features and target distributions of the program's pixels.
    image, p, inside = pixels_of(tl.program_id(0), layer, BLOCK_P, WHOLE)
    x = tl.trans(load_features(layer, image, p, inside, BLOCK_C))
    first = image * N * layer.pixels + p
    cells = load_cells(parts, first[:, None], inside[:, None], layer.pixels, N, TARGET)
    # Run an online softmax over blocks of BLOCK_K bins. The last block has TAIL_K bins if BLOCK_K
    # doesn't divide the number of bins.
    zero = tl.zeros((BLOCK_P,), tl.float32)
    sums = (zero - BIG, zero, zero, zero)
    whole = bins.count - bins.count % BLOCK_K if TAIL_K > 0 else bins.count
    for start in range(0, whole, BLOCK_K):
        sums = _add_block(
            sums,
            x,
            cells,
            layer,
            bins,
            parts,
            start,
            BLOCK_K,
            N,
            TARGET,
            PIECES,
            EVEN,
            BLOCK_C,
            PRECISION,
        )
    if TAIL_K > 0:
        sums = _add_block(
            sums,
            x,
            cells,
            layer,
            bins,
            parts,
            whole,
            TAIL_K,
            N,
            TARGET,
            PIECES,
            EVEN,
            BLOCK_C,
            PRECISION,
        )
    # Compute depth, log-sum-exp and divergence from the sums over the bins, and store them.
    largest, total, moment, divergence = sums
    log_sum = largest + log2(total)
    out = image * layer.pixels + p
    tl.store(maps.depth + out, moment / total, mask=inside)
    tl.store(maps.log_sum + out, log_sum, mask=inside)
    if TARGET == "released":
        divergence, slope = _released_divergence(
            x, log_sum, cells, layer, bins, parts, BLOCK_P, BLOCK_K, N, BLOCK_C, PRECISION
        )
        tl.store(maps.slope + out, slope, mask=inside)
    elif TARGET != "none":
        divergence = (divergence + log_sum) * LN_2
    if TARGET != "none":
        _, inside_column, _, valid, _, _ = cells
        tl.store(
            maps.divergence + out[:, None],
            tl.where(valid, divergence[:, None], 0.0),
            mask=inside_column,
        )


@triton.jit
def _add_block(
    sums,
    x,
    cells,
    layer,
    bins,
    parts,
    start,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Updates the running sums of P pixels with one block of K bins, and returns them.

    Args:
        sums: four tensors (P,): the largest logit in bits, the sum of exp(logit - largest logit),
            the sum of these terms times the bin centres, and sum_k q_k (log q_k - logit_k) for the
            target q, in bits.
        x: (P, C), the pixels' features.
        cells: the pixels' target distributions, from `load_cells`.
        layer: `Layer`: features, and weight and bias of the 1x1 convolution.
        bins: `Bins`, centres, widths and edges of the depth bins.
        parts: `Parts`, the components of all target distributions.
        start: index of the block's first bin.
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
    largest, total, moment, divergence = sums
    logits = logits_of(
        x, load_weight(layer, start, BLOCK_K, BLOCK_C), layer, start, BLOCK_K, PRECISION
    )
    # If a pixel's largest logit increases, rescale its sums over the earlier blocks.
    new = tl.maximum(largest, tl.max(logits, 1))
    shrink, p = tl.exp2(largest - new), tl.exp2(logits - new[:, None])
    centre = tl.load(bins.centre + start + tl.arange(0, BLOCK_K))
    total = total * shrink + tl.sum(p, 1)
    moment = moment * shrink + tl.sum(p * centre[None, :], 1)
    if TARGET == "gaussian" or TARGET == "gaussian_map":
        if in_span(cells, bins, start, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)[None, :]
            q = target_mass(
                cells, parts, bins, k, start, layer.pixels, BLOCK_K, N, TARGET, PIECES, EVEN
            )
            divergence += tl.sum(q * (log2(tl.maximum(q, 1e-37)) - logits), 1)
    return new, total, moment, divergence


@triton.jit
def _released_divergence(
    x,
    log_sum,
    cells,
    layer,
    bins,
    parts,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the released divergence D of P pixels and the mean of dD/dp_k under p, each (P,).

    D is the divergence of TIE-KD's released code, `reference.released_divergence`. It needs
    normalised probabilities p_k, so this is a second pass over the bins after the log-sum-exp of
    the logits is known.

    Args:
        x: (P, C), the pixels' features.
        log_sum: (P,), log-sum-exp of the logits, bits.
        cells: the pixels' target distributions, from `load_cells`.
        layer: `Layer`: features, and weight and bias of the 1x1 convolution.
        bins: `Bins`, centres, widths and edges of the depth bins.
        parts: `Parts`, the components of all target distributions.
        BLOCK_P: P, number of pixels.
        BLOCK_K: number of bins of a block, which are processed together.
        N: number of components of each target distribution.
        BLOCK_C: C, number of channels, padded to a power of 2.
        PRECISION: input_precision of tl.dot, "ieee" or "tf32x3".
    """
    # Skip the loop if none of the pixels has a valid target: `load_cells` then returned low > high,
    # and both results stay 0.
    divergence = tl.zeros((BLOCK_P,), tl.float32)
    slope = divergence
    _, _, _, _, low, high = cells
    if low < high:
        for start in range(0, bins.count, BLOCK_K):
            logits = logits_of(
                x, load_weight(layer, start, BLOCK_K, BLOCK_C), layer, start, BLOCK_K, PRECISION
            )
            k = start + tl.arange(0, BLOCK_K)[None, :]
            q = target_mass(
                cells, parts, bins, k, start, layer.pixels, BLOCK_K, N, "released", 0, False
            )
            log_p = logits - log_sum[:, None]
            p = tl.exp2(log_p)
            terms = q * tl.log(q / (p + EPS) + EPS)
            divergence += tl.sum(tl.where(log_p > LEAST_LOG_P * LOG2_E_GPU, terms, 0.0), 1)
            slope += tl.sum(p * released_slope(p, q), 1)
    return divergence, slope
