"""Lists all files below a folder, following links without loops, and reports unreadable folders.

Each folder, identified by device and inode, is entered once. Real folders are entered before links
to folders, so that a file that has a path without links is listed under that path. The entries of a
folder are sorted by name. Costs one scan of each folder, without a stat of each file: a million
files take about a second. Not covered: detecting links to the same file, so a file that is linked
twice is listed twice.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tiekd.errors import DataError

_Found = TypeVar("_Found")
# The results of `once` inside `listed_once`, each with its key; None outside.
_kept: list[tuple[Any, Any]] | None = None


@contextmanager
def listed_once() -> Iterator[None]:
    """Context manager in which the folders of a data set are listed once, for all of its splits.

    It takes half of the time of a large data set's start, and a file that appears meanwhile isn't
    in one split alone.
    """
    global _kept
    before, _kept = _kept, []
    try:
        yield
    finally:
        _kept = before


def once(key: object, make: Callable[[], _Found]) -> _Found:
    """Returns what a function returns; inside `listed_once` what it returned for an equal key.

    Args:
        key: All that the result depends on. The result is shared, so nobody may change it.
        make: The function.
    """
    if _kept is None:
        return make()
    for known, found in _kept:
        if known == key:
            return found
    found = make()
    _kept.append((key, found))
    return found


class Listing(NamedTuple):
    """The result of `list_files`.

    Attributes:
        files: Paths of the files relative to the folder, including links to files.
        repeated: Paths of links that weren't followed, because the folders that they lead to are
            listed already.
    """

    files: list[str]
    repeated: list[str]


def list_files(
    folder: Path, on_error: Callable[[OSError], None], leave_out: Path | None = None
) -> Listing:
    """Lists the files in and below a folder.

    Args:
        folder: The folder, which exists.
        on_error: Function that is called with the OSError of each folder that can't be listed; the
            error's `filename` is the folder. If the function returns, the folder is left out.
        leave_out: A folder that isn't entered; None enters all.

    Returns:
        The files, and the links to folders that are listed under another path.
    """
    files = []
    repeated = []
    entered = set() if leave_out is None else _identity(leave_out, lambda _: None)
    # Follow symbolic links to folders only once all real folders are listed, so that a file is
    # listed under a path without links if it has one.
    real = deque([""])
    links = deque()
    while real or links:
        below = real.popleft() if real else links.popleft()
        place = os.path.join(folder, below) if below else str(folder)
        identity = _identity(place, on_error)
        if not identity or identity <= entered:
            if identity and below and os.path.islink(place):
                repeated.append(below)
            continue
        entered |= identity
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=attrgetter("name"))
        except OSError as error:
            on_error(error)
            continue
        # Queue symbolic links separately, since the folder that a link leads to may also be found
        # without the link.
        prefix = f"{below}/" if below else ""
        for entry in entries:
            path = prefix + entry.name
            if not _is_folder(entry):
                files.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                real.append(path)
    return Listing(files, repeated)


def unlistable(error: OSError, remedy: str) -> DataError:
    """Returns the DataError to raise for a folder that can't be listed.

    Args:
        error: The error of the operating system.
        remedy: Advice to the user, besides changing permissions.
    """
    return DataError(
        f"{error.filename}: can't be listed ({error.strerror}); change its permissions, {remedy}"
    )


def _identity(folder: str | Path, on_error: Callable[[OSError], None]) -> set[tuple[int, int]]:
    """Returns the set {(device, inode)} of a folder, which identifies it whatever its path.

    Args:
        folder: The folder.
        on_error: Function that is called with the OSError if the folder can't be accessed. If the
            function returns, the result is the empty set.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        on_error(error)
        return set()
    return {(status.st_dev, status.st_ino)}


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself counts as a file, and reading it raises the error
        return False
