"""Frames decoded once and for all (`data.decoded`): arrays in a folder, memory-mapped, read only where they are needed.

One file for each picture, depth map and teacher map, named by its path below data.root with `.npy` behind: an array for
`numpy.load`, picture (3, H, W) uint8, upright, or depth (1, H, W) uint16 as it is read, and a note at the end: the size
and the time of change of the file that it was made from, and a checksum of all before it. bin/cache_frames.py writes
them. Files of before pictures were turned upright are read where their pictures have no orientation mark.
Costs 3.2 MB a frame of KITTI with a teacher's map, and a look at the source's size and time at each reading.
Left out: depth in NPY files, which needs no decoding, and the checksum while training, which would read everything.
"""

import io
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tiekd.data import image_io, orientation
from tiekd.data.frames import Frames
from tiekd.errors import DataError, RecipeError

# Mark; source's bytes, ns; CRC-32; where the array starts; its three sizes.
_NOTE = struct.Struct("<8sQqIIIII")
_MARK = b"tiekd 2\n"
_AS_STORED = (
    b"tiekd 1\n"  # written before pictures came upright and ground truth without its largest level
)
_PROGRAM = "bin/cache_frames.py"


class Decoded:
    """The decoded files in `folder` of sources that are below `root`, or elsewhere."""

    def __init__(self, folder: Path, root: Path):
        self.folder = folder
        self._prefix = os.path.join(os.path.abspath(root), "")

    def path(self, source: Path) -> Path:
        """Where a source's array is, or would be."""
        name = os.path.abspath(source)
        return self.folder / f"{name.removeprefix(self._prefix).lstrip('/')}.npy"

    def read(self, source: Path, measured: bool = False) -> Tensor:
        """(3, H, W) uint8 or (1, H, W) uint16 as the source was decoded; nothing is read before it is looked at.

        measured: the source is ground truth. Raises DataError where there is no such array, where it is damaged and
        where the source has changed.
        """
        mapped, note = self._mapped(source)
        start, *shape = note[4:]
        dtype = torch.uint8 if shape[0] == 3 else torch.uint16
        array = torch.frombuffer(
            mapped, dtype=dtype, count=shape[0] * shape[1] * shape[2], offset=start
        ).view(shape)
        if measured and note[0] == _AS_STORED:
            array = image_io.without_levels(array, (image_io.NO_RETURN,))
        return array

    def write(self, source: Path, decode: Callable[[Path], Tensor]) -> None:
        """Decodes a source and keeps the array, which is whole or not there. Raises DataError."""
        state = _state(source)
        array = np.ascontiguousarray(decode(source).numpy())
        file = io.BytesIO()
        path = self.path(source)
        np.lib.format.write_array(file, array)
        start = file.tell() - array.nbytes
        file.write(_NOTE.pack(_MARK, *state, zlib.crc32(file.getvalue()), start, *array.shape))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = (
                f"{path.parent}: can't be made ({error.strerror}); check the disk and its "
                "permissions"
            )
            raise DataError(message, "disk") from None
        image_io.write_durably(path, file.getvalue())

    def holds(self, source: Path, thoroughly: bool = False) -> bool:
        """Whether there is a whole array of the source as it is now; thoroughly: its checksum is right, too."""
        try:
            mapped, note = self._mapped(source)
        except DataError:
            return False
        return not thoroughly or zlib.crc32(memoryview(mapped)[: -_NOTE.size]) == note[3]

    def _mapped(self, source: Path) -> tuple[mmap.mmap, tuple]:
        """A source's decoded file and its note."""
        path = self.path(source)
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise DataError(
                f"{source}: not in {self.folder} (data.decoded); run {_PROGRAM}", "missing"
            ) from None
        except (OSError, ValueError) as error:  # an empty file is a ValueError
            raise DataError(
                f"{path}: can't be read ({error}); make it anew with {_PROGRAM}"
            ) from None
        note = _note(mapped)
        if note is None:
            raise DataError(
                f"{path}: {len(mapped)} bytes, a torn or damaged file; make it anew with {_PROGRAM}"
            )
        if _state(source) != note[1:3]:
            raise DataError(
                f"{source}: has changed since {path} was made from it; make that anew with "
                f"{_PROGRAM}"
            )
        if note[0] == _AS_STORED and orientation.mark_in(source) != orientation.UPRIGHT:
            old = f"{source}: {path} was made before orientation marks counted"
            raise DataError(f"{old}; make that anew with {_PROGRAM}")
        return mapped, note


def folder_of(data: dict, default: str | None = None) -> Path | None:
    """The folder that `recipe["data"]` means by `decoded`: below its root, or absolute."""
    folder = data.get("decoded", default)
    return None if folder is None else _root(data) / Path(folder).expanduser()


def without_cache(recipe: dict) -> dict:
    """The recipe, reading the files themselves."""
    return recipe | {
        "data": {key: value for key, value in recipe.get("data", {}).items() if key != "decoded"}
    }


def cache_at(folder: Path, data: dict) -> Decoded:
    """The cache in a folder for the sources of `recipe["data"]`."""
    return Decoded(folder, _root(data))


def attach(frames: object, data: dict) -> None:
    """Makes frames read from `data.decoded` where the recipe has it. Raises RecipeError and DataError."""
    folder = folder_of(data)
    if folder is None:
        return
    if not isinstance(frames, Frames):
        raise RecipeError(
            f"data.decoded: {data['name']} has no files to decode; kitti, nyu and folder have"
        )
    if not folder.is_dir():
        raise DataError(
            f"data.decoded: no folder at {folder}; make it with {_PROGRAM}, or leave it out"
        )
    frames.decoded = cache_at(folder, data)


def describe(frames: object) -> list[str]:
    """A line on frames that are read decoded: whether all of them are there. Looks at every file, some 20 us each."""
    cache = getattr(frames, "decoded", None)
    if cache is None:
        return []
    paths = {path for index in range(len(frames)) for path, _ in frames.files(index).values()}
    sources = list(filter(image_io.needs_decoding, paths))
    missing = sum(not cache.holds(source) for source in sources)
    if missing == 0:
        return [f"Decoded frames: all {len(sources)} files are in {cache.folder}"]
    return [
        f"WARNING: {missing} of {len(sources)} files aren't in {cache.folder}, or have changed "
        f"since; a run would stop there; make them with {_PROGRAM}"
    ]


def _root(data: dict) -> Path:
    return Path(data.get("root", ".")).expanduser()


def _note(content: mmap.mmap | bytes) -> tuple | None:
    """The note of a file's content; None where it has none or it isn't that of so many bytes."""
    end = len(content) - _NOTE.size
    note = _NOTE.unpack_from(content, end) if end > 0 else (b"",)
    if note[0] not in (_MARK, _AS_STORED):
        return None
    start, channels, height, width = note[4:]
    return note if end == start + channels * height * width * (1 if channels == 3 else 2) else None


def _state(source: Path) -> tuple[int, int]:
    """What tells one state of a file from another: (bytes, nanoseconds of its last change)."""
    try:
        found = os.stat(source)
    except OSError:
        raise DataError(
            f"{source}: no such file; check data.root and the split file", "missing"
        ) from None
    return found.st_size, found.st_mtime_ns
