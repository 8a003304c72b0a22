"""What tells one state of a file from another: its size, its time of change, the CRC-32 of its content.

Of many files several are looked at together, since a network file system answers so: 5 us a file on
a local disk, and a second per GB that is read.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_FEW, _THREADS, _AT_ONCE = 4096, 8, 256
_BLOCK = 1 << 20


def of_each(fact: Callable, paths: Sequence[str | None]) -> list:
    """The fact of each path, in order; None of None."""
    if len(paths) <= _FEW:
        return [path and fact(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: path and fact(path), paths, chunksize=_AT_ONCE))


def size_and_time(path: str | os.PathLike) -> tuple[int, int] | None:
    """(bytes, nanoseconds of the last change); None where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def crc(path: str | os.PathLike) -> int | None:
    """CRC-32 of the content; None where it can't be read."""
    value = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                value = zlib.crc32(block, value)
    except OSError:
        return None
    return value
