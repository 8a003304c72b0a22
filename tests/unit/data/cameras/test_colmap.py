"""COLMAP's cameras.txt and images.txt."""

import pytest

from tiekd.data.cameras import files
from tiekd.data.cameras.calibration import Camera
from tiekd.errors import DataError

CAMERAS = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
1 PINHOLE 640 480 500 501 320 240
2 SIMPLE_RADIAL 320 240 250 160 120 -0.07
3 OPENCV 640 480 500 501 320 240 0.1 -0.3 0 0
"""
IMAGES = """# Image list with two lines of data per image:
1 1 0 0 0 0 0 0 1 a/1.jpg
0.5 0.5 -1 3 4 5
2 1 0 0 0 0 0 0 2 with blank.jpg

3 1 0 0 0 0 0 0 3 c.jpg

"""


def test_colmap_gives_each_image_its_camera(tmp_path):
    """images.txt says which camera took an image; the principal point loses half a pixel."""
    (tmp_path / "cameras.txt").write_text(CAMERAS)
    (tmp_path / "images.txt").write_text(IMAGES)
    for path in (tmp_path, tmp_path / "cameras.txt"):
        found = files.read(path)
        assert found.kind == "COLMAP"
        assert found.of("a/1.jpg").camera == Camera(500.0, 501.0, 319.5, 239.5)
        simple = found.of("with blank.jpg")
        assert (simple.camera, simple.size) == (Camera(250.0, 250.0, 159.5, 119.5), (240, 320))
        assert simple.distortion == 0.07
        assert found.of("c.jpg").distortion == 0.3
        assert found.of("d.jpg") is None


def test_colmap_one_camera_without_images(tmp_path):
    """Without images.txt, one camera is that of all images; several are refused."""
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_PINHOLE 64 48 50 32 24\n")
    found = files.read(tmp_path / "cameras.txt").of("any.jpg")
    assert found.camera == Camera(50.0, 50.0, 31.5, 23.5)
    (tmp_path / "cameras.txt").write_text(CAMERAS)
    with pytest.raises(DataError, match="has 3 cameras, and no images.txt"):
        files.read(tmp_path / "cameras.txt")


@pytest.mark.parametrize(
    ("camera", "line"),
    [
        ("1 OPENCV_FISHEYE 64 48 50 50 32 24 0 0 0 0", "model 'OPENCV_FISHEYE', no pinhole"),
        ("1 PINHOLE 64 48 50 32 24", "cameras.txt:1: got .* and 4 parameters"),
        ("1 PINHOLE 64 x 50 50 32 24", "cameras.txt:1: got"),
    ],
)
def test_colmap_wrong_camera_is_one_line(tmp_path, camera, line):
    """A model that is no pinhole, or a line with missing parameters, is refused in one line."""
    (tmp_path / "cameras.txt").write_text(f"{camera}\n")
    with pytest.raises(DataError, match=line):
        files.read(tmp_path / "cameras.txt")


def test_colmap_image_of_unknown_camera_is_one_line(tmp_path):
    """An image of a camera that isn't in cameras.txt is refused."""
    (tmp_path / "cameras.txt").write_text(CAMERAS)
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 9 a.jpg\n\n")
    with pytest.raises(DataError, match="images.txt:1: got .* with a camera of cameras.txt"):
        files.read(tmp_path)
