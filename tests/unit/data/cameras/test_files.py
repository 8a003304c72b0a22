"""Files of intrinsics: each kind is told by its content, and a wrong one is one line."""

import json
import re
from pathlib import Path

import pytest

from tiekd.data.cameras import files
from tiekd.data.cameras.calibration import Camera
from tiekd.errors import DataError

ROS = """
image_width: 640
image_height: 480
camera_name: left
camera_matrix: {rows: 3, cols: 3, data: [500.0, 0.0, 320.5, 0.0, 501.0, 240.25, 0.0, 0.0, 1.0]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.35, 0.1, 0.0, 0.0, 0.0]}
"""
OPENCV = """%YAML:1.0
---
image_width: 640
image_height: 480
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 500., 0., 320.5, 0., 501., 240.25, 0., 0., 1. ]
"""
MESSAGE = """
height: 480
width: 640
distortion_model: rational_polynomial
D: [0.01, -0.02, 0, 0, 0, 0, 0, 0]
K: [500.0, 0.0, 320.5, 0.0, 501.0, 240.25, 0.0, 0.0, 1.0]
"""
KALIBR = """
cam0:
  camera_model: pinhole
  intrinsics: [500.0, 501.0, 320.5, 240.25]
  distortion_model: radtan
  distortion_coeffs: [-0.2, 0.05, 0.001, 0.0]
  resolution: [640, 480]
"""
PLAIN = {"fx": 500, "fy": 501, "cx": 320.5, "cy": 240.25, "width": 640, "height": 480}
CAMERA = Camera(500.0, 501.0, 320.5, 240.25)


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def refused(path):
    with pytest.raises(DataError) as error:
        files.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_list_gives_each_image_its_camera(tmp_path):
    """A list has a line an image, with the size that the intrinsics are of."""
    text = "# image fx fy cx cy width height\n\na/1.jpg 500 501 320.5 240.25 640 480\n"
    text += "/b.jpg 9 9 1 1 4 3\n"
    found = files.read(write(tmp_path, "intrinsics.txt", text))
    assert found.of("a/1.jpg").camera == CAMERA
    assert found.of("a/1.jpg").size == (480, 640)
    assert found.of("b.jpg").size == (3, 4)
    assert found.of("1.jpg") is None
    assert found.of_path(Path("/x/a/1.jpg")).camera == CAMERA
    assert found.of_path(Path("/x/1.jpg")) is None


@pytest.mark.parametrize(
    ("name", "text", "kind", "distortion"),
    [
        ("c.yaml", ROS, "ROS camera_info", 0.35),
        ("c.yml", OPENCV, "ROS camera_info", 0.0),
        ("c.yaml", MESSAGE, "ROS camera_info", 0.02),
        ("c.yaml", KALIBR, "Kalibr", 0.2),
        ("c.json", json.dumps(PLAIN), "one camera", 0.0),
        ("c.json", json.dumps(PLAIN | {"distortion": [0.1, -0.4]}), "one camera", 0.4),
    ],
)
def test_one_camera_of_all_images(tmp_path, name, text, kind, distortion):
    """ROS, Kalibr and plain JSON give one camera of all images, and its largest distortion."""
    found = files.read(write(tmp_path, name, text))
    assert found.kind == kind
    calibration = found.of("any.png")
    assert calibration.camera == CAMERA
    assert calibration.size == (480, 640)
    assert calibration.distortion == distortion


def test_json_by_image(tmp_path):
    """JSON may give a camera for each image."""
    found = files.read(write(tmp_path, "c.json", json.dumps({"a/1.jpg": PLAIN})))
    assert found.of("a/1.jpg").camera == CAMERA
    assert found.of("b.jpg") is None


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("i.txt", "", "no cameras in it"),
        ("i.txt", "a.jpg 500 500 320 240\n", "i.txt:1: got .* a line is `image fx fy cx cy"),
        ("i.txt", "a b.jpg 500 500 320 240 640 480\n", "i.txt:1: got"),
        ("i.txt", "a.jpg 500 500 320 240 640.5 480\n", "i.txt:1: got"),
        ("i.txt", "a.jpg -500 500 320 240 640 480\n", "focal lengths above 0"),
        ("c.yaml", "a: [1, 2", "no YAML or JSON"),
        ("c.yaml", "[1, 2]", "no mapping"),
        ("c.yaml", "speed: 3", "not a known kind of intrinsics"),
        ("c.json", json.dumps(PLAIN | {"width": None}), "need the width and height"),
        ("c.json", json.dumps(PLAIN | {"fx": "500"}), "must be 4 numbers"),
        ("c.yaml", ROS.replace("plumb_bob", "equidistant"), "distortion_model 'equidistant'"),
        ("c.yaml", KALIBR.replace("pinhole", "omni"), "camera_model 'omni'; only pinhole"),
        ("c.yaml", KALIBR + KALIBR.replace("cam0", "cam1"), r"has 2 cameras \(cam0, cam1\)"),
    ],
)
def test_wrong_file_is_one_line(tmp_path, name, text, line):
    """A malformed file, or a model that isn't a pinhole, is refused in one line."""
    assert re.search(line, refused(write(tmp_path, name, text)))


def test_what_is_no_text_file_is_one_line(tmp_path):
    """A missing file, a folder and a binary file are refused in one line."""
    assert "no such file of intrinsics" in refused(tmp_path / "none.txt")
    assert "no file of intrinsics" in refused(tmp_path)
    (tmp_path / "cameras.bin").write_bytes(b"\xff\xfe\x00\x01")
    assert "no text" in refused(tmp_path / "cameras.bin")
