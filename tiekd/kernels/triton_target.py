"""Computes the DPM target distribution inside a GPU kernel, for blocks of bins, without storing it.

A cell is one pixel of the head's output; it covers stride x stride pixels of the image. Its target
distribution q over K bins is a mixture of N = M stride^2 parts, one for each of M teachers and each
of these pixels. A part has a position (the Gaussian's centre in metres), a share (its weight in q,
0 if the teacher's depth is invalid) and, with a map of sigmas, a spread (its own sigma).
`cell_parts` computes these numbers with PyTorch; the `@triton.jit` functions compute q from them,
for P cells and a block of bins.

If the bins are narrow relative to sigma, a Gaussian's mass per bin is computed by a Taylor series
around the bin's centre (one exponential per bin). Otherwise it is a difference of two values of
erfc, taken in the nearer tail.

Cost: two maps (B, N, h, w) float32, or three with a map of sigmas or the target of TIE-KD's
released code. Not covered: float64.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tiekd.kernels import reference
from tiekd.kernels import target as definition

# Number that is used in place of infinity, since inf - inf and 0 * inf would be NaN.
BIG = tl.constexpr(1e30)
REACH_SIGMAS = tl.constexpr(definition.REACH_SIGMAS)
THRESHOLD = tl.constexpr(definition.RELEASED_THRESHOLD)
FLOOR = tl.constexpr(definition.RELEASED_FLOOR)
EPS = tl.constexpr(reference.RELEASED_EPS)
# Smallest log-probability whose exp() isn't 0 in float32, even with denormals. The divergence of
# TIE-KD's released code leaves out bins with p = 0; comparing log-probabilities with this number
# finds the same bins also where the GPU flushes denormals to 0.
LEAST_LOG_P = tl.constexpr(-103.972)
# Limits of the Taylor series around a bin's centre by which a bin's mass is computed; wide bins are
# split into pieces. WIDEST_PIECE is the maximum width of a piece, in sigmas, for which the series'
# error is below 5e-7 of the mass. The series isn't used if a bin needs more than MOST_PIECES
# pieces.
WIDEST_PIECE = 1.0
MOST_PIECES = 2

BINS_PADDED_TO = 128

_bins: WeakIdKeyDictionary = WeakIdKeyDictionary()


class Bins(NamedTuple):
    """The depth bins as 1-d float32 tensors of one length, in metres, for the kernels.

    The tensors are padded to a multiple of BINS_PADDED_TO bins. A padding bin has centre and width
    0. Both its edges are BIG, so its mass is 0.

    Attributes:
        centre: centre of each bin.
        width: width of each bin.
        lower: lower edge of each bin; -BIG for the first bin, which gets all mass below it.
        upper: upper edge of each bin; BIG for the last bin, which gets all mass above it.
        count: K, number of bins without padding.
    """

    centre: Tensor
    width: Tensor
    lower: Tensor
    upper: Tensor
    count: int


class Parts(NamedTuple):
    """The components of the target distribution of every cell, i.e. pixel of the head's output.

    A cell's distribution is a mixture of N parts, one for each teacher and each of the image's
    pixels that the cell covers.

    Attributes:
        position: (B, N, h, w) float32, metres: the Gaussian's centre, as `target.shifted_centre`
            returns it, or the depth itself for the target "released"; shape (0,) without a target.
        share: (B, N, h, w) float32, the part's weight in the cell's distribution. A cell's shares
            sum to 1, or are all 0 if none of its pixels is valid; shape (0,) without a target.
        spread: (B, N, h, w) float32: sigma in metres for a map of sigmas, or the log-normaliser of
            the softmax that the target "released" is; shape (0,) for a Gaussian target with a
            single sigma.
        sigma: the single sigma of all Gaussians, metres; 0 if there is a map of sigmas.
    """

    position: Tensor
    share: Tensor
    spread: Tensor
    sigma: float


def cell_parts(
    depth: Tensor,
    sigma: float | Tensor,
    weight: Tensor | None,
    edges: Tensor,
    target: str,
    beyond: str,
    stride: int,
) -> Parts:
    """Computes the parts, i.e. components, of the target of every pixel of the head's output.

    Args:
        depth: (B, M, H, W), target depths of M teachers at the image's size, metres, 0 where not
            valid.
        sigma: standard deviation of the Gaussian around each target depth, metres, a number or
            (B, M, H, W).
        weight: (B, M, H, W), weights of the teachers in the target; None for equal weights.
        edges: (K + 1,) float32, edges of the depth bins, metres.
        target: kind of the target distribution, "gaussian" or "released", as for `reference.dpm`.
        beyond: treatment of target depths above the last edge, "clamp" or "ignore", as for
            `reference.dpm`.
        stride: image pixels per side of a pixel of the head's output.

    Returns:
        A `Parts` with N = stride^2 * M components for each pixel of the head's output.
    """
    positions, shares, spreads, counted = [], [], [], 0
    for d, s, w in reference.pixels_of_cells(depth, sigma, weight, edges, beyond, stride):
        valid = d > 0 if d.shape[1] == 1 else (d > 0).any(1, keepdim=True)
        positions.append(_shifted_centre(d, s, edges) if target == "gaussian" else d)
        shares.append(
            valid.float()
            if d.shape[1] == 1
            else definition.component_weights(d, w, torch.float32) * valid
        )
        counted = counted + valid
        if isinstance(s, Tensor):
            spreads.append(s.float().expand_as(d))
    # Concatenate the components of the stride x stride image pixels that each pixel of the head's
    # output covers. The target distribution is the mean over the valid pixels, so each component's
    # weight is divided by their number.
    position, share = _concatenate(positions), _concatenate(shares)
    if stride > 1:
        share = share / counted.clamp_min(1).contiguous()
    if target == "released":
        spread = torch.empty_like(position)
        block = 128
        grid = (triton.cdiv(position.numel(), block),)
        _released_normaliser[grid](
            position, spread, bins_of(edges)[0], sigma, position.numel(), block, 32
        )
    else:
        spread = _concatenate(spreads) if spreads else position.new_empty(0)
    return Parts(position, share, spread, 0.0 if isinstance(sigma, Tensor) else sigma)


def _concatenate(maps: list[Tensor]) -> Tensor:
    """Concatenates n maps (B, M, h, w) to one contiguous tensor (B, n * M, h, w)."""
    return (maps[0] if len(maps) == 1 else torch.cat(maps, 1)).contiguous()


def _shifted_centre(depth: Tensor, sigma: float | Tensor, edges: Tensor) -> Tensor:
    """Computes `target.shifted_centre`, by a single kernel if sigma is a number.

    The kernel interpolates in the table of `target.cached_table`. If sigma is a tensor, or so small
    that it has no table, `target.shifted_centre` is called instead.

    Args:
        depth: (B, M, h, w), metres, without NaN.
        sigma: the Gaussians' standard deviation, metres, a number or (B, M, h, w).
        edges: (K + 1,), edges of the depth bins, metres.

    Returns:
        (B, M, h, w), for each depth the Gaussian's centre, metres.
    """
    table = None if isinstance(sigma, Tensor) else definition.cached_table(sigma, edges)
    if table is None:
        return definition.shifted_centre(depth, sigma, edges)
    depth = depth.contiguous()
    centre, block, nodes = torch.empty_like(depth), 256, len(table.means)
    grid = (triton.cdiv(depth.numel(), block),)
    _look_up[grid](
        depth, table.means, table.centres, centre, depth.numel(), nodes, nodes.bit_length(), block
    )
    return centre


def bins_of(edges: Tensor) -> tuple[Bins, float, bool]:
    """Returns the depth bins for the kernels, the largest width, and whether widths are equal.

    The result is cached for the lifetime of the tensor `edges`, because its computation costs a
    host sync.

    Args:
        edges: (K + 1,) float32, edges of the depth bins, metres.

    Returns:
        (bins, widest, even): a `Bins`; the width of the widest bin in metres; and True if the bins'
        widths are equal up to rounding.
    """
    if edges not in _bins:
        inner = edges[1:-1]
        more = -(len(edges) - 1) % BINS_PADDED_TO
        centre, width = definition.bin_centres(edges), edges.diff()
        lower, upper = F.pad(inner, (1, 0), value=-BIG.value), F.pad(inner, (0, 1), value=BIG.value)
        padded = [
            F.pad(t, (0, more), value=v)
            for t, v in ((centre, 0), (width, 0), (lower, BIG.value), (upper, BIG.value))
        ]
        narrowest, widest, end = torch.stack((*torch.aminmax(width), edges[-1])).tolist()
        even = widest - narrowest <= 4 * torch.finfo(torch.float32).eps * end
        _bins[edges] = Bins(*padded, len(edges) - 1), widest, even
    return _bins[edges]


def series_pieces(sigma: float, widest: float) -> int:
    """Returns the number of pieces into which `_mass_by_series` splits every bin.

    A Taylor series gives the mass of each piece, so pieces are at most WIDEST_PIECE sigma wide.

    Args:
        sigma: standard deviation of the Gaussian, metres.
        widest: width of the widest bin, metres.

    Returns:
        1 to MOST_PIECES, or 0 if the bins are too wide for the series.
    """
    pieces = max(1, math.ceil(widest * (1 - definition.WIDTH_SLACK) / (WIDEST_PIECE * sigma)))
    return pieces if pieces <= MOST_PIECES else 0


@triton.jit
def _released_normaliser(
    position, spread, bins, sigma, count, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Computes log sum_k exp(density_k), the log-normaliser of the target "released", a softmax.

    The sum is over the bins k, and `released_density` gives the densities. Each program processes
    BLOCK of the depths, and loops over the bins.

    Args:
        position: depths, metres.
        spread: the log-normaliser of each depth, written by the kernel.
        bins: `Bins`, which has the centres of the bins.
        sigma: the target's standard deviation, metres.
        count: number of depths in `position`.
        BLOCK: number of depths per program.
        BLOCK_K: number of bins that are processed together; divides BINS_PADDED_TO.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    depth = tl.load(position + at, mask=at < count, other=0.0)[:, None]
    largest = tl.full((BLOCK,), -BIG, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, bins.count, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        density = tl.where(
            k < bins.count, released_density(depth, sigma, tl.load(bins.centre + k)), -BIG
        )
        new = tl.maximum(largest, tl.max(density, 1))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(density - new[:, None]), 1)
        largest = new
    tl.store(spread + at, largest + tl.log(total), mask=at < count)


@triton.jit
def _look_up(depth, means, centres, centre, count, nodes, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Computes the Gaussian's centre for each depth, by linear interpolation in a table.

    Args:
        depth: the depths, metres; clamped to the table's range of means.
        means: the table's means over the bins, metres, increasing.
        centres: the table's centres of the Gaussians with these means, metres.
        centre: the centre for each depth, metres, written by the kernel.
        count: number of depths.
        nodes: number of the table's entries.
        STEPS: number of steps of the binary search.
        BLOCK: number of depths per program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = tl.load(depth + at, mask=at < count, other=0.0)
    # Search by bisection for the first entry of the table whose mean is at least the depth. The
    # entry is always in [right, end].
    right = tl.zeros((BLOCK,), tl.int32)
    end = right + nodes
    for _ in range(STEPS):
        middle = (right + end) // 2
        under = (right < end) & (tl.load(means + tl.minimum(middle, nodes - 1)) < wanted)
        end = tl.where(under, end, middle)
        right = tl.where(under, middle + 1, right)
    right = tl.minimum(tl.maximum(right, 1), nodes - 1)
    low, high = tl.load(means + right - 1), tl.load(means + right)
    fraction = tl.minimum(tl.maximum((wanted - low) / tl.maximum(high - low, 1e-37), 0.0), 1.0)
    left = tl.load(centres + right - 1)
    tl.store(centre + at, left + fraction * (tl.load(centres + right) - left), mask=at < count)


@triton.jit
def released_density(depth, sigma, centre):
    """Returns Gaussians' densities at bin centres, with values below THRESHOLD replaced by FLOOR.

    The target of TIE-KD's released code is the softmax of these values over the bins.

    Args:
        depth: (P, 1), the Gaussians' centres, metres.
        sigma: the Gaussians' standard deviation, metres.
        centre: the K bin centres, metres, in a shape that broadcasts with `depth`.

    Returns:
        (P, K).
    """
    off = centre - depth
    density = tl.exp(-(off * off) / (2 * sigma * sigma)) / (2.5066282746310002 * sigma)
    return tl.where(density < THRESHOLD, FLOOR, density)


@triton.jit
def load_cells(parts, at, inside, pixels, N: tl.constexpr, TARGET: tl.constexpr):
    """Loads the target distributions of P cells, i.e. of pixels of the head's output.

    A cell's distribution is a mixture of N parts. The result is the argument `cells` of other
    functions; they load parts other than the first when they need them.

    Args:
        parts: `Parts` of all cells.
        at: (P, 1), index of each cell's part 0 in the arrays of `parts`.
        inside: (P, 1) bool, False for cells beyond the image's last pixel.
        pixels: number of cells of an image, which is the distance between a cell's parts in memory.
        N: number of parts of a cell.
        TARGET: kind of target distribution: "none", "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).

    Returns:
        (at, inside, first, valid, low, high): `at` and `inside` as given; position, share and
        spread of part 0, (P, 1) each; (P, 1) bool, True for cells with a target; and the lower and
        upper end of the range of depths, metres, that contains the mass of all these cells'
        distributions. low > high if no cell has a target.
    """
    low = tl.full(at.shape, BIG, tl.float32)
    high = -low
    total = tl.zeros(at.shape, tl.float32)
    first = (total, total, total)
    for n in tl.static_range(N):
        part = _load_part(parts, n, at, inside, pixels, TARGET)
        if n == 0:
            first = part
        position, share, spread = part
        if TARGET == "released":
            reach = tl.full(at.shape, BIG, tl.float32)
        elif TARGET == "gaussian_map":
            reach = REACH_SIGMAS * spread
        else:
            reach = tl.full(at.shape, 1.0, tl.float32) * (REACH_SIGMAS * parts.sigma)
        low = tl.where(share > 0, tl.minimum(low, position - reach), low)
        high = tl.where(share > 0, tl.maximum(high, position + reach), high)
        total += share
    return at, inside, first, total > 0, tl.min(low), tl.max(high)


@triton.jit
def _load_part(parts, n, at, inside, pixels, TARGET: tl.constexpr):
    """Returns position, share and spread of component n of P cells' target distributions.

    Args:
        parts: `Parts` of all cells.
        n: index of the component.
        at: (P, 1), index of each cell's component 0 in the arrays of `parts`.
        inside: (P, 1) bool, False for cells beyond the image's last pixel.
        pixels: distance between a cell's components in memory.
        TARGET: kind of target distribution: "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).

    Returns:
        (position, share, spread), the attributes of `Parts`, (P, 1) each; spread has no meaning for
        "gaussian".
    """
    position = tl.load(parts.position + at + n * pixels, mask=inside, other=0.0)
    spread = position
    if TARGET == "gaussian_map" or TARGET == "released":
        # Load another value than 0 beyond the image's last pixel: a sigma of 1, to avoid a division
        # by 0, or, for the target "released", a log-normaliser of BIG, which makes the mass 0.
        spread = tl.load(
            parts.spread + at + n * pixels, mask=inside, other=BIG if TARGET == "released" else 1.0
        )
    return position, tl.load(parts.share + at + n * pixels, mask=inside, other=0.0), spread


@triton.jit
def in_span(cells, bins, start, BLOCK_K: tl.constexpr):
    """Returns True if some of the pixels' target distributions may have mass in a block of bins.

    Args:
        cells: the target distributions of some pixels, from `load_cells`.
        bins: `Bins`, which has the edges of the bins.
        start: index of the block's first bin.
        BLOCK_K: number of bins of the block.
    """
    _, _, _, _, low, high = cells
    last = tl.minimum(start + BLOCK_K, bins.count) - 1
    return (tl.load(bins.lower + start) <= high) & (tl.load(bins.upper + last) >= low)


@triton.jit
def target_mass(
    cells,
    parts,
    bins,
    k,
    start,
    pixels,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Returns the mass of P target distributions in K consecutive bins, (P, K).

    Values of pixels without a valid target have no meaning.

    Args:
        cells: the P target distributions, from `load_cells`.
        parts: `Parts`, the components of all target distributions.
        bins: `Bins`, centres, widths and edges of the depth bins.
        k: (1, K), indices of the bins.
        start: index of the first bin.
        pixels: number of pixels of an image of the head's output.
        BLOCK_K: K, number of bins.
        N: number of components of each distribution.
        TARGET: kind of target distribution: "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).
        PIECES: number of equal pieces into which a bin is split to compute its target mass by a
            Taylor series (`series_pieces`); 0 to compute the mass by erfc.
        EVEN: True if all bins may use the first bin's width.
    """
    at, inside, first, _, low, _ = cells
    if N == 1:
        # Use the component's mass as it is if there is only one, since its weight is 1 in every
        # valid distribution.
        position, _, spread = first
        q = _mass(position, spread, low, parts, bins, k, start, BLOCK_K, TARGET, PIECES, EVEN)
    else:
        q = tl.zeros((at + k).shape, tl.float32)
        for n in range(N):
            position, share, spread = _load_part(parts, n, at, inside, pixels, TARGET)
            q += share * _mass(
                position, spread, low, parts, bins, k, start, BLOCK_K, TARGET, PIECES, EVEN
            )
    return q


