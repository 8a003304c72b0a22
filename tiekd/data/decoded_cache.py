"""A cache of decoded frames (`data.decoded`): memory-mapped arrays, read page by page on access.

There is one file for each image, depth map and teacher map, named by its path below data.root with
`.npy` appended. It holds an array in NumPy's format (`numpy.load`): an image (3, H, W) uint8,
upright (see orientation.py), or a depth map (1, H, W) uint16 as stored in its file. A trailer at
the file's end (`_TRAILER`) holds the size and modification time of the source, i.e. of the original
file, and a checksum of everything before the trailer. bin/cache_frames.py writes the cache. Cache
files of the format's first version, in which images aren't upright, are still read if their sources
have no EXIF orientation. The cache takes 3.2 MB per KITTI frame with a teacher map, and a read
costs one stat of the source. Not covered: depth in NPY files, which needs no decoding, and
verifying the checksum while training, which would read the whole file.
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

from tiekd import console
from tiekd.data import image_io, orientation
from tiekd.data.frames import Frames
from tiekd.data.shards.members import Members
from tiekd.errors import DataError, RecipeError

# Format of the trailer at the end of a cache file: magic bytes; size (bytes) and modification time
# (ns) of the original file; CRC-32 of everything before the trailer; the array's offset and its
# three dimensions.
_TRAILER = struct.Struct("<8sQqIIIII")
_MAGIC = b"tiekd 2\n"
# Magic bytes of the format's first version, in which images weren't turned upright and the level
# 65535 of ground truth wasn't replaced by 0.
_MAGIC_1 = b"tiekd 1\n"
_PROGRAM = console.command("cache_frames")


class Decoded:
    """A folder of cache files, one for each source file, i.e. each original image or depth map.

    Args:
        folder: The cache's folder.
        root: The dataset's folder (data.root). A source below it has the same relative path in the
            cache; other sources are cached under their absolute path.
    """

    def __init__(self, folder: Path, root: Path):
        self.folder = folder
        self._prefix = os.path.join(os.path.abspath(root), "")

    def path(self, source: Path) -> Path:
        """Returns the path of the cache file for an original file, whether or not it exists.

        Args:
            source: The original file.
        """
        name = os.path.abspath(source)
        return self.folder / f"{name.removeprefix(self._prefix).lstrip('/')}.npy"

    def read(self, source: Path, measured: bool = False) -> Tensor:
        """Returns the decoded array of an original file, memory-mapped from its cache file.

        Pages are read from disk only when they are accessed.

        Args:
            source: The original file.
            measured: True if the source is ground truth, in which 65535 means not measured; these
                pixels are 0 in the result.

        Returns:
            The decoded image, (3, H, W) uint8, or depth map, (1, H, W) uint16.

        Raises:
            DataError: The cache file is missing or corrupt, or the source has changed since it was
                cached.
        """
        mapped, trailer = self._mapped(source)
        start, *shape = trailer[4:]
        dtype = torch.uint8 if shape[0] == 3 else torch.uint16
        array = torch.frombuffer(
            mapped, dtype=dtype, count=shape[0] * shape[1] * shape[2], offset=start
        ).view(shape)
        # Set 65535 (not measured) to 0 in ground truth, if the cache file is of the older version,
        # which stored this value unchanged.
        if measured and trailer[0] == _MAGIC_1:
            array = image_io.without_levels(array, (image_io.NO_RETURN,))
        return array

    def write(self, source: Path, decode: Callable[[Path], Tensor]) -> None:
        """Decodes an original file and writes the array to its cache file.

        The write is atomic, so that no partial file is left.

        Args:
            source: The original file.
            decode: Function from the source's path to its array, (3, H, W) uint8 for an image or
                (1, H, W) uint16 for a depth map.

        Raises:
            DataError: The source can't be decoded, or the cache file can't be written.
        """
        # Take the source's size and modification time before decoding: if the source changes
        # meanwhile, the cache file counts as outdated.
        state = _state(source)
        array = np.ascontiguousarray(decode(source).numpy())
        file = io.BytesIO()
        path = self.path(source)
        np.lib.format.write_array(file, array)
        start = file.tell() - array.nbytes
        file.write(_TRAILER.pack(_MAGIC, *state, zlib.crc32(file.getvalue()), start, *array.shape))
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
        """Returns True if an original file is cached completely and hasn't changed since.

        Args:
            source: The original file.
            thoroughly: True to verify the checksum, too, which reads the whole array.
        """
        try:
            mapped, trailer = self._mapped(source)
        except DataError:
            return False
        return not thoroughly or zlib.crc32(memoryview(mapped)[: -_TRAILER.size]) == trailer[3]

    def _mapped(self, source: Path) -> tuple[mmap.mmap, tuple]:
        """Memory-maps the cache file of an original file.

        Args:
            source: The original file.

        Returns:
            The mapped content and the fields of its trailer, in the order of `_TRAILER`.

        Raises:
            DataError: The cache file is missing or corrupt, or the source has changed since it was
                cached.
        """
        path = self.path(source)
        try:
            # Map the file copy-on-write: tensors over the mapping are writable, but the file never
            # changes. O_NONBLOCK avoids waiting for a pipe's writer; mapping a pipe then raises an
            # error.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise DataError(
                f"{source}: not in {self.folder} (data.decoded); run {_PROGRAM}", "missing"
            ) from None
        except (OSError, ValueError) as error:  # mapping an empty file raises ValueError
            raise DataError(
                f"{path}: can't be read ({error}); make it again with {_PROGRAM}"
            ) from None
        # Reject corrupt files, and files written before the source changed.
        trailer = _trailer(mapped)
        if trailer is None:
            raise DataError(
                f"{path}: {len(mapped)} bytes, a truncated or damaged file; make it again with "
                f"{_PROGRAM}"
            )
        if _state(source) != trailer[1:3]:
            raise DataError(
                f"{source}: has changed since {path} was made from it; make that again with "
                f"{_PROGRAM}"
            )
        if trailer[0] == _MAGIC_1 and orientation.orientation_in(source) != orientation.UPRIGHT:
            old = f"{source}: {path} was made by a version that ignored EXIF orientation"
            raise DataError(f"{old}; make that again with {_PROGRAM}")
        return mapped, trailer


def attach(frames: object, folder: Path, root: Path, name: str) -> None:
    """Makes a dataset read its frames from a cache of decoded frames (`data.decoded`).

    Args:
        frames: The dataset; its attribute `decoded` is set to the cache.
        folder: The folder of the cache.
        root: The dataset's folder (data.root), to which the cache's paths are relative.
        name: The dataset's name, for error messages.

    Raises:
        RecipeError: The dataset isn't a `Frames`, the only class whose files can be cached.
        DataError: The folder doesn't exist.
    """
    if not isinstance(frames, Frames):
        raise RecipeError(
            f"data.decoded: {name} has no files to decode; kitti, nyu and folder have"
        )
    refuse_shards(frames)
    if not folder.is_dir():
        raise DataError(
            f"data.decoded: no folder at {folder}; make it with {_PROGRAM}, or leave it out"
        )
    frames.decoded = Decoded(folder, root)


def refuse_shards(frames: Frames) -> None:
    """Raises RecipeError for frames in tar shards, which have no files of their own to decode.

    Args:
        frames: The dataset.
    """
    if isinstance(frames.frames.images, Members):
        raise RecipeError(
            "data.decoded: frames of tar shards aren't cached, since their members are read in "
            "place; leave it out, or extract the shards and set data.name=folder"
        )


def describe(frames: object) -> list[str]:
    """Returns a list with one log line, the number of a dataset's files that aren't in its cache.

    Files that have changed since they were cached count as missing. The cost is a stat of every
    file, 20 us each.

    Args:
        frames: The dataset, after `attach`.

    Returns:
        One line, which is a warning if any file isn't cached; an empty list for a dataset without a
        cache.
    """
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


def _trailer(content: mmap.mmap | bytes) -> tuple | None:
    """Returns the fields of a cache file's trailer in the order of `_TRAILER`.

    Returns None if the trailer is missing or contradicts the file's size.

    Args:
        content: The content of the cache file.
    """
    end = len(content) - _TRAILER.size
    trailer = _TRAILER.unpack_from(content, end) if end > 0 else (b"",)
    if trailer[0] not in (_MAGIC, _MAGIC_1):
        return None
    start, channels, height, width = trailer[4:]
    bytes_per_value = 1 if channels == 3 else 2
    array_bytes = channels * height * width * bytes_per_value
    return trailer if end == start + array_bytes else None


def _state(source: Path) -> tuple[int, int]:
    """Returns (size in bytes, modification time in ns) of a file.

    Args:
        source: The file.

    Raises:
        DataError: There is no such file.
    """
    try:
        found = os.stat(source)
    except OSError:
        raise DataError(
            f"{source}: no such file; check data.root and the split file", "missing"
        ) from None
    return found.st_size, found.st_mtime_ns
