"""Computes the target of a depth probability map (DPM) head: a distribution over bins per pixel.

`gaussian_target` converts each target depth to a Gaussian's mass in each depth bin; the mass below
the first bin is added to the first bin, and the mass above the last bin to the last one. With a
Gaussian centred at the target depth, the added mass, and coarse or uneven bins, would bias the mean
over the bins, by +30 % at 0.5 m with a sigma of 0.5 m. Therefore the Gaussian's centre is shifted
such that this mean equals the target depth; `shifted_centre` computes that centre.
`released_target` is the target of TIE-KD's released code, a softmax of density values, for
reproducing published results.

Cost with one sigma for all pixels: one erfc per pixel and bin edge within six sigma (for TIE-KD on
KITTI, 20 of 257 bins) and one (B, K, H, W) tensor; the centre is interpolated in a table that is
built once per edges and sigma. With a sigma per pixel the centre is interpolated between the tables
of many sigmas, which are built once per edges (13 MB and half a second for these 257 bins). If
sigma varies per pixel, it is checked on a CPU only, since a check reads values and would be a host
sync on a GPU; the DPM head clamps sigma to allowed values before. M components with one sigma each
cost as much as M components with a common one, and memory for M tensors (B, K, H, W). Not covered:
gradients with respect to the target depth, which is treated as a constant.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tiekd.errors import RecipeError

# `shifted_centre` interpolates linearly in a table of Gaussians' centres. This is the number of
# centres per sigma. The mean over the bins is then within 0.03 % of the target depth.
TABLE_STEPS_PER_SIGMA = 64
# Distance in sigmas from a Gaussian's centre beyond which bins are treated as empty. The Gaussian's
# mass beyond it is 1e-9 on each side.
REACH_SIGMAS = 6.0
NEWTON_STEPS = 6
# If sigma varies per pixel, `shifted_centre` interpolates between tables for a series of sigmas.
# SIGMA_RATIO is the largest ratio of neighbouring sigmas, and MOST_SPANS the largest sigma divided
# by the range of the bins; the smallest sigma is half of the widest bin's width. The mean over the
# bins is then within 0.08 % of the target depth.
SIGMA_RATIO = 1.05
MOST_SPANS = 2.0
# Relative tolerance with which sigma is compared with half of a bin's width, because rounding the
# edges to float32 makes uniform bins slightly uneven.
WIDTH_SLACK = 1e-3
# Number of bin edges that one operation of Newton's method processes, which limits its memory.
EDGES_AT_ONCE = 16
# If a Gaussian's window has more than this fraction of all bin edges, the mass is computed in all
# bins instead, which is as fast.
DENSE_FROM = 0.5
RELEASED_THRESHOLD, RELEASED_FLOOR = 1e-16, -1000.0

_tables: WeakIdKeyDictionary = WeakIdKeyDictionary()
_sigma_tables: WeakIdKeyDictionary = WeakIdKeyDictionary()


def bin_edges(
    num_bins: int, min_depth: float, max_depth: float, spacing: str = "uniform"
) -> Tensor:
    """Returns the edges of K consecutive depth bins.

    Args:
        num_bins: number of bins K, 2 or more.
        min_depth: first edge, metres.
        max_depth: last edge, metres.
        spacing: "uniform", as TIE-KD has it, or "log" for edges that increase by a constant ratio.

    Returns:
        (K + 1,) float32, metres, increasing.

    Raises:
        RecipeError: an argument is out of range.
    """
    if num_bins < 2:
        raise RecipeError(
            f"num_bins: {num_bins} is too few; a depth distribution needs at least 2 bins"
        )
    if not 0 < min_depth < max_depth < math.inf:
        raise RecipeError(
            f"min_depth={min_depth}, max_depth={max_depth}: "
            "0 < min_depth < max_depth (metres) is needed"
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
    """Returns the midpoints of depth bins.

    Args:
        edges: (K + 1,), edges of the bins, metres.

    Returns:
        (K,), metres, in the dtype of edges.
    """
    return (edges[:-1] + edges[1:]) / 2


def check_sigma(sigma: float, edges: Tensor) -> None:
    """Checks that sigma is at least half of the widest bin's width.

    With a narrower Gaussian, the mass in the bins would determine the mean depth too inaccurately.

    Args:
        sigma: standard deviation of the target, metres.
        edges: (K + 1,), edges of the depth bins, metres, increasing.

    Raises:
        RecipeError: sigma is too small.
    """
    widths = edges.double().diff()
    widest = float(widths.max())
    if widest / 2 * (1 - WIDTH_SLACK) <= sigma < math.inf:
        return
    if widest > float(widths.min()) * (1 + 2 * WIDTH_SLACK):
        uniform = float(widths.mean())
        raise RecipeError(
            f"sigma: {sigma} m is too small; log bins grow, to {widest:.4g} m for the last, "
            f"and need sigma >= {widest / 2:.4g} m; as many with spacing: uniform need only "
            f">= {uniform / 2:.4g} m"
        )
    raise RecipeError(
        f"sigma: {sigma} m is under half of the widest bin (>= {widest / 2:.4g} m is needed); "
        "raise sigma or num_bins"
    )


@torch.no_grad()
def gaussian_target(
    depth: Tensor,
    sigma: float | tuple[float, ...] | Tensor,
    weight: Tensor | None,
    edges: Tensor,
) -> Tensor:
    """Returns the mass per depth bin of a mixture of M Gaussians, one per teacher.

    With the bin centres c_k, the mean sum_k q_k c_k equals the depth, or with M > 1 the weighted
    mean of the depths, within 0.1 %. Where no component is valid, q is finite and sums to 1, but
    has no meaning.

    Args:
        depth: (B, M, H, W), metres; a component is invalid where its depth is <= 0 or NaN. Valid
            depths are clamped to the range of bin centres.
        sigma: standard deviation, metres, one number, M numbers or (B, M, H, W); at least half the
            width of the bin that contains the depth.
        weight: (B, M, H, W), non-negative weights, normalised over the valid components; None for
            equal weights.
        edges: (K + 1,) float32 or float64, edges of the bins, metres, increasing, of any spacing.
            Tables for finding the Gaussians' centres are cached for this tensor object, so pass the
            same object in every call.

    Returns:
        q (B, K, H, W) in the dtype of edges, summing to 1 over the bins.

    Raises:
        RecipeError: sigma is too small.
    """
    if isinstance(sigma, tuple):
        # Compute each component by itself, because Gaussians with one common sigma take less time:
        # their centres are in one table, and their mass is computed in a few bins only.
        parts = zip(depth.split(1, 1), sigma, strict=True)
        components = [gaussian_target(one, number, None, edges) for one, number in parts]
        share = component_weights(depth, weight, edges.dtype)
        return sum(share[:, m : m + 1] * q for m, q in enumerate(components))
    windows = gaussian_windows(depth, sigma, edges)
    if windows is None:
        inner = edges[1:-1].view(1, -1, 1, 1)
        centre = shifted_centre(depth, sigma, edges)
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
    share = component_weights(depth, weight, edges.dtype)
    return sum(share[:, m : m + 1] * q for m, q in enumerate(components))


class Windows(NamedTuple):
    """Gaussians of the same sigma, each restricted to a window of E + 1 consecutive depth bins.

    E, the number of edges between the bins of a window, is the same for all windows. It is so large
    that all bins outside the window are more than REACH_SIGMAS sigma from the Gaussian's centre.
    The mass outside the window is added to the window's first and last bin.

    Attributes:
        first: (B, M, H, W) int32, index of each window's first bin.
        centre: (B, M, H, W), each Gaussian's centre as `shifted_centre` returns it, metres, in the
            dtype of the bin edges.
        edges: (F, E), for each of the F possible first bins the E edges between the window's bins,
            divided by `unit`.
        unit: sqrt(2) sigma, metres.
    """

    first: Tensor
    centre: Tensor
    edges: Tensor
    unit: float

    def mass(self, first: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mass of selected Gaussians in each bin of their windows.

        The result is that of `_mass_between`, in fewer operations. The method requires that sigma
        is at least half of every bin's width, which `gaussian_windows` ensures.

        Args:
            first: the first bins of the selected Gaussians' windows: elements of the attribute
                `first`, in any shape.
            centre: the centres of the same Gaussians, metres, in the same shape.

        Returns:
            (bins, mass): the indices (int64) of the E + 1 bins of each window, and the mass in each
            bin. Both have the shape of the arguments and one more dimension of E + 1 elements,
            where E is the number of edges within a window.
        """
        num_bins = self.edges.shape[1] + 1
        bins = first.flatten().long()[:, None] + torch.arange(num_bins, device=first.device)
        offset = self.edges.index_select(0, first.flatten())
        offset.sub_(centre.flatten()[:, None] / self.unit)
        # Compute the mass beyond each edge, on the side away from the centre, and give it the sign
        # of (edge - centre).
        tail = offset.abs().erfc_().copysign_(offset).mul_(0.5)
        mass = tail.new_empty(bins.shape)
        inner = torch.sub(tail[:, :-1], tail[:, 1:], out=mass[:, 1:-1])
        # The difference of these values at neighbouring edges is the mass of the bin between them,
        # except in the bin that contains the centre. There it is minus the sum of both tails, at
        # most -0.31, and the mass is 1 more. Other differences aren't negative, so subtracting
        # floor(difference + 0.25) adds 1 in this bin only.
        inner.sub_((inner + 0.25).floor_()).clamp_min_(0)
        mass[:, 0] = torch.where(offset[:, 0] >= 0, 1 - tail[:, 0], -tail[:, 0])
        mass[:, -1] = torch.where(offset[:, -1] >= 0, tail[:, -1], 1 + tail[:, -1])
        return bins.unflatten(0, first.shape), mass.unflatten(0, first.shape)