@triton.jit
def _mass(
    position,
    spread,
    low,
    parts,
    bins,
    k,
    start,
    BLOCK_K: tl.constexpr,
    TARGET: tl.constexpr,
    PIECES: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Returns the mass of one component of P target distributions in K bins, (P, K).

    Args:
        position: (P, 1), the Gaussian's centre, or for "released" the depth, metres.
        spread: (P, 1), sigma in metres for "gaussian_map", the softmax's log-normaliser for
            "released".
        low: lower end of the range of depths that contains the mass of all P distributions.
        parts: `Parts`, which has the single sigma.
        bins: `Bins`, centres, widths and edges of the depth bins.
        k: (1, K), indices of the bins.
        start: index of the first bin.
        BLOCK_K: K, number of bins.
        TARGET: kind of target distribution: "gaussian", "gaussian_map" (sigma per pixel) or
            "released" (that of TIE-KD's released code).
        PIECES: number of equal pieces into which a bin is split to compute its target mass by a
            Taylor series (`series_pieces`); 0 to compute the mass by erfc.
        EVEN: True if all bins may use the first bin's width.
    """
    if TARGET == "released":
        mass = tl.exp(released_density(position, parts.sigma, tl.load(bins.centre + k)) - spread)
        mass = tl.where(k < bins.count, mass, 0.0)
    elif TARGET == "gaussian_map":
        mass = _mass_by_tails(position, spread, bins, k)
    elif PIECES == 0:
        mass = _mass_by_tails(position, parts.sigma, bins, k)
    else:
        mass = _mass_by_series(position, parts.sigma, bins, k, PIECES, EVEN)
        # Correct the first and the last bin, which also contain the Gaussian's tails, because the
        # series leaves the tails out.
        if (start == 0) & (low <= tl.load(bins.upper)) | (start + BLOCK_K >= bins.count):
            scale = 1 / parts.sigma
            below = _mass_below((tl.load(bins.upper) - position) * scale)
            above = _mass_below((position - tl.load(bins.lower + bins.count - 1)) * scale)
            mass = tl.where(
                k == 0,
                below,
                tl.where(k == bins.count - 1, above, tl.where(k < bins.count, mass, 0.0)),
            )
    return mass


@triton.jit
def released_slope(p, q):
    """Returns the derivative of `reference.released_divergence` with respect to p_k, for each bin.

    Args:
        p: (P, K), predicted probabilities of K bins at P pixels.
        q: (P, K), target distributions over the bins at these pixels.

    Returns:
        (P, K).
    """
    return -q * q / ((p + EPS) * (q + EPS * (p + EPS)))


@triton.jit
def _mass_by_tails(centre, sigma, bins, k):
    """Returns the mass of P Gaussians in K bins, (P, K), by erfc at the bins' edges.

    The first bin includes all mass below it, the last bin all mass above it.

    Args:
        centre: (P, 1), the Gaussians' centres, metres.
        sigma: the Gaussians' standard deviation, metres, a number or (P, 1).
        bins: `Bins`, which has the edges of the bins.
        k: (1, K), indices of the bins.
    """
    scale = 0.7071067811865476 / sigma
    from_lower = (tl.load(bins.lower + k) - centre) * scale
    from_upper = (tl.load(bins.upper + k) - centre) * scale
    below, above = _tail(tl.abs(from_lower)), _tail(tl.abs(from_upper))
    holds_centre = (from_lower < 0) & (from_upper >= 0)
    return tl.where(holds_centre, tl.maximum(1 - below - above, 0.0), tl.abs(below - above))


@triton.jit
def _mass_by_series(centre, sigma, bins, k, PIECES: tl.constexpr, EVEN: tl.constexpr):
    """Returns the mass of P Gaussians in K bins, (P, K), by a Taylor series.

    The result is wrong in the first and last bin, whose mass includes the Gaussian's tails. Every
    bin is split into pieces of equal width. Let h be a piece's width and u the distance of its
    midpoint from the Gaussian's centre, both in sigmas. The mass of the piece is the integral of
    the Taylor series of the normal density phi around u, with Hermite polynomials He_n:
    h phi(u) (1 + h^2 He_2(u) / 24 + h^4 He_4(u) / 1920 + h^6 He_6(u) / 322560).

    Args:
        centre: (P, 1), the Gaussians' centres, metres.
        sigma: the Gaussians' standard deviation, metres.
        bins: `Bins`, centres and widths of the depth bins.
        k: (1, K), indices of the bins.
        PIECES: number of pieces per bin.
        EVEN: True to use the first bin's width, and therefore the same coefficients, for all bins.
    """
    scale = 1 / sigma
    if EVEN:
        width = tl.load(bins.width) / PIECES
    else:
        width = tl.load(bins.width + k) / PIECES
    h = width * scale
    h2, t2 = h * h, scale * scale
    factor = h * 0.3989422804014327
    c3 = h2 * h2 * h2 / 322560
    c2 = h2 * h2 / 1920 - 15 * c3
    c1 = h2 / 24 - h2 * h2 / 320 + 45 * c3
    c0 = (1 - h2 / 24 + h2 * h2 / 640 - 15 * c3) * factor
    # Rescale the series' coefficients to distances in metres, which saves one multiplication per
    # bin.
    c1, c2, c3 = c1 * t2 * factor, c2 * t2 * t2 * factor, c3 * t2 * t2 * t2 * factor
    middle = tl.load(bins.centre + k) - centre
    mass = tl.zeros(middle.shape, tl.float32)
    for piece in tl.static_range(PIECES):
        off = middle + (piece - (PIECES - 1) / 2) * width
        s = off * off
        mass += tl.exp2(s * (-0.7213475204444817 * t2)) * (c0 + s * (c1 + s * (c2 + s * c3)))
    return mass


@triton.jit
def _mass_below(z):
    """Returns the mass of the standard normal distribution below each element of z.

    Args:
        z: a float32 tensor of any shape.

    Returns:
        A tensor of this shape, from 0 to 1.
    """
    tail = _tail(tl.abs(z) * 0.7071067811865476)
    return tl.where(z < 0, tail, 1 - tail)


@triton.jit
def _tail(z):
    """Returns an approximation of erfc(z) / 2 for z >= 0.

    The result is exp(-z^2) times a polynomial in 1 / (1 + z / 2). Its coefficients minimise the
    maximum relative error on [0, 7], which is 4.4e-7.

    Args:
        z: a float32 tensor of any shape, not negative.
    """
    t = 1 / (1 + 0.5 * z)
    p = -0.1894654133 + t * 0.047214126
    p = 0.1451820093 + t * (0.0074953809 + t * (0.2104150069 + t * p))
    return t * (0.141231892 + t * (0.1379269485 + t * p)) * tl.exp(-z * z)
