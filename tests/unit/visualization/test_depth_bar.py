"""The scale beside a coloured depth map says what the map's colours mean."""

import numpy as np
import pytest

from tiekd.visualization.depth_bar import bar, with_bar
from tiekd.visualization.pictures import UNKNOWN, colourise


def test_with_bar_keeps_image():
    """The image stays unchanged, and the scale is added to its right."""
    colour = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    whole = with_bar(colour, 80.0)
    assert whole.dtype == np.uint8
    assert whole.shape[0] == 120
    assert whole.shape[1] > 230
    assert np.array_equal(whole[:, :200], colour)


@pytest.mark.parametrize("height", [375, 3000])
def test_bar_colours_match_depths(height):
    """Each depth's colour lies on the bar at that depth, far at the top."""
    scale = bar(height, 80.0).astype(int)
    middle = scale[:, scale.shape[1] // 5]  # a column of the bar itself
    rows = [
        np.abs(middle - colourise(np.array([[d]]), 80.0)[0, 0]).sum(1).argmin()
        for d in (79.0, 40.0, 20.0, 5.0, 0.2)
    ]
    assert rows == sorted(rows)
    assert rows[0] < height * 0.06
    assert rows[-1] > height * 0.9
    assert (
        abs(rows[2] / height - 0.5) < 0.02
    )  # a quarter of the range is half way, as colours go with the square root
    assert not (middle == UNKNOWN).all(1).any()


def test_bar_labels_scale_with_height():
    """Labels grow with the bar's height, and tiny heights and extreme ranges work."""

    def inked(height):
        return (bar(height, 10.0) > 200).all(2).sum()

    assert inked(3000) > 20 * inked(300) > 0
    assert bar(8, 10.0).shape[0] == 8
    assert bar(1, 10.0).shape[0] == 1
    for largest in (0.5, 655.0, 1e-3, 1e6):
        assert bar(200, largest).shape[0] == 200
