"""The target distribution.

Its mass, its mean near both ends, its shape, what it refuses, and the published one.
"""

import math

import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.kernels import target
from tiekd.kernels.reference import gaussian_divergence
from tiekd.kernels.target import (
    bin_centres,
    bin_edges,
    check_sigma,
    gaussian_target,
    released_target,
    shifted_centre,
)

# (bins, min_depth, max_depth, spacing, sigma): both data sets' sizes, the least sigma, wide ones,
# few bins, log bins.
GRIDS = [
    (257, 1e-3, 80.0, "uniform", 0.5),
    (257, 1e-3, 80.0, "uniform", 0.15565),
    (257, 1e-3, 80.0, "uniform", 20.0),
    (49, 1e-3, 10.0, "uniform", 0.15),
    (33, 1e-3, 80.0, "uniform", 1.3),
    (2, 1e-3, 80.0, "uniform", 25.0),
    (257, 1e-3, 80.0, "log", 2.0),
    (64, 0.1, 80.0, "log", 8.0),
]


def depths_m() -> torch.Tensor:
    grid = torch.cat((torch.logspace(-2, math.log10(200), 997), torch.linspace(0.02, 81, 1003)))
    return grid.view(1, 1, -1, 8)


def means(q: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bkhw,k->bhw", q.double(), bin_centres(edges).double())[:, None]


def largest_relative_error(q: torch.Tensor, depth: torch.Tensor, edges: torch.Tensor) -> float:
    centres = bin_centres(edges)
    wanted = depth.clamp(float(centres[0]), float(centres[-1])).double()
    return float((means(q, edges) / wanted - 1).abs().max())


@pytest.mark.parametrize("per_pixel_sigma", [False, True])
@pytest.mark.parametrize(("num_bins", "min_depth", "max_depth", "spacing", "sigma"), GRIDS)
def test_gaussian_target_sums_to_1_with_depth_as_mean(
    num_bins, min_depth, max_depth, spacing, sigma, per_pixel_sigma
):
    """The target sums to 1, its mean is the depth, and its divergence is finite."""
    edges = bin_edges(num_bins, min_depth, max_depth, spacing)
    depth = depths_m()
    q = gaussian_target(
        depth, torch.full_like(depth, sigma) if per_pixel_sigma else sigma, None, edges
    )
    assert q.shape == (1, num_bins, *depth.shape[2:])
    assert q.dtype == torch.float32
    assert torch.isfinite(q).all()
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]), rtol=0, atol=1e-6)
    assert largest_relative_error(q, depth, edges) < 1e-3

    logits = torch.randn(q.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    divergence = (torch.xlogy(q, q) - q * logits.log_softmax(1)).sum()
    divergence.backward()
    assert torch.isfinite(divergence)
    assert torch.isfinite(logits.grad).all()


def drawn(seed: int) -> tuple[torch.Tensor, float]:
    """Draws edges and sigma.

    2 to 300 bins from 1 mm..1 m up to 2..160 m, even, logarithmic or of random widths; sigma from
    half of the widest bin to ten of it.
    """
    g = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return float(low + (high - low) * torch.rand((), generator=g))

    num_bins, near = int(10 ** between(0.302, 2.478)), 10 ** between(-3, 0)
    far = near + 10 ** between(0, 2.2)
    if seed % 3 < 2:
        edges = bin_edges(num_bins, near, far, ("uniform", "log")[seed % 3])
    else:
        widths = torch.rand(num_bins, generator=g) * 0.8 + 0.2
        edges = near + (far - near) * torch.cat((torch.zeros(1), widths.cumsum(0) / widths.sum()))
    return edges, float(edges.diff().max()) / 2 * 10 ** between(0, 1.3)


@pytest.mark.parametrize("seed", range(30))
def test_gaussian_target_random_bins_and_sigma(seed):
    """With random bins and sigma it sums to 1 and its mean is the depth."""
    edges, sigma = drawn(seed)
    near_the_ends = torch.linspace(0.9 * float(edges[0]), 1.05 * float(edges[-1]), 504)
    depth = torch.cat((torch.logspace(-2, math.log10(200), 504), near_the_ends)).view(1, 1, -1, 8)
    # Sigma changes over the image in the second: a factor of two, upwards.
    growing = torch.linspace(sigma, 2 * sigma, depth.numel()).view_as(depth)
    for given in (sigma, growing):
        q = gaussian_target(depth, given, None, edges)
        assert torch.isfinite(q).all()
        assert (q >= 0).all()
        torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]), rtol=0, atol=1e-6)
        assert largest_relative_error(q, depth, edges) < 1e-3
        # From a student that knows nothing to one that is certain of a single, mostly wrong, bin.
        for scale in (0.0, 1.0, 100.0):
            logits = scale * torch.randn(q.shape, generator=torch.Generator().manual_seed(seed))
            logits.requires_grad_()
            divergence = gaussian_divergence(logits.log_softmax(1), q)
            divergence.sum().backward()
            assert torch.isfinite(divergence).all()
            assert (divergence > -1e-5).all()
            assert torch.isfinite(logits.grad).all()
            assert logits.grad.abs().max() <= 1 + 1e-5


