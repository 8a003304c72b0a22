"""The published training sample in plain NumPy: whole images, step by step.

arXiv 2402.14340, KITTI. Decode, cut to the benchmark window, rotate all of it, flip, crop, colour,
normalise, everything in float64. It defines what the loader has to return. Its time is that of
NumPy, not of the published program with its own image library. Unlike there, the teacher's map
rotates with its image.
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
    """A sample; all arrays are float64.

    Attributes:
        grey: (H, W, 3), levels 0 to 255 before colour augmentation.
        image: (H, W, 3), normalised.
        depth: (H, W), metres, 0 where not valid.
        teacher_depth: (H, W), metres, 0 where not valid.
    """

    grey: np.ndarray
    image: np.ndarray
    depth: np.ndarray
    teacher_depth: np.ndarray


def decode(frames: Frames, index: int) -> list[np.ndarray]:
    """Decodes a frame's files with Pillow, and does nothing else."""
    return [np.asarray(Image.open(path)) for path, _ in frames.files(index).values()]


def plain_sample(frames: Frames, index: int, kb_crop: tuple[int, int], d: Decisions) -> PlainSample:
    """Augments a frame with image, ground truth and teacher map.

    Args:
        frames: of KITTI, with teacher maps.
        index: of the frame.
        kb_crop: (height, width) of the window.
        d: the augmentation.
    """
    image, depth, teacher_depth = (pixels.astype(np.float64) for pixels in decode(frames, index))
    # The benchmark's window: at the bottom, in the middle. Teacher maps have its size already.
    top = image.shape[0] - kb_crop[0]
    left = (image.shape[1] - kb_crop[1]) // 2
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
    """Rotates the whole image counter-clockwise about its centre; 0 enters from outside."""
    height, width = pixels.shape[:2]
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    cosine = cos(radians(angle_deg))
    sine = sin(radians(angle_deg))
    from_x = cosine * x - sine * y + (width - 1) / 2
    from_y = sine * x + cosine * y + (height - 1) / 2
    # A border of 0, from which all pixels outside are read.
    framed = np.pad(pixels, ((1, 1), (1, 1)) + ((0, 0),) * (pixels.ndim - 2))

    def at(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return framed[np.clip(rows + 1, 0, height + 1), np.clip(columns + 1, 0, width + 1)]

    if not bilinear:
        return at(np.floor(from_y + 0.5).astype(int), np.floor(from_x + 0.5).astype(int))
    columns = np.floor(from_x).astype(int)
    rows = np.floor(from_y).astype(int)
    right = (from_x - columns)[..., None]
    below = (from_y - rows)[..., None]
    upper = at(rows, columns) * (1 - right) + at(rows, columns + 1) * right
    lower = at(rows + 1, columns) * (1 - right) + at(rows + 1, columns + 1) * right
    return upper * (1 - below) + lower * below
