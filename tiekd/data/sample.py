"""The sample: one frame, as a dataset returns it, until it is collated to a batch.

Left out: batches (tiekd/data/batch.py), and what changes a sample (tiekd/data/resize.py,
tiekd/data/augment/).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sample(NamedTuple):
    """One frame: as a dataset returns it, and after augmentation.

    A dataset leaves out `table`, `place` and `size`. Augmentation sets them and cuts the tensors to
    the part of the frame that the augmented window needs; the window itself is made from it on the
    device (tiekd/data/augment/resample.py).

    Attributes:
        image: (3, H, W) uint8 or float32 RGB, grey levels 0..255.
        depth: (1, H, W) float32 metres, 0 where not valid; or uint16 as stored in its file, in
            units of which `depth_units` make a metre.
        inside: (1, H, W) bool, False where a rotation brought in pixels from outside the image.
        teacher_depth: As `depth`, in `teacher_units`; None without a teacher's map.
        intrinsics: (3, 3), pixels.
        name: The frame's name.
        depth_units: Units of `depth` per metre.
        teacher_units: Units of `teacher_depth` per metre.
        table: (3, 256) float32, the augmented and normalised value of each grey level; None before
            augmentation.
        place: (8,) float64, where in the image the window lies; None if the image is the window.
        size: (height, width) of the window in pixels; None if the image is the window.
    """

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    name: str
    depth_units: float = 1.0
    teacher_units: float = 1.0
    table: Tensor | None = None
    place: Tensor | None = None
    size: tuple[int, int] | None = None


def in_metres(sample: Sample) -> Sample:
    """Returns the sample with float32 depths in metres."""
    teacher_depth = sample.teacher_depth
    if teacher_depth is not None:
        teacher_depth = teacher_depth.float() / sample.teacher_units
    return sample._replace(
        depth=sample.depth.float() / sample.depth_units,
        teacher_depth=teacher_depth,
        depth_units=1.0,
        teacher_units=1.0,
    )


def in_grey_levels(sample: Sample) -> Sample:
    """Returns the sample with a uint8 image, rounded in one numpy pass (half of torch's time)."""
    if sample.image.dtype == torch.uint8:
        return sample
    levels = np.empty(sample.image.shape, np.uint8)
    with np.errstate(invalid="ignore"):
        np.rint(sample.image.numpy().clip(0, 255), out=levels, casting="unsafe")
    return sample._replace(image=torch.from_numpy(levels))