def test_released_target_sums_to_1():
    """The released target is finite and sums to 1 for depths from 1 cm to 200 m."""
    for num_bins, max_depth, sigma in ((257, 80.0, 0.5), (257, 80.0, 0.8), (49, 10.0, 0.15)):
        edges = bin_edges(num_bins, 1e-3, max_depth)
        q = released_target(depths_m(), sigma, edges, bin_centres(edges))
        assert torch.isfinite(q).all()
        assert (q >= 0).all()
        torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("half_widths", [1.0, 2.0, 20.0])
def test_gaussian_target_sigma_per_log_bin(half_widths):
    """With log bins and sigma proportional to their width the mean is the depth."""
    edges = bin_edges(257, 1e-3, 80.0, "log")
    depth = depths_m()
    bins = (torch.searchsorted(edges, depth, right=True) - 1).clamp(0, 256)
    q = gaussian_target(depth, edges.diff()[bins] * half_widths / 2, None, edges)
    assert largest_relative_error(q, depth, edges) < 1e-3


def test_gaussian_target_is_normal_mass_per_bin():
    """Away from the ends each bin holds the normal distribution's mass."""
    edges = bin_edges(257, 1e-3, 80.0)
    for depth in (5.0, 33.3, 75.0):
        normal = torch.distributions.Normal(torch.tensor(depth, dtype=torch.float64), 0.5)
        q = gaussian_target(torch.full((1, 1, 1, 1), depth), 0.5, None, edges).flatten()
        torch.testing.assert_close(
            q.double(), normal.cdf(edges.double()).diff(), rtol=1e-4, atol=2e-6
        )


def test_gaussian_target_float64_edges():
    """Edges in float64 give the same target in float64."""
    edges = bin_edges(49, 1e-3, 10.0)
    depth = depths_m()
    q = gaussian_target(depth, 0.15, None, edges.double())
    assert q.dtype == torch.float64
    torch.testing.assert_close(
        q.float(), gaussian_target(depth, 0.15, None, edges), rtol=1e-3, atol=2e-5
    )


def test_shifted_centre_table_agrees_with_newton():
    """The centre from the table equals the centre from Newton's method."""
    edges = bin_edges(49, 1e-3, 10.0)
    depth = torch.linspace(0.2, 9.8, 500).view(1, 1, 50, 10)
    by_table, by_newton = (
        shifted_centre(depth, 0.15, edges),
        shifted_centre(depth, torch.full_like(depth, 0.15), edges),
    )
    torch.testing.assert_close(by_table, by_newton, rtol=0, atol=2e-4)


