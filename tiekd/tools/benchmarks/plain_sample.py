"""The published training sample (arXiv 2402.14340, KITTI), written plainly: whole pictures, one step after another.

Decode, cut to the benchmark window, turn all of it, flip, crop, colour, normalise, everything in float64. It defines
what the loader has to give; its time is that of NumPy, not of the published program with its own image library.
Unlike that, the teacher's map turns with its picture.
"""

from math import cos, radians, sin
from typing import NamedTuple

import numpy as np
from PIL import Image

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD, Decisions
from tiekd.data.datasets.kitti import UNITS_PER_M
from tiekd.data.frames import Frames
from tiekd.data.image_io import TEACHER_MAP_LEVELS


class PlainSample(NamedTuple):
    """grey: (H, W, 3), levels before colours; image: normalised; depth, teacher_depth: (H, W) metres, 0 where none. All
    float64."""

    grey: np.ndarray
    image: np.ndarray
    depth: np.ndarray
    teacher_depth: np.ndarray


def decode(frames: Frames, index: int) -> list[np.ndarray]:
    """The files' pixels as Pillow has them, and nothing else."""
    return [np.asarray(Image.open(path)) for path, _ in frames.files(index).values()]


def plain_sample(frames: Frames, index: int, kb_crop: tuple[int, int], d: Decisions) -> PlainSample:
    """A frame with picture, ground truth and teacher map, augmented as the decisions say."""
    image, depth, teacher_depth = (pixels.astype(np.float64) for pixels in decode(frames, index))
    top, left = image.shape[0] - kb_crop[0], (image.shape[1] - kb_crop[1]) // 2
    image, depth = (
        pixels[top : top + kb_crop[0], left : left + kb_crop[1]] for pixels in (image, depth)
    )
    planes = [image, depth / UNITS_PER_M, teacher_depth / TEACHER_MAP_LEVELS * frames.max_depth]
    if d.angle != 0:
        planes = [_turned(pixels, d.angle, bilinear=pixels is image) for pixels in planes]
    if d.flip:
        planes = [pixels[:, ::-1] for pixels in planes]
    grey, depth, teacher_depth = (
        pixels[d.top : d.top + d.height, d.left : d.left + d.width] for pixels in planes
    )
    image = grey
    if d.gamma is not None:
        image = np.minimum(image**d.gamma * d.brightness * np.array(d.channels), 255)
    return PlainSample(grey, (image - IMAGENET_MEAN) / IMAGENET_STD, depth, teacher_depth)


def _turned(pixels: np.ndarray, angle_deg: float, bilinear: bool) -> np.ndarray:
    """The whole picture, turned counter-clockwise about its centre; 0 comes in from outside."""
    height, width = pixels.shape[:2]
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    cosine, sine = cos(radians(angle_deg)), sin(radians(angle_deg))
    from_x, from_y = (
        cosine * x - sine * y + (width - 1) / 2,
        sine * x + cosine * y + (height - 1) / 2,
    )
    framed = np.pad(pixels, ((1, 1), (1, 1)) + ((0, 0),) * (pixels.ndim - 2))

    def at(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return framed[np.clip(rows + 1, 0, height + 1), np.clip(columns + 1, 0, width + 1)]

    if not bilinear:
        return at(np.floor(from_y + 0.5).astype(int), np.floor(from_x + 0.5).astype(int))
    columns, rows = np.floor(from_x).astype(int), np.floor(from_y).astype(int)
    right, below = (from_x - columns)[..., None], (from_y - rows)[..., None]
    upper = at(rows, columns) * (1 - right) + at(rows, columns + 1) * right
    lower = at(rows + 1, columns) * (1 - right) + at(rows + 1, columns + 1) * right
    return upper * (1 - below) + lower * below
