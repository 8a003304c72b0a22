"""Frames on the coarse grid on which a teacher is audited.

A grid of 96 rows suffices for edges, slopes and scales, and makes frames of several sizes
comparable; a frame takes some 0.2 MB. A frame of another aspect is stretched, and its intrinsics
with it. Left out: fine detail, which no rule of the audit needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

SHORT_SIDE = 96  # cells


@dataclass(frozen=True)
class AuditFrame:
    """What the audit knows of one frame; maps are (h, w) float32 on the grid.

    Attributes:
        index: The frame's index in the dataset.
        name: Its name there.
        image: Mean of red, green and blue, normalised as the networks' input is.
        depth: The teacher's depth, metres, 0 where invalid.
        truth: The ground truth, metres, 0 where not measured.
        intrinsics: (3, 3) float64 in cells of the grid, NaN where unknown.
        levels: Number of distinct depths among the map's valid pixels, before any resizing.
        pixels: Number of the map's valid pixels.
        beyond: Share of the valid pixels beyond the student's range.
        at_top: Share of the valid pixels at the map's largest depth.
        valid: Share of pixels with a finite depth above 0.
        swapped: The teacher's depth for the image with red and blue exchanged; None if not asked.
        flip: Median |log ratio| to the depth of the mirrored image; None if not asked.
        zoom: (log of the median ratio, median |log ratio| after it is removed) of the depth of the
            enlarged image to the depth; None if not asked.
        response: Log of how much more the depth changes where the image was covered than at the
            mirrored place; None if not asked.
        unrest: Mean |log ratio| of the depth of the image with noise to that without; as it is, and
            with red and blue exchanged. None if not asked.
        focals: Focal length in the image's own pixels by source, such as "listed" and "exif".
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
    """Returns (rows, columns) of the grid for images of this size; never finer than the image."""
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def on_grid(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Returns the mean of the channels of (3, H, W) on the grid, (h, w) float32."""
    grey = image.float().mean(0, keepdim=True)[None]
    return interpolate(grey, size=size, mode="bilinear", antialias=True)[0, 0].numpy()


def depth_on_grid(depth: Tensor, size: tuple[int, int], min_share: float = 0.0) -> np.ndarray:
    """Returns the geometric mean depth of each cell, 0 where too little of it is valid.

    Args:
        depth: (H, W) metres; 0, negative or not finite where invalid.
        size: (rows, columns) of the grid.
        min_share: The share of a cell that must be valid; any pixel suffices for 0.

    Returns:
        (rows, columns) float32, metres.
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
    """Returns the (3, 3) camera matrix in cells, from one in pixels of an image of `own_size`."""
    scaled = matrix.double().numpy().copy()
    for row, (cells, pixels) in enumerate(((size[1], own_size[1]), (size[0], own_size[0]))):
        factor = cells / pixels
        scaled[row] *= factor
        # The centre of the first pixel is 0 in both.
        scaled[row, 2] += (factor - 1) / 2
    return scaled