@torch.no_grad()
def gaussian_windows(
    depth: Tensor, sigma: float | tuple[float, ...] | Tensor, edges: Tensor
) -> Windows | None:
    """Returns the Gaussians of `gaussian_target`, each restricted to a window of bins.

    Args:
        depth: (B, M, H, W), metres, as for `gaussian_target`.
        sigma: standard deviation, metres, a number, M numbers or (B, M, H, W).
        edges: (K + 1,), edges of the bins, metres, increasing.

    Returns:
        A `Windows`. None, which means that all bins must be computed, if sigma isn't a number, or
        is too small for the widest bin, or is so large that a window would contain more than the
        fraction DENSE_FROM of the edges.
    """
    table = None if isinstance(sigma, Tensor | tuple) else cached_table(float(sigma), edges)
    if table is None or table.edges.shape[1] > (len(edges) - 2) * DENSE_FROM:
        return None
    centre, node = _look_up(torch.nan_to_num(depth.to(edges.dtype)), table)
    return Windows(table.first[node], centre, table.edges, math.sqrt(2) * sigma)


def component_weights(depth: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns the weights of a mixture's M components, normalised over the valid components.

    Args:
        depth: (B, M, H, W), metres; a component is valid where its depth is > 0.
        weight: (B, M, H, W), non-negative weights; None for equal weights.
        dtype: dtype of the result.

    Returns:
        (B, M, H, W), summing to 1 over M; 0 for invalid components, but 1 / M for all components of
        a pixel that has no valid one.
    """
    share = (depth > 0).to(dtype)
    if weight is not None:
        share = share * weight
    total = share.sum(1, keepdim=True)
    return torch.where(
        total > 0, share / total.clamp_min(torch.finfo(dtype).tiny), 1.0 / depth.shape[1]
    )


def sigma_maps(constants: tuple[float, ...], depth: Tensor) -> Tensor:
    """Expands one sigma per component to a tensor with one value per pixel and component.

    Args:
        constants: the M components' sigmas, metres.
        depth: (B, M, H, W), a tensor whose shape, dtype and device the result gets.

    Returns:
        (B, M, H, W), metres.
    """
    parts = zip(constants, depth.split(1, 1), strict=True)
    return torch.cat([torch.full_like(one, metres) for metres, one in parts], 1)


@torch.no_grad()
def released_target(depth: Tensor, sigma: float, edges: Tensor, centres: Tensor) -> Tensor:
    """Returns the target of TIE-KD's released code: the softmax of a Gaussian's density values.

    The density is evaluated at the bin centres, and the softmax is over the bins. Densities below
    1e-16 are replaced by -1000 before the softmax. The resulting distribution isn't a Gaussian but
    a plateau of about 8.5 sigma to each side of the depth, and its mean is biased: 2.9 m for a
    depth of 2 m with a sigma of 0.5 m and 257 bins up to 80 m.

    Args:
        depth: (B, 1, H, W), metres; not clamped.
        sigma: standard deviation of the Gaussian, metres.
        edges: (K + 1,), edges of the bins, metres; only the dtype is used.
        centres: (K,), bin centres, metres.

    Returns:
        q (B, K, H, W), in the dtype of edges.
    """
    depth = torch.nan_to_num(depth.to(edges.dtype))
    density = torch.exp(-((centres.view(1, -1, 1, 1) - depth) ** 2) / (2 * sigma**2))
    density = density / (math.sqrt(2 * math.pi) * sigma)
    return density.masked_fill_(density < RELEASED_THRESHOLD, RELEASED_FLOOR).softmax(1)


@torch.no_grad()
def shifted_centre(depth: Tensor, sigma: float | Tensor, edges: Tensor) -> Tensor:
    """Returns the Gaussian's centre for which the mean over the depth bins is `depth`.

    The mean over the bins is that of the bin centres, weighted by the Gaussian's mass in each bin.
    The first and last bin include the Gaussian's tails, so the mean over the bins differs from the
    Gaussian's centre. The mean increases monotonically with the centre, from the centre of the
    first bin to that of the last, so the result is unique for every depth in between. The result
    may be outside of the bins, by up to 6 sigma.

    Args:
        depth: (B, M, H, W), the wanted mean, metres.
        sigma: metres, a number or (B, M, H, W).
        edges: (K + 1,) float32 or float64, metres, increasing.

    Returns:
        (B, M, H, W), metres, in the dtype of edges.

    Raises:
        RecipeError: sigma is below half of the width of the bin that contains the depth, at a valid
            pixel. A map of sigmas on a GPU isn't checked, because the host would wait for the
            result; there the centre is NaN where sigma is below half of the widest bin's width, or
            more than MOST_SPANS times the range of bins.
    """
    assert edges.dtype in (torch.float32, torch.float64), (
        f"edges must stay float32 or float64, got {edges.dtype}"
    )
    depth = torch.nan_to_num(depth.to(edges.dtype))
    if not isinstance(sigma, Tensor):
        table = cached_table(float(sigma), edges)
        if table is not None:
            return _look_up(depth, table)[0]
        sigma = torch.full_like(depth, sigma)
        _check_local_sigma(depth, sigma, edges)
        return _solve(depth, sigma, edges)
    sigma = sigma.to(edges).expand(depth.shape)
    on_cpu = depth.device.type == "cpu"
    if on_cpu:
        _check_local_sigma(depth, sigma, edges)
    tables = _cached_sigma_tables(edges)
    centre = tables.look_up(depth, sigma)
    outside = (depth > 0) & ((sigma < tables.sigmas[0]) | (sigma > tables.sigmas[-1]))
    if not on_cpu:
        return centre.masked_fill_(outside, math.nan)
    if outside.any():
        rest = (t[outside].view(1, 1, 1, -1) for t in (depth, sigma))
        centre[outside] = _solve(*rest, edges).flatten()
    return centre


class _Table(NamedTuple):
    """The mean over the depth bins as a function of a Gaussian's centre, tabulated at N nodes.

    A table is valid for one sigma and one set of bins.

    Attributes:
        means: (N,), means over the bins, metres, increasing.
        centres: (N,), the Gaussian's centres that have these means, metres, increasing.
        first: (N - 1,) int32, for each interval between two nodes, index of the first bin within
            REACH_SIGMAS sigma of the interval.
        edges: (F, E), for each of the F possible first bins the E edges that follow it, divided by
            sqrt(2) sigma.
    """

    means: Tensor
    centres: Tensor
    first: Tensor
    edges: Tensor


class _SigmaTables(NamedTuple):
    """The tables of Gaussians' centres for R sigmas and one set of bins, joined in two tensors.

    For one sigma, a table has the mean over the bins for each of many Gaussians' centres. The means
    of table r, from 0, have r times `shift` added. So all N means are increasing, and one binary
    search finds a depth in the table of any sigma. The tensors are float64, because in float32
    these sums would lose digits.

    Attributes:
        means: (N,) float64, means over the bins plus r * `shift`, metres.
        centres: (N,) float64, the Gaussian's centres that have these means, metres.
        sigmas: (R,) float64, the sigma of each table, metres, increasing.
        lowest: the first bin's centre, metres.
        highest: the last bin's centre, metres.
        shift: offset between the means of consecutive tables, metres.
    """

    means: Tensor
    centres: Tensor
    sigmas: Tensor
    lowest: float
    highest: float
    shift: float

    def look_up(self, depth: Tensor, sigma: Tensor) -> Tensor:
        """Interpolates the centre of the Gaussian whose mean over the bins is the depth.

        Args:
            depth: wanted means over the bins, metres, any shape; clamped to the range of bin
                centres.
            sigma: the Gaussians' standard deviation, metres, in the same shape; clamped to the
                range of the tables' sigmas.

        Returns:
            The centre in metres, in the shape and dtype of depth.
        """
        wanted = depth.double().clamp(self.lowest, self.highest)
        sigma = sigma.double()
        right = torch.searchsorted(self.sigmas, sigma.contiguous()).clamp_(1, len(self.sigmas) - 1)
        narrow, wide = self.sigmas[right - 1], self.sigmas[right]
        right = right.double()
        narrower = _look_up(wanted + (right - 1) * self.shift, self)[0]
        wider = _look_up(wanted + right * self.shift, self)[0]
        fraction = ((sigma - narrow) / (wide - narrow)).clamp_(0, 1)
        return torch.lerp(narrower, wider, fraction).to(depth.dtype)


def _component(sigma: float | Tensor, m: int, edges: Tensor) -> float | Tensor:
    """Returns the standard deviation of one component of a mixture of Gaussians, metres.

    Args:
        sigma: standard deviation, metres, a number for all components or (B, M, H, W).
        m: index of the component.
        edges: (K + 1,), edges of the depth bins; the result has their dtype if it is a tensor.

    Returns:
        (B, 1, H, W) if sigma is a tensor, otherwise sigma.
    """
    return sigma[:, m : m + 1].to(edges) if isinstance(sigma, Tensor) else sigma


def _mass_between(offset: Tensor, sigma: float | Tensor) -> Tensor:
    """Returns the mass of Gaussians in the E + 1 bins that E edges separate.

    The first bin is everything below the first edge, the last bin everything above the last edge.
    Each bin's mass is a difference of masses in the nearer tail, which avoids cancellation.

    Args:
        offset: (B, E, H, W), each of E bin edges minus the Gaussian's centre, metres, increasing
            over E.
        sigma: standard deviation, metres, a number or (B, 1, H, W).

    Returns:
        (B, E + 1, H, W), summing to 1 over the second dimension.
    """
    above = offset >= 0
    # Compute the mass beyond each edge, on the side away from the Gaussian's centre, with the sign
    # of (edge - centre).
    tail = (offset / (math.sqrt(2) * sigma)).abs_().erfc_().mul_(0.5)
    tail.copysign_(offset)
    mass = tail.new_empty(tail.shape[0], tail.shape[1] + 1, *tail.shape[2:])
    inner = torch.sub(tail[:, :-1], tail[:, 1:], out=mass[:, 1:-1])
    # A bin's mass is the difference of these signed tails at its two edges. In the bin that
    # contains the Gaussian's centre the difference is minus the sum of both tails, so add 1.
    inner.add_(above[:, 1:] ^ above[:, :-1]).clamp_min_(0)
    mass[:, 0] = -tail[:, 0] + above[:, 0]
    mass[:, -1] = tail[:, -1] + ~above[:, -1]
    return mass


def cached_table(sigma: float, edges: Tensor) -> _Table | None:
    """Returns the table that maps means over the depth bins to centres of Gaussians.

    The table is built at the first call and cached for the tensor `edges`, its version and sigma,
    so another table is built after a change in place.

    Args:
        sigma: standard deviation of the Gaussians, metres.
        edges: (K + 1,), edges of the bins, metres, increasing.

    Returns:
        A `_Table`, on the device of edges; None if sigma is below half of the widest bin's width.
    """
    tables = _tables.setdefault(edges, {})
    version = 0 if edges.is_inference() else edges._version
    if (sigma, version) not in tables:
        host = edges.detach().double().cpu()
        fits = sigma < math.inf and sigma >= float(host.diff().max()) / 2 * (1 - WIDTH_SLACK)
        tables[sigma, version] = _build_table(sigma, host, edges) if fits else None
    return tables[sigma, version]


def _build_table(sigma: float, edges: Tensor, like: Tensor) -> _Table:
    """Builds the table of the mean over the depth bins as a function of a Gaussian's centre.

    Args:
        sigma: standard deviation of the Gaussian, metres.
        edges: (K + 1,) float64 on the CPU, edges of the bins, metres.
        like: a tensor with the dtype and device that the table's float tensors get.

    Returns:
        A `_Table`, on the device of `like`.
    """
    nodes, means = _means_over_bins(sigma, edges)
    # For each interval between two neighbouring nodes, i.e. Gaussians' centres, find the window of
    # bins within `reach` of the interval. The reach is enlarged by 0.1 %, because an edge just
    # outside it may be rounded into it in the dtype of `like`.
    inner = edges[1:-1]
    reach = REACH_SIGMAS * sigma
    first = torch.searchsorted(inner, nodes[:-1] - 1.001 * reach)
    num_near = int((torch.searchsorted(inner, nodes[1:] + 1.001 * reach, right=True) - first).max())
    first = first.clamp_(max=len(inner) - num_near).to(like.device, torch.int32)
    edge_rows = inner.unfold(0, num_near, 1) / (math.sqrt(2) * sigma)
    return _Table(means.to(like), nodes.to(like), first, edge_rows.to(like))


def _means_over_bins(sigma: float, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the mean over the depth bins for Gaussians at evenly spaced centres.

    Args:
        sigma: standard deviation of the Gaussians, metres.
        edges: (K + 1,) float64 on the CPU, edges of the bins, metres.

    Returns:
        (nodes, means): the Gaussians' centres and their means over the bins, (N,) each, metres,
        increasing.
    """
    # Choose the nodes, i.e. the Gaussians' centres: evenly spaced, from `reach` below the first
    # edge between two bins to `reach` above the last.
    inner = edges[1:-1]
    steps = bin_centres(edges).diff()
    reach = REACH_SIGMAS * sigma
    span = float(inner[-1] - inner[0]) + 2 * reach
    nodes = torch.linspace(
        float(inner[0]) - reach,
        float(inner[-1]) + reach,
        math.ceil(span / sigma * TABLE_STEPS_PER_SIGMA) + 1,
        dtype=edges.dtype,
    )
    # Compute the mean over the bins for a Gaussian at each node. It is the first bin's centre plus,
    # for each edge between two bins, the distance between their centres times the mass above the
    # edge.
    passed = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    means = []
    for part in nodes.split(8 * TABLE_STEPS_PER_SIGMA):
        # Compute erfc only for edges within ten sigma of the Gaussians' centres. All mass is above
        # edges that are lower, so these add the full distance between bin centres; edges that are
        # higher add nothing.
        low = int(torch.searchsorted(inner, part[0] - 10 * sigma))
        high = int(torch.searchsorted(inner, part[-1] + 10 * sigma))
        beyond = torch.special.erfc((inner[low:high] - part[:, None]) / (math.sqrt(2) * sigma)) / 2
        means.append(passed[low] + beyond @ steps[low:high])
    return nodes, bin_centres(edges)[0] + torch.cat(means)


def _cached_sigma_tables(edges: Tensor) -> _SigmaTables:
    """Returns the tables in which Gaussians' centres are looked up if sigma varies per pixel.

    The tables are built at the first call and cached for the tensor `edges` and its version.

    Args:
        edges: (K + 1,), edges of the bins, metres, increasing.

    Returns:
        A `_SigmaTables` on the device of edges.
    """
    version = 0 if edges.is_inference() else edges._version
    cached = _sigma_tables.get(edges)
    if cached is None or cached[0] != version:
        cached = version, _build_sigma_tables(edges.detach().double().cpu(), edges.device)
        _sigma_tables[edges] = cached
    return cached[1]


def _build_sigma_tables(edges: Tensor, device: torch.device) -> _SigmaTables:
    """Builds tables of the mean over the depth bins against the Gaussian's centre, for many sigmas.

    The smallest sigma is half of the widest bin's width, which is allowed at any depth; the largest
    is MOST_SPANS times the range of bins.

    Args:
        edges: (K + 1,) float64 on the CPU, edges of the bins, metres.
        device: the device of the result.

    Returns:
        A `_SigmaTables`.
    """
    least = float(edges.diff().max()) / 2 * (1 - WIDTH_SLACK)
    most = MOST_SPANS * float(edges[-1] - edges[0])
    count = math.ceil(math.log(most / least, SIGMA_RATIO)) + 1
    sigmas = torch.linspace(math.log(least), math.log(most), count, dtype=edges.dtype).exp()
    lowest, *_, highest = bin_centres(edges).tolist()
    shift = highest - lowest + 2
    means, centres = [], []
    for row, sigma in enumerate(sigmas.tolist()):
        nodes, mean = _means_over_bins(sigma, edges)
        # Extend the means of this sigma's table by one value at each end, to 0.5 m beyond the first
        # and the last bin's centre. So every depth lies within one table, also after all tables are
        # joined.
        means.append(F.pad(F.pad(mean, (1, 0), value=lowest - 0.5), (0, 1), value=highest + 0.5))
        means[-1] += row * shift
        centres += [nodes[:1], nodes, nodes[-1:]]
    means, centres, sigmas = (t.to(device) for t in (torch.cat(means), torch.cat(centres), sigmas))
    return _SigmaTables(means, centres, sigmas, lowest, highest, shift)


def _look_up(depth: Tensor, table: _Table | _SigmaTables) -> tuple[Tensor, Tensor]:
    """Interpolates linearly the centre of the Gaussian whose mean over the bins is the depth.

    Args:
        depth: wanted means over the bins, metres, any shape; clamped to the table's range of means.
        table: the table of means and centres.

    Returns:
        (centre, node): the centre in metres, and the index (int32) of the node to its left; both
        have the shape of depth.
    """
    means, centres = table.means, table.centres
    right = torch.searchsorted(means, depth.contiguous(), out_int32=True).clamp_(1, len(means) - 1)
    left = right - 1
    # Read the tables by index_select, which takes a third of the time of indexing by a tensor.
    low, high, before, after = (
        values.index_select(0, index.view(-1)).view_as(depth)
        for values in (means, centres)
        for index in (left, right)
    )
    gap = (high - low).clamp_min_(torch.finfo(depth.dtype).tiny)
    fraction = (depth - low).div_(gap).clamp_(0, 1)
    return torch.lerp(before, after, fraction), left


def _check_local_sigma(depth: Tensor, sigma: Tensor, edges: Tensor) -> None:
    """Checks that sigma is at least half of the width of the bin that contains the depth.

    The check reads values, which is a host sync on a GPU. So it is made only for sigmas that vary
    per pixel on a CPU, and for a common sigma below half of the widest bin's width.

    Args:
        depth: (B, M, H, W), metres; invalid depths (<= 0) aren't checked.
        sigma: (B, M, H, W), metres.
        edges: (K + 1,), edges of the bins, metres.

    Raises:
        RecipeError: sigma is too small at a valid depth, or not finite.
    """
    # Search each depth's bin only if some sigma is smaller than the widest bin needs. NaN compares
    # as False, so it is found below.
    lowest, highest = (float(bound) for bound in sigma.aminmax())
    if lowest >= float(edges.diff().max()) / 2 * (1 - WIDTH_SLACK) and highest < math.inf:
        return
    bins = (torch.searchsorted(edges, depth.contiguous(), right=True) - 1).clamp_(0, len(edges) - 2)
    least = edges.diff()[bins] / 2
    bad = (depth > 0) & ~((sigma >= least * (1 - WIDTH_SLACK)) & (sigma < math.inf))
    if bad.any():
        at = int(bad.flatten().to(torch.uint8).argmax())
        sigma_m, depth_m, least_m = (float(t.flatten()[at]) for t in (sigma, depth, least))
        raise RecipeError(
            f"sigma: {sigma_m:.4g} m at a depth of {depth_m:.4g} m is under half of its bin "
            f"(>= {least_m:.4g} m is needed); raise sigma or the number of bins"
        )


def _solve(depth: Tensor, sigma: Tensor, edges: Tensor) -> Tensor:
    """Computes the Gaussian's centre for which the mean over bins is `depth`, by Newton's method.

    The equation is solved for log((mean - c_0) / (c_last - mean)), where c_0 and c_last are the
    centres of the first and last bin. Unlike the mean itself, this function is nearly linear in the
    Gaussian's centre near both ends of the range.

    Args:
        depth: (B, M, H, W), the wanted mean, metres.
        sigma: (B, M, H, W), the Gaussians' standard deviation, metres.
        edges: (K + 1,), edges of the bins, metres.

    Returns:
        (B, M, H, W), metres.
    """
    centres = bin_centres(edges)
    first = centres[0]
    span = centres[-1] - centres[0]
    # Clamp the wanted mean to slightly inside the range of bin centres, so that the logarithms stay
    # finite. This changes the mean by less than the tolerance of 0.1 %.
    wanted = torch.minimum((depth - first).clamp_min(1e-5 * first), span - 1e-4 * centres[-1])
    wanted = torch.log(wanted) - torch.log(span - wanted)
    lowest = edges[1] - REACH_SIGMAS * sigma
    highest = edges[-2] + REACH_SIGMAS * sigma
    centre = torch.minimum(torch.maximum(depth, lowest), highest)
    for _ in range(NEWTON_STEPS):
        over, under, slope = _distances_and_slope(centre, sigma, edges)
        step = (wanted - torch.log(over) + torch.log(under)) * over * (under / (slope * span))
        centre = torch.minimum(torch.maximum(centre + step, lowest), highest)
    return centre


def _distances_and_slope(
    centre: Tensor, sigma: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a Gaussian's mean over the bins, as distances from both ends, and its derivative.

    The distances are those of the mean from the first and from the last bin's centre. Each is a sum
    of positive terms, computed in the nearer tail, so neither suffers from cancellation near an end
    of the range.

    Args:
        centre: (B, M, H, W), the Gaussian's centre, metres.
        sigma: (B, M, H, W), the Gaussian's standard deviation, metres.
        edges: (K + 1,), edges of the bins, metres.

    Returns:
        (mean - first bin centre, last bin centre - mean, derivative of the mean with respect to the
        centre), each (B, M, H, W).
    """
    inner = edges[1:-1]
    steps = bin_centres(edges).diff()
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
