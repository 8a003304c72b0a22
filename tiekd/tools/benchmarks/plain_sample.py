"""Makes a training sample in plain NumPy as in the published program, on whole images.

The steps are those of arXiv 2402.14340 for KITTI, in float64: decode, crop to the benchmark crop,
rotate, flip, crop, augment colours, normalise. tiekd's loader must return the same pixels. The time
of this module is that of NumPy; the published program uses an image library. In contrast to that
program, the teacher's map is rotated together with the image.
"""

from math import cos, radians, sin
from typing import NamedTuple

import numpy as np
from PIL import Image

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD, Decisions
from tiekd.data.datasets.kitti import UNITS_PER_M
from tiekd.data.frames import Frames
from tiekd.data.image_io import TEACHER_MAP_LEVELS
from tiekd.errors import DataError
from tiekd.files import check_readable


class PlainSample(NamedTuple):
    """A training sample; all arrays are float64.

    Attributes:
        grey: (H, W, 3), RGB in grey levels from 0 to 255, before colour augmentation.
        image: (H, W, 3), the augmented and normalised image.
        depth: (H, W), ground truth, metres, 0 where not valid.
        teacher_depth: (H, W), the teacher's depth, metres, 0 where not valid.
    """

    grey: np.ndarray
    image: np.ndarray
    depth: np.ndarray
    teacher_depth: np.ndarray


def decode(frames: Frames, index: int) -> list[np.ndarray]:
    """Decodes the files of a sample with Pillow, without converting the values.

    Args:
        frames: the dataset, with teacher maps.
        index: index of the sample.

    Returns:
        Image (H, W, 3), ground truth (H, W) and teacher map (H, W), as stored in their files.
    """
    decoded = []
    for path, _ in frames.files(index).values():
        check_readable(path, "image", DataError)  # not a pipe, which would block
        decoded.append(np.asarray(Image.open(path)))
    return decoded


def plain_sample(frames: Frames, index: int, kb_crop: tuple[int, int], d: Decisions) -> PlainSample:
    """Returns the training sample of a KITTI image with the given augmentation.

    Args:
        frames: the KITTI dataset, with teacher maps.
        index: index of the image.
        kb_crop: (height, width) of the KITTI benchmark crop, pixels.
        d: the augmentation: rotation, flip, crop and colours.
    """
    image, depth, teacher_depth = (pixels.astype(np.float64) for pixels in decode(frames, index))
    # Crop image and ground truth to the KITTI benchmark crop, at the bottom and horizontally
    # centred. Teacher maps have that size already.
    top = image.shape[0] - kb_crop[0]
    left = (image.shape[1] - kb_crop[1]) // 2
    image, depth = (
        pixels[top : top + kb_crop[0], left : left + kb_crop[1]] for pixels in (image, depth)
    )
    planes = [image, depth / UNITS_PER_M, teacher_depth / TEACHER_MAP_LEVELS * frames.max_depth]
    if d.angle != 0:
        planes = [_rotate(pixels, d.angle, bilinear=pixels is image) for pixels in planes]
    if d.flip:
        planes = [pixels[:, ::-1] for pixels in planes]
    grey, depth, teacher_depth = (
        pixels[d.top : d.top + d.height, d.left : d.left + d.width] for pixels in planes
    )
    image = grey
    if d.gamma is not None:
        image = np.minimum(image**d.gamma * d.brightness * np.array(d.channels), 255)
    return PlainSample(grey, (image - IMAGENET_MEAN) / IMAGENET_STD, depth, teacher_depth)


def _rotate(pixels: np.ndarray, angle_deg: float, bilinear: bool) -> np.ndarray:
    """Rotates an image counter-clockwise about its centre; pixels from outside the image are 0.

    Args:
        pixels: (H, W) or (H, W, C).
        angle_deg: the angle in degrees.
        bilinear: True for bilinear interpolation, False for the nearest pixel.

    Returns:
        The rotated image, of the same shape.
    """
    height, width = pixels.shape[:2]
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    cosine = cos(radians(angle_deg))
    sine = sin(radians(angle_deg))
    from_x = cosine * x - sine * y + (width - 1) / 2
    from_y = sine * x + cosine * y + (height - 1) / 2
    # Add a border of zeros. Positions outside the image are clipped to this border, so their values
    # are 0.
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
