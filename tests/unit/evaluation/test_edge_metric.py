"""Points in mid-air at edges, by hand.

The local readout of a distribution with two hills leaves none.
"""

import math

import pytest
import torch

from tiekd.evaluation.edge_metric import mid_air
from tiekd.models.readout import read_out

NEAR, FAR = 10.0, 30.0


def wall(height=6, width=12, edge=6):
    """A near wall at the left, a far one at the right of column `edge`."""
    truth = torch.full((1, 1, height, width), NEAR)
    truth[..., edge:] = FAR
    return truth


def test_mid_air_share_of_truth_and_curtain():
    """The share is 0 for the ground truth itself and 1 for depth between both walls."""
    truth = wall()
    # With a radius of 2 the columns 4 to 7 have both column 5 and column 6 in reach.
    assert mid_air(truth, truth) == (0.0, 4 * 6)
    assert mid_air(torch.full_like(truth, 20.0), truth) == (1.0, 4 * 6)


def test_mid_air_depth_near_side_does_not_count():
    """Depth within 5 % of a side, or beyond both sides, is not in mid-air."""
    truth = wall()
    for depth, share in (
        (NEAR * 1.04, 0),
        (NEAR * 1.06, 1),
        (FAR * 0.96, 0),
        (FAR * 0.94, 1),
        (5.0, 0),
        (60.0, 0),
    ):
        assert mid_air(torch.full_like(truth, depth), truth).share == share


def test_mid_air_counts_pixels_near_edges_only():
    """Only pixels near an edge of the ground truth count."""
    truth, prediction = wall(), wall()
    prediction[..., 0] = prediction[..., -1] = 20.0  # far from the edge
    assert mid_air(prediction, truth).share == 0
    prediction[:, :, 0, 5] = 20.0
    assert mid_air(prediction, truth).share == pytest.approx(1 / 24)


def test_mid_air_edges_in_both_directions():
    """A slope is no edge; horizontal and vertical edges give the same pixel count."""
    slope = torch.linspace(10, 30, 12).expand(
        1, 1, 12, 12
    )  # a factor of at most 1.18 between neighbours
    assert mid_air(slope, slope).pixels == 0
    assert math.isnan(mid_air(slope, slope).share)
    assert (
        mid_air(wall(12, 12).mT, wall(12, 12).mT).pixels
        == mid_air(wall(12, 12), wall(12, 12)).pixels
        == 12 * 4
    )


def test_mid_air_invalid_depth_makes_no_edge():
    """Pixels without a valid depth make no edge and aren't counted."""
    truth = wall()
    truth[truth == FAR] = 0
    assert mid_air(torch.full_like(truth, 20.0), truth).pixels == 0
    truth = wall()
    truth[:, :, 0, 0] = float("nan")  # reaches to column 2
    assert mid_air(truth, truth).pixels == 24
    truth[:, :, 0, 3] = 0  # in the square of 3 rows of columns 4 and 5
    assert mid_air(truth, truth).pixels == 24 - 6


def test_mid_air_rejects_different_sizes():
    """Two maps of different sizes raise a ValueError."""
    with pytest.raises(ValueError, match="needs two maps"):
        mid_air(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 5))


def test_read_out_local_leaves_no_mid_air_points():
    """At an unsure edge, mean puts points in mid-air; mode and local put none."""
    centres = torch.arange(1.0, 41.0)
    truth = wall()
    near, far = (torch.exp(-((centres - depth) ** 2) / 2) for depth in (NEAR, FAR))
    # A network that isn't sure where the edge is: the far wall's share grows over some columns.
    share = torch.linspace(-0.6, 1.55, 12).clamp(0, 1).view(1, 1, 1, 12)
    hills = near.view(1, -1, 1, 1) * (1 - share) + far.view(1, -1, 1, 1) * share
    probabilities = (hills / hills.sum(1, keepdim=True)).expand(1, 40, 6, 12)
    by_name = {
        name: mid_air(read_out(probabilities, centres, name), truth).share
        for name in ("mean", "mode", "local")
    }
    assert by_name["mean"] > 0.5
    assert by_name["mode"] == by_name["local"] == 0
