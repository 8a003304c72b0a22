"""What a Depth Probability Map (DPM) head learns from: a distribution over depth bins for every pixel.

`gaussian_target` spreads each given depth as a Gaussian's mass per bin; the end bins absorb the tails. Absorbing (and
coarse or uneven bins) would move the mean, by +30 % at 0.5 m with a sigma of 0.5 m, so the Gaussian's centre is moved
until the mean over the bins is the given depth: `shifted_centre` finds that centre. `released_target` is the published
target, a softmax of density values, kept for parity.

Cost: with one sigma for all pixels, one erfc per pixel and edge within six sigma (20 of 257 in the published KITTI
setting) and one (B, K, H, W) tensor; the centre comes from a table that is built once per edges and sigma. Where sigma
differs per pixel, Newton steps over all edges (eight times the erfc of all edges, and one host sync to check sigma).
Left out: gradients with respect to the teacher's depth, which is a constant here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tiekd.errors import RecipeError

TABLE_STEPS_PER_SIGMA = (
    64  # Linear interpolation between these nodes keeps the mean within 0.03 % of the depth.
)
REACH_SIGMAS = 6.0  # A centre this far outside the first or last inner edge leaves 1e-9 of the mass in other bins.
NEWTON_STEPS = 6
WIDTH_SLACK = 1e-3  # float32 edges of many bins are not quite evenly spaced.
EDGES_AT_ONCE = 16
DENSE_FROM = (
    0.5  # With more than this share of the edges within reach, all of them at once are as fast.
)
PUBLISHED_THRESHOLD, PUBLISHED_FLOOR = 1e-16, -1000.0

_tables: WeakIdKeyDictionary = WeakIdKeyDictionary()


def bin_edges(
    num_bins: int, min_depth: float, max_depth: float, spacing: str = "uniform"
) -> Tensor:
    """Edges of `num_bins` depth bins: (K + 1,) float32, metres, increasing from min_depth to max_depth.

    spacing: "uniform" (the published one) or "log" (every bin the same ratio wider than the one before).
    """
    if num_bins < 2:
        raise RecipeError(
            f"num_bins: {num_bins} is too few; a depth distribution needs at least 2 bins"
        )
    if not 0 < min_depth < max_depth < math.inf:
        raise RecipeError(
            f"min_depth={min_depth}, max_depth={max_depth}: 0 < min_depth < max_depth (metres) is needed"
        )
    if spacing == "uniform":
        return torch.linspace(min_depth, max_depth, num_bins + 1)
    if spacing == "log":
        logs = torch.linspace(
            math.log(min_depth), math.log(max_depth), num_bins + 1, dtype=torch.float64
        )
        return logs.exp().float()
    raise RecipeError(f"spacing: {spacing!r} is not known; uniform or log are")


def bin_centres(edges: Tensor) -> Tensor:
    """Mid-points of the bins: (K,), metres, from edges (K + 1,)."""
    return (edges[:-1] + edges[1:]) / 2


def check_sigma(sigma: float, edges: Tensor) -> None:
    """Refuse a sigma (metres) under half the widest bin of edges (K + 1,): its peak would fall between bins."""
    widths = edges.double().diff()
    widest = float(widths.max())
    if widest / 2 * (1 - WIDTH_SLACK) <= sigma < math.inf:
        return
    if widest > float(widths.min()) * (1 + 2 * WIDTH_SLACK):
        uniform = float(widths.mean())
        raise RecipeError(
            f"sigma: {sigma} m is too small; log bins grow, to {widest:.4g} m for the last, and need "
            f"sigma >= {widest / 2:.4g} m; as many with spacing: uniform need only >= {uniform / 2:.4g} m"
        )
    raise RecipeError(
        f"sigma: {sigma} m is under half of the widest bin (>= {widest / 2:.4g} m is needed); raise sigma or num_bins"
    )


@torch.no_grad()
def gaussian_target(
    depth: Tensor, sigma: float | Tensor, weight: Tensor | None, edges: Tensor
) -> Tensor:
    """A mixture of Gaussians as its mass per bin: q (B, K, H, W) in the dtype of edges, summing to 1 over the bins.

    depth: (B, M, H, W), metres; a component is not valid where its depth is <= 0 or NaN. Valid depths are clamped to
        [first, last bin centre]. The mean over the bins, sum_k q_k c_k, is that depth (its weighted mean) within 0.1 %.
    sigma: metres, one number or (B, M, H, W); at least half the width of the depth's own bin, or RecipeError.
    weight: (B, M, H, W), not negative, or None for equal weights; it is scaled to sum to 1 over the valid components.
    edges: (K + 1,) float32 or float64, metres, increasing, any spacing. Never changed in place.

    Where no component is valid q is finite and sums to 1, and says nothing.
    """
    windows = gaussian_windows(depth, sigma, edges)
    if windows is None:
        inner, centre = edges[1:-1].view(1, -1, 1, 1), shifted_centre(depth, sigma, edges)
    components = []
    for m in range(depth.shape[1]):
        one = slice(m, m + 1)
        if windows is None:
            components.append(_mass_between(inner - centre[:, one], _component(sigma, m, edges)))
        else:
            bins, mass = (
                t.movedim(-1, 1) for t in windows.mass(windows.first[:, m], windows.centre[:, m])
            )
            q = mass.new_zeros(mass.shape[0], len(edges) - 1, *mass.shape[2:])
            components.append(q.scatter_(1, bins, mass))
    if len(components) == 1:
        return components[0]
    share = shares(depth, weight, edges.dtype)
    return sum(share[:, m : m + 1] * q for m, q in enumerate(components))


class Windows(NamedTuple):
    """Gaussians of one sigma, each in the few bins that it reaches.

    first: (B, M, H, W) int32, the first of those bins; centre: (B, M, H, W) metres, dtype of edges. edges: (F, E), row
    f has the inner edges of the bins from f on, in sqrt(2) sigma, which is `unit` metres.
    """

    first: Tensor
    centre: Tensor
    edges: Tensor
    unit: float

    def mass(self, first: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """The bins (..., E + 1) int64, and their mass, of any part (...) of `first` and `centre`. As `_mass_between`,
        in fewer steps, which may be taken because a sigma that has windows is at least half of every bin's width."""
        num_bins = self.edges.shape[1] + 1
        bins = first.flatten().long()[:, None] + torch.arange(num_bins, device=first.device)
        offset = self.edges.index_select(0, first.flatten()).sub_(
            centre.flatten()[:, None] / self.unit
        )
        tail = (
            offset.abs().erfc_().copysign_(offset).mul_(0.5)
        )  # the mass beyond an edge, negative below the centre
        mass = tail.new_empty(bins.shape)
        inner = torch.sub(tail[:, :-1], tail[:, 1:], out=mass[:, 1:-1])
        # The bin with the centre has -0.31 or less here, for 1 - both tails; the others are not negative.
        inner.sub_((inner + 0.25).floor_()).clamp_min_(0)
        mass[:, 0] = torch.where(offset[:, 0] >= 0, 1 - tail[:, 0], -tail[:, 0])
        mass[:, -1] = torch.where(offset[:, -1] >= 0, tail[:, -1], 1 + tail[:, -1])
        return bins.unflatten(0, first.shape), mass.unflatten(0, first.shape)