@pytest.mark.parametrize("seed", range(6))
def test_shifted_centre_of_map_has_depth_as_mean(monkeypatch, seed):
    """With a sigma per pixel the mean is within 0.08 % of the depth, and no equation is solved.

    Depths are random with both ends, sigmas random from the least to the largest of the tables.
    """
    edges, _ = drawn(seed)
    g = torch.Generator().manual_seed(seed)
    centres, far = bin_centres(edges).double(), float(edges[-1])
    low, high = float(centres[0]), float(centres[-1])
    near = low * 10 ** (2 * torch.rand(300, generator=g) - 1)
    depth = torch.cat((far * torch.rand(300, generator=g), near, far - near)).clamp_min(1e-3)
    least, most = float(edges.diff().max()) / 2, target.MOST_SPANS * (far - float(edges[0]))
    sigma = least * (0.9999 * most / least) ** torch.rand(900, generator=g)
    sigma[::10], sigma[1::10] = least, 0.9999 * most
    depth, sigma = depth.view(1, 1, 30, 30), sigma.view(1, 1, 30, 30)
    by_newton = target._solve(depth, sigma, edges)
    monkeypatch.setattr(target, "_solve", None)
    wanted = depth.double().clamp(low, high)

    def mean(centre: torch.Tensor) -> torch.Tensor:
        z = (edges[1:-1].double() - centre.double()[..., None]) / sigma.double()[..., None]
        return centres[0] + torch.special.ndtr(-z) @ centres.diff()

    found = mean(shifted_centre(depth, sigma, edges))
    torch.testing.assert_close(found, wanted, rtol=8e-4, atol=0)
    torch.testing.assert_close(found, mean(by_newton), rtol=1e-3, atol=0)


def test_shifted_centre_of_sigma_without_table_is_solved():
    """Pixels whose sigma is smaller or larger than those of all tables are solved, as before."""
    edges = bin_edges(64, 0.1, 80.0, "log")
    depth = torch.tensor([1.0, 40.0, 2.0, 30.0]).view(1, 1, 2, 2)
    sigma = torch.tensor([0.3, 8.0, 1000.0, 9.0]).view(1, 1, 2, 2)
    centre, solved = shifted_centre(depth, sigma, edges), target._solve(depth, sigma, edges)
    torch.testing.assert_close(centre[..., :1], solved[..., :1], rtol=1e-5, atol=0)
    torch.testing.assert_close(centre[..., 1:], solved[..., 1:], rtol=1e-3, atol=0)


def test_sigma_tables_are_built_once_per_edges(monkeypatch):
    """The tables of a map of sigmas are built once, and again after a change of the edges."""
    edges, depth = bin_edges(16, 1.0, 80.0), torch.full((1, 1, 1, 1), 5.0)
    build, built = target._build_sigma_tables, []
    monkeypatch.setattr(
        target, "_build_sigma_tables", lambda *given: built.append(1) or build(*given)
    )
    centres = [shifted_centre(depth, torch.full_like(depth, 9.0), edges) for _ in range(3)]
    assert len(built) == 1
    edges += 1
    moved = shifted_centre(depth, torch.full_like(depth, 9.0), edges)
    assert len(built) == 2
    assert not torch.equal(moved, centres[0])


def test_target_of_invalid_depth_is_finite():
    """Invalid depths give a finite target that sums to 1."""
    edges = bin_edges(49, 1e-3, 10.0)
    depth = torch.tensor([0.0, -3.0, math.nan, math.inf, -math.inf, 5.0]).view(1, 1, 2, 3)
    for q in (
        gaussian_target(depth, 0.15, None, edges),
        gaussian_target(depth, torch.full_like(depth, 0.15), None, edges),
        gaussian_target(depth.expand(1, 2, 2, 3), 0.15, None, edges),
        released_target(depth, 0.15, edges, bin_centres(edges)),
    ):
        assert torch.isfinite(q).all()
        torch.testing.assert_close(q.sum(1), torch.ones(1, 2, 3), rtol=0, atol=1e-6)


def test_gaussian_target_mixture_weights():
    """A mixture is the weighted mean of its valid components, each with its sigma."""
    edges = bin_edges(49, 1e-3, 10.0)
    depth = torch.tensor([[2.0, 2.0, 2.0], [8.0, 8.0, 0.0]]).view(1, 2, 1, 3)
    weight = torch.tensor([[1.0, 3.0, 1.0], [1.0, 1.0, 5.0]]).view(1, 2, 1, 3)
    sigma = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    mean = means(gaussian_target(depth, sigma, weight, edges), edges).flatten()
    torch.testing.assert_close(
        mean, torch.tensor([5.0, 3.5, 2.0], dtype=torch.float64), rtol=1e-3, atol=0
    )
    equal = means(gaussian_target(depth, sigma, None, edges), edges).flatten()
    torch.testing.assert_close(
        equal, torch.tensor([5.0, 5.0, 2.0], dtype=torch.float64), rtol=1e-3, atol=0
    )
    narrow, wide = (gaussian_target(depth[:, :1], s, None, edges)[0, :, 0, 0] for s in (0.3, 0.6))
    assert wide.max() < 0.6 * narrow.max()


