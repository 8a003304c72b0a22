"""Matches rectified image pairs: a disparity, a depth and a sigma for each pixel of the left image.

OpenCV's semi-global matching runs on grey levels, once for each image, and a disparity counts only
if both agree. Its settings are the module's constants; model_configs/STEREO.md says how they were
chosen, and how good depth and sigma are. A pair of 375x1242 pixels takes 0.3 s on one core. All
functions take and return NumPy arrays. Left out: filling in pixels without a match.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from tiekd.teachers.outputs.model_place import import_package

# Block of the matching cost, and the penalties for a disparity that changes by one pixel and by
# more between neighbours, both for a single pixel of the block.
BLOCK = 5
SMALL_CHANGE, LARGE_CHANGE = 8, 64
# By how much the second best cost must exceed the best, in percent.
UNIQUENESS = 10
# Horizontal gradients are clipped to this value before matching.
PREFILTER_CAP = 63
# Connected regions of fewer pixels, with disparities within SPECKLE_RANGE, have no match.
SPECKLE_SIZE, SPECKLE_RANGE = 400, 2
# By how many pixels the disparities of the two images may differ.
LEFT_RIGHT_PX = 0.5
# By how many pixels neighbours' disparities may differ that are averaged.
SIMILAR_PX = 1.0
# The window around a pixel in which the share of pixels without a match is counted. The error of a
# disparity grows with it: by the factor 1 + ERROR_GROWTH * share. A pixel with a share above
# MOST_WITHOUT has no match itself. Such pixels are at the borders of objects and of occluded parts,
# where a block covers two surfaces.
SUPPORT_WINDOW, ERROR_GROWTH, MOST_WITHOUT = 7, 4.0, 0.5

# What a map depends on, for the manifest of cached maps.
SETTINGS = {
    "block": BLOCK,
    "small_change": SMALL_CHANGE,
    "large_change": LARGE_CHANGE,
    "uniqueness": UNIQUENESS,
    "prefilter_cap": PREFILTER_CAP,
    "speckle": [SPECKLE_SIZE, SPECKLE_RANGE],
    "left_right_px": LEFT_RIGHT_PX,
    "similar_px": SIMILAR_PX,
    "support": [SUPPORT_WINDOW, MOST_WITHOUT],
}
# What sigma depends on beside these and the error of a disparity.
SIGMA = {"window": SUPPORT_WINDOW, "growth": ERROR_GROWTH}

# OpenCV searches a multiple of 16 disparities, and returns them in sixteenths of a pixel.
_STEP = 16


class Rig(NamedTuple):
    """Two rectified cameras side by side.

    Attributes:
        focal_px: Horizontal focal length of both cameras in pixels.
        baseline_m: Distance between the cameras in metres.
        offset_px: Column of the right camera's principal point minus that of the left one's, which
            is added to each disparity; 0 for most rectified pairs.
    """

    focal_px: float
    baseline_m: float
    offset_px: float = 0.0

    def metres(self, disparity: float) -> float:
        """Returns the depth in metres of a disparity in pixels; infinity if it isn't above 0."""
        shifted = disparity + self.offset_px
        return self.focal_px * self.baseline_m / shifted if shifted > 0 else float("inf")


@functools.cache
def opencv() -> ModuleType:
    """Imports OpenCV, and gives it as many threads as torch has in this process.

    The number is set once, and forked processes inherit it: a forked process that changes it waits
    forever for its parent's threads.

    Raises:
        TeacherError: OpenCV isn't installed.
    """
    cv2 = import_package("cv2", "stereo")
    cv2.setNumThreads(torch.get_num_threads())
    return cv2


