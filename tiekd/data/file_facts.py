"""What tells one state of a file from another: size, time of change, CRC-32 of the content.

Of many files several are looked at together, since a network file system answers so. Sizes and
times of 48,000 files on a local disk took 2 s on two busy cores.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_FEW = 4096
_THREADS = 8
_AT_ONCE = 256
_BLOCK = 1 << 20


def of_each(fact: Callable, paths: Sequence[str | None]) -> list:
    """The fact of each path, in order; None of None."""

    def of_part(part: Sequence[str | None]) -> list:
        return [path and fact(path) for path in part]

    if len(paths) <= _FEW:
        return of_part(paths)
    parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [value for part in pool.map(of_part, parts) for value in part]


def size_and_time(path: str | os.PathLike) -> tuple[int, int] | None:
    """(bytes, nanoseconds of the last change); None where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def crc(path: str | os.PathLike) -> int | None:
    """CRC-32 of the content; None where it can't be read, and for what is no file, such as a pipe, which would be
    waited for."""
    value = 0
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                value = zlib.crc32(block, value)
    except OSError:
        return None
    return value
