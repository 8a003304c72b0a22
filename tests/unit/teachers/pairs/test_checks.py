"""Checks of pairs: exchanged, not rectified, without matches."""

import numpy as np
import pytest
from support.stereo_pairs import plane

from tiekd.errors import TeacherError
from tiekd.teachers.pairs import checks
from tiekd.teachers.pairs.checks import PairMeasurements

SIZE = {"height": 160, "width": 320}


def measure(rows: int = 0, exchanged: bool = False) -> PairMeasurements:
    """Measures a plane whose right image is moved down by some rows."""
    left, right, _ = plane(**SIZE)
    right = np.roll(right, rows, axis=0)
    return checks.measure_pair(*((right, left) if exchanged else (left, right)), None)


def test_rectified_pair_passes_with_its_figures():
    """The log has the share of matches and the vertical offset."""
    found = measure()
    assert found.matched > 0.8 > 0.2 > found.exchanged
    assert abs(found.disparity - 13) < 1
    told = checks.check_pairs([found], "a.png")
    share = f"{found.matched:.0%}"
    assert told == f"Teacher: {share} of the pixels match in 1 pairs, vertical offset 0.0 px"


def test_disparity_of_a_wide_pair_is_in_its_own_pixels():
    """The measurement on a reduced image returns the disparity of the image itself."""
    left, right, _ = plane(height=64, width=1280, near=60.0, far=40.0)
    assert checks.measure_pair(left, right, None).disparity == pytest.approx(50, abs=3)


def test_exchanged_images_are_refused():
    """More pixels match the other way round."""
    with pytest.raises(TeacherError, match="left and right look exchanged: 1?.% of the pixels"):
        checks.check_pairs([measure(exchanged=True)], "a.png")


def test_vertical_offset_of_three_rows_is_refused():
    """The median offset of features is named, and how many there were."""
    with pytest.raises(TeacherError, match=r"pairs aren't rectified: features are 3\.\d pixels"):
        checks.check_pairs([measure(rows=3)], "a.png")


def test_vertical_offset_of_one_row_is_said():
    """A row off is a warning: depth is less exact."""
    told = checks.check_pairs([measure(rows=1)], "a.png")
    assert "vertical offset 1." in told
    assert "Warning: rectified pairs have 0" in told


def measurements_of(matched: float, exchanged: float, offsets: int) -> PairMeasurements:
    return PairMeasurements(np.zeros(offsets), matched, exchanged, 10.0)


def test_few_features_and_few_matches_are_said():
    """Without enough features nothing is claimed about rows, and few matches are a warning."""
    told = checks.check_pairs(
        [measurements_of(0.12, 0.05, 20), measurements_of(0.1, 0.05, 29)], "a.png"
    )
    assert "11% of the pixels match in 2 pairs, too few features to see if rows agree (49)" in told
    assert "Warning: so few match in images that don't belong together" in told
    assert "Warning" not in checks.check_pairs([measurements_of(0.2, 0.05, 50)], "a.png")


def test_vertical_offsets_of_images_without_features_are_none():
    """An empty image has no features."""
    empty = np.zeros((80, 80), np.uint8)
    assert checks.vertical_offsets(empty, empty).shape == (0,)
