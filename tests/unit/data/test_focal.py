"""The focal length of the network's input."""

import math

import pytest
import torch

from tiekd.data import focal
from tiekd.data.batch import Batch
from tiekd.data.cameras.calibration import Camera
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import DataError

INTRINSICS = torch.tensor([[[200.0, 0, 79.5], [0, 220.0, 39.5], [0, 0, 1]]])


def batch(image, depth):
    return Batch(
        torch.zeros(1, 3, *image),
        torch.zeros(1, 1, *depth),
        torch.ones(1, 1, *image, dtype=torch.bool),
        None,
        INTRINSICS,
        ["a"],
    )


def test_focal_is_the_mean_of_both_directions():
    """The focal length is (fx + fy) / 2; with a stretched image it is sqrt(fx * fy)."""
    assert focal.of_input(INTRINSICS, OWN_SIZE).item() == 210
    stretched = focal.of_input(INTRINSICS, Resize(height=8, width=16, mode="stretch"))
    assert stretched.item() == pytest.approx(math.sqrt(200 * 220))


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        (OWN_SIZE, 210),
        (Resize(scale=0.5), 105),
        (Resize(short_side=160), 420),
        (Resize(height=40, width=60, mode="contain"), 210 * 60 / 160),
        (Resize(height=40, width=60, mode="fit"), 210 * 60 / 160),
        (Resize(height=40, width=100, mode="cover"), 210 * 100 / 160),
        (Resize(height=40, width=82, mode="stretch"), math.sqrt(200 * 82 / 160 * 220 * 40 / 80)),
    ],
)
def test_focal_is_scaled_with_the_image(resize, expected):
    """The focal length is that of the image at the working resolution, whatever its padding."""
    camera = Camera(200.0, 220.0)
    assert focal.of_camera(camera, (80, 160), resize) == pytest.approx(expected, rel=1e-6)
    assert focal.of_own_size(INTRINSICS, (80, 160), resize).item() == pytest.approx(expected)


def test_focal_of_a_batch_whose_image_alone_is_resized():
    """In evaluation intrinsics are of the depth's size, in training of the image's."""
    resize = Resize(scale=0.5)
    assert focal.of_batch(batch((40, 80), (80, 160)), resize).item() == 105
    assert focal.of_batch(batch((40, 80), (40, 80)), resize).item() == 210


def test_aspect_that_stretch_changes_too_much_is_one_line():
    """Stretch may change the aspect ratio by 5 %, not more."""
    focal.check_aspect(Resize(height=100, width=209, mode="stretch"), (100, 200))
    focal.check_aspect(Resize(height=100, width=191, mode="stretch"), (100, 200))
    focal.check_aspect(Resize(height=10, width=90, mode="contain"), (100, 200))
    for width in (211, 190):
        with pytest.raises(DataError, match="changes the aspect ratio of an image of 100x200"):
            focal.check_aspect(Resize(height=100, width=width, mode="stretch"), (100, 200))


def test_unknown_focal_is_one_line():
    """An image without a focal length is named."""
    focal.check_known(torch.tensor([1.0, 2.0]), ["a", "b"])
    with pytest.raises(DataError, match=r"^b: its focal length isn't known.*data\.intrinsics"):
        focal.check_known(torch.tensor([1.0, torch.nan]), ["a", "b"])
