"""The geometry of augmentation: the part of an image that a window is resampled from.

A part is a view and costs nothing. If the recipe has no rotation, it is the window itself.
Otherwise it has some rows and columns more, the same number in every sample, so that batches can be
formed. tiekd/data/augment/resample.py makes the window from it, on the device. A window may reach
beyond the image: pixels there are black, have no depth and are not valid.
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
    pixel. Pixels from outside the image are black and have depth 0, that is, they are not valid.
    """
    part = cut(sample, decisions, abs(decisions.angle))
    # Resample a batch of one.
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
    """Cuts the part of the sample that the window is resampled from, as views.

    Args:
        sample: The whole frame.
        decisions: The decisions of its augmentation.
        rotate_deg: The largest angle in the recipe, degrees. By it all windows of one size come
            from parts of one size, as long as their images are large enough.

    Returns:
        The part, with the window's place in it and the window's size. Its intrinsics are already
        those of the window.
    """
    # The affine map from the window to the image, with a point as the complex number x + iy.
    height, width = sample.image.shape[-2:]
    centre = complex((width - 1) / 2, (height - 1) / 2)
    angle = radians(decisions.angle)
    rotation = complex(cos(angle), sin(angle)) if decisions.angle else 1
    # A window's pixel is unflipped, then rotated back about the centre.
    to_column = rotation * (-1 if decisions.flip else 1)
    to_row = rotation * 1j
    first_column = width - 1 - decisions.left if decisions.flip else decisions.left
    first = rotation * (complex(first_column, decisions.top) - centre) + centre
    # The rows and columns that the window's corners span.
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

    # The window's place, counted from the part's first pixel.
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
    """Returns a window of the image and of all its maps, as views, with moved intrinsics.

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
    """Returns the pixels (first, number) along one side of the image that resampling needs.

    These are the window's own and, where windows are rotated, up to `more` and one at each end for
    interpolation.
    """
    count = min(size, window + (ceil(more) + 3 if more else 0))
    return max(0, min(floor(min(places)), size - count)), count


def _moved_intrinsics(intrinsics: Tensor, decisions: Decisions, width: int, height: int) -> Tensor:
    """Returns the intrinsics with the principal point after rotation, flip and crop.

    The roll itself is no part of a camera matrix.
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
