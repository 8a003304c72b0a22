"""Disparity, depth and sigma of image pairs, against rendered pairs and planes of known depth."""

import os
import signal

import numpy as np
import pytest
import torch
from support.stereo_pairs import BASELINE_M, plane, rendered

from tiekd.teachers.pairs import matching
from tiekd.teachers.pairs.matching import Rig

# The error of a disparity in rendered pairs, whose cameras are rectified exactly.
RENDERED_ERROR_PX = 0.27


@pytest.fixture(scope="module")
def streets() -> list[tuple]:
    """Two rendered pairs: (pair, disparity, depth, sigma) each."""
    found = []
    for index in range(2):
        pair = rendered(index, 160, 544)
        rig = Rig(pair.focal, BASELINE_M)
        greys = matching.grey(pair.left), matching.grey(pair.right)
        disparity = matching.disparity_of(*greys, matching.searched(None, 544))
        depth = matching.depth_of(disparity, rig, 3.0)
        sigma = matching.sigma_of(depth, disparity, rig, RENDERED_ERROR_PX)
        found.append((pair, disparity, depth, sigma))
    return found


def joined(streets, values) -> np.ndarray:
    return np.concatenate([values(*street) for street in streets])


def test_depth_of_rendered_streets_is_near_the_truth(streets):
    """The median error is below 2 %, the bias below 1 %, and most visible pixels have a depth."""
    reached = 3 / BASELINE_M / streets[0][0].focal  # inverse depth of the smallest disparity

    def ratios(pair, _, depth, __):
        known = pair.visible & (depth > 0)
        return depth[known] / pair.depth[known]

    ratio = joined(streets, ratios)
    valid = joined(
        streets,
        lambda pair, _, depth, __: depth[pair.visible & (pair.depth * reached * 1.1 < 1)] > 0,
    )
    assert np.median(np.abs(ratio - 1)) < 0.02
    assert abs(np.median(ratio) - 1) < 0.01
    assert np.mean(valid) > 0.8


def test_occluded_pixels_have_no_depth(streets):
    """A pixel that the right camera doesn't see has a depth in few places: at borders."""
    hidden = joined(streets, lambda pair, _, depth, __: depth[(pair.depth > 0) & ~pair.visible] > 0)
    assert hidden.size > 2000
    assert hidden.mean() < 0.35


def test_sigma_of_rendered_streets_covers_errors(streets):
    """Of the errors 58 to 78 % are below sigma and 85 % below two, near and far alike."""
    for near, far in ((0, 12), (12, 80)):
        errors = joined(
            streets,
            lambda pair, _, depth, sigma, near=near, far=far: (
                np.abs(depth - pair.depth) / np.maximum(sigma, 1e-9)
            )[(depth > 0) & (pair.depth > near) & (pair.depth <= far)],
        )
        assert 0.58 < np.mean(errors < 1) < 0.78
        assert np.mean(errors < 2) > 0.85


def test_disparity_of_a_plane_is_exact_to_a_fraction_of_a_pixel():
    """Disparities between whole pixels are found, up to the columns of the left border."""
    left, right, true = plane()
    found = matching.disparity_of(left, right, 32)
    error = np.abs(found - true)
    assert np.isfinite(found[:, 24:]).mean() > 0.95
    assert np.nanmedian(error) < 0.15
    assert np.nanquantile(error, 0.95) < 0.5
    # OpenCV itself leaves the first 32 columns out. Column 24 is visible in every row.
    assert np.isfinite(found[:, 24:32]).mean() > 0.9
    # What the right camera doesn't see has no match.
    assert np.isnan(found[true > np.arange(192) + 4]).mean() > 0.8


def test_depth_of_disparities_by_hand():
    """Depth is f b / (d + offset), and 0 below the smallest disparity and without a match."""
    disparity = np.array([[10.0, 3.9, 4.0, np.nan, 0.0]], np.float32)
    depth = matching.depth_of(disparity, Rig(500.0, 0.2, 1.0), 5.0)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[100 / 11, 0, 20, 0, 0]], rtol=1e-6)


