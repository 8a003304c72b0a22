"""Checks of pairs: exchanged, not rectified, without matches."""

import numpy as np
import pytest
from support.stereo_pairs import plane

from tiekd.errors import TeacherError
from tiekd.teachers.pairs import checks
from tiekd.teachers.pairs.checks import Look

SIZE = {"height": 160, "width": 320}


def look_at(rows: int = 0, exchanged: bool = False) -> Look:
    """Looks at a plane whose right image is moved down by some rows."""
    left, right, _ = plane(**SIZE)
    right = np.roll(right, rows, axis=0)
    return checks.look_at(*((right, left) if exchanged else (left, right)), None)


def test_rectified_pair_passes_with_its_figures():
    """The log has the share of matches and the vertical offset."""
    look = look_at()
    assert look.matched > 0.8 > 0.2 > look.exchanged
    assert abs(look.disparity - 13) < 1
    told = checks.judge([look], "a.png")
    share = f"{look.matched:.0%}"
    assert told == f"Teacher: {share} of the pixels match in 1 pairs, vertical offset 0.0 px"


def test_disparity_of_a_wide_pair_is_in_its_own_pixels():
    """The look at a reduced image returns the disparity of the image itself."""
    left, right, _ = plane(height=64, width=1280, near=60.0, far=40.0)
    assert checks.look_at(left, right, None).disparity == pytest.approx(50, abs=3)


def test_exchanged_images_are_refused():
    """More pixels match the other way round."""
    with pytest.raises(TeacherError, match="left and right look exchanged: 1?.% of the pixels"):
        checks.judge([look_at(exchanged=True)], "a.png")


def test_vertical_offset_of_three_rows_is_refused():
    """The median offset of features is named, and how many there were."""
    with pytest.raises(TeacherError, match=r"pairs aren't rectified: features are 3\.\d pixels"):
        checks.judge([look_at(rows=3)], "a.png")


def test_vertical_offset_of_one_row_is_said():
    """A row off is a warning: depth is less exact."""
    told = checks.judge([look_at(rows=1)], "a.png")
    assert "vertical offset 1." in told
    assert "Warning: rectified pairs have 0" in told


def look_of(matched: float, exchanged: float, offsets: int) -> Look:
    return Look(np.zeros(offsets), matched, exchanged, 10.0)


def test_few_features_and_few_matches_are_said():
    """Without enough features nothing is claimed about rows, and few matches are a warning."""
    told = checks.judge([look_of(0.12, 0.05, 20), look_of(0.1, 0.05, 29)], "a.png")
    assert "11% of the pixels match in 2 pairs, too few features to see if rows agree (49)" in told
    assert "Warning: so few match in images that don't belong together" in told
    assert "Warning" not in checks.judge([look_of(0.2, 0.05, 50)], "a.png")


def test_vertical_offsets_of_images_without_features_are_none():
    """An empty image has no features."""
    empty = np.zeros((80, 80), np.uint8)
    assert checks.vertical_offsets(empty, empty).shape == (0,)
