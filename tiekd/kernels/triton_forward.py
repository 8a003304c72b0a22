"""The fused DPM head's forward kernel.

Each program keeps a tile of features on chip and loops over blocks of bins with an online softmax.
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
    """Writes the maps of one tile per program: depth, log_sum and, with a target, divergence.

    For the published target it also writes slope. The constants are explained in
    `triton_dpm._constants`.
    """
    # Load the tile's features and targets.
    image, p, inside = pixels_of(tl.program_id(0), layer, BLOCK_P, WHOLE)
    x = tl.trans(load_features(layer, image, p, inside, BLOCK_C))
    first = image * N * layer.pixels + p
    cells = load_cells(parts, first[:, None], inside[:, None], layer.pixels, N, TARGET)
    # Run an online softmax over the blocks of bins; the last block may have another size (TAIL_K).
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
    # Store the results per pixel.
    largest, total, moment, divergence = sums
    log_sum = largest + log2(total)
    out = image * layer.pixels + p
    tl.store(maps.depth + out, moment / total, mask=inside)
    tl.store(maps.log_sum + out, log_sum, mask=inside)
    if TARGET == "released":
        divergence, slope = _published_divergence(
            x, log_sum, cells, layer, bins, parts, BLOCK_P, BLOCK_K, N, BLOCK_C, PRECISION
        )
        tl.store(maps.slope + out, slope, mask=inside)
    elif TARGET != "none":
        divergence = (divergence + log_sum) * LN_2
    if TARGET != "none":
        _, here, _, valid, _, _ = cells
        tl.store(
            maps.divergence + out[:, None], tl.where(valid, divergence[:, None], 0.0), mask=here
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
    """Updates a tile's running sums with one block of bins and returns them.

    The sums, (P,) each, are the largest logit, the sum of exponentials, the sum of exponentials
    times bin centres, and sum_k q_k (log q_k - logit_k).
    """
    largest, total, moment, divergence = sums
    logits = logits_of(
        x, load_weight(layer, start, BLOCK_K, BLOCK_C), layer, start, BLOCK_K, PRECISION
    )
    # If a pixel's largest logit increases, rescale the earlier sums of exponentials.
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
def _published_divergence(
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
    """Returns the published divergence and its mean slope, each (P,).

    The published divergence needs normalised probabilities, so this is a second pass over the bins
    after log_sum is known.
    """
    # If no cell of the tile has a target (low > high), both stay 0.
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
