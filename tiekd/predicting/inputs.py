"""What the user wants predicted: pictures by file, folder or pattern, and videos, each with the name of its outputs.

Names are paths without suffix below the folder that was given (of a pattern: below its part without wildcards), so that
outputs mirror the tree of the inputs.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tiekd.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SEQUENCES = (".webp", ".png", ".tif", ".tiff")  # pictures of which a file may hold several
_WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif")


class Input(NamedTuple):
    """name: of its outputs, a path without suffix; path: the file."""

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        suffix = self.path.suffix.lower()
        return suffix in VIDEOS and (suffix != ".gif" or frames_in(self.path) > 1)


def frames_in(path: Path) -> int:
    """How many frames or pages a picture's file has; 1 where that can't be told. A camera's additions to a JPEG (its
    own preview or depth) don't count."""
    try:
        with Image.open(path) as picture:
            return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    except Exception:  # noqa: BLE001 - what is wrong with it is told when it is read
        return 1


def looks_like_input(argument: str) -> bool:
    """Whether a word of the command line is meant as a picture, video or pattern by its look, and not as weights."""
    return Path(argument).suffix.lower() in PICTURES + VIDEOS or glob.has_magic(argument)


def find(arguments: Sequence[str], out: Path) -> list[Input]:
    """The pictures and videos that INPUTs mean, in the order of their paths.

    A folder means all pictures in and below it but for hidden files; videos are predicted where they are named, by file
    or pattern. Where `out` lies below a folder or a pattern's fixed part, what is in it is no input. Raises DataError
    where there is nothing, and where two would share outputs.
    """
    found: dict[Path, Input] = {}
    for argument in arguments:
        for item in _meant_by(argument, out):
            found.setdefault(item.path.absolute(), item)
    inputs = list(found.values())
    _check_names(inputs)
    return inputs


def _meant_by(argument: str, out: Path) -> list[Input]:
    path = Path(argument).expanduser()
    if path.is_dir():
        return _below(path, out)
    if path.suffix.lower() in _WEIGHTS:
        raise DataError(f"{argument}: weights by their name, no picture; give what to predict after them")
    if path.exists():
        return [Input(path.stem, path)]
    if not glob.has_magic(argument):
        raise DataError(f"{argument}: no such file or folder; give a picture, a folder, a quoted pattern or a video")
    fixed = Path(*_until_wildcard(path))
    files = sorted(file for file in glob.glob(str(path), recursive=True) if os.path.isfile(file))
    if fixed.resolve() in out.resolve().parents:
        files = [file for file in files if out.resolve() not in Path(file).resolve().parents]
    if not files:
        raise DataError(f"{argument}: no file fits this pattern; ** stands for any number of folders")
    return [Input(Path(file).relative_to(fixed).with_suffix("").as_posix(), Path(file)) for file in files]


def _until_wildcard(path: Path) -> list[str]:
    parts = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _below(folder: Path, out: Path) -> list[Input]:
    if out.resolve() == folder.resolve():
        raise DataError(f"--out: {out} is the folder of the pictures itself; give another one, or one below it")
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if Path(place, name).resolve() != out.resolve())
        for file in sorted(files):
            if Path(file).suffix.lower() in PICTURES and not file.startswith("."):
                path = Path(place, file)
                found.append(Input(path.relative_to(folder).with_suffix("").as_posix(), path))
    if not found:
        raise DataError(f"{folder}: no pictures ({', '.join(PICTURES)}) in or below it; videos are given by name")
    return found


def _check_names(inputs: Sequence[Input]) -> None:
    named: dict[str, Path] = {}
    for item in inputs:
        other = named.setdefault(item.name, item.path)
        if other != item.path:
            raise DataError(f"{other} and {item.path} would have the same outputs, {item.name}.*; predict them apart")
    for video in inputs:
        if video.is_video:
            inside = next((item for item in inputs if item.name.startswith(f"{video.name}/")), None)
            if inside is not None:
                raise DataError(
                    f"{video.path} and {inside.path} would share the folder {video.name}; predict them apart"
                )
