"""Finds the images and videos to predict, given by file, folder or pattern.

Each input gets a name, from which the paths of its outputs are made. The name is the input's path
without suffix, relative to the given folder or to the part of a pattern before its first wildcard,
so outputs are in the same subfolders as the inputs. Symbolic links are followed, but no folder is
searched twice. A folder that can't be listed raises an error.
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
    """An image or a video to predict.

    Attributes:
        name: Relative path without suffix, from which the paths of its outputs are made.
        path: The input's file.
    """

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        """True for a video file. A GIF is a video if it has several frames, otherwise an image."""
        suffix = self.path.suffix.lower()
        return suffix in VIDEOS and (suffix != ".gif" or frames_in(self.path) > 1)


def frames_in(path: Path) -> int:
    """Returns the number of frames or pages in an image file; 1 if the file can't be read.

    Images that a camera embeds in a JPEG (MPO: a preview or a depth map) aren't counted.

    Args:
        path: The file, such as a GIF or TIFF.
    """
    # Don't open a path that isn't a regular file; the error is raised later, when the file is
    # predicted.
    if instead_of_file(path):
        return 1
    try:
        with Image.open(path) as image:
            return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # noqa: BLE001 - predicting the file later raises and reports the error
        return 1


def looks_like_input(argument: str) -> bool:
    """Returns True if a command-line argument names an image or a video, or is a pattern.

    Only the argument's suffix and wildcards are considered, which suffices to distinguish inputs
    from weights files. No file is opened.

    Args:
        argument: The argument as typed, a path or a glob pattern.
    """
    return Path(argument).suffix.lower() in IMAGE_SUFFIXES + VIDEOS or glob.has_magic(argument)


def find(arguments: Sequence[str], out: Path) -> list[Input]:
    """Finds the images and videos that the command-line arguments name.

    A folder stands for all images in and below it except hidden files. Videos in it are left out;
    they must be named by file or pattern. If `out` is below a folder or below the part of a pattern
    before its first wildcard, the files in `out` are excluded.

    Args:
        arguments: Files, folders and patterns.
        out: The folder of the outputs.

    Returns:
        A list of `Input` objects in the order of the arguments, without repetitions; those of one
        folder or pattern are sorted by path.

    Raises:
        DataError: An argument yields no input, a folder can't be listed, or two inputs would have
            the same outputs.
    """
    found: dict[Path, Input] = {}
    for argument in arguments:
        for item in _inputs_of(argument, out):
            found.setdefault(item.path.absolute(), item)
    inputs = list(found.values())
    _check_names(inputs)
    return inputs


def _inputs_of(argument: str, out: Path) -> list[Input]:
    path = Path(argument)
    if path.is_dir():
        return _images_in_folder(path, out)
    if path.suffix.lower() in _WEIGHTS:
        raise DataError(
            f"{argument}: weights by their name, no image; give what to predict after them"
        )
    if os.path.lexists(path):  # also true for a broken link, which prediction reports
        return [Input(path.stem, path)]
    if not glob.has_magic(argument):
        raise DataError(
            f"{argument}: no such file or folder; give an image, a folder, a quoted pattern or a "
            "video"
        )
    # Search the folder that the pattern names before its first wildcard.
    fixed = Path(*_parts_before_wildcard(path))
    parts = path.parts[len(fixed.parts) :]
    files = sorted(
        _matching_files(str(fixed), (*parts, "*") if parts[-1] == "**" else parts, set())
    )
    # Exclude earlier outputs. Use realpath, because Path.resolve raises an error for a symbolic
    # link that refers to itself.
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


def _parts_before_wildcard(path: Path) -> list[str]:
    parts = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _matching_files(
    folder: str, parts: tuple[str, ...], tried: set[tuple[int, int, int]]
) -> Iterator[str]:
    """Yields the paths (str) of the files below a folder that match a pattern, as `glob` does.

    `*` and `?` don't match hidden names, and a component `**` matches any number of folders.

    Args:
        folder: The folder to search, with which the yielded paths begin.
        parts: The path components of the pattern, relative to `folder`.
        tried: (device, inode, number of components left) of each search so far, to which this
            function adds its own. No search is repeated, so a link to a parent folder causes no
            endless recursion.
    """
    part = parts[0]
    rest = parts[1:]
    try:
        # Search each folder only once for the same remaining components, because a link may lead to
        # a parent folder.
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
        yield from _matching_files(folder, rest, tried)
    for name in names:
        path = os.path.join(folder, name)
        fits = part == "**" or fnmatch.fnmatchcase(name, part)
        # Skip a hidden name if a wildcard matches it, unless the pattern's component begins with a
        # dot.
        if glob.has_magic(part) and name.startswith(".") and not part.startswith("."):
            continue
        if os.path.isdir(path) and (rest or part == "**") and fits:
            yield from _matching_files(path, parts if part == "**" else rest, tried)
        elif not rest and fits and not os.path.isdir(path):
            yield path


def _refuse(error: OSError) -> None:
    raise _refusal(error) from None


def _refusal(error: OSError) -> DataError:
    return unlistable(error, "or give what can be read")


def _images_in_folder(folder: Path, out: Path) -> list[Input]:
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
    # Reject an image below a folder with a video's name: the video's frames are written to such a
    # folder, so the outputs would mix.
    for video in inputs:
        if video.is_video:
            inside = next((item for item in inputs if item.name.startswith(f"{video.name}/")), None)
            if inside is not None:
                raise DataError(
                    f"{video.path} and {inside.path} would share the folder {video.name}; predict "
                    "them apart"
                )
