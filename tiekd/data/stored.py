"""Reads the content of an image or a depth map, which is a file or a member of a tar shard.

A `ShardMember` refers to a member of a shard as a path refers to a file; `str` of it is
`shard.tar:member`, for messages. A member is read by its offset in the shard, without reading other
members. Each process keeps up to _MAX_OPEN shards open. A worker may use the file descriptors that
it inherits, since `pread` doesn't use the shared file position.
"""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tiekd.errors import DataError

_MAX_OPEN = 64  # shards that a process keeps open


class ShardMember(NamedTuple):
    """A member of a tar shard.

    Attributes:
        shard: Path of the shard.
        name: The member's name in the shard.
        offset: The position in the shard of the first byte of the member's content.
        size: The number of bytes of the member's content.
        state: (size in bytes, modification time in ns) of the shard when its index was read. If
            they have changed when the member is read, an error is raised.
    """

    shard: str
    name: str
    offset: int
    size: int
    state: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    @property
    def suffix(self) -> str:
        """The ending of the member's name, such as `.png`."""
        return os.path.splitext(self.name)[1]

    def read_bytes(self) -> bytes:
        """Returns the content of the member.

        Raises:
            DataError: The shard can't be read, or has changed since its index was read.
        """
        try:
            shard, state = _open_shard(self.shard)
            content = os.pread(shard.fileno(), self.size, self.offset)
        except FileNotFoundError:
            raise DataError(
                f"{self}: the shard has been removed since it was indexed; put it back", "missing"
            ) from None
        except OSError as error:
            raise DataError(
                f"{self}: can't be read ({error.strerror}); check its permissions and the disk"
            ) from None
        if state != self.state or len(content) != self.size:
            raise DataError(
                f"{self}: the shard has changed since it was indexed; put the old one back, or "
                "delete the index and start again"
            )
        return content


# The file of an image or a depth map, or the member of a tar shard with its content.
Source = Path | ShardMember


def source_of(path: str | ShardMember) -> Source:
    """Converts a path as text to a `Path`, and returns a member of a tar shard unchanged.

    The functions that read images and depth maps take such a `Source`.

    Args:
        path: The path of an image or a depth map, or the member that holds it.
    """
    return path if isinstance(path, ShardMember) else Path(path)


def content_of(source: Source) -> np.ndarray:
    """Returns the bytes of a file or a member.

    Args:
        source: The file or member.

    Returns:
        (N,) uint8.

    Raises:
        OSError: A file can't be read.
        DataError: A member can't be read.
    """
    if isinstance(source, ShardMember):
        return np.frombuffer(source.read_bytes(), np.uint8)
    return np.fromfile(source, dtype=np.uint8)


def as_openable(source: Source) -> Path | BinaryIO:
    """Returns an object from which libraries such as Pillow can read a file or a member.

    Args:
        source: The path of a file, which is returned unchanged; or a member of a tar shard, whose
            content is returned as a file object in memory.

    Raises:
        DataError: The member can't be read.
    """
    return io.BytesIO(source.read_bytes()) if isinstance(source, ShardMember) else source


@lru_cache(maxsize=_MAX_OPEN)
def _open_shard(shard: str) -> tuple[BinaryIO, tuple[int, int]]:
    """Opens a shard, which stays open in a cache of _MAX_OPEN shards.

    A shard that is dropped from the cache is closed when its last reader is done.

    Args:
        shard: Path of the shard.

    Returns:
        The opened file, and its (size in bytes, modification time in ns).
    """
    file = open(shard, "rb", buffering=0)  # noqa: SIM115 - closed when it leaves the cache
    found = os.fstat(file.fileno())
    return file, (found.st_size, found.st_mtime_ns)
