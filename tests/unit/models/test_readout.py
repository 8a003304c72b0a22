"""Readouts of a distribution over bins.

Reference values are by hand, and strips give what the whole gives.
"""

import math

import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.models import readout
from tiekd.models.heads.dpm import Dpm, DpmOptions

CENTRES = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0])
# Two hills, as at the edge of a thing: 2 to 3 m in front, 20 to 30 m behind, the nearer one higher.
EDGE = torch.tensor([0.05, 0.30, 0.20, 0.00, 0.00, 0.25, 0.20, 0.00])


def pixel(distribution):
    return distribution.view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("name", "metres"),
    [
        ("mean", 0.05 * 1 + 0.30 * 2 + 0.20 * 3 + 0.25 * 20 + 0.20 * 30),
        ("mode", 2.0),
        ("local", (0.05 * 1 + 0.30 * 2 + 0.20 * 3) / 0.55),  # the bins 0 to 3
    ],
)
def test_read_out_of_edge_by_hand(name, metres):
    """Each readout of a distribution with two peaks equals the value by hand."""
    depth = readout.read_out(pixel(EDGE), CENTRES, name)
    assert depth.shape == (1, 1, 1, 1)
    assert depth.item() == pytest.approx(metres, rel=1e-6)


def test_read_out_local_reaches_two_bins():
    """Local reads two bins on each side of the mode, and ends at the first and last."""
    flat = torch.full((8,), 0.1)
    for mode, expected in ((0, [0, 1, 2]), (4, [2, 3, 4, 5, 6]), (7, [5, 6, 7])):
        distribution = flat.clone()
        distribution[mode] = 0.3
        weights = distribution[expected]
        depth = readout.read_out(pixel(distribution), CENTRES, "local").item()
        assert depth == pytest.approx(
            float((weights * CENTRES[expected]).sum() / weights.sum()), rel=1e-6
        )


def test_read_out_single_peak_mean_equals_local():
    """For one narrow peak, mean and local give the same depth."""
    hill = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.2, 0.1, 0.0, 0.0])
    assert readout.read_out(pixel(hill), CENTRES, "mean").item() == pytest.approx(
        readout.read_out(pixel(hill), CENTRES, "local").item(), rel=1e-6
    )


def test_entropy_of_certain_and_uniform():
    """The entropy is 0 for a certain bin and log K for a uniform distribution."""
    certain = torch.zeros(8)
    certain[3] = 1
    assert readout.entropy(pixel(certain)).item() == 0
    assert readout.entropy(pixel(torch.full((8,), 1 / 8))).item() == pytest.approx(
        math.log(8), rel=1e-6
    )


def test_read_out_rejects_unknown_name():
    """An unknown readout is a RecipeError that names the known ones."""
    with pytest.raises(RecipeError, match="got 'median'; allowed: mean, mode, local"):
        readout.read_out(pixel(EDGE), CENTRES, "median")


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_in_strips_equals_whole(monkeypatch, rows):
    """Reading in strips equals reading the whole, with at most a strip in memory."""
    torch.manual_seed(0)
    head, features = (
        Dpm(6, 0.001, 80.0, options=DpmOptions(num_bins=33, sigma=2.0)),
        torch.randn(2, 6, 10, 14),
    )
    torch.nn.init.normal_(head.weight)
    seen = []

    def probabilities(part):
        seen.append(part.shape)
        return head.probabilities(part)

    monkeypatch.setattr(readout, "STRIP_BYTES", rows * 14 * 33 * 4)
    centres = (head.edges[1:] + head.edges[:-1]) / 2

    def read(distribution, own):
        return torch.cat([readout.read_out(distribution, centres, "local"), own], dim=1)

    own = torch.randn(2, 3, 10, 14)
    in_parts = readout.in_strips(read, features, probabilities, own)
    assert torch.allclose(in_parts, read(head.probabilities(features), own), rtol=1e-5, atol=1e-6)
    assert all(shape[0] == 1 and shape[2] <= rows for shape in seen)


def test_resize_to_image_smooth_or_nearest():
    """A coarse map is upsampled bilinearly if smooth, or else by the nearest cell."""
    edge = torch.tensor([5.0, 5.0, 40.0, 40.0]).expand(1, 1, 3, 4)
    smooth, sharp = (readout.resize_to_image(edge, (7, 11), smooth) for smooth in (True, False))
    assert smooth.shape == sharp.shape == (1, 1, 7, 11)
    assert ((smooth > 6) & (smooth < 39)).any()
    assert sharp[0, 0, 0].tolist() == [5.0] * 5 + [40.0] * 6  # of two equally near cells the second


@pytest.mark.parametrize("coarse", [1, 2, 3, 7, 16, 37])
def test_resize_to_image_nearest_with_aligned_corners(coarse):
    """Each pixel takes its nearest cell with aligned corners, the second of a tie."""
    columns = torch.arange(coarse, dtype=torch.float32).expand(1, 1, 1, coarse)
    for fine in (*range(1, 90), 1216, 4001):
        index, last = readout.resize_to_image(columns, (1, fine), False)[0, 0, 0].long(), fine - 1
        doubled = 2 * torch.arange(fine) * (coarse - 1)
        # In whole numbers, |index - i (coarse - 1) / last| <= 1/2, and of two equally near the
        # second.
        away = 2 * index * last - doubled
        assert ((-last < away) & (away <= last)).all() if fine > 1 else index.tolist() == [0]


def test_margin_between_two_likeliest_bins():
    """The margin is the difference of the two largest probabilities."""
    assert readout.margin(pixel(EDGE)).item() == pytest.approx(0.30 - 0.25)
