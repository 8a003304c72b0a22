"""Files that are whole whenever somebody looks, after a kill or a power cut too."""

import errno
import os
from pathlib import Path

from tiekd.errors import LaunchError


def replace_bytes(path: Path, data: bytes) -> None:
    """Writes a file so that there is always a whole one, the old or the new. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        sync(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """`replace_bytes` of UTF-8 text, in which names of files keep their bytes."""
    replace_bytes(path, text.encode(errors="surrogateescape"))


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file, whole or not at all. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        data = f"{line}\n".encode()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(option: str, path: Path | None, suffix: str | None) -> None:
    """Makes the folder that a result is to be written into, hours before. suffix: of a file; None for a folder.

    Raises LaunchError where it can't be made, and for a file that ends otherwise, or as a run's log does: it might be
    one of the user's. One that ends so is replaced.
    """
    if path is None:
        return
    if suffix is not None and (path.suffix.lower() != suffix or path.is_dir()):
        raise LaunchError(f"{option} {path}: a file that ends in {suffix} is written; give one")
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
