"""A calibration becomes the camera of the image at hand: scaled, turned, or refused."""

import numpy as np
import pytest
from PIL import Image

from tiekd.data import orientation
from tiekd.data.cameras.calibration import Calibration, Camera, checked, turned_upright
from tiekd.errors import DataError

CAMERA = Camera(100.0, 110.0, 31.5, 19.25)


def test_calibration_scales_to_the_image_size():
    """A calibration for another size of the same aspect ratio is scaled about the corner -0.5."""
    scaled = Calibration(CAMERA, (48, 64)).at_size(24, 32, 1, "x")
    assert scaled == Camera(50.0, 55.0, 15.5, 9.375)
    assert Calibration(CAMERA, (48, 64)).at_size(48, 64, 1, "x") == CAMERA
    # A side that was rounded to whole pixels doesn't change the aspect ratio.
    assert Calibration(CAMERA, (375, 1242)).at_size(13, 43, 1, "x").focal_x == pytest.approx(
        100 * 43 / 1242
    )


def test_calibration_without_size_is_of_every_image():
    """Without a size, the camera is that of each image at its own size."""
    assert Calibration(CAMERA).at_size(7, 9, 1, "x") == CAMERA


@pytest.mark.parametrize("size", [(48, 48), (64, 48), (30, 64)])
def test_calibration_other_aspect_is_one_line(size):
    """An image of another aspect ratio is refused in one line."""
    with pytest.raises(DataError, match=r"list: a\.png: intrinsics for 48x64 .* aspect") as error:
        Calibration(CAMERA, (48, 64)).at_size(*size, 1, "list: a.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("exif_orientation", range(1, 9))
def test_camera_turns_with_the_pixels(exif_orientation, tmp_path):
    """The principal point stays on the same pixel when an image is turned upright."""
    pixels = np.zeros((20, 32, 3), np.uint8)
    pixels[5, 9] = 255
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(orientation.upright(image))
    row, column = np.argwhere(upright[..., 0] == 255)[0]
    turned = turned_upright(Camera(100.0, 110.0, 9.0, 5.0), (20, 32), exif_orientation)
    assert (turned.centre_x, turned.centre_y) == (column, row)
    swapped = upright.shape[:2] == (32, 20)
    assert turned[:2] == ((110.0, 100.0) if swapped else (100.0, 110.0))


def test_calibration_of_stored_pixels_is_turned():
    """A calibration whose size fits only the stored pixels is turned upright with them."""
    stored = Calibration(Camera(100.0, 110.0, 9.0, 5.0), (20, 32))
    assert stored.at_size(32, 20, 6, "x") == Camera(110.0, 100.0, 14.0, 9.0)
    with pytest.raises(DataError):
        stored.at_size(32, 20, 1, "x")


@pytest.mark.parametrize(
    ("numbers", "size"),
    [([0, 1, 2, 3], None), ([1, float("nan"), 2, 3], None), ([1, 1, 2, 3], (0, 5))],
)
def test_checked_refuses_what_is_no_camera(numbers, size):
    """Focal lengths and sizes must be above 0, and all numbers finite."""
    with pytest.raises(DataError, match="x: got"):
        checked(numbers, size, "x")


def test_camera_focal_is_the_mean_of_both_directions():
    """The focal length of an image is (fx + fy) / 2."""
    assert CAMERA.focal == 105.0
