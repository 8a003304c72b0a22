"""One frame (`Sample`), as a dataset returns it and until it is collated to a batch.

Not covered: batches (tiekd/data/batch.py), and the functions that resize and augment a sample
(tiekd/data/resize.py, tiekd/data/augment/).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sample(NamedTuple):
    """One frame, as a dataset returns it or after augmentation.

    A dataset doesn't set `table`, `place` and `size`. Augmentation sets them, and crops the tensors
    to what the window (the rotated, flipped and cropped image) needs. The window itself is computed
    later, on the device (tiekd/data/augment/resample.py).

    Attributes:
        image: (3, H, W) uint8 or float32 RGB, grey levels 0..255.
        depth: (1, H, W) float32, or uint16 as stored in its file; 0 where invalid. Divide by
            `depth_units` for metres.
        inside: (1, H, W) bool mask, False at pixels that were filled from outside the image.
        teacher_depth: (P, H, W), like `depth`, with `teacher_units`; None without a cached teacher
            map. P is 1, or the number of teachers with cached maps; with `sigma_planes` the maps of
            their sigmas follow.
        intrinsics: (3, 3) float32 camera matrix in pixels; NaN where unknown.
        name: The frame's name in the dataset, such as its image's path.
        depth_units: Units of `depth` per metre.
        teacher_units: Units of `teacher_depth` per metre; one number for each of its planes if
            there are several.
        table: (3, 256) float32 lookup table, the augmented and normalised value of each grey level
            per channel; None as a dataset returns it.
        place: (8,) float64, the affine map from the window to `image` (see `resample` in
            tiekd/data/augment/resample.py); None if `image` isn't to be cropped on the device.
        size: (height, width) of the window in pixels; None like `place`.
        sigma_planes: Number of the last planes of `teacher_depth` that are sigmas: 0 or P / 2.
        data_set: Index of the sample's data set in the recipe's list of data sets; None if the
            recipe has a single data set.
        has_target: (True if the sample has ground truth, True if its data set has a teacher); None
            if the recipe has a single data set.
    """

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    name: str
    depth_units: float = 1.0
    teacher_units: float | tuple[float, ...] = 1.0
    table: Tensor | None = None
    place: Tensor | None = None
    size: tuple[int, int] | None = None
    sigma_planes: int = 0
    data_set: int | None = None
    has_target: tuple[bool, bool] | None = None


def in_metres(sample: Sample) -> Sample:
    """Returns a copy of a sample with depth and teacher depth in float32 metres.

    Args:
        sample: The sample, whose depths are in any unit, which its `depth_units` and
            `teacher_units` state.
    """
    teacher_depth, units, metres = sample.teacher_depth, sample.teacher_units, 1.0
    if teacher_depth is not None:
        # If there are several maps, `units` is a tuple with one number per map. Keep it a tuple,
        # since that also tells other functions that there are several maps.
        if isinstance(units, tuple):
            metres = (1.0,) * len(units)
            units = torch.tensor(units).view(-1, 1, 1)
        teacher_depth = teacher_depth.float() / units
    return sample._replace(
        depth=sample.depth.float() / sample.depth_units,
        teacher_depth=teacher_depth,
        depth_units=1.0,
        teacher_units=metres,
    )


def in_grey_levels(sample: Sample) -> Sample:
    """Returns a sample with its image as uint8; a float32 image is clipped to 0..255 and rounded.

    NumPy is used, because it takes half of torch's time.

    Args:
        sample: The sample. If its image is uint8 already, it is returned unchanged.
    """
    if sample.image.dtype == torch.uint8:
        return sample
    levels = np.empty(sample.image.shape, np.uint8)
    with np.errstate(invalid="ignore"):
        np.rint(sample.image.numpy().clip(0, 255), out=levels, casting="unsafe")
    return sample._replace(image=torch.from_numpy(levels))
