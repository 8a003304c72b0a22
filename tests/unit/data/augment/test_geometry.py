"""Geometry: everything that belongs to a frame moves together, in one resampling.

Depth keeps the numbers of its files.
"""

from math import cos, radians, sin

import numpy as np
import pytest
import torch

from tiekd.data.augment.augment import Decisions
from tiekd.data.augment.geometry import augment_on_cpu
from tiekd.data.sample import Sample, in_metres

NOTHING = Decisions(0.0, False, 0, 0, 40, 60, None, 1.0, (1.0, 1.0, 1.0))


def marked(height=40, width=60, row=11, column=37):
    """A black frame with one bright pixel: 9 m measured, 7 m by the teacher.

    All other pixels are 5 m and 3 m away.
    """
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    depth, teacher = torch.full((1, height, width), 5.0), torch.full((1, height, width), 3.0)
    image[:, row, column], depth[0, row, column], teacher[0, row, column] = 255, 9, 7
    inside = torch.ones(1, height, width, dtype=torch.bool)
    intrinsics = torch.tensor(
        [[50.0, 0, column], [0, 50.0, row], [0, 0, 1]]
    )  # the principal point is on the mark
    return Sample(image, depth, inside, teacher, intrinsics, "marked")


def place(plane):
    return tuple(int(i) for i in np.unravel_index(int(plane.argmax()), plane.shape))


def turned(row, column, angle, height=40, width=60):
    """Returns where a pixel of the upright image lands in a turn about the centre.

    The turn is by `angle` degrees counter-clockwise.
    """
    x, y = column - (width - 1) / 2, (height - 1) / 2 - row
    c, s = cos(radians(angle)), sin(radians(angle))
    return (height - 1) / 2 - (s * x + c * y), (width - 1) / 2 + c * x - s * y


@pytest.mark.parametrize("angle", [0.0, 2.5, -2.5, 30.0])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("window", [(0, 0, 40, 60), (5, 9, 21, 45)])
def test_augment_on_cpu_keeps_planes_and_intrinsics_aligned(angle, flip, window):
    """Image, depth, teacher map and intrinsics move to the same place."""
    top, left, height, width = window
    decisions = NOTHING._replace(
        angle=angle, flip=flip, top=top, left=left, height=height, width=width
    )
    sample = augment_on_cpu(marked(), decisions)
    row, column = turned(11, 37, angle)
    column = 59 - column if flip else column
    expected = (row - top, column - left)
    assert sample.image.shape == (3, height, width)
    assert sample.image.dtype == torch.uint8
    assert sample.intrinsics[1, 2].item() == pytest.approx(expected[0], abs=1e-3)
    assert sample.intrinsics[0, 2].item() == pytest.approx(expected[1], abs=1e-3)
    for plane, inside_value, mark in ((sample.depth[0], 5, 9), (sample.teacher_depth[0], 3, 7)):
        assert plane.shape == (height, width)
        assert set(plane[sample.inside[0]].unique().tolist()) <= {inside_value, mark}
        assert (plane[~sample.inside[0]] == 0).all()
        near = (plane == mark).nonzero()
        # A turn resamples: the pixel may be doubled, or fall between four others, but never leaves
        # its place.
        assert (near - torch.tensor(expected)).abs().max() <= 0.75 if len(near) else angle
    bright = sample.image[0] / sample.image[0].sum()
    centre = [
        (bright.sum(1 - axis) * torch.arange(n)).sum().item()
        for axis, n in enumerate((height, width))
    ]
    assert centre == pytest.approx(expected, abs=0.5)
    assert sample.inside.dtype == torch.bool
    assert sample.inside.all() == (angle == 0) or top


def test_augment_on_cpu_quarter_turn_is_exact():
    """A rotation by 90 degrees equals `rot90`."""
    sample = marked(41, 41)
    there = augment_on_cpu(sample, NOTHING._replace(angle=90.0, height=41, width=41))
    assert torch.equal(there.depth, sample.depth.rot90(1, (1, 2)))
    assert torch.equal(there.teacher_depth, sample.teacher_depth.rot90(1, (1, 2)))
    assert (there.image - sample.image.float().rot90(1, (1, 2))).abs().max() < 1e-2
    assert there.inside.all()


def test_augment_on_cpu_corners_are_black_and_outside():
    """Corners that a rotation brings in are black, without depth and outside the image."""
    sample = marked()._replace(image=torch.full((3, 40, 60), 200, dtype=torch.uint8))
    there = augment_on_cpu(sample, NOTHING._replace(angle=20.0))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert not there.inside[0, row, column]
        assert there.depth[0, row, column] == there.teacher_depth[0, row, column] == 0
        assert (there.image[:, row, column] == 0).all()
    assert (there.image[:, 20, 30] - 200).abs().max() < 1e-2
    assert 0.6 < there.inside.float().mean() < 0.95


