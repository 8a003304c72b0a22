"""Reads the content of an image or a depth map, which is a file or a member of a tar shard.

A `Stored` stands for a member like a path for a file: its text is `shard.tar:member`, as messages
name it. It is read by offset, without the tar's index or its other members. Each process keeps some
shards open; descriptors that a worker inherits are safe to use, as `pread` has no file position.
"""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tiekd.errors import DataError

_MAX_OPEN = 64  # shards that a process keeps open


class Stored(NamedTuple):
    """A member of a tar shard.

    Attributes:
        shard: Path of the shard.
        name: The member's name in it.
        offset: The first byte of its content in the shard.
        size: The number of its bytes.
        state: (size in bytes, modification time in ns) of the shard when it was indexed.
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
        """Returns the member's content.

        Raises:
            DataError: The shard can't be read, or isn't the one that was indexed.
        """
        try:
            shard, state = _opened(self.shard)
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


# What is read as an image or a depth map.
Source = Path | Stored


def source_of(place: str | Stored) -> Source:
    """Returns a frame's image or depth map as what the reading functions take.

    Args:
        place: A file's path, or a member of a shard.
    """
    return place if isinstance(place, Stored) else Path(place)


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
    if isinstance(source, Stored):
        return np.frombuffer(source.read_bytes(), np.uint8)
    return np.fromfile(source, dtype=np.uint8)


def opened(source: Source) -> Path | BinaryIO:
    """Returns what a library opens to read a file or a member: the path, or the content.

    Args:
        source: The file or member.
    """
    return io.BytesIO(source.read_bytes()) if isinstance(source, Stored) else source


@lru_cache(maxsize=_MAX_OPEN)
def _opened(shard: str) -> tuple[BinaryIO, tuple[int, int]]:
    """Opens a shard, and returns it with its size and modification time.

    A shard that is dropped from the cache is closed when its last reader is done.
    """
    file = open(shard, "rb", buffering=0)  # noqa: SIM115 - closed when it leaves the cache
    found = os.fstat(file.fileno())
    return file, (found.st_size, found.st_mtime_ns)
