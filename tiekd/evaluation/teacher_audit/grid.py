"""Resizes frames to the coarse grid on which the audit of a teacher compares them.

The grid has 96 cells, i.e. elements of an array, along its shorter side. That suffices for edges,
slopes and scales, and makes frames of several sizes comparable; a frame takes some 0.2 MB. A frame
of another aspect ratio is stretched, and its intrinsics with it. Left out: fine detail, which no
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
    """The data of one frame that the audit of a teacher uses.

    Maps are (h, w) float32, resized to the audit's grid of h x w cells. Some attributes compare the
    depth with the teacher's depth for a changed image: a log ratio is the logarithm of the ratio of
    two depths in the same cell, and "not asked" means that the teacher wasn't called for the
    changed image.

    Attributes:
        index: The frame's index in the dataset.
        name: The frame's name in the dataset.
        image: Map of the mean of red, green and blue, normalised as the networks' input is.
        depth: The teacher's depth, metres, 0 where invalid.
        truth: The ground truth, metres, 0 where not measured.
        intrinsics: (3, 3) float64 in cells of the grid, NaN where unknown.
        levels: Number of distinct depths among the teacher's valid pixels, counted at the map's own
            size, as for the next four attributes. A pixel is valid if its depth is finite and above
            0.
        pixels: Number of valid pixels.
        beyond: Fraction of the valid pixels whose depth is above the largest that the student can
            predict.
        at_top: Fraction of the valid pixels that have the frame's largest depth.
        valid: Fraction of all pixels that are valid.
        swapped: The teacher's depth for the image with red and blue exchanged; None if not asked.
        flip: Median |log ratio| of the teacher's depth for the mirrored image, mirrored back, to
            `depth`; None if not asked.
        zoom: (m, d) for the enlarged image: m is the median log ratio of its depth to the enlarged
            depth of the image, d the median |log ratio - m|. None if not asked.
        response: Logarithm of the change of depth in the part of the image that was covered,
            divided by the change in the opposite part; None if not asked.
        unrest: Mean |log ratio| of the depth of the image with noise to that without noise, for
            the image as it is, and for the image with red and blue exchanged. None if not asked.
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
    unrest: tuple[float, float] | None = None
    focals: Mapping[str, float] = field(default_factory=dict)


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Returns the size (rows, columns) of the audit's grid for images of the given size.

    The shorter side has SHORT_SIDE cells, or as many as the image has pixels if those are fewer.

    Args:
        height: The images' height in pixels.
        width: The images' width in pixels.
    """
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def on_grid(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Averages an image over its channels, and resizes it to the audit's grid.

    Args:
        image: (3, H, W), normalised.
        size: (rows, columns) of the grid.

    Returns:
        (rows, columns) float32.
    """
    grey = image.float().mean(0, keepdim=True)[None]
    return interpolate(grey, size=size, mode="bilinear", antialias=True)[0, 0].numpy()


def depth_on_grid(depth: Tensor, size: tuple[int, int], min_share: float = 0.0) -> np.ndarray:
    """Resizes a depth map to the audit's grid: a cell gets the geometric mean of its valid depths.

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
    """Converts a camera matrix from pixels of the image to cells of the grid.

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
        # Convert the principal point. In pixels as in cells, coordinate 0 is the centre of the
        # first one, so its edge is at -1/2.
        scaled[row, 2] += (factor - 1) / 2
    return scaled