def test_sigma_is_the_derivative_of_depth():
    """A change of the disparity by its error changes depth by sigma, also with an offset."""
    rig, error = Rig(500.0, 0.2, 1.5), 0.01
    disparity = np.full((9, 9), 12.0, np.float32)
    depth = matching.depth_of(disparity, rig, 3.0)
    sigma = matching.sigma_of(depth, disparity, rig, error)
    nearer = matching.depth_of(disparity + np.float32(error), rig, 3.0)
    np.testing.assert_allclose(sigma, depth - nearer, rtol=0.01)


def test_sigma_grows_with_the_share_of_neighbours_without_a_match():
    """A pixel in whose window 14 of 49 pixels have no match has 1 + 4 * 14 / 49 times the error."""
    rig = Rig(500.0, 0.2)
    disparity = np.full((9, 20), 12.0, np.float32)
    disparity[:, :5] = np.nan
    depth = matching.depth_of(disparity, rig, 3.0)
    sigma = matching.sigma_of(depth, disparity, rig, 0.5)
    plain = depth[4, 12] ** 2 / 100 * 0.5
    assert sigma[4, 12] == pytest.approx(plain)
    assert sigma[4, 6] == pytest.approx(plain * (1 + 4 * 14 / 49))
    assert (sigma[:, :5] == 0).all()


def test_disparity_is_averaged_with_similar_neighbours():
    """Neighbours within a pixel are averaged; a jump, and pixels without a match, stay."""
    disparity = np.full((3, 4), 10.0, np.float32)
    disparity[1, 1] = 10.9
    disparity[:, 3] = 20.0
    disparity[0, 0] = np.nan
    found = matching.smoothed(disparity)
    assert found.dtype == np.float32
    assert found[1, 1] == pytest.approx(10 + 0.9 / 8)  # seven neighbours, and itself
    assert found[1, 2] == pytest.approx(10 + 0.9 / 6)  # five, as three are beyond the jump
    assert (found[:, 3] == 20).all()
    assert np.isnan(found).sum() == 1


@pytest.mark.parametrize(
    ("wanted", "width", "count"), [(None, 1242, 208), (None, 60, 16), (17, 500, 32), (32, 500, 32)]
)
def test_searched_disparities_are_a_multiple_of_16(wanted, width, count):
    """A sixth of the width unless given, rounded up."""
    assert matching.searched(wanted, width) == count


def test_forked_process_matches_after_its_parent():
    """A fork with another number of threads doesn't wait for its parent's, and finds the same."""
    left, right, _ = plane()
    matching.opencv.cache_clear()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = matching.disparity_of(left, right, 32)
        torch.set_num_threads(1)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a process that waits forever
            same = np.array_equal(matching.disparity_of(left, right, 32), expected, equal_nan=True)
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)
        matching.opencv.cache_clear()


def test_opencv_has_the_threads_of_the_process():
    """OpenCV gets as many threads as torch has, not one a core."""
    threads = torch.get_num_threads()
    matching.opencv.cache_clear()
    try:
        for count in (3, 1):
            torch.set_num_threads(count)
            matching.opencv.cache_clear()
            assert matching.opencv().getNumThreads() == count
    finally:
        torch.set_num_threads(threads)
        matching.opencv.cache_clear()


def test_even_area_has_no_depth():
    """Above a pole in an overexposed sky nothing is matched, and the pole and the road are."""
    left, right, _ = plane(160, 320)
    sky = slice(0, 80)
    for image, shift in ((left, 0), (right, 12)):
        image[sky] = 255
        image[sky, 150 - shift : 156 - shift] = np.random.default_rng(1).integers(0, 120, (80, 6))
    disparity = matching.disparity_of(left, right, 32)
    known = ~np.isnan(disparity)
    reach = matching.TEXTURE_WINDOW // 2
    assert not known[:70, : 150 - reach].any()
    assert not known[:70, 157 + reach :].any()
    assert known[10:70, 151:155].mean() > 0.9
    assert np.nanmedian(np.abs(disparity[10:70, 151:155] - 12)) < 0.5
    assert known[100:, 60:].mean() > 0.9
