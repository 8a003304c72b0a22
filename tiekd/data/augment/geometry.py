"""Crops an image to the region from which its augmented window is resampled.

The region is a view, without a copy. Without rotation in the recipe, it is the window itself.
Otherwise it has additional rows and columns, the same number in every sample, so that the regions
can be stacked to a batch. tiekd/data/augment/resample.py resamples the window from the region, on
the device. A window may extend beyond the image: pixels there are black and have depth 0, i.e.
invalid.
"""

from math import ceil, cos, floor, radians, sin

import torch
from torch import Tensor

from tiekd.data.augment.augment import Decisions
from tiekd.data.augment.resample import resample
from tiekd.data.sample import Sample, in_grey_levels


def move(sample: Sample, decisions: Decisions) -> Sample:
    """Returns the flipped, rotated and cropped window of a sample, computed on the CPU.

    The image is uint8, sampled bilinearly and rounded to a grey level; depths take the nearest
    pixel. Pixels from outside the image are black and have depth 0, i.e. invalid.
    """
    part = cut(sample, decisions, abs(decisions.angle))
    # Resample the region as a batch of one image.
    teacher_depth = None if part.teacher_depth is None else part.teacher_depth[None]
    image, depth, teacher_depth, inside = resample(
        part.image[None], part.depth[None], teacher_depth, part.place[None], part.size
    )
    return part._replace(
        image=image[0],
        depth=depth[0],
        inside=inside[0],
        teacher_depth=None if teacher_depth is None else teacher_depth[0],
        place=None,
        size=None,
    )


def cut(sample: Sample, decisions: Decisions, rotate_deg: float) -> Sample:
    """Crops the sample to the region from which the window is resampled; the tensors are views.

    Args:
        sample: The whole frame.
        decisions: The decisions of its augmentation.
        rotate_deg: The largest rotation angle in the recipe, in degrees. The region's size depends
            on this angle and not on the drawn one, so that windows of one size have regions of one
            size (if their images are large enough).

    Returns:
        The region as a sample, with the window's `place` in it and the window's `size`. Its
        intrinsics are already those of the window.
    """
    # Compute the affine map from the window to the image, with points as complex numbers x + iy.
    height, width = sample.image.shape[-2:]
    centre = complex((width - 1) / 2, (height - 1) / 2)
    angle = radians(decisions.angle)
    rotation = complex(cos(angle), sin(angle)) if decisions.angle else 1
    # Map a pixel of the window to the image: undo the flip, then the rotation about the centre.
    to_column = rotation * (-1 if decisions.flip else 1)
    to_row = rotation * 1j
    first_column = width - 1 - decisions.left if decisions.flip else decisions.left
    first = rotation * (complex(first_column, decisions.top) - centre) + centre
    # Find the rows and columns that the window's corners span.
    size = window_height, window_width = decisions.height, decisions.width
    corners = [
        first + to_column * c + to_row * r
        for c in (0, window_width - 1)
        for r in (0, window_height - 1)
    ]
    slope = sin(radians(min(rotate_deg, 90)))
    left, columns = _span([c.real for c in corners], width, window_width, window_height * slope)
    top, rows = _span([c.imag for c in corners], height, window_height, window_width * slope)
    part = crop_window(sample, top, left, rows, columns)
    part = in_grey_levels(part)

    # Express the map in pixels of the region instead of the image.
    first -= complex(left, top)
    place = [
        first.real,
        first.imag,
        to_column.real,
        to_column.imag,
        to_row.real,
        to_row.imag,
        rows,
        columns,
    ]
    intrinsics = _moved_intrinsics(sample.intrinsics, decisions, width, height)
    return part._replace(
        intrinsics=intrinsics,
        place=torch.tensor(place, dtype=torch.float64),
        size=size,
    )


def crop_window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crops the image and all its maps, as views, and moves the principal point accordingly.

    Args:
        sample: The frame.
        top: First row of the window.
        left: First column of the window.
        height: Rows of the window.
        width: Columns of the window.
    """
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


def _span(places: list[float], size: int, window: int, more: float) -> tuple[int, int]:
    """Returns the region along one side of the image: (first pixel, number of pixels).

    Args:
        places: Coordinates of the window's corners along this side, in pixels.
        size: Pixels of the image's side.
        window: Pixels of the window's side.
        more: Pixels by which the largest rotation widens the window's extent; 0 without rotation.
            With rotation, 3 pixels are added for interpolation at both ends.
    """
    count = min(size, window + (ceil(more) + 3 if more else 0))
    return max(0, min(floor(min(places)), size - count)), count


def _moved_intrinsics(intrinsics: Tensor, decisions: Decisions, width: int, height: int) -> Tensor:
    """Returns the intrinsics with the principal point after rotation, flip and crop.

    The rotation itself (a roll of the camera) can't be expressed in a camera matrix.
    """
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    dx = float(intrinsics[0, 2]) - centre_x
    dy = float(intrinsics[1, 2]) - centre_y
    angle = radians(decisions.angle)
    cosine, sine = cos(angle), sin(angle)
    # Rotate about the image's centre, flip, then count from the window's first pixel.
    x = centre_x + cosine * dx + sine * dy
    y = centre_y - sine * dx + cosine * dy
    moved = intrinsics.clone()
    moved[0, 2] = (width - 1 - x if decisions.flip else x) - decisions.left
    moved[1, 2] = y - decisions.top
    return moved
