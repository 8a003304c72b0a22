"""Checks that image pairs match, are rectified, and have left and right in the right order.

A few pairs are checked. To find matching pixels, the images are reduced to SMALL_WIDTH columns;
this takes some 0.3 s per pair. Not covered: whether the two cameras are synchronised, which a
single pair of a moving scene doesn't show.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tiekd.errors import TeacherError
from tiekd.teachers.pairs import matching

NUM_PAIRS = 8
SMALL_WIDTH = 640
# Limits for the median vertical offset of matched features, in pixels: from INEXACT_PX the log
# warns that the pairs are inexact, and above UNRECTIFIED_PX they are refused. The position of a
# feature is exact to about one pixel. With less than FEW_FEATURES features the offset isn't
# checked.
INEXACT_PX, UNRECTIFIED_PX = 1.0, 1.5
FEW_FEATURES = 50
# If a smaller fraction of the pixels has a match, the log warns. Pairs of unrelated images have
# 0.03 to 0.1.
FEW_MATCHES = 0.15
_NUM_FEATURES, _SIMILAR_BITS = 1000, 32  # of 256 bits of a feature's descriptor


class PairMeasurements(NamedTuple):
    """The measurements on one image pair, from which `check_pairs` decides if pairs can be used.

    Attributes:
        offsets: (N,), magnitudes of the vertical offsets, in pixels, of the features that were
            found in both images.
        matched: Fraction of the left image's pixels that have a match in the right image.
        exchanged: The same fraction if left and right are exchanged.
        disparity: Median disparity of the matches in pixels; NaN without a match.
    """

    offsets: np.ndarray
    matched: float
    exchanged: float
    disparity: float


def measure_pair(
    left: np.ndarray, right: np.ndarray, max_disparity: int | None
) -> PairMeasurements:
    """Measures how well the two images of a pair match, also with left and right exchanged.

    Args:
        left: (H, W) uint8, grey levels of the left image.
        right: (H, W) uint8, grey levels of the right image.
        max_disparity: The largest disparity in pixels; None for a sixth of the width.

    Returns:
        The measurements, from which `check_pairs` tells if the pairs can be used.
    """
    cv2 = matching.opencv()
    scale = min(1.0, SMALL_WIDTH / left.shape[1])
    small = [
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for image in (left, right)
    ]
    largest = None if max_disparity is None else max_disparity * scale
    count = matching.searched(largest, small[0].shape[1])
    disparity = matching.disparity_of(*small, count)
    known = disparity[np.isfinite(disparity)]
    exchanged = np.isfinite(matching.disparity_of(*small[::-1], count))
    return PairMeasurements(
        vertical_offsets(left, right),
        known.size / disparity.size,
        float(exchanged.mean()),
        float(np.median(known)) / scale if known.size else np.nan,
    )


def vertical_offsets(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the vertical offsets of features that are found in both images.

    Args:
        left: (H, W) uint8, grey levels of the left image.
        right: (H, W) uint8, grey levels of the right image.

    Returns:
        (N,), magnitudes in pixels.
    """
    cv2 = matching.opencv()
    finder = cv2.ORB_create(_NUM_FEATURES)
    (points, codes), (other_points, other_codes) = (
        finder.detectAndCompute(image, None) for image in (left, right)
    )
    if codes is None or other_codes is None:
        return np.empty(0)
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(codes, other_codes)
    return np.array(
        [
            abs(points[match.queryIdx].pt[1] - other_points[match.trainIdx].pt[1])
            for match in matches
            if match.distance <= _SIMILAR_BITS
        ]
    )


def check_pairs(measurements: Sequence[PairMeasurements], example: str) -> str:
    """Decides from measurements on some image pairs if the pairs can be used.

    Args:
        measurements: The measurements on some of the pairs.
        example: Name of one of these pairs, for messages.

    Returns:
        A line for the log with the measurements, and a warning if few pixels match.

    Raises:
        TeacherError: Left and right are exchanged, or the pairs aren't rectified.
    """
    matched, exchanged = (
        float(np.mean([getattr(each, name) for each in measurements]))
        for name in ("matched", "exchanged")
    )
    num_pairs = len(measurements)
    if exchanged > matched:
        raise TeacherError(
            f"teacher.right: left and right look exchanged: {matched:.0%} of the pixels match as "
            f"given, {exchanged:.0%} the other way ({num_pairs} pairs, such as {example}); list "
            "the images of the left camera, and let teacher.right find those of the right one"
        )
    offsets = np.concatenate([each.offsets for each in measurements])
    if len(offsets) < FEW_FEATURES:
        rows = f"too few features to see if rows agree ({len(offsets)})"
    else:
        offset = float(np.median(offsets))
        if offset > UNRECTIFIED_PX:
            raise TeacherError(
                f"teacher.right: the pairs aren't rectified: features are {offset:.1f} pixels "
                f"higher or lower in the right image (median of {len(offsets)} in {num_pairs} "
                f"pairs, such as {example}); rectify them, so that a point is in one row of both"
            )
        rows = f"vertical offset {offset:.1f} px"
        if offset >= INEXACT_PX:
            rows += " (Warning: rectified pairs have 0, so depth is less exact)"
    told = f"Teacher: {matched:.0%} of the pixels match in {num_pairs} pairs, {rows}"
    if matched < FEW_MATCHES:
        told += "; Warning: so few match in images that don't belong together; see teacher.right"
    return told