def test_released_target_equals_published_shape():
    """The released target has the published mean, and is uniform beyond max_depth."""
    for num_bins, max_depth, depth, mean in ((257, 80.0, 2.0, 2.92), (49, 10.0, 1.0, 2.33)):
        edges = bin_edges(num_bins, 1e-3, max_depth)
        q = released_target(torch.full((1, 1, 1, 1), depth), 0.5, edges, bin_centres(edges))
        assert float(means(q, edges)) == pytest.approx(mean, abs=0.01)
    edges = bin_edges(257, 1e-3, 80.0)
    uniform = released_target(torch.full((1, 1, 1, 1), 85.0), 0.5, edges, bin_centres(edges))
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / 257))


def test_check_sigma_rejects_too_small():
    """A sigma under half of the widest bin is an error that names the least one."""
    edges = bin_edges(33, 1e-3, 80.0)
    check_sigma(1.2121, edges)
    with pytest.raises(
        RecipeError, match=r"^sigma: 0.5 m is under half of the widest bin \(>= 1.212 m is needed\)"
    ):
        check_sigma(0.5, edges)
    depth = torch.full((1, 1, 2, 2), 40.0)
    one_small = torch.tensor([5.0, 5.0, 0.5, 5.0]).view(1, 1, 2, 2)
    for sigma in (0.5, torch.full_like(depth, 0.5), one_small):
        with pytest.raises(
            RecipeError, match=r"0.5 m at a depth of 40 m .* \(>= 1.212 m is needed\)"
        ):
            gaussian_target(depth, sigma, None, edges)
    log_edges = bin_edges(257, 1e-3, 80.0, "log")
    told = (
        "to 3.438 m for the last, and need sigma >= 1.719 m; as many with spacing: uniform need "
        "only >= 0.1556 m$"
    )
    with pytest.raises(RecipeError, match=told):
        check_sigma(0.5, log_edges)
    near = gaussian_target(torch.full((1, 1, 1, 1), 1.0), 0.5, None, log_edges)
    assert float(means(near, log_edges)) == pytest.approx(1.0, rel=1e-3)


def test_bin_edges_uniform_and_log():
    """Uniform and log edges are spaced as named, and invalid ranges are rejected."""
    uniform = bin_edges(257, 1e-3, 80.0)
    assert uniform.shape == (258,)
    assert uniform.dtype == torch.float32
    assert float(bin_centres(uniform)[0]) == pytest.approx(0.001 + 79.999 / 257 / 2)
    ratios = bin_edges(10, 0.1, 80.0, "log")[1:] / bin_edges(10, 0.1, 80.0, "log")[:-1]
    torch.testing.assert_close(ratios, torch.full((10,), 800**0.1))
    for wrong in ((1, 1e-3, 80.0), (8, 80.0, 1e-3), (8, 0.0, 80.0), (8, 1e-3, 80.0, "cubic")):
        with pytest.raises(RecipeError):
            bin_edges(*wrong)


@pytest.mark.parametrize("spacing", ["uniform", "log"])
@pytest.mark.parametrize("sigma", [0.2, 0.5, 3.0])
def test_gaussian_target_far_edges_hold_no_mass(spacing, sigma):
    """Leaving out edges far from the depth changes no bin by more than 3e-5.

    The number takes the way over the near edges, the map always the one over all. With the last
    sigma the number takes the one over all, too.
    """
    edges = bin_edges(300, 1.0, 80.0, spacing)
    depth = torch.cat((depths_m().flatten(), torch.linspace(1, 80, 3000))).view(1, 1, 1, -1)
    if spacing == "log":
        depth = depth.clamp(max=0.5 * sigma * 300 / math.log(80))
        edges = edges[: int((edges.diff() / 2 < sigma).sum()) + 1]
    centre = shifted_centre(depth, sigma, edges)
    z = (edges[1:-1].double().view(1, -1, 1, 1) - centre.double()) / sigma
    cdf = torch.cat(
        (torch.zeros_like(z[:, :1]), torch.special.ndtr(z), torch.ones_like(z[:, :1])), 1
    )
    torch.testing.assert_close(
        gaussian_target(depth, sigma, None, edges).double(), cdf.diff(dim=1), rtol=0, atol=3e-5
    )
