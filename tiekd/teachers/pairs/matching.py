"""Matches rectified image pairs: computes disparity, depth and sigma in the left image's pixels.

Sigma is the standard deviation of the depth's error. OpenCV's semi-global matching runs on grey
levels, once for each image, and a disparity counts only if both agree. Its settings are the
module's constants; model_configs/STEREO.md says how they were chosen, and how good depth and sigma
are. A pair of 375x1242 pixels takes 0.3 s on one core. All functions take and return NumPy arrays.
Not covered: filling in pixels without a match.
"""

import functools
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from tiekd.teachers.outputs.model_place import import_package

# The side in pixels of the block over which matching costs are summed; and the penalties for a
# disparity that differs between neighbouring pixels by one pixel, and by more. The penalties are
# per pixel of the block.
BLOCK = 5
SMALL_CHANGE, LARGE_CHANGE = 8, 64
# A match is accepted if the cost of the second best disparity exceeds that of the best by at least
# this many percent.
UNIQUENESS = 10
# Horizontal gradients are clipped to this value before matching.
PREFILTER_CAP = 63
# Matches are dropped in connected regions of fewer than SPECKLE_SIZE pixels. Neighbours are
# connected if their disparities differ by at most SPECKLE_RANGE.
SPECKLE_SIZE, SPECKLE_RANGE = 400, 2
# A pixel counts only if grey levels around it, in a window of this side, differ between neighbours
# in a row by LEAST_TEXTURE on average. In an even area, such as an overexposed sky, every disparity
# fits, and semi-global matching extends that of a border with agreement in both directions.
TEXTURE_WINDOW, LEAST_TEXTURE = 9, 0.5
# The largest difference, in pixels, between the disparities of the two images at a match.
LEFT_RIGHT_PX = 0.5
# The largest difference, in pixels, between the disparities of neighbouring pixels that are
# averaged.
SIMILAR_PX = 1.0
# SUPPORT_WINDOW: the side of the window around a pixel in which the fraction of pixels without a
# match is computed. ERROR_GROWTH: the disparity's error grows with this fraction, by the factor 1 +
# ERROR_GROWTH * fraction. MOST_WITHOUT: a pixel with a larger fraction gets no depth. Such pixels
# are at the borders of objects and of occluded parts, where a block covers two surfaces.
SUPPORT_WINDOW, ERROR_GROWTH, MOST_WITHOUT = 7, 4.0, 0.5

# The settings on which a depth map depends, for the manifest of cached maps.
SETTINGS = {
    "block": BLOCK,
    "small_change": SMALL_CHANGE,
    "large_change": LARGE_CHANGE,
    "uniqueness": UNIQUENESS,
    "prefilter_cap": PREFILTER_CAP,
    "texture": [TEXTURE_WINDOW, LEAST_TEXTURE],
    "speckle": [SPECKLE_SIZE, SPECKLE_RANGE],
    "left_right_px": LEFT_RIGHT_PX,
    "similar_px": SIMILAR_PX,
    "support": [SUPPORT_WINDOW, MOST_WITHOUT],
}
# The settings on which the standard deviation of the depth depends, besides the error of a
# disparity, for the manifest of cached maps.
SIGMA = {"window": SUPPORT_WINDOW, "growth": ERROR_GROWTH}

# OpenCV searches a number of disparities that is a multiple of 16, and returns disparities in
# sixteenths of a pixel.
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
        """Returns the depth in metres of a disparity in pixels; infinite if it isn't above 0."""
        shifted = disparity + self.offset_px
        return self.focal_px * self.baseline_m / shifted if shifted > 0 else float("inf")


