"""Reads files of intrinsics, which state the cameras of named images or of all images.

The kinds of file, and the images whose cameras they state:

    lines `image fx fy cx cy width height`                          the named images
    COLMAP's cameras.txt with images.txt beside it                  the named images
    COLMAP's cameras.txt alone, with one camera                     all images
    ROS camera_info in YAML, or a message with `width`, `K`         all images
    Kalibr's camchain in YAML, with one camera                      all images
    JSON or YAML with fx, fy, cx, cy, width, height                 all images
    JSON or YAML, a mapping from image to fx, fy, cx, ... of it     the named images

The kind of a file is recognised by its content. Only pinhole models are read; fisheye and
omnidirectional ones are refused. Reading a file takes milliseconds and doesn't import torch. Not
covered: COLMAP's binary files, and Kalibr's extrinsics.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tiekd.data.cameras import colmap
from tiekd.data.cameras.calibration import Calibration, checked
from tiekd.errors import DataError
from tiekd.files import instead_of_file

_LINE = "`image fx fy cx cy width height`"
_KINDS = (
    f"lines {_LINE}, COLMAP's cameras.txt, a ROS camera_info or Kalibr camchain YAML, or JSON with "
    "fx, fy, cx, cy, width, height"
)
_KEYS = ("fx", "fy", "cx", "cy")
# Names of the distortion models of pinhole cameras in ROS and Kalibr files, which are accepted. The
# distortion itself is ignored, so its coefficients should be small.
_PINHOLE = ("plumb_bob", "rational_polynomial", "radtan", "none", "")


class CameraFile(NamedTuple):
    """The content of a file of intrinsics.

    Attributes:
        path: The file.
        kind: The kind of file, in words, for the log.
        by_image: The calibration of each named image, keyed by the image's path in the file.
        of_all: The calibration of all other images; None if theirs is unknown.
    """

    path: Path
    kind: str
    by_image: dict[str, Calibration]
    of_all: Calibration | None = None

    def of(self, name: str) -> Calibration | None:
        """Returns the calibration of an image of a dataset; None if it isn't known.

        It is that of all other images (`of_all`) if the file doesn't name the image.

        Args:
            name: The image's path in the dataset.
        """
        return self.by_image.get(name.lstrip("/"), self.of_all)

    def of_path(self, path: Path) -> Calibration | None:
        """Returns the calibration of an image file; None if it isn't known.

        The file of intrinsics may name images by the last components of their paths. If several of
        its names fit, the longest one is used.

        Args:
            path: The image file.
        """
        parts = path.parts
        names = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self.by_image[n] for n in names if n in self.by_image), self.of_all)


def read(path: Path) -> CameraFile:
    """Reads a file of intrinsics, or a folder of COLMAP's text files.

    Args:
        path: The file or folder.

    Returns:
        A `CameraFile` with the calibrations that the file states, for named images or for all.

    Raises:
        DataError: The file is missing, of no known kind, or malformed.
    """
    if path.is_dir() and (path / colmap.CAMERAS).is_file():
        path = path / colmap.CAMERAS
    text = read_text(path)
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        return _of_mapping(path, _parsed(path, text))
    lines = [
        (number, line.split())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise DataError(f"{path}: no cameras in it; give {_KINDS}")
    words = lines[0][1]
    if len(words) > 1 and words[1] in colmap.MODELS:
        named, of_all = colmap.read(path, lines, read_text)
        return CameraFile(path, "COLMAP", named, of_all)
    return CameraFile(path, "a list", dict(_listed(path, *line) for line in lines))


def read_text(path: Path) -> str:
    """Returns the text of a file of intrinsics.

    Args:
        path: The file.

    Raises:
        DataError: The file can't be read or isn't text.
    """
    found = instead_of_file(path)
    if found is not None:
        raise DataError(f"{path}: {found}, no file of intrinsics; give {_KINDS}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of intrinsics; check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text; give {_KINDS}") from None
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); change its permissions"
        ) from None


def _listed(path: Path, number: int, words: list[str]) -> tuple[str, Calibration]:
    where = f"{path}:{number}"
    try:
        name, *numbers = words
        fx, fy, cx, cy, width, height = map(float, numbers)
        size = int(height), int(width)
        if size != (height, width):
            raise ValueError
    except (ValueError, OverflowError):
        raise DataError(
            f"{where}: got {' '.join(words)!r:.80}; a line is {_LINE}, in pixels of an image of "
            "that size"
        ) from None
    return name.lstrip("/"), checked([fx, fy, cx, cy], size, where)


def _parsed(path: Path, text: str) -> Any:
    # Remove OpenCV's header and tags, which other parsers refuse.
    text = re.sub(r"^%YAML:1\.0\s*", "", text).replace("!!opencv-matrix", "")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: no YAML or JSON ({line}); give {_KINDS}") from None


def _of_mapping(path: Path, content: Any) -> CameraFile:
    if not isinstance(content, Mapping) or not content:
        raise DataError(f"{path}: no mapping; give {_KINDS}")
    if "camera_matrix" in content or any(key in content for key in ("K", "k")):
        return CameraFile(path, "ROS camera_info", {}, _of_ros(path, content))
    chain = [key for key in content if re.fullmatch(r"cam\d+", str(key))]
    if chain:
        if len(chain) > 1:
            raise DataError(
                f"{path}: has {len(chain)} cameras ({', '.join(map(str, chain))}), and nothing "
                "says which took the images; keep one of them in the file"
            )
        return CameraFile(path, "Kalibr", {}, _of_kalibr(f"{path}: {chain[0]}", content[chain[0]]))
    if any(key in content for key in _KEYS):
        return CameraFile(path, "one camera", {}, of_plain(str(path), content))
    if not all(isinstance(value, Mapping) for value in content.values()):
        raise DataError(f"{path}: not a known kind of intrinsics; give {_KINDS}")
    named = {
        str(name).lstrip("/"): of_plain(f"{path}: {name}", value) for name, value in content.items()
    }
    return CameraFile(path, "by image", named)


def of_plain(where: str, node: Mapping) -> Calibration:
    """Returns the calibration that a mapping from a JSON or YAML file states.

    Args:
        where: The mapping's file, for error messages.
        node: The mapping, with fx, fy, cx, cy, width and height in pixels, and optionally a list of
            coefficients `distortion`; other keys are ignored.

    Raises:
        DataError: A number is missing or isn't finite, or a focal length or a size isn't above 0.
    """
    return checked(
        _numbers([node.get(key) for key in _KEYS], 4, where),
        _size(node.get("width"), node.get("height"), where),
        where,
        _numbers(node.get("distortion", []), None, where),
    )


def _of_ros(path: Path, node: Mapping) -> Calibration:
    where = str(path)
    model = str(node.get("distortion_model", ""))
    _check_model(model, where)
    matrix = _numbers(_data(node.get("camera_matrix", node.get("K", node.get("k")))), 9, where)
    coefficients = node.get("distortion_coefficients", node.get("D", node.get("d")))
    size = _size(
        node.get("image_width", node.get("width")),
        node.get("image_height", node.get("height")),
        where,
    )
    numbers = [matrix[0], matrix[4], matrix[2], matrix[5]]
    return checked(numbers, size, where, _numbers(_data(coefficients) or [], None, where))


def _of_kalibr(where: str, node: Any) -> Calibration:
    if not isinstance(node, Mapping):
        raise DataError(f"{where}: no mapping; give the camchain that Kalibr wrote")
    if node.get("camera_model") != "pinhole":
        raise DataError(
            f"{where}: camera_model {node.get('camera_model')!r}; only pinhole is read, so "
            "rectify the images and give their pinhole camera"
        )
    _check_model(str(node.get("distortion_model", "")), where)
    resolution = _numbers(node.get("resolution"), 2, where)
    return checked(
        _numbers(node.get("intrinsics"), 4, where),
        _size(*resolution, where),
        where,
        _numbers(node.get("distortion_coeffs") or [], None, where),
    )


def _check_model(model: str, where: str) -> None:
    if model not in _PINHOLE:
        raise DataError(
            f"{where}: distortion_model {model!r}, no pinhole; allowed: "
            f"{', '.join(filter(None, _PINHOLE))}; rectify the images and give their pinhole camera"
        )


def _data(value: Any) -> Any:
    """Returns the list of a matrix's numbers, or of its rows, as it is in a YAML file.

    Args:
        value: The list; or a mapping with the list under the key `data`, as ROS and OpenCV write a
            matrix. Nothing is checked.
    """
    return value.get("data") if isinstance(value, Mapping) else value


def _numbers(values: Any, count: int | None, where: str) -> list[float]:
    rows = values if isinstance(values, list) else [values]
    # Join the rows of a matrix that is a list of rows.
    if any(isinstance(row, list) for row in rows):
        rows = [value for row in rows for value in (row if isinstance(row, list) else [row])]
    right = all(isinstance(v, int | float) and not isinstance(v, bool) for v in rows)
    if not right or (count is not None and len(rows) != count):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise DataError(f"{where}: got {values!r:.80}; intrinsics must be {wanted} in pixels")
    return [float(value) for value in rows]


def _size(width: Any, height: Any, where: str) -> tuple[int, int]:
    for value in (width, height):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value != int(value):
            raise DataError(
                f"{where}: width {width!r:.40} and height {height!r:.40}; intrinsics need the "
                "width and height in pixels of the image that they are of"
            )
    return int(height), int(width)
