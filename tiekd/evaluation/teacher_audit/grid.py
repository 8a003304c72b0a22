"""Resizes frames to the coarse grid on which the audit of a teacher compares them.

The grid has 96 cells, i.e. elements of an array, along its shorter side. That suffices for edges,
slopes and scales, and makes frames of several sizes comparable; a frame takes some 0.2 MB. A frame
of another aspect ratio is stretched, and its intrinsics with it. Not covered: fine detail, which no
rule of the audit needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

SHORT_SIDE = 96  # cells of the audit's grid along an image's shorter side


@dataclass(frozen=True)
class AuditFrame:
    """One frame's image, depths and measurements, from which the audit of a teacher is computed.

    The maps `image`, `depth`, `truth` and `swapped` are (h, w) float32, resized to the audit's
    coarse grid of h x w cells. Some attributes compare `depth` with the teacher's depth for a
    changed image. A log ratio is the logarithm of the ratio of two depths at the same position. An
    attribute is None if the teacher wasn't called for that changed image.

    Attributes:
        index: The frame's index in the dataset.
        name: The frame's name in the dataset.
        image: The mean of red, green and blue, normalised like the networks' input.
        depth: The teacher's depth, metres, 0 where invalid.
        truth: The ground truth, metres, 0 where not measured.
        intrinsics: (3, 3) float64 in cells of the grid, NaN where unknown.
        levels: Number of distinct depths among the valid pixels of the teacher's map. A pixel is
            valid if its depth is finite and above 0. For `levels`, `pixels`, `beyond`, `at_top` and
            `valid` the map has the image's own size, not the grid's.
        pixels: Number of valid pixels.
        beyond: Fraction of the valid pixels whose depth is above the largest that the student can
            predict.
        at_top: Fraction of the valid pixels that have the frame's largest depth.
        valid: Fraction of all pixels that are valid.
        swapped: The teacher's depth for the image with red and blue exchanged, metres, or None.
        flip: Median |log ratio| of the teacher's depth for the mirrored image, mirrored back, and
            its depth for the image itself; or None.
        zoom: (m, d): m is the median log ratio of the depth for the enlarged image to the enlarged
            depth for the image itself; d is the median |log ratio - m|. Or None.
        response: For the image whose left third is covered: log(a / b), where a is the mean |log
            ratio| of depth with and without the cover in the left third, and b that in the right
            third. Or None.
        noise_change: (a, b): a is the mean |log ratio| of the depths for the image with and
            without noise, b the same for the image with red and blue exchanged. Or None.
        focals: Source -> focal length in pixels of the image at its own size. Sources are "listed"
            (the dataset's intrinsics), "teacher" (the teacher's estimate) and others, e.g. "exif".
    """

    index: int
    name: str
    image: np.ndarray
    depth: np.ndarray
    truth: np.ndarray
    intrinsics: np.ndarray
    levels: int
    pixels: int
    beyond: float
    at_top: float
    valid: float
    swapped: np.ndarray | None = None
    flip: float | None = None
    zoom: tuple[float, float] | None = None
    response: float | None = None
    noise_change: tuple[float, float] | None = None
    focals: Mapping[str, float] = field(default_factory=dict)


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Returns (rows, columns) of the coarse grid to which the audit resizes images of a given size.

    The shorter side has SHORT_SIDE cells, or as many as the image has pixels if those are fewer.

    Args:
        height: The images' height in pixels.
        width: The images' width in pixels.
    """
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def on_grid(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Averages an image over its channels, and resizes it to the audit's coarse grid.

    Args:
        image: (3, H, W), normalised.
        size: (rows, columns) of the grid.

    Returns:
        (rows, columns) float32.
    """
    grey = image.float().mean(0, keepdim=True)[None]
    return interpolate(grey, size=size, mode="bilinear", antialias=True)[0, 0].numpy()


def depth_on_grid(depth: Tensor, size: tuple[int, int], min_share: float = 0.0) -> np.ndarray:
    """Resizes a depth map to a coarse grid: a cell gets the geometric mean of its valid pixels.

    Args:
        depth: (H, W) metres; 0, negative or not finite where invalid.
        size: (rows, columns) of the grid.
        min_share: Minimum fraction of a cell's pixels that must be valid. With 0, one valid pixel
            suffices.

    Returns:
        (rows, columns) float32, metres, 0 in cells with too few valid pixels.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    logs = torch.where(valid, depth, 1.0).double().log()[None]
    share = adaptive_avg_pool2d(valid.double()[None], size)[0]
    means = adaptive_avg_pool2d(logs, size)[0] / share.clamp(min=1e-12)
    known = (share > 0) & (share >= min_share)
    return torch.where(known, means.exp(), 0.0).float().numpy()


def intrinsics_on_grid(
    matrix: Tensor, own_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Converts a camera matrix from pixels of the image to cells of a coarse grid over the image.

    Args:
        matrix: (3, 3), in pixels of the image.
        own_size: (height, width) of the image in pixels.
        size: (rows, columns) of the grid.

    Returns:
        (3, 3) float64, in cells.
    """
    scaled = matrix.double().numpy().copy()
    for row, (cells, pixels) in enumerate(((size[1], own_size[1]), (size[0], own_size[0]))):
        factor = cells / pixels
        scaled[row] *= factor
        # Convert the principal point. Coordinate 0 is the centre of the first pixel, or of the
        # first cell, so the image's left or top edge is at -1/2 in both units.
        scaled[row, 2] += (factor - 1) / 2
    return scaled