@functools.cache
def opencv() -> ModuleType:
    """Imports and returns OpenCV, with as many threads as torch has in this process.

    The number of threads is set only once, and forked processes inherit it. (A forked process that
    changed it would wait forever for its parent's threads.)

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
        left: (H, W) uint8, grey levels of the left image.
        right: (H, W) uint8, grey levels of the right image.
        count: The number of disparities that are searched, a multiple of 16.

    Returns:
        (H, W) float32, pixels; NaN where there is no disparity, the two images' disparities don't
        agree, or the left image has no texture.
    """
    of_left = _matched(left, right, count)
    # To get the right image's disparities, mirror both images and exchange their roles.
    of_right = _matched(right[:, ::-1], left[:, ::-1], count)[:, ::-1]
    height, width = left.shape
    columns = np.arange(width, dtype=np.float32) - of_left
    # In a pixel without a disparity (NaN) the column is arbitrary: the difference stays NaN, so the
    # pixel gets no match.
    there = np.clip(np.nan_to_num(np.rint(columns)), 0, width - 1).astype(np.intp)
    difference = np.abs(np.take_along_axis(of_right, there, axis=1) - of_left)
    agrees = (columns > -0.5) & (difference <= LEFT_RIGHT_PX) & has_texture(left)
    agrees &= share_without(agrees) <= MOST_WITHOUT
    return smoothed(np.where(agrees, of_left, np.float32(np.nan)))


def has_texture(grey_levels: np.ndarray) -> np.ndarray:
    """Returns in which pixels an image has enough texture for a disparity to be known.

    Args:
        grey_levels: (H, W) uint8, grey levels.

    Returns:
        (H, W) bool. True where the mean absolute difference of horizontal neighbours in the window
        around the pixel is at least LEAST_TEXTURE.
    """
    levels = grey_levels.astype(np.float32)
    steps = np.abs(np.diff(levels, axis=1, prepend=levels[:, :1]))
    return opencv().blur(steps, (TEXTURE_WINDOW, TEXTURE_WINDOW)) >= LEAST_TEXTURE


def smoothed(disparity: np.ndarray) -> np.ndarray:
    """Returns for each pixel the mean of its disparity and the similar disparities around it.

    Of the eight neighbours, those whose disparity differs by at most SIMILAR_PX are averaged, so
    that borders of objects stay in place. The mean has smaller errors than OpenCV's disparities,
    and isn't limited to their steps of a sixteenth of a pixel.

    Args:
        disparity: (H, W) float32, pixels; NaN where there is none.

    Returns:
        (H, W) float32, pixels; NaN where `disparity` is NaN.
    """
    height, width = disparity.shape
    # A NaN differs from everything, so it is never averaged.
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
    """Returns for each pixel the fraction of pixels without a match in the window around it.

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
        min_disparity: The smallest disparity, in pixels and including the rig's offset, for which a
            depth is returned.

    Returns:
        (H, W) float32, metres, 0 where invalid.
    """
    shifted = disparity + np.float32(rig.offset_px)
    known = shifted >= min_disparity  # also False for NaN
    scale = np.float32(rig.focal_px * rig.baseline_m)
    return np.where(known, scale / np.where(known, shifted, 1), np.float32(0))


def sigma_of(
    depth: np.ndarray, disparity: np.ndarray, rig: Rig, disparity_error: float
) -> np.ndarray:
    """Returns the standard deviation of depths, computed from that of disparities.

    sigma = depth^2 / (focal length * baseline) * error: the derivative of depth by disparity, times
    the disparity's error. The error is `disparity_error` if all pixels around have a match, and
    larger if some don't.

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
    """Returns the left image's disparities, without comparing them with the right image's.

    Args:
        left: (H, W) uint8, grey levels of the left image.
        right: (H, W) uint8, grey levels of the right image.
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
        disp12MaxDiff=-1,  # `disparity_of` compares both directions, in fractions of a pixel
        preFilterCap=PREFILTER_CAP,
        uniquenessRatio=UNIQUENESS,
        speckleWindowSize=SPECKLE_SIZE,
        speckleRange=SPECKLE_RANGE,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    # OpenCV gives no disparity in the first `count` columns, so add as many columns at the left,
    # which are cut off later.
    padded = [
        cv2.copyMakeBorder(image, 0, 0, count, 0, cv2.BORDER_REPLICATE) for image in (left, right)
    ]
    found = matcher.compute(*padded)[:, count:].astype(np.float32) / _STEP
    return np.where(found < 0, np.float32(np.nan), found)
