"""Where a sample's pixels go: the part of a picture that a window comes from.

A part is a view and costs nothing: the window itself, or with rotation in the recipe some rows and columns more, as
many in every sample, so that batches can be formed. tiekd/data/augment/resample.py makes the window of it, on the
device. A window may reach beyond the picture: what lies there is black, has no depth and counts nowhere.
"""

from math import ceil, cos, floor, radians, sin

import numpy as np
import torch
from torch import Tensor

from tiekd.data.augment.augment import Decisions, Sample
from tiekd.data.augment.resample import resample


def move(sample: Sample, decisions: Decisions) -> Sample:
    """The window that the decisions take out of the sample, on the CPU, with a uint8 image: flipped, turned, cut.

    The image is bilinear and rounded to a grey level, depths take the nearest pixel. What turns in from outside the
    picture is black and has depth 0, that is, not valid.
    """
    part, places = cut(sample, decisions, abs(decisions.angle))
    teacher_depth = None if part.teacher_depth is None else part.teacher_depth[None]
    size = decisions.height, decisions.width
    moved = resample(part.image[None], part.depth[None], teacher_depth, places[None], size)
    return part._replace(
        image=moved.image[0],
        depth=moved.depth[0],
        inside=moved.inside[0],
        teacher_depth=None if moved.teacher_depth is None else moved.teacher_depth[0],
    )


def cut(sample: Sample, d: Decisions, rotate_deg: float) -> tuple[Sample, Tensor]:
    """The part of the sample that the window comes from, and where (see resample.py): (8,) float64.

    rotate_deg: the largest angle in the recipe, by which all windows of one size come from parts of one size, as far as
    their pictures are large enough. The intrinsics are already those of the window.
    """
    height, width = sample.image.shape[-2:]
    centre = complex((width - 1) / 2, (height - 1) / 2)
    rotation = complex(cos(radians(d.angle)), sin(radians(d.angle))) if d.angle else 1
    # Window -> unflipped -> rotated back about the centre, as x + iy.
    to_column, to_row = rotation * (-1 if d.flip else 1), rotation * 1j
    first = rotation * (complex(width - 1 - d.left if d.flip else d.left, d.top) - centre) + centre
    corners = [
        first + to_column * c + to_row * r for c in (0, d.width - 1) for r in (0, d.height - 1)
    ]
    slope = sin(radians(min(rotate_deg, 90)))
    left, columns = _span([corner.real for corner in corners], width, d.width, d.height * slope)
    top, rows = _span([corner.imag for corner in corners], height, d.height, d.width * slope)
    part = crop_window(sample, top, left, rows, columns)
    part = in_grey_levels(part)
    first -= complex(left, top)
    places = [
        first.real,
        first.imag,
        to_column.real,
        to_column.imag,
        to_row.real,
        to_row.imag,
        rows,
        columns,
    ]
    intrinsics = _moved_intrinsics(sample.intrinsics, d, width, height)
    return part._replace(intrinsics=intrinsics), torch.tensor(places, dtype=torch.float64)


def crop_window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The window of the picture and of everything that belongs to it, as views."""
    rows, cols = slice(top, top + height), slice(left, left + width)
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 2] -= left
    intrinsics[1, 2] -= top
    teacher_depth = (
        sample.teacher_depth
        if sample.teacher_depth is None
        else sample.teacher_depth[:, rows, cols]
    )
    return sample._replace(
        image=sample.image[:, rows, cols],
        depth=sample.depth[:, rows, cols],
        inside=sample.inside[:, rows, cols],
        teacher_depth=teacher_depth,
        intrinsics=intrinsics,
    )


def in_grey_levels(sample: Sample) -> Sample:
    """The sample with a uint8 image, rounded in one pass; torch takes twice as long."""
    if sample.image.dtype == torch.uint8:
        return sample
    levels = np.empty(sample.image.shape, np.uint8)
    with np.errstate(invalid="ignore"):
        np.rint(sample.image.numpy().clip(0, 255), out=levels, casting="unsafe")
    return sample._replace(image=torch.from_numpy(levels))


def _span(places: list[float], size: int, window: int, more: float) -> tuple[int, int]:
    """The pixels (first, number) of a picture's side that have all that is asked for: those of the window and, where
    windows are turned, up to `more`, and one at each end to interpolate with."""
    count = min(size, window + (ceil(more) + 3 if more else 0))
    return max(0, min(floor(min(places)), size - count)), count


def _moved_intrinsics(intrinsics: Tensor, d: Decisions, width: int, height: int) -> Tensor:
    """The principal point after rotation, flip and crop (the roll itself is no part of a camera matrix)."""
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    dx, dy = float(intrinsics[0, 2]) - centre_x, float(intrinsics[1, 2]) - centre_y
    cosine, sine = cos(radians(d.angle)), sin(radians(d.angle))
    x, y = centre_x + cosine * dx + sine * dy, centre_y - sine * dx + cosine * dy
    moved = intrinsics.clone()
    moved[0, 2] = (width - 1 - x if d.flip else x) - d.left
    moved[1, 2] = y - d.top
    return moved