@torch.no_grad()
def gaussian_windows(depth: Tensor, sigma: float | Tensor, edges: Tensor) -> Windows | None:
    """The components of `gaussian_target`, each as few bins; None where sigma is a map or most bins have mass."""
    table = None if isinstance(sigma, Tensor) else cached_table(float(sigma), edges)
    if table is None or table.edges.shape[1] > (len(edges) - 2) * DENSE_FROM:
        return None
    centre, node = _look_up(torch.nan_to_num(depth.to(edges.dtype)), table)
    return Windows(table.first[node], centre, table.edges, math.sqrt(2) * sigma)


def shares(depth: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Each component's share of a mixture: (B, M, H, W), 0 where it is not valid, equal ones where none is."""
    share = (depth > 0).to(dtype)
    if weight is not None:
        share = share * weight
    total = share.sum(1, keepdim=True)
    return torch.where(
        total > 0, share / total.clamp_min(torch.finfo(dtype).tiny), 1.0 / depth.shape[1]
    )


@torch.no_grad()
def released_target(depth: Tensor, sigma: float, edges: Tensor, centres: Tensor) -> Tensor:
    """The published target: softmax over the bins of the Gaussian's density values; q (B, K, H, W), dtype of edges.

    depth: (B, 1, H, W), metres, taken as it is; sigma: metres. Densities under 1e-16 count as -1000. This is a plateau
    about 8.5 sigma to each side and not a Gaussian (its mean is 2.9 m for a depth of 2 m with 257 bins to 80 m).
    """
    depth = torch.nan_to_num(depth.to(edges.dtype))
    density = torch.exp(-((centres.view(1, -1, 1, 1) - depth) ** 2) / (2 * sigma**2)) / (
        math.sqrt(2 * math.pi) * sigma
    )
    return density.masked_fill_(density < PUBLISHED_THRESHOLD, PUBLISHED_FLOOR).softmax(1)


@torch.no_grad()
def shifted_centre(depth: Tensor, sigma: float | Tensor, edges: Tensor) -> Tensor:
    """Centre of the Gaussian whose mass per bin has the mean `depth`; arguments as in `gaussian_target`.

    Returns (B, M, H, W), dtype of edges, metres; it may lie outside of the edges, by up to 6 sigma. The mean grows
    with the centre, from the first bin centre to the last, so there is one such centre for every depth in between.
    """
    assert edges.dtype in (torch.float32, torch.float64), (
        f"edges must stay float32 or float64, got {edges.dtype}"
    )
    depth = torch.nan_to_num(depth.to(edges.dtype))
    if not isinstance(sigma, Tensor):
        table = cached_table(float(sigma), edges)
        if table is not None:
            return _look_up(depth, table)[0]
    sigma = torch.as_tensor(sigma, dtype=edges.dtype, device=edges.device).expand(depth.shape)
    _check_local_sigma(depth, sigma, edges)
    return _solve(depth, sigma, edges)


class _Table(NamedTuple):
    """What depends on (edges, sigma) alone. means over the bins and the centres that they come from: (N,), increasing;
    first: (N - 1,) int32, the first bin within REACH_SIGMAS of the centres from a node to the next; edges: see Windows.
    """

    means: Tensor
    centres: Tensor
    first: Tensor
    edges: Tensor


def _component(sigma: float | Tensor, m: int, edges: Tensor) -> float | Tensor:
    """The m-th component's sigma; a map that is the same everywhere stays a map, for only a number is known to be."""
    return sigma[:, m : m + 1].to(edges) if isinstance(sigma, Tensor) else sigma


def _mass_between(offset: Tensor, sigma: float | Tensor) -> Tensor:
    """Mass (B, E + 1, H, W) of Gaussians below, between and above edges that lie `offset` (B, E, H, W) metres from the
    centre, increasing over E. Differences are taken in the nearer tail, where they are exact."""
    above = offset >= 0
    tail = (
        (offset / (math.sqrt(2) * sigma)).abs_().erfc_().mul_(0.5)
    )  # the mass beyond an edge, seen from the centre
    tail.copysign_(offset)
    mass = tail.new_empty(tail.shape[0], tail.shape[1] + 1, *tail.shape[2:])
    inner = torch.sub(tail[:, :-1], tail[:, 1:], out=mass[:, 1:-1])
    inner.add_(above[:, 1:] ^ above[:, :-1]).clamp_min_(
        0
    )  # the bin with the centre: 1 - both tails
    mass[:, 0] = -tail[:, 0] + above[:, 0]
    mass[:, -1] = tail[:, -1] + ~above[:, -1]
    return mass


def cached_table(sigma: float, edges: Tensor) -> _Table | None:
    """The table of (edges, sigma), on the device of edges; None where sigma is too small for the widest bin."""
    tables = _tables.setdefault(edges, {})
    version = 0 if edges.is_inference() else edges._version
    if (sigma, version) not in tables:
        host = edges.detach().double().cpu()
        fits = sigma < math.inf and sigma >= float(host.diff().max()) / 2 * (1 - WIDTH_SLACK)
        tables[sigma, version] = _build_table(sigma, host, edges) if fits else None
    return tables[sigma, version]


def _build_table(sigma: float, edges: Tensor, like: Tensor) -> _Table:
    """The table from edges in float64 on the host, with its tensors in the dtype and on the device of `like`."""
    inner, steps = edges[1:-1], bin_centres(edges).diff()
    reach = REACH_SIGMAS * sigma
    span = float(inner[-1] - inner[0]) + 2 * reach
    nodes = torch.linspace(
        float(inner[0]) - reach,
        float(inner[-1]) + reach,
        math.ceil(span / sigma * TABLE_STEPS_PER_SIGMA) + 1,
        dtype=edges.dtype,
    )
    passed = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    means = []
    for part in nodes.split(8 * TABLE_STEPS_PER_SIGMA):
        # Edges beyond ten sigma are wholly below (they add their step) or wholly above (they add nothing).
        low = int(torch.searchsorted(inner, part[0] - 10 * sigma))
        high = int(torch.searchsorted(inner, part[-1] + 10 * sigma))
        beyond = torch.special.erfc((inner[low:high] - part[:, None]) / (math.sqrt(2) * sigma)) / 2
        means.append(passed[low] + beyond @ steps[low:high])
    means = bin_centres(edges)[0] + torch.cat(means)
    # A little more than the reach: in the dtype of `like` an edge may round into it.
    first = torch.searchsorted(inner, nodes[:-1] - 1.001 * reach)
    num_near = int((torch.searchsorted(inner, nodes[1:] + 1.001 * reach, right=True) - first).max())
    first = first.clamp_(max=len(inner) - num_near).to(like.device, torch.int32)
    edge_rows = inner.unfold(0, num_near, 1) / (math.sqrt(2) * sigma)
    return _Table(means.to(like), nodes.to(like), first, edge_rows.to(like))


def _look_up(depth: Tensor, table: _Table) -> tuple[Tensor, Tensor]:
    """Linear interpolation of the centre at each depth, held at the table's ends, and the node (int32) before it."""
    means, centres = table.means, table.centres
    right = torch.searchsorted(means, depth.contiguous(), out_int32=True).clamp_(1, len(means) - 1)
    left = right - 1
    low, high = means[left], means[right]
    fraction = (
        (depth - low).div_((high - low).clamp_min_(torch.finfo(depth.dtype).tiny)).clamp_(0, 1)
    )
    return torch.lerp(centres[left], centres[right], fraction), left


def _check_local_sigma(depth: Tensor, sigma: Tensor, edges: Tensor) -> None:
    """Refuse a sigma under half of the bin that its depth lies in. Costs one host sync, hence only off the table."""
    bins = (torch.searchsorted(edges, depth.contiguous(), right=True) - 1).clamp_(0, len(edges) - 2)
    least = edges.diff()[bins] / 2
    bad = (depth > 0) & ~((sigma >= least * (1 - WIDTH_SLACK)) & (sigma < math.inf))
    if bad.any():
        at = int(bad.flatten().to(torch.uint8).argmax())
        raise RecipeError(
            f"sigma: {float(sigma.flatten()[at]):.4g} m at a depth of {float(depth.flatten()[at]):.4g} m is under half "
            f"of its bin (>= {float(least.flatten()[at]):.4g} m is needed); raise sigma or the number of bins"
        )


def _solve(depth: Tensor, sigma: Tensor, edges: Tensor) -> Tensor:
    """The centre by Newton steps on log((mean - c_0) / (c_last - mean)), which is nearly straight near both ends."""
    centres = bin_centres(edges)
    first, span = centres[0], centres[-1] - centres[0]
    # The wanted mean keeps off the ends by less than the tolerance, so that the logarithms stay finite.
    wanted = torch.minimum((depth - first).clamp_min(1e-5 * first), span - 1e-4 * centres[-1])
    wanted = torch.log(wanted) - torch.log(span - wanted)
    lowest, highest = edges[1] - REACH_SIGMAS * sigma, edges[-2] + REACH_SIGMAS * sigma
    centre = torch.minimum(torch.maximum(depth, lowest), highest)
    for _ in range(NEWTON_STEPS):
        over, under, slope = _distances_and_slope(centre, sigma, edges)
        step = (wanted - torch.log(over) + torch.log(under)) * over * (under / (slope * span))
        centre = torch.minimum(torch.maximum(centre + step, lowest), highest)
    return centre


def _distances_and_slope(
    centre: Tensor, sigma: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How far the mean over the bins is over the first and under the last bin centre, and its derivative by the centre.

    Both distances are sums of positive terms, each from the nearer tail, so neither loses digits near an end.
    """
    inner, steps = edges[1:-1], bin_centres(edges).diff()
    tiny = torch.finfo(edges.dtype).tiny
    over, under, slope = (torch.full_like(centre, tiny) for _ in range(3))
    for some, step in zip(inner.split(EDGES_AT_ONCE), steps.split(EDGES_AT_ONCE), strict=True):
        z = (some.view(-1, 1, 1, 1, 1) - centre) / (math.sqrt(2) * sigma)
        tail = torch.special.erfc(z.abs()) / 2
        step = step.view(-1, 1, 1, 1, 1)
        over += (torch.where(z > 0, tail, 1 - tail) * step).sum(0)
        under += (torch.where(z > 0, 1 - tail, tail) * step).sum(0)
        slope += (torch.exp(-z.square()) * step).sum(0)
    return over, under, slope / (math.sqrt(2 * math.pi) * sigma)
