"""What bin/check_data.py says about cameras."""

import numpy as np
import pytest
from PIL import Image

from tiekd.data.cameras.calibration import Camera
from tiekd.data.cameras.summary import summary

DIAGONAL_MM = np.hypot(36, 24)


def frame(folder, name: str, focal: float | None, by_exif: float | None = None, turned: int = 1):
    """(name, path, camera) of an image of 40x30 whose EXIF states a focal length of whole mm."""
    exif = Image.Exif()
    exif[0x0112] = turned
    if by_exif is not None:
        exif.get_ifd(0x8769)[0xA405] = round(by_exif * DIAGONAL_MM / 50)
    Image.new("RGB", (40, 30)).save(folder / name, exif=exif)
    return name, str(folder / name), None if focal is None else Camera(focal, focal)


def test_summary_counts_and_names_the_source(tmp_path):
    """The line says how many, from where, and from which to which focal length."""
    frames = [frame(tmp_path, f"{i}.jpg", focal) for i, focal in enumerate((50.0, None, 60.0))]
    (line,) = summary(frames, None)
    assert line == (
        "Cameras: intrinsics for 2 of 3 frames, from the data set's own files; focal length 50.0 "
        "to 60.0 pixels of images at their own size"
    )
    (line,) = summary(frames[:1], "cameras.txt")
    assert "1 of 1 frames, from data.intrinsics=cameras.txt; focal length 50.0 pixels" in line
    assert summary(frames[1:2], None) == [
        "Cameras: no intrinsics for any of 1 frames (data.intrinsics)"
    ]


def test_summary_exif_contradicts(tmp_path):
    """Images whose EXIF differs by more than a fifth are counted, and the first one is named."""
    frames = [
        frame(tmp_path, "near.jpg", 50.0, 45.0),
        frame(tmp_path, "without.jpg", 50.0),
        frame(tmp_path, "unknown.jpg", None, 90.0),
    ]
    line = summary(frames, None)[1]
    assert line == "Cameras: EXIF agrees with the focal length of all 1 images that have it"
    for name, by_exif, turned in (("wide.jpg", 30.0, 1), ("tele.jpg", 90.0, 6)):
        far = frame(tmp_path, name, 50.0, by_exif, turned)
        line = summary([*frames, far], [50, 50, 20, 15])[1]
        assert "EXIF contradicts the focal length of 1 of 2 images that have it" in line
        shown = float(line.split("50.0 pixels, ")[1].split()[0])
        assert shown == pytest.approx(by_exif, rel=0.03)
        assert f"such as of {name}: " in line
    # Cameras that are from EXIF can't contradict it.
    assert len(summary([*frames, far], "exif")) == 1
