"""Writes a checkpoint's files and a manifest of their sizes and digests, and verifies them later.

    {"files": {"student.pth": [size in bytes, sha256], ...}}

Each rank writes and hashes its own files; one manifest lists the files of all ranks. A write error
is stored and reported after the save, not raised during it: if one rank left DeepSpeed's save, the
other ranks would hang in its collectives. Cost: each file is read once after it was written, at
about 0.5 GB/s.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch

from tiekd.files import cause_of, instead_of_file, sync

NAME = "manifest.json"
_TORCH_COULD_NOT_WRITE = re.compile(
    r"PytorchStreamWriter|iostream|unexpected pos|cannot be opened|Parent directory", re.I
)


class Files:
    """Writes and reads a rank's files of a checkpoint, and records the sizes and digests written.

    Files are loaded with torch's `weights_only`, so that loading runs no code from a file.

    Attributes:
        written: A dict from file name to [size in bytes, sha256], for the files that this rank has
            written since `start`.
        problem: A message about the first error since `start`; None if there was none.
        errno: The operating system's number of the error in `problem`; None if there was no error.
    """

    def __init__(self):
        self.start()

    def start(self) -> None:
        """Begins a new save: clears the records of the files and the error of the last save."""
        self.written: dict[str, list] = {}
        self.problem: str | None = None
        self.errno: int | None = None

    def save(self, state_dict, path: str | Path) -> None:
        """Writes a file, and records its size and digest in `written`.

        An error is stored in `problem` instead of being raised. After an error nothing is written.

        Args:
            state_dict: The content. Bytes are written as they are, anything else by `torch.save`.
            path: The file to write.
        """
        if isinstance(state_dict, bytes):
            self._attempt(Path(path), lambda: Path(path).write_bytes(state_dict))
        else:
            self._attempt(Path(path), lambda: torch.save(state_dict, path))

    def make_folder(self, path: str | Path, exist_ok: bool = False) -> None:
        """Creates a folder, with its parents; an error is stored in `problem`, not raised.

        Args:
            path: The folder.
            exist_ok: True if the folder may exist already.
        """
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            if self.problem is None:
                self.problem, self.errno = f"{path}: {error.strerror}", error.errno

    def load(self, path: str | Path, map_location="cpu"):
        """Loads a file that `save` has written, with `weights_only`, so that it can't run code.

        Args:
            path: The file to load.
            map_location: The device to which tensors are loaded, as torch.load takes it.

        Returns:
            The object that was saved.
        """
        return torch.load(path, map_location=map_location, weights_only=True)

    def _attempt(self, path: Path, write) -> None:
        # After an error, write no further files, since the save has failed already.
        if self.problem:
            return
        try:
            write()
            sync(path)
            self.written[path.name] = [path.stat().st_size, digest(path)]
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not _TORCH_COULD_NOT_WRITE.search(str(error)):
                raise
            self.problem, self.errno = f"{path.name}: {_cause(error, path)}", _number(error, path)


def write(folder: Path, files: dict[str, list]) -> None:
    """Writes the manifest of a checkpoint, which lists the files of all ranks.

    Args:
        folder: The checkpoint's folder, which must contain the files.
        files: A dict from file name to [size in bytes, sha256].

    Raises:
        OSError: A file is missing, or the manifest can't be written.
    """
    missing = files.keys() - {path.name for path in folder.iterdir()}
    if missing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / min(missing)))
    (folder / NAME).write_text(_text(files))
    sync(folder / NAME)


def check(folder: Path) -> str | None:
    """Returns a message about the first file of a checkpoint that doesn't match the manifest.

    A file doesn't match if it is missing, or if its size or digest differs from that in the
    manifest.

    Args:
        folder: The checkpoint's folder.

    Returns:
        The message; None if all files match. There is also a message if the manifest itself is
        missing or damaged.
    """
    found = instead_of_file(folder / NAME)
    if found is not None:
        return f"its manifest is {found}"
    try:
        text = (folder / NAME).read_text(encoding="ascii")
        files = json.loads(text)["files"]
        # Compare the text as well as the values, so that an edited or truncated manifest is
        # refused.
        if not files or text != _text(files):
            raise ValueError
        listed = [
            (name, size, digest)
            for name, (size, digest) in files.items()
            if Path(name).name == name
        ]
    except FileNotFoundError:
        return "it has no manifest (a save that never ended)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest can't be read"
    if len(listed) != len(files):
        return "its manifest names files elsewhere"
    # Compare sizes before digests, since a wrong size is found without reading the file.
    for name, size, written in listed:
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, not {size}"
            if digest(path) != written:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
    return None


def digest(path: Path) -> str:
    """Returns the sha256 of a file's content in hexadecimal digits.

    Args:
        path: The file.
    """
    value = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value.update(block)
    return value.hexdigest()


def _text(files: dict[str, list]) -> str:
    return json.dumps({"files": dict(sorted(files.items()))}, indent=1)


def _number(error: Exception, path: Path) -> int:
    """Returns the operating system's error number, such as errno.ENOSPC, for a failed write.

    torch's writer raises RuntimeErrors, which have no number. For these the result is the number of
    the most likely reason: a limit of the file's size, or else a full disk.

    Args:
        error: The error that the write raised.
        path: The file that could not be written.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return errno.EFBIG if "ulimit -f" in cause_of(error, path) else errno.ENOSPC


def _cause(error: Exception, path: Path) -> str:
    cause = cause_of(error, path)
    if "ulimit -f" in cause:
        return cause
    # Replace the text of a RuntimeError of torch's writer, which wouldn't help a user.
    reason = cause if isinstance(error, OSError) else "the file could be written only in part"
    return f"{reason}{_free(path.parent)}"


def _free(folder: Path) -> str:
    try:
        return f" ({shutil.disk_usage(folder).free // 2**20} MB are free)"
    except OSError:
        return f" ({folder} is gone)"