def searched(max_disparity: int | None, width: int) -> int:
    """Returns the number of disparities that are searched, a multiple of 16.

    Args:
        max_disparity: The largest disparity in pixels; None for a sixth of the width.
        width: The images' width in pixels.
    """
    wanted = width / 6 if max_disparity is None else max_disparity
    return _STEP * max(1, -int(-wanted // _STEP))


def grey(rgb: np.ndarray) -> np.ndarray:
    """Converts an image to grey levels, (H, W) uint8.

    Args:
        rgb: (H, W, 3) uint8.
    """
    cv2 = opencv()
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)


def disparity_of(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Returns the disparity of each pixel of the left image that has a match in the right one.

    Args:
        left: (H, W) uint8 grey levels.
        right: The same of the right image.
        count: The number of disparities that are searched, a multiple of 16.

    Returns:
        (H, W) float32, pixels; NaN where the two images' disparities don't agree, or there is none.
    """
    of_left = _matched(left, right, count)
    # The right image's disparities are those of the mirrored images in exchanged roles.
    of_right = _matched(right[:, ::-1], left[:, ::-1], count)[:, ::-1]
    height, width = left.shape
    columns = np.arange(width, dtype=np.float32) - of_left
    # A NaN has no column; it is compared with itself, and stays NaN.
    there = np.clip(np.nan_to_num(np.rint(columns)), 0, width - 1).astype(np.intp)
    difference = np.abs(np.take_along_axis(of_right, there, axis=1) - of_left)
    agrees = (columns > -0.5) & (difference <= LEFT_RIGHT_PX)
    agrees &= share_without(agrees) <= MOST_WITHOUT
    return smoothed(np.where(agrees, of_left, np.float32(np.nan)))


def smoothed(disparity: np.ndarray) -> np.ndarray:
    """Returns the mean of each pixel's disparity and those of its similar neighbours.

    Of the eight neighbours those within SIMILAR_PX are similar, so that borders of objects stay
    where they are. The mean is finer than OpenCV's steps of a sixteenth of a pixel, and its errors
    are smaller.

    Args:
        disparity: (H, W) float32, pixels; NaN where there is none.

    Returns:
        (H, W) float32, pixels; NaN in the same pixels.
    """
    height, width = disparity.shape
    # A NaN is similar to nothing.
    around = np.pad(disparity, 1, constant_values=np.nan)
    total, count = np.zeros_like(disparity), np.zeros_like(disparity)
    for row in range(3):
        for column in range(3):
            neighbour = around[row : row + height, column : column + width]
            similar = np.abs(neighbour - disparity) <= SIMILAR_PX
            total += np.where(similar, neighbour, 0)
            count += similar
    return np.where(count > 0, total / np.maximum(count, 1), np.float32(np.nan))


def share_without(matched: np.ndarray) -> np.ndarray:
    """Returns for each pixel the share of pixels without a match in the window around it.

    Args:
        matched: (H, W) bool, True in pixels with a match.

    Returns:
        (H, W) float32, 0 to 1.
    """
    window = (SUPPORT_WINDOW, SUPPORT_WINDOW)
    return opencv().blur((~matched).astype(np.float32), window)


def depth_of(disparity: np.ndarray, rig: Rig, min_disparity: float) -> np.ndarray:
    """Returns depths in metres: focal length * baseline / disparity.

    Args:
        disparity: (H, W) float32, pixels; NaN where there is none.
        rig: The cameras.
        min_disparity: The smallest disparity with a depth, in pixels, the rig's offset included.

    Returns:
        (H, W) float32, metres, 0 where invalid.
    """
    shifted = disparity + np.float32(rig.offset_px)
    known = shifted >= min_disparity  # False for NaN
    scale = np.float32(rig.focal_px * rig.baseline_m)
    return np.where(known, scale / np.where(known, shifted, 1), np.float32(0))


def sigma_of(
    depth: np.ndarray, disparity: np.ndarray, rig: Rig, disparity_error: float
) -> np.ndarray:
    """Returns the standard deviation of depths that follows from that of disparities.

    sigma = depth^2 / (focal length * baseline) * error, the derivative of depth by disparity. The
    error is `disparity_error` where all pixels around have a match, and larger where some don't.

    Args:
        depth: (H, W) float32, metres, 0 where invalid.
        disparity: (H, W) float32, pixels; NaN where there is none.
        rig: The cameras.
        disparity_error: Standard deviation of a disparity in pixels.

    Returns:
        (H, W) float32, metres, 0 where invalid.
    """
    error = disparity_error * (1 + ERROR_GROWTH * share_without(~np.isnan(disparity)))
    return depth**2 * error.astype(np.float32) / np.float32(rig.focal_px * rig.baseline_m)


def _matched(left: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Returns the disparity of each pixel of the left image, without comparing both directions.

    Args:
        left: (H, W) uint8 grey levels.
        right: The same of the right image.
        count: The number of disparities that are searched.

    Returns:
        (H, W) float32, pixels; NaN where OpenCV gives none.
    """
    cv2 = opencv()
    area = BLOCK * BLOCK
    matcher = cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=count,
        blockSize=BLOCK,
        P1=SMALL_CHANGE * area,
        P2=LARGE_CHANGE * area,
        disp12MaxDiff=-1,  # both directions are compared here, in fractions of a pixel
        preFilterCap=PREFILTER_CAP,
        uniquenessRatio=UNIQUENESS,
        speckleWindowSize=SPECKLE_SIZE,
        speckleRange=SPECKLE_RANGE,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    # OpenCV gives the first `count` columns no disparity, so they are made columns of a border.
    padded = [
        cv2.copyMakeBorder(image, 0, 0, count, 0, cv2.BORDER_REPLICATE) for image in (left, right)
    ]
    found = matcher.compute(*padded)[:, count:].astype(np.float32) / _STEP
    return np.where(found < 0, np.float32(np.nan), found)