@pytest.mark.parametrize("flip", [False, True])
def test_augment_on_cpu_intrinsics_project_to_moved_pixel(flip):
    """The moved intrinsics project a point to the pixel that its depth moved to."""
    decisions = NOTHING._replace(flip=flip, top=3, left=7, height=30, width=40)
    sample = marked()._replace(
        intrinsics=torch.tensor([[50.0, 0, 28.0], [0, 50.0, 19.0], [0, 0, 1]])
    )
    point = torch.linalg.inv(sample.intrinsics) @ torch.tensor([37.0, 11.0, 1.0]) * 9
    there = augment_on_cpu(sample, decisions)
    if flip:
        point[0] = -point[0]
    x, y, z = (there.intrinsics @ point).tolist()
    assert place(there.depth[0]) == (round(y / z), round(x / z))
    assert sample.intrinsics[0, 2] == 28  # the sample that came in is as it was


def test_augment_on_cpu_without_teacher_map():
    """A frame without a teacher map has none after the move either."""
    for angle in (0.0, 2.0):
        there = augment_on_cpu(
            marked()._replace(teacher_depth=None), NOTHING._replace(angle=angle, flip=True)
        )
        assert there.teacher_depth is None
        assert there.depth.shape == (1, 40, 60)


def turned_in_doubles(image, d):
    """Bilinear, black outside, every pixel of the window traced back on its own."""
    height, width = image.shape[-2:]
    padded = np.pad(image.numpy().astype(np.float64), ((0, 0), (1, 2), (1, 2)))
    rows, columns = np.meshgrid(
        np.arange(d.height) + d.top, np.arange(d.width) + d.left, indexing="ij"
    )
    columns = width - 1 - columns if d.flip else columns
    dx, dy = columns - (width - 1) / 2, rows - (height - 1) / 2
    c, s = cos(radians(d.angle)), sin(radians(d.angle))
    x = np.clip(c * dx - s * dy + (width - 1) / 2, -1, width)
    y = np.clip(s * dx + c * dy + (height - 1) / 2, -1, height)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - x0, y - y0
    upper = padded[:, y0 + 1, x0 + 1] * (1 - fx) + padded[:, y0 + 1, x0 + 2] * fx
    lower = padded[:, y0 + 2, x0 + 1] * (1 - fx) + padded[:, y0 + 2, x0 + 2] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("angle", [0.3, -2.5, 2.5, 37.0, 90.0, -180.0])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("window", [(0, 0, 40, 60), (5, 9, 21, 45), (0, 0, 3, 3), (37, 55, 3, 5)])
def test_augment_on_cpu_image_within_rounding_of_bilinear(angle, flip, window):
    """A rotated image is within rounding of exact bilinear interpolation."""
    image = torch.randint(
        0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    d = Decisions(angle, flip, *window, None, 1.0, (1.0, 1.0, 1.0))
    expected = turned_in_doubles(image, d)
    for stored in (image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1), image.float()):
        there = augment_on_cpu(marked()._replace(image=stored), d).image
        assert there.dtype == torch.uint8
        assert np.abs(there.numpy() - expected).max() < 0.51


@pytest.mark.parametrize("angle", [0.0, 2.0, -40.0])
@pytest.mark.parametrize("flip", [False, True])
def test_augment_on_cpu_depths_keep_stored_levels(angle, flip):
    """Moved depths keep the stored 16-bit levels, and the input stays unchanged."""
    levels = torch.arange(1, 2401).view(1, 40, 60).to(torch.uint16)
    stored = marked()._replace(
        depth=levels, teacher_depth=levels.flip(1), depth_units=256.0, teacher_units=1000.0
    )
    d = NOTHING._replace(angle=angle, flip=flip, top=3, left=7, height=30, width=40)
    there, metres = augment_on_cpu(stored, d), augment_on_cpu(in_metres(stored), d)
    assert there.depth.dtype == there.teacher_depth.dtype == torch.uint16
    assert torch.equal(in_metres(there).depth, metres.depth)
    assert torch.equal(in_metres(there).teacher_depth, metres.teacher_depth)
    assert torch.equal(there.depth.int() > 0, there.inside)
    assert there.inside.any()
    assert torch.equal(stored.depth, levels)  # what came in is as it was
