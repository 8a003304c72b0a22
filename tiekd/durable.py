"""Files that are whole whenever somebody looks, after a kill or a power cut too."""

import errno
import os
from pathlib import Path


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
