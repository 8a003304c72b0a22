"""All files below a folder, each once: links are followed, loops end, and a folder that can't be listed is named.

A folder is entered once, by its device and inode. Real folders come before links, so that a file has its plain name
and not one through a link; folders and files come in the order of their names. Costs a look at each folder and none at
files: 24,000 files take some 0.2 s.
Left out: a file that is linked twice, which is listed twice.
"""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tiekd.errors import DataError


class Listing(NamedTuple):
    """files: paths below the folder, `/` between their parts, links to files among them; repeated: links to folders
    that are in the listing already, as such paths, too."""

    files: list[str]
    repeated: list[str]


def list_files(
    folder: Path, on_error: Callable[[OSError], None], leave_out: Path | None = None
) -> Listing:
    """The files in and below a folder.

    Args:
        folder: where to look; it exists.
        on_error: is given the error of each folder that can't be listed, with its path; raises it, or returns, and the
            folder is left out.
        leave_out: a folder that isn't entered.
    """
    files = []
    repeated = []
    entered = set() if leave_out is None else _identity(leave_out, lambda error: None)
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
    """What to say of a folder that can't be listed. remedy: what helps besides other permissions."""
    return DataError(
        f"{error.filename}: can't be listed ({error.strerror}); change its permissions, {remedy}"
    )


def _identity(folder: str | Path, on_error: Callable[[OSError], None]) -> set[tuple[int, int]]:
    """Device and inode, as a set of one; empty where the folder can't be looked at."""
    try:
        status = os.stat(folder)
    except OSError as error:
        on_error(error)
        return set()
    return {(status.st_dev, status.st_ino)}


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: a file that can't be read, which is told when it is
        return False
