"""Windows of different sizes: their mass per bin, and the numbers that a loss computes from it."""

import torch

from tiekd.kernels import ragged, targets_by_rows
from tiekd.kernels.target import bin_edges, gaussian_target, shifted_centre

EDGES = bin_edges(80, 1e-3, 80.0).double()


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns depths (1, 1, 5, 12) with both ends, and sigmas from the least to one of 12 m."""
    g = torch.Generator().manual_seed(0)
    depth = torch.linspace(-1, 85, 60, dtype=torch.float64).view(1, 1, 5, 12)
    return depth, 0.5 + 12 * torch.rand(depth.shape, generator=g, dtype=torch.float64) ** 4


def test_ragged_windows_hold_the_gaussians_mass():
    """The entries' mass is the dense target's, and is 0 outside of the windows."""
    depth, sigma = maps()
    windows = ragged.ragged_windows(shifted_centre(depth, sigma, EDGES), sigma, EDGES)
    gaussian, bins, mass = windows.entries(EDGES)
    q = torch.zeros(80, 60, dtype=torch.float64)
    q.index_put_((bins.long(), gaussian.long()), mass, accumulate=True)
    wanted = gaussian_target(depth, sigma, None, EDGES)
    torch.testing.assert_close(q, wanted[0].flatten(1), rtol=0, atol=1e-14)
    torch.testing.assert_close(q.sum(0), torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-14)
    assert windows.num_bins.min() < 12 < windows.num_bins.max()


def test_ragged_target_equals_dense(monkeypatch):
    """Entropy, expectation and gradient of some of the cells are the dense target's."""
    arguments = *maps(), None, EDGES, "gaussian", "clamp", 1
    sparse = targets_by_rows.CellTargets(*arguments).target_of_rows(0, slice(1, 4))
    assert isinstance(sparse, ragged.RaggedTarget)
    monkeypatch.setattr(targets_by_rows, "DENSE_FROM", 0.0)
    dense = targets_by_rows.CellTargets(*arguments).target_of_rows(0, slice(1, 4))
    assert dense.bins is None
    values = torch.randn(80, 20, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for q in (sparse.select_cells(slice(12, 32)), dense.select_cells(slice(12, 32))):
        changed = values.clone()
        entropy, expectation = q.minus_entropy(80), q.expectation(values)
        q.add_to(changed, values[0])
        results.append((entropy, expectation, changed, q.valid))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
