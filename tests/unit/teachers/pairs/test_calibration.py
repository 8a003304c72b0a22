"""KITTI's calibration files as the source of baseline, focal length and offset."""

from pathlib import Path

import pytest

from tiekd.errors import TeacherError
from tiekd.teachers.pairs import calibration

# Twelve numbers as in KITTI's files, made up: the cameras are 0.06 m left and 0.47 m right.
LEFT = "7.0e+02 0 6.00e+02 42 0 7.0e+02 1.8e+02 0 0 0 1 0.003"
RIGHT = "7.0e+02 0 6.02e+02 -329 0 7.0e+02 1.8e+02 2 0 0 1 0.003"


def written(folder: Path, text: str) -> Path:
    path = folder / "calib.txt"
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(TeacherError) as error:
        calibration.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "size"), [(("P_rect_02", "P_rect_03"), (375, 1242)), (("P2", "P3"), None)]
)
def test_read_gives_baseline_focal_and_offset(tmp_path, names, size):
    """Raw and benchmark files are read; the baseline is in metres, from the left to the right."""
    text = f"calib_time: 09-Jan-2012 13:57:47\n{names[0]}: {LEFT}\n{names[1]}: {RIGHT}\n"
    if size is not None:
        text += "S_rect_02: 1.242e+03 3.75e+02\n"
    found = calibration.read(written(tmp_path, text))
    assert found.rig.focal_px == 700
    assert found.rig.baseline_m == pytest.approx((42 + 329) / 700)
    assert found.rig.offset_px == pytest.approx(2)
    assert found.size == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("P2: 1 2 3", "has no P_rect_02 and P_rect_03, or P2 and P3"),
        (f"P2: {LEFT}\nP3: 1 2 3\n", "P3 is '1 2 3'; it must be 12 numbers"),
        (f"P2: {LEFT}\nP3: {RIGHT.replace('7.0', 'x')}\n", "it must be 12 numbers"),
        (f"P2: {LEFT}\nP3: {RIGHT.replace('7.0', '7.1')}\n", "lengths 700 and 710; rectified"),
        (f"P2: {RIGHT}\nP3: {LEFT}\n", "got a baseline of -0.53; it must be the distance"),
        (f"P2: {LEFT}\nP3: {RIGHT.replace('-329', '-329000')}\n", "at most 3"),
    ],
)
def test_read_refuses_other_files(tmp_path, text, words):
    """A file without two projection matrices of rectified cameras is refused in one line."""
    assert words in refusal(written(tmp_path, text))


def test_read_names_a_missing_file(tmp_path):
    """A missing file is named, with what it has to hold."""
    message = refusal(tmp_path / "none.txt")
    assert f"no file at {tmp_path / 'none.txt'}; give KITTI's" in message
