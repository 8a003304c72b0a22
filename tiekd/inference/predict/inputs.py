"""Finds the inputs of a prediction, images and videos by file, folder or pattern, and names them.

Names are paths without suffix below the given folder (of a pattern: below its part without
wildcards), so that outputs mirror the tree of the inputs. Links are followed, each folder once; a
folder that can't be listed is an error.
"""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tiekd.data.listing import list_files, unlistable
from tiekd.errors import DataError
from tiekd.files import instead_of_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
SEQUENCES = (".webp", ".png", ".tif", ".tiff")  # formats whose files may hold several images
_WEIGHTS = (".pth", ".pt", ".ckpt", ".safetensors")
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif")


class Input(NamedTuple):
    """One image or video.

    Attributes:
        name: Name of its outputs, a path without suffix.
        path: The file.
    """

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        """True for a video, and for a GIF of several frames."""
        suffix = self.path.suffix.lower()
        return suffix in VIDEOS and (suffix != ".gif" or frames_in(self.path) > 1)


def frames_in(path: Path) -> int:
    """Returns the number of frames or pages in an image file; 1 if it can't be read.

    A camera's additions to a JPEG (its own preview or depth) don't count.
    """
    if instead_of_file(path):  # reading the pixels reports it
        return 1
    try:
        with Image.open(path) as image:
            return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # noqa: BLE001 - reading the file reports the error
        return 1


def looks_like_input(argument: str) -> bool:
    """Returns True if a word of the command line looks like an image, a video or a pattern.

    Weights look like none of them.
    """
    return Path(argument).suffix.lower() in IMAGE_SUFFIXES + VIDEOS or glob.has_magic(argument)


def find(arguments: Sequence[str], out: Path) -> list[Input]:
    """Finds the images and videos that the arguments mean, in the order of their paths.

    A folder means all images in and below it except hidden files. Videos are predicted only if they
    are named, by file or pattern. If `out` lies below a folder or a pattern's fixed part, its
    content is no input.

    Args:
        arguments: Files, folders and patterns.
        out: The folder of the outputs.

    Raises:
        DataError: If nothing is found, or two inputs would share outputs.
    """
    found: dict[Path, Input] = {}
    for argument in arguments:
        for item in _meant_by(argument, out):
            found.setdefault(item.path.absolute(), item)
    inputs = list(found.values())
    _check_names(inputs)
    return inputs


def _meant_by(argument: str, out: Path) -> list[Input]:
    path = Path(argument)
    if path.is_dir():
        return _below(path, out)
    if path.suffix.lower() in _WEIGHTS:
        raise DataError(
            f"{argument}: weights by their name, no image; give what to predict after them"
        )
    if os.path.lexists(path):  # reading a broken link reports the error
        return [Input(path.stem, path)]
    if not glob.has_magic(argument):
        raise DataError(
            f"{argument}: no such file or folder; give an image, a folder, a quoted pattern or a "
            "video"
        )
    # Search below the part of the pattern without wildcards; earlier outputs are no inputs.
    fixed = Path(*_until_wildcard(path))
    parts = path.parts[len(fixed.parts) :]
    files = sorted(_fitting(str(fixed), (*parts, "*") if parts[-1] == "**" else parts, set()))
    # Path.resolve fails on links that lead back to themselves.
    results = Path(os.path.realpath(out))
    if Path(os.path.realpath(fixed)) in results.parents:
        files = [file for file in files if results not in Path(os.path.realpath(file)).parents]
    if not files:
        raise DataError(
            f"{argument}: no file fits this pattern; ** stands for any number of folders"
        )
    return [
        Input(Path(file).relative_to(fixed).with_suffix("").as_posix(), Path(file))
        for file in files
    ]


def _until_wildcard(path: Path) -> list[str]:
    parts = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _fitting(
    folder: str, parts: tuple[str, ...], tried: set[tuple[int, int, int]]
) -> Iterator[str]:
    """Yields the files below a folder that match the parts of a pattern, by glob's rules.

    `*` and `?` leave out hidden names, and a part `**` is any number of folders. `tried` holds
    (device, inode, number of parts), each of which is searched once.
    """
    part = parts[0]
    rest = parts[1:]
    try:
        # Links can lead back to a folder; each is searched once per rest of the pattern.
        status = os.stat(folder or ".")
        state = status.st_dev, status.st_ino, len(parts)
        if state in tried:
            return
        tried.add(state)
        if not glob.has_magic(part):
            names = [part] if os.path.lexists(os.path.join(folder, part)) else []
        else:
            names = sorted(os.listdir(folder or "."))
    except OSError as error:
        raise _refusal(error) from None
    if part == "**":
        yield from _fitting(folder, rest, tried)
    for name in names:
        path = os.path.join(folder, name)
        fits = part == "**" or fnmatch.fnmatchcase(name, part)
        # Hidden names match only a part that begins with a dot.
        if glob.has_magic(part) and name.startswith(".") and not part.startswith("."):
            continue
        if os.path.isdir(path) and (rest or part == "**") and fits:
            yield from _fitting(path, parts if part == "**" else rest, tried)
        elif not rest and fits and not os.path.isdir(path):
            yield path


def _refuse(error: OSError) -> None:
    raise _refusal(error) from None


def _refusal(error: OSError) -> DataError:
    return unlistable(error, "or give what can be read")


def _below(folder: Path, out: Path) -> list[Input]:
    if os.path.realpath(out) == os.path.realpath(folder):
        raise DataError(
            f"--out: {out} is the folder of the images itself; give another one, or one below it"
        )
    found = []
    for file in sorted(list_files(folder, _refuse, leave_out=out).files):
        hidden = os.path.basename(file).startswith(".")
        if Path(file).suffix.lower() in IMAGE_SUFFIXES and not hidden:
            found.append(Input(os.path.splitext(file)[0], folder / file))
    if not found:
        raise DataError(
            f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in or below it; videos are given "
            "by name"
        )
    return found


def _check_names(inputs: Sequence[Input]) -> None:
    named: dict[str, Path] = {}
    for item in inputs:
        other = named.setdefault(item.name, item.path)
        if other != item.path:
            raise DataError(
                f"{other} and {item.path} would have the same outputs, {item.name}.*; predict them "
                "apart"
            )
    # A video's outputs are a folder of its name, in which an image's would lie, too.
    for video in inputs:
        if video.is_video:
            inside = next((item for item in inputs if item.name.startswith(f"{video.name}/")), None)
            if inside is not None:
                raise DataError(
                    f"{video.path} and {inside.path} would share the folder {video.name}; predict "
                    "them apart"
                )
