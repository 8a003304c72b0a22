"""Mixtures of Gaussians of several sigmas: their mass per bin, against the dense definition."""

import pytest
import torch

from tiekd.kernels import mixtures, reference, targets_by_rows
from tiekd.kernels.target import bin_edges

EDGES = bin_edges(80, 1e-3, 80.0).double()


def maps(teachers: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns depths (1, M, 10, 24) with holes and both ends, sigmas of 0.5 to 12.5 m, weights."""
    g = torch.Generator().manual_seed(teachers)
    depth = torch.linspace(1, 85, 240, dtype=torch.float64).view(1, 1, 10, 24)
    depth = depth.repeat(1, teachers, 1, 1) + 5 * torch.arange(teachers).view(1, -1, 1, 1)
    depth[torch.rand(depth.shape, generator=g) < 0.4] = 0
    depth[:, :, :2, :2] = 0
    sigma = 0.5 + 12 * torch.rand(depth.shape, generator=g, dtype=torch.float64) ** 4
    return depth, sigma, torch.rand(depth.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("bytes_at_once", [1, 1 << 21])
@pytest.mark.parametrize(("teachers", "stride"), [(1, 2), (2, 1), (3, 2)])
def test_mixtures_equal_dense_definition(monkeypatch, teachers, stride, bytes_at_once):
    """The mass of each row's cells is the definition's, whether cells are grouped or not."""
    monkeypatch.setattr(mixtures, "BYTES_AT_ONCE", bytes_at_once)
    depth, sigma, weight = maps(teachers)
    cells = targets_by_rows.CellTargets(
        depth, sigma, weight, EDGES, "gaussian", "clamp", stride=stride
    )
    assert isinstance(cells.gaussians[0], mixtures.Mixtures)
    q, valid = reference.cell_target(depth, sigma, weight, EDGES, stride=stride)
    width = 24 // stride
    cells.lists_windows = False
    got = cells.target_of_rows(0, slice(0, 4))
    counted = valid[0, 0, :4].flatten()
    assert torch.equal(got.valid, counted)
    assert 0 < counted.sum() < len(counted) == 4 * width
    wanted = q[0, :, :4].flatten(1)
    torch.testing.assert_close(got.mass[:, counted], wanted[:, counted], rtol=0, atol=1e-14)
    torch.testing.assert_close(got.mass.sum(0), torch.ones_like(got.mass[0]), rtol=0, atol=1e-14)


def test_mixtures_of_one_sigma_for_each_teacher():
    """One number for each teacher gives the mass of the definition, without a dense Gaussian."""
    depth, _, weight = maps(2)
    sigma = (0.6, 3.0)
    cells = targets_by_rows.CellTargets(depth, sigma, weight, EDGES, "gaussian", "clamp", 2)
    q, valid = reference.cell_target(depth, sigma, weight, EDGES, stride=2)
    got = cells.target_of_rows(0, slice(0, 5))
    assert isinstance(cells.gaussians[0], mixtures.Mixtures)
    counted = valid[0, 0, :5].flatten()
    wanted = q[0, :, :5].flatten(1)
    torch.testing.assert_close(got.mass[:, counted], wanted[:, counted], rtol=0, atol=1e-8)


def test_mixtures_ignore_maps_where_invalid():
    """Depths and sigmas that are NaN or infinite where not valid change no mass."""
    depth, sigma, _ = maps(1)
    bad = depth == 0
    arguments = None, EDGES, "gaussian", "clamp", 2
    wanted = targets_by_rows.CellTargets(depth, sigma, *arguments).target_of_rows(0, slice(0, 5))
    for value in (torch.nan, torch.inf, 0.0):
        changed = depth.masked_fill(bad, torch.nan), sigma.masked_fill(bad, value)
        got = targets_by_rows.CellTargets(*changed, *arguments).target_of_rows(0, slice(0, 5))
        torch.testing.assert_close(got.mass, wanted.mass, rtol=0, atol=0)


def test_mixtures_in_float32_are_near_float64():
    """In float32 the mass differs by rounding only, also between Gaussians that are far apart."""
    depth, sigma, weight = maps(2)
    depth[:, 1] = depth[:, 1].flip(1)
    got, wanted = (
        targets_by_rows.CellTargets(
            depth, sigma, weight, EDGES.to(dtype), "gaussian", "clamp", 2
        ).target_of_rows(0, slice(0, 5))
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(got.mass.double(), wanted.mass, rtol=0, atol=3e-6)
    assert got.mass.min() >= 0
