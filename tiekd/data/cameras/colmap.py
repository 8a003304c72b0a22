"""Reads COLMAP's text files: cameras.txt, and images.txt, which assigns a camera to each image.

COLMAP's coordinate (0, 0) is the first pixel's corner; here it is the first pixel's centre, so half
a pixel is subtracted from the principal point. Distortion is ignored; fisheye models are refused.
"""

from collections.abc import Callable
from pathlib import Path

from tiekd.data.cameras.calibration import Calibration, checked
from tiekd.errors import DataError

CAMERAS, IMAGES = "cameras.txt", "images.txt"
# COLMAP's camera model -> (number of focal lengths, number of distortion coefficients).
_PINHOLES = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
    "FULL_OPENCV": (2, 8),
}
_OTHERS = (
    *("OPENCV_FISHEYE", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE"),
    *("THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"),
)
MODELS = (*_PINHOLES, *_OTHERS)
# The number of words in the first line of an image: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME.
_IMAGE_WORDS = 10


def read(
    path: Path, lines: list[tuple[int, list[str]]], read_text: Callable[[Path], str]
) -> tuple[dict[str, Calibration], Calibration | None]:
    """Reads COLMAP's cameras from cameras.txt, and the camera of each image from images.txt.

    Args:
        path: cameras.txt.
        lines: Its lines without comments, as (line number, words of the line).
        read_text: Function that returns the text of a file, for images.txt beside it.

    Returns:
        (calibrations by image name, None); or, without images.txt, (an empty dict, the calibration
        of all images).

    Raises:
        DataError: A line is malformed, a camera isn't a pinhole camera, or there are several
            cameras but no images.txt.
    """
    cameras = dict(_camera(f"{path}:{number}", words) for number, words in lines)
    images = path.with_name(IMAGES)
    if images.is_file():
        return _by_image(images, read_text(images), cameras, path), None
    if len(cameras) > 1:
        raise DataError(
            f"{path}: has {len(cameras)} cameras, and no {IMAGES} beside it says which took an "
            "image; put it there, or keep one camera"
        )
    return {}, next(iter(cameras.values()))


def _camera(where: str, words: list[str]) -> tuple[str, Calibration]:
    model = words[1] if len(words) > 1 else ""
    if model not in _PINHOLES:
        raise DataError(
            f"{where}: model {model!r:.40}, no pinhole; allowed: {', '.join(_PINHOLES)}; undistort "
            "the images (colmap image_undistorter) and give their cameras.txt"
        )
    num_focals, num_distortion = _PINHOLES[model]
    try:
        width, height = int(words[2]), int(words[3])
        numbers = list(map(float, words[4:]))
        if len(numbers) != num_focals + 2 + num_distortion:
            raise ValueError
    except (ValueError, IndexError):
        raise DataError(
            f"{where}: got {' '.join(words)!r:.80}; a line is `CAMERA_ID {model} WIDTH HEIGHT` and "
            f"{num_focals + 2 + num_distortion} parameters"
        ) from None
    focal_x, focal_y = numbers[0], numbers[num_focals - 1]
    centre_x, centre_y = numbers[num_focals : num_focals + 2]
    intrinsics = [focal_x, focal_y, centre_x - 0.5, centre_y - 0.5]
    return words[0], checked(intrinsics, (height, width), where, numbers[num_focals + 2 :])


def _by_image(
    path: Path, text: str, cameras: dict[str, Calibration], cameras_path: Path
) -> dict[str, Calibration]:
    found = {}
    # Read every second line: an image takes two lines, of which the first has its pose, camera and
    # name, and the second, which may be empty, its points.
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if not line.lstrip().startswith("#")
    ]
    for number, line in lines[::2]:
        if not line.strip():
            continue
        words = line.split(maxsplit=_IMAGE_WORDS - 1)
        if len(words) < _IMAGE_WORDS or words[8] not in cameras:
            raise DataError(
                f"{path}:{number}: got {line!r:.80}; a line is `IMAGE_ID QW QX QY QZ TX TY TZ "
                f"CAMERA_ID NAME`, with a camera of {cameras_path.name}"
            )
        found[words[9].strip().lstrip("/")] = cameras[words[8]]
    return found
