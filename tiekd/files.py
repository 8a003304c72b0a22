"""Files: what stands in the place of one, and writing so that a reader never sees half of one.

A written file is whole even after a kill or a power cut. A reader asks `check_readable` first: to
open a pipe waits for a writer, for ever, and a device may never end. That costs one stat.
"""

import errno
import os
import stat
from pathlib import Path

from tiekd.errors import LaunchError, UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def instead_of_file(path: str | os.PathLike) -> str | None:
    """Returns what stands at a path in the place of a file, such as "a pipe".

    None for a file, for a link to one, and where nothing is there or can't be looked at: opening it
    reports that at once.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):  # a zero byte in a name is a ValueError
        return None
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "something else")


def check_readable(
    path: str | os.PathLike, noun: str, kind: type[UserError], option: str = ""
) -> None:
    """Refuses a folder, a pipe, a socket or a device in the place of a file, without opening it.

    Args:
        path: the file; one that isn't there is left to whoever opens it.
        noun: what the file should be, for the message, such as "recipe".
        kind: the class of the error.
        option: begins the message, such as "--deepspeed_config ".

    Raises:
        UserError: of the class `kind`, if it is no file.
    """
    found = instead_of_file(path)
    if found is not None:
        raise kind(f"{option}{path}: {found}, no {noun}; put the file itself there")


def replace_bytes(path: Path, data: bytes) -> None:
    """Replaces a file atomically: a reader sees the old content or the new, both complete.

    Raises:
        OSError: the file can't be written; the old one is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        # A write's own error doesn't say of which file it is.
        error.filename = str(path)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replaces a file atomically by UTF-8 text, in which file names keep their bytes."""
    replace_bytes(path, text.encode(errors="surrogateescape"))


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file, completely or not at all.

    Raises:
        OSError: the line can't be written; the file is as it was.
    """
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        data = f"{line}\n".encode()
        try:
            # On a full disk the first write is short and only the next one fails.
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(option: str, path: Path | None, suffix: str | None) -> None:
    """Creates the folder of a program's output at its start, hours before the output is written.

    Args:
        option: the option's name, for the message.
        path: the output; None if the user didn't ask for it.
        suffix: the file name's required ending, such as `.json`; None if the output is a folder.

    Raises:
        LaunchError: the folder can't be created, or the file has another ending or that of a run's
            log. Such a file may be the user's own; one with the right ending is replaced.
    """
    if path is None:
        return
    if suffix is not None and (path.suffix.lower() != suffix or instead_of_file(path)):
        raise LaunchError(f"{option} {path}: a file that ends in {suffix} is written; give one")
    # `.json` alone would let a run's log be replaced by a table of figures.
    if path.name.lower().endswith(".log.json"):
        raise LaunchError(
            f"{option} {path}: runs' logs end in .log.json; give another name, such as figures.json"
        )
    folder = path if suffix is None else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"{option} {path}: {folder} can't be made ({error.strerror}); give another place"
        ) from None
