"""Writes files atomically, and checks paths before they are opened.

A reader always sees a complete file, even after a kill or a power cut during writing. Before a file
is opened, `check_readable` refuses anything that isn't a regular file, at the cost of one stat:
opening a pipe would wait for a writer for ever, and reading a device may never end.
"""

import contextlib
import errno
import hashlib
import os
import resource
import stat
from collections.abc import Iterable
from pathlib import Path

from tiekd.errors import LaunchError, UserError

_LONGEST_NAME = 200  # in bytes; a suffix is added, and file systems allow 255 bytes
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def instead_of_file(path: str | os.PathLike) -> str | None:
    """Returns what is at a path if it isn't a regular file.

    Args:
        path: The path.

    Returns:
        The kind of what is there, such as "a folder" or "a pipe". None for a regular file or a link
        to one. Also None if there is nothing at the path or it can't be accessed, since opening it
        then raises an error without a delay.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        # A ValueError means that the path contains a NUL character; opening it raises the error
        # again.
        return None
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "something else")


def check_readable(
    path: str | os.PathLike, noun: str, kind: type[UserError], option: str = ""
) -> None:
    """Refuses a folder, a pipe, a socket or a device in the place of a file, without opening it.

    Args:
        path: The path. A path at which there is nothing is not refused.
        noun: The file that is expected there, for the message, such as "recipe".
        kind: The class of the error that is raised.
        option: The beginning of the message: the option that gave the path, with a space, such as
            "--deepspeed_config ".

    Raises:
        UserError: At the path there is something else than a regular file. The error is of the
            class `kind`.
    """
    found = instead_of_file(path)
    if found is not None:
        raise kind(f"{option}{path}: {found}, no {noun}; put the file itself there")


def cause_of(error: BaseException, partial: Path | None = None) -> str:
    """Returns the reason why a file couldn't be written, as text for a message.

    If the reason is the process's limit of file sizes (ulimit -f), the text names the limit.

    Args:
        error: The error that was raised while the file was written.
        partial: The partly written file; None if unknown. It is needed for errors without an error
            number, such as torch's: the limit was the reason if the file is as large as the limit.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    is_limited = getattr(error, "errno", None) == errno.EFBIG
    if not isinstance(error, OSError) and partial is not None and limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError):
            is_limited = partial.stat().st_size >= limit
    if is_limited and limit != resource.RLIM_INFINITY:
        return f"{os.strerror(errno.EFBIG)}: the file size limit (ulimit -f) is {limit} bytes"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def replace_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Replaces a file atomically: a reader sees the old content or the new, both complete.

    Args:
        path: The file; it needn't exist yet.
        data: The new content of the file.
        durable: True to wait until the content is on the disk, so that it survives a power cut.

    Raises:
        OSError: The file can't be written; the old one is unchanged.
    """
    partial = path.with_name(_partial_name(path.name))
    try:
        partial.write_bytes(data)
        if durable:
            sync(partial)
        os.replace(partial, path)
    except BaseException as error:  # also Ctrl-C
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # Set the file's own name in the error: an error during writing has no file name, and
            # one during renaming has two.
            error.filename, error.filename2 = str(path), None
        raise


def _partial_name(name: str) -> str:
    """Returns the name of the temporary file to which the new content of a file is written.

    The name contains this process's ID, so that several processes can write at the same time.

    Args:
        name: The name of the file. In place of a long name its hash is used, since file systems
            limit the length of names.
    """
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest() + Path(name).suffix[:8]
    return f".{name}.{os.getpid()}.partial"


def replace_text(path: Path, text: str) -> None:
    """Replaces the content of a file atomically by text in UTF-8.

    Args:
        path: The file; it needn't exist yet.
        text: The new content. It may contain file names that are not UTF-8, which Python represents
            by surrogate escapes; their bytes are written unchanged.
    """
    replace_bytes(path, text.encode(errors="surrogateescape"))


def append_line(path: Path, line: str) -> None:
    """Appends a line to a text file, completely or not at all.

    Args:
        path: The file; created if it doesn't exist.
        line: The line, without its line break.

    Raises:
        OSError: The line can't be written; the file is unchanged.
    """
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        data = f"{line}\n".encode()
        try:
            # If the disk gets full, a write may write a part of the data without an error. Treat
            # that as an error.
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that it survives a power cut (fsync).

    Args:
        path: A file, whose content is written, or a folder, whose list of names is written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(option: str, path: Path | None, suffix: str | None) -> None:
    """Checks a program's output path when the program starts, and creates its folder.

    So a mistake in the path is reported immediately and not when the output is written, hours
    later.

    Args:
        option: The name of the option that gave the path, for the message.
        path: The output path; None if the user didn't ask for this output.
        suffix: The required ending of the file name, such as `.json`; None if the output is a
            folder.

    Raises:
        LaunchError: The folder can't be created, the file name has another ending, or it ends in
            .log.json like a run's log. (An existing output is replaced, so this protects other
            files of the user.)
    """
    if path is None:
        return
    if suffix is not None and (path.suffix.lower() != suffix or instead_of_file(path)):
        raise LaunchError(f"{option} {path}: a file that ends in {suffix} is written; give one")
    # Refuse `.log.json`: it also ends in `.json`, but is the log of a run, which the output would
    # replace.
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


def claim_folder(folder: Path, results: Iterable[str]) -> None:
    """Creates the folder of `--out`, unless it has results already.

    Args:
        folder: The folder.
        results: Names of the files that will be written there.

    Raises:
        LaunchError: The folder has one of these files, or can't be created.
    """
    held = [name for name in results if (folder / name).exists()]
    if held:
        raise LaunchError(
            f"--out {folder}: holds {held[0]} already, which is not overwritten; give another "
            "folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"--out {folder}: can't be made ({error.strerror}); give another folder"
        ) from None
