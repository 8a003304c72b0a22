"""Reads the distance and the focal length of two rectified cameras from KITTI's calibration files.

A file has lines `NAME: twelve numbers` with the projection matrices of the rectified colour
cameras: P_rect_02 and P_rect_03 in calib_cam_to_cam.txt of the raw data, P2 and P3 in the files of
the benchmarks. Not covered: the grey cameras, and the calibration of unrectified images.
"""

from pathlib import Path
from typing import NamedTuple

from tiekd.errors import TeacherError
from tiekd.files import check_readable
from tiekd.teachers.pairs.matching import Rig

# The names of the projection matrices of the left and the right camera, in KITTI's raw data and in
# KITTI's benchmarks; and the name of the left image's size.
_NAMES = (("P_rect_02", "P_rect_03"), ("P2", "P3"))
_SIZE = "S_rect_02"
_ALLOWED = "P_rect_02 and P_rect_03, or P2 and P3"
# The largest baseline that is accepted as metres; that of a stereo camera on a vehicle is about 0.5
# m.
MAX_BASELINE_M = 3.0


class Calibration(NamedTuple):
    """The content of a calibration file.

    Attributes:
        rig: The focal length and the positions of the two rectified cameras.
        size: (height, width) of the rectified images; None if the file doesn't state it.
    """

    rig: Rig
    size: tuple[int, int] | None


def check_baseline(baseline_m: float, where: str) -> None:
    """Raises TeacherError if a baseline isn't above 0, or is too large to be in metres.

    Args:
        baseline_m: The distance between the two cameras, supposedly in metres.
        where: The place that the baseline comes from, for the message.
    """
    if not 0 < baseline_m <= MAX_BASELINE_M:
        raise TeacherError(
            f"{where}: got a baseline of {baseline_m:g}; it must be the distance from the left to "
            f"the right camera in metres, above 0 and at most {MAX_BASELINE_M:g}"
        )


def read(path: Path) -> Calibration:
    """Reads a calibration file, and returns its content as a `Calibration`.

    Args:
        path: The file.

    Raises:
        TeacherError: The file is missing, can't be read, or lacks the two projection matrices.
    """
    where = "teacher.calibration: "
    check_readable(path, "calibration", TeacherError, where)
    if not path.is_file():
        raise TeacherError(f"{where}no file at {path}; give KITTI's, with {_ALLOWED}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = {name.strip(): numbers for name, _, numbers in (line.partition(":") for line in lines)}
    names = next((pair for pair in _NAMES if all(name in rows for name in pair)), None)
    if names is None:
        raise TeacherError(f"{where}{path} has no {_ALLOWED}; give KITTI's calibration")
    left, right = (_matrix(rows[name], path, name) for name in names)
    # The fourth number of a projection matrix is -focal length * x, where x is the camera's
    # position to the right.
    focal = left[0]
    if not focal > 0 or right[0] != focal:
        raise TeacherError(
            f"{where}{path}: focal lengths {focal:g} and {right[0]:g}; rectified cameras have the "
            "same, above 0"
        )
    baseline = (left[3] - right[3]) / focal
    check_baseline(baseline, f"{where}{path}")
    size = _numbers(rows.get(_SIZE, ""))
    return Calibration(
        Rig(focal, baseline, right[2] - left[2]),
        (int(size[1]), int(size[0])) if len(size) == 2 else None,
    )


def _matrix(text: str, path: Path, name: str) -> list[float]:
    numbers = _numbers(text)
    if len(numbers) != 12:
        raise TeacherError(
            f"teacher.calibration: {path}: {name} is {text.strip()!r:.60}; it must be 12 numbers, "
            "the rows of a projection matrix"
        )
    return numbers


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        return []
