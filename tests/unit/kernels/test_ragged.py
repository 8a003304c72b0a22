"""Windows of different sizes: their mass per bin, and the numbers that a loss computes from it."""

import pytest
import torch

from tiekd.kernels import ragged
from tiekd.kernels.target import bin_edges, gaussian_target
from tiekd.kernels.targets_by_rows import CellTargets

EDGES = bin_edges(80, 1e-3, 80.0).double()


def maps(teachers: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns depths (1, M, 5, 12) with both ends and holes, sigmas from the least on, weights."""
    g = torch.Generator().manual_seed(0)
    depth = torch.linspace(-1, 85, 60, dtype=torch.float64).view(1, 1, 5, 12)
    depth = depth + torch.arange(teachers).view(1, -1, 1, 1)
    sigma = 0.5 + 5 * torch.rand(depth.shape, generator=g, dtype=torch.float64) ** 4
    return depth, sigma, torch.rand(depth.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("teachers", [1, 2, 3])
def test_entries_hold_the_mixtures_mass(teachers):
    """The entries' mass is the dense target's, and is 0 outside of the windows."""
    depth, sigma, weight = maps(teachers)
    cells = CellTargets(depth, sigma, weight, EDGES, "gaussian", "clamp", 1)
    windows = cells.gaussians[0]
    cell, bins, mass = windows.entries(0, slice(0, 5), EDGES)
    assert cells.lists_windows
    assert bool((cell.diff() >= 0).all())
    q = torch.zeros(80, 60, dtype=torch.float64)
    q.index_put_((bins.long(), cell.long()), mass, accumulate=True)
    counted = (depth > 0).any(1).flatten()
    wanted = gaussian_target(depth, sigma, weight, EDGES)[0].flatten(1)[:, counted]
    torch.testing.assert_close(q[:, counted], wanted, rtol=0, atol=1e-14)
    ones = torch.ones(int(counted.sum()), dtype=torch.float64)
    torch.testing.assert_close(q[:, counted].sum(0), ones, rtol=0, atol=1e-14)
    assert windows.num_edges.min() < 16 < windows.num_edges.max()


@pytest.mark.parametrize("teachers", [1, 2])
def test_ragged_target_equals_dense(teachers):
    """Entropy, expectation and gradient of some of the cells are the dense target's."""
    arguments = *maps(teachers), EDGES, "gaussian", "clamp", 1
    targets = CellTargets(*arguments)
    sparse = targets.target_of_rows(0, slice(1, 4))
    assert isinstance(sparse, ragged.RaggedTarget)
    targets.lists_windows = False
    dense = targets.target_of_rows(0, slice(1, 4))
    assert dense.bins is None
    values = torch.randn(80, 20, generator=torch.Generator().manual_seed(1)).double()
    results, counted = [], dense.valid[12:32]
    for q in (sparse.select_cells(slice(12, 32)), dense.select_cells(slice(12, 32))):
        changed = values.clone()
        entropy, expectation = q.minus_entropy(80), q.expectation(values)
        q.add_to(changed, values[0])
        results.append((entropy[counted], expectation[counted], changed[:, counted], q.valid))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_wide_windows_are_dense():
    """Windows with most of the bins aren't listed."""
    depth, sigma, weight = maps(1)
    targets = CellTargets(depth, 30 * sigma, weight, EDGES, "gaussian", "clamp", 1)
    assert targets.target_of_rows(0, slice(0, 5)).bins is None
