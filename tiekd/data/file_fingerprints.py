"""Properties that identify the state of a file: size, modification time, CRC-32 of the content.

Many files are processed by parallel threads, which is faster on network file systems. Reading sizes
and times of 48,000 files on a local disk took 2 s on two busy cores.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

_FEW = 4096
_THREADS = 8
_AT_ONCE = 256
_BLOCK = 1 << 20


def map_paths(function: Callable, paths: Sequence[str | None]) -> list:
    """Returns the result of a function for each path, as a list in the order of the paths.

    If there are more than 4096 paths, several threads call the function.

    Args:
        function: A function of one path, such as `size_and_time`.
        paths: The paths; the result for None is None.
    """

    def map_part(part: Sequence[str | None]) -> list:
        return [path and function(path) for path in part]

    if len(paths) <= _FEW:
        return map_part(paths)
    # Give each thread many paths per task, so that the overhead per path is small.
    parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [value for part in pool.map(map_part, parts) for value in part]


def size_and_time(path: str | os.PathLike) -> tuple[int, int] | None:
    """Returns (size in bytes, modification time in ns) of a file; None if there is no such file.

    Args:
        path: The file.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def crc(path: str | os.PathLike) -> int | None:
    """Returns the CRC-32 of a file's content.

    Args:
        path: The file. The result is None if it can't be read, or if it isn't a regular file, since
            opening a FIFO blocks until there is a writer.
    """
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
