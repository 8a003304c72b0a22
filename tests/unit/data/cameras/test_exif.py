"""The focal length that EXIF states."""

import math

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from tiekd.data.cameras import exif


def photo(path, height, width, exif_orientation=1, **tags):
    """Writes a JPEG with EXIF tags, and returns its path."""
    names = {"focal": 0x920A, "focal_35": 0xA405, "plane_x": 0xA20E, "plane_y": 0xA20F}
    names |= {"unit": 0xA210, "taken_width": 0xA002, "taken_height": 0xA003}
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    exif.get_ifd(0x8769).update({names[key]: value for key, value in tags.items()})
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path, exif=exif)
    return path


def test_exif_focal_from_35mm_equivalent(tmp_path):
    """The 35 mm equivalent refers to the diagonal: 43.27 mm of film, so it holds at any size."""
    found = exif.calibration(photo(tmp_path / "a.jpg", 30, 40, focal_35=26))
    assert found.camera[:2] == pytest.approx([26 / math.hypot(36, 24) * 50] * 2)
    assert found.camera[2:] == (None, None)
    assert found.is_approximate
    assert found.size == (30, 40)


def test_exif_focal_from_focal_plane_resolution(tmp_path):
    """Lens and focal plane resolution give f of the photo as taken, scaled to the image."""
    tags = {"focal": IFDRational(5, 1), "plane_x": IFDRational(2540, 1)}
    tags |= {"plane_y": IFDRational(5080, 1), "unit": 2}
    found = exif.calibration(photo(tmp_path / "a.jpg", 300, 400, **tags))
    assert found.camera[:2] == pytest.approx((500, 1000))
    # The same photo at half its size, and turned by its orientation.
    tags |= {"taken_width": 400, "taken_height": 300}
    found = exif.calibration(photo(tmp_path / "b.jpg", 150, 200, 6, **tags))
    assert found.size == (200, 150)
    assert found.camera[:2] == pytest.approx((500, 250))


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"focal": IFDRational(5, 1)},
        {"focal_35": 0},
        {"focal_35": 60000},
        {"focal": IFDRational(0, 0), "plane_x": IFDRational(1, 0)},
    ],
)
def test_exif_without_a_plausible_focal_is_unknown(tmp_path, tags):
    """Missing, zero and absurd focal lengths count as unknown."""
    assert exif.calibration(photo(tmp_path / "a.jpg", 30, 40, **tags)) is None


def test_exif_of_what_is_no_image_is_unknown(tmp_path):
    """A missing or damaged file counts as unknown: decoding it reports that."""
    assert exif.calibration(tmp_path / "none.jpg") is None
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8")
    assert exif.calibration(tmp_path / "torn.jpg") is None
