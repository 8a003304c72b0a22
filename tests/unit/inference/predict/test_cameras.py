"""The camera that an image was taken with, and the warning where none is known."""

from pathlib import Path

import pytest
from PIL import Image

from tiekd.data.frames import Camera
from tiekd.errors import DataError, RecipeError
from tiekd.inference.predict.cameras import Cameras, parse_intrinsics

KITTI = Path("input/2011_09_28/2011_09_28_drive_0001_sync/image_02/data/0000000000.png")


def test_cameras_option_applies_to_all_images():
    """Intrinsics from the command line apply to every image, whatever the data set."""
    given = parse_intrinsics("700,710.5,600,170")
    camera = Camera(700.0, 710.5, 600.0, 170.0)
    assert Cameras(given, {"name": "nyu"}).of(Path("a.png"), 10, 20) == camera
    given = parse_intrinsics(None, "700")
    assert Cameras(given, {"name": "nyu"}).of(Path("a.png"), 10, 20) == Camera(700.0, 700.0)
    assert parse_intrinsics(None) is None


@pytest.mark.parametrize(
    "text", ["700", "700,700,600", "a,b,c,d", "0,700,600,170", "nan,1,1,1", "700,700,600,inf", ""]
)
def test_parse_intrinsics_rejects_invalid_text(text):
    """Invalid --intrinsics raise a RecipeError that states the expected format."""
    with pytest.raises(RecipeError, match="--intrinsics: got .*FX,FY,CX,CY in pixels"):
        parse_intrinsics(text)


def test_cameras_datasets_know_own_images_only():
    """KITTI and NYU give cameras of their own images and reject other paths and sizes."""
    kitti, nyu = Cameras(None, {"name": "kitti"}), Cameras(None, {"name": "nyu"})
    assert kitti.of(KITTI, 370, 1224) == Camera(707.0493, 707.0493, 604.0814, 180.5066)
    assert nyu.of(Path("rgb_00000.jpg"), 480, 640)[0] == pytest.approx(518.858, abs=1e-3)
    for cameras, path, size in (
        (kitti, KITTI, (352, 1216)),
        (kitti, Path("a.png"), (375, 1242)),
        (nyu, KITTI, (48, 64)),
    ):
        with pytest.raises(
            DataError,
            match=rf"{path}: the camera of an image of {size[0]}x{size[1]}.*--intrinsics",
        ):
            cameras.of(path, *size)


def test_cameras_of_a_data_set_serve_where_exif_has_none():
    """An image whose EXIF states no focal length has the data set's own camera, as in training."""
    expected = Cameras(None, {"name": "kitti"}).of(KITTI, 370, 1224)
    cameras = Cameras(None, {"name": "kitti", "intrinsics": "exif"})
    assert (cameras.of(KITTI, 370, 1224), cameras.approximate) == (expected, 0)
    cameras = Cameras(parse_intrinsics("exif"), {"name": "kitti"})
    assert cameras.of(KITTI, 370, 1224) == expected


def test_cameras_folder_uses_recipe_intrinsics():
    """A folder uses the recipe's intrinsics; data without a camera needs --intrinsics."""
    folder = {"name": "folder", "intrinsics": [700.0, 700.0, 600.0, 170.0]}
    assert Cameras(None, folder).of(Path("a.png"), 3, 4) == Camera(700.0, 700.0, 600.0, 170.0)
    for data in ({"name": "folder"}, {"name": "scenes"}, {}):
        with pytest.raises(RecipeError, match="--points: .*knows no camera; give --intrinsics"):
            Cameras(None, data)


def test_cameras_exif_rotated_images(tmp_path):
    """User intrinsics apply to upright images; a data set's camera rejects EXIF-rotated ones."""
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (40, 30)).save(tmp_path / f"{orientation}.jpg", exif=exif)
    recipes, given = [20.0, 20.0, 20.0, 15.0], parse_intrinsics("20,20,15,20")
    cameras = Cameras(None, {"name": "folder", "intrinsics": recipes})
    assert cameras.of(tmp_path / "1.jpg", 30, 40) == Camera(*recipes)
    assert cameras.of(tmp_path / "6.jpg", 40, 30) == Camera(*recipes)
    with pytest.raises(
        DataError, match=r"6\.jpg: its EXIF orientation .*give --intrinsics .*upright image"
    ):
        Cameras(None, {"name": "nyu"}).of(tmp_path / "6.jpg", 480, 640)
    assert Cameras(given, {"name": "folder", "intrinsics": recipes}).of(
        tmp_path / "6.jpg", 40, 30
    ) == Camera(20.0, 20.0, 15.0, 20.0)


@pytest.mark.parametrize(
    "value", [[1, 2], [700, 700, 600, 170, 1], 700, "700,700,600,170", [0, 700, 600, 170]]
)
def test_cameras_reject_invalid_recipe_intrinsics(value):
    """Invalid data.intrinsics raise a one-line RecipeError."""
    with pytest.raises(RecipeError, match=r"^data\.intrinsics: got .*must be") as error:
        Cameras(None, {"name": "folder", "intrinsics": value})
    assert "\n" not in str(error.value)


def test_cameras_file_names_images_by_the_end_of_their_path(tmp_path):
    """A list gives the images that it names their camera; others have the data set's or none."""
    (tmp_path / "i.txt").write_text("a/1.png 20 22 15.5 11.5 32 24\n")
    cameras = Cameras(parse_intrinsics(str(tmp_path / "i.txt")), {})
    assert cameras.of(tmp_path / "x/a/1.png", 12, 16) == Camera(10.0, 11.0, 7.5, 5.5)
    with pytest.raises(DataError, match="there isn't known; give --intrinsics"):
        cameras.of(tmp_path / "1.png", 12, 16)
    with pytest.raises(DataError, match="1.png: intrinsics for 24x32"):
        cameras.of(tmp_path / "a/1.png", 16, 16)
    cameras = Cameras(parse_intrinsics(str(tmp_path / "i.txt")), {"name": "nyu"})
    assert cameras.of(tmp_path / "rgb_00000.jpg", 480, 640)[0] == pytest.approx(518.858, abs=1e-3)
