"""Geometric augmentation of a sample: rotation, flip and crop.

The result is called the window. A training worker only crops the image to the region that contains
the window's pixels (`crop_to_region`). The region is a view, without a copy; it is rotated and
flipped later, on the device (tiekd/data/augment/resample.py). If the recipe has no rotation, the
region has the window's size. Otherwise it has additional rows and columns, the same number in every
sample, so that the regions can be stacked to a batch. A window may extend beyond the image: pixels
there are black and have depth 0, i.e. invalid.
"""

from math import ceil, cos, floor, radians, sin

import torch
from torch import Tensor

from tiekd.data.augment.augment import Decisions
from tiekd.data.augment.resample import resample
from tiekd.data.sample import Sample, in_grey_levels


def augment_on_cpu(sample: Sample, decisions: Decisions) -> Sample:
    """Rotates, flips and crops a sample on the CPU, and returns the result.

    The resulting image is uint8, sampled bilinearly and rounded to an integer; depths take the
    nearest pixel. Pixels from outside the image are black and have depth 0, i.e. invalid.

    Args:
        sample: The sample as read, without augmentation.
        decisions: The rotation angle, the flip and the crop; their colour changes aren't applied.

    Returns:
        The sample of the augmented image: its image, mask and depth maps have the crop's height and
        width. `place` and `size` are None, since nothing is left to be cropped on the device.
    """
    region = crop_to_region(sample, decisions, abs(decisions.angle))
    # Add a batch dimension of 1, because `resample` takes batches.
    teacher_depth = None if region.teacher_depth is None else region.teacher_depth[None]
    image, depth, teacher_depth, inside = resample(
        region.image[None], region.depth[None], teacher_depth, region.place[None], region.size
    )
    return region._replace(
        image=image[0],
        depth=depth[0],
        inside=inside[0],
        teacher_depth=None if teacher_depth is None else teacher_depth[0],
        place=None,
        size=None,
    )


def crop_to_region(sample: Sample, decisions: Decisions, rotate_deg: float) -> Sample:
    """Crops a sample to the region that contains its augmented window; doesn't rotate or flip it.

    The window is the rotated, flipped and cropped image, which is computed from the region later.
    The cropped tensors are views, except that a float32 image is rounded to uint8.

    Args:
        sample: The sample as read, without augmentation.
        decisions: The rotation angle, the flip and the crop that define the window; colour changes
            aren't used.
        rotate_deg: The largest rotation angle in the recipe, in degrees. The region's size depends
            on this angle and not on that of `decisions`, so that all windows of one size have
            regions of one size, if their images are large enough.

    Returns:
        The cropped sample. Its `place` is the affine map from the window to the region, (8,)
        float64, as in a row of `affine_maps` in `resample`; its `size` is the window's (height,
        width) in pixels. Its intrinsics are those of the window.
    """
    # Represent positions in the image, and differences of positions, as complex numbers x + iy in
    # pixels, so that a rotation is a multiplication.
    height, width = sample.image.shape[-2:]
    centre = complex((width - 1) / 2, (height - 1) / 2)
    angle = radians(decisions.angle)
    rotation = complex(cos(angle), sin(angle)) if decisions.angle else 1
    # Compute the position of the window's first pixel in the image, and the steps to the window's
    # next column and row: undo the flip, then the rotation about the centre.
    to_column = rotation * (-1 if decisions.flip else 1)
    to_row = rotation * 1j
    first_column = width - 1 - decisions.left if decisions.flip else decisions.left
    first = rotation * (complex(first_column, decisions.top) - centre) + centre
    # Find the axis-aligned bounding box of the rotated window's corners in the image.
    size = window_height, window_width = decisions.height, decisions.width
    corners = [
        first + to_column * c + to_row * r
        for c in (0, window_width - 1)
        for r in (0, window_height - 1)
    ]
    slope = sin(radians(min(rotate_deg, 90)))
    left, columns = _span([c.real for c in corners], width, window_width, window_height * slope)
    top, rows = _span([c.imag for c in corners], height, window_height, window_width * slope)
    region = crop_window(sample, top, left, rows, columns)
    region = in_grey_levels(region)

    # Convert the window's first pixel from coordinates in the whole image to coordinates in the
    # cropped image.
    first -= complex(left, top)
    affine_map = [
        first.real,
        first.imag,
        to_column.real,
        to_column.imag,
        to_row.real,
        to_row.imag,
        rows,
        columns,
    ]
    intrinsics = _augmented_intrinsics(sample.intrinsics, decisions, width, height)
    return region._replace(
        intrinsics=intrinsics,
        place=torch.tensor(affine_map, dtype=torch.float64),
        size=size,
    )


def crop_window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crops a sample's image, mask and depth maps to a rectangle, as views.

    Args:
        sample: The sample to crop.
        top: First row to keep.
        left: First column to keep.
        height: Number of rows to keep.
        width: Number of columns to keep.

    Returns:
        The cropped sample. Its principal point is in pixels of the cropped image.
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


def _span(coordinates: list[float], size: int, window: int, more: float) -> tuple[int, int]:
    """Returns (index of the first pixel, number of pixels) of the part to keep along one axis.

    Args:
        coordinates: Coordinates of the rotated window's four corners along this axis, in pixels of
            the image.
        size: Number of the image's pixels along this axis.
        window: Number of the window's pixels along this axis.
        more: Number of pixels by which the largest possible rotation widens the window's bounding
            box; 0 without rotation. If it is above 0, a total of 3 further pixels are kept, which
            interpolation needs at the ends.
    """
    count = min(size, window + (ceil(more) + 3 if more else 0))
    return max(0, min(floor(min(coordinates)), size - count)), count


def _augmented_intrinsics(
    intrinsics: Tensor, decisions: Decisions, width: int, height: int
) -> Tensor:
    """Returns the (3, 3) camera matrix of the window, i.e. the rotated, flipped and cropped image.

    Only the principal point changes. The rotation itself (a roll of the camera) can't be expressed
    in a camera matrix.

    Args:
        intrinsics: (3, 3) camera matrix of the image as read, in pixels.
        decisions: The rotation angle, the flip and the crop.
        width: Columns of the image as read.
        height: Rows of the image as read.
    """
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    dx = float(intrinsics[0, 2]) - centre_x
    dy = float(intrinsics[1, 2]) - centre_y
    angle = radians(decisions.angle)
    cosine, sine = cos(angle), sin(angle)
    # Rotate the principal point about the image's centre, flip it, and subtract the window's first
    # row and column.
    x = centre_x + cosine * dx + sine * dy
    y = centre_y - sine * dx + cosine * dy
    augmented = intrinsics.clone()
    augmented[0, 2] = (width - 1 - x if decisions.flip else x) - decisions.left
    augmented[1, 2] = y - decisions.top
    return augmented
