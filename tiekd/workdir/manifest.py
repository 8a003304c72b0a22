"""A checkpoint's files: written by the rank that has their content, hashed there, and listed in one manifest.

    {"files": {"student.pth": [size in bytes, sha256], ...}}

What the disk refuses is remembered and told afterwards, not raised in the middle: a rank that left DeepSpeed's saving
alone would keep the others waiting in it. Cost: each file is read once after it was written, at some 0.5 GB/s.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import torch

from tiekd.files import sync

NAME = "manifest.json"
_TORCH_COULD_NOT_WRITE = re.compile(
    r"PytorchStreamWriter|iostream|unexpected pos|cannot be opened|Parent directory", re.I
)


class Files:
    """Writes and reads a checkpoint's files; loading is weights-only and runs no code.

    written: name -> [size, digest] of this rank's files since `start`. problem: what went wrong first, one line.
    """

    def __init__(self):
        self.start()

    def start(self) -> None:
        self.written: dict[str, list] = {}
        self.problem: str | None = None

    def save(self, state_dict, path: str | Path) -> None:
        if isinstance(state_dict, bytes):
            self._attempt(Path(path), lambda: Path(path).write_bytes(state_dict))
        else:
            self._attempt(Path(path), lambda: torch.save(state_dict, path))

    def make_folder(self, path: str | Path, exist_ok: bool = False) -> None:
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.problem = self.problem or f"{path}: {error.strerror}"

    def load(self, path: str | Path, map_location="cpu"):
        return torch.load(path, map_location=map_location, weights_only=True)

    def _attempt(self, path: Path, write) -> None:
        if self.problem:
            return
        try:
            write()
            sync(path)
            self.written[path.name] = [path.stat().st_size, digest(path)]
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not _TORCH_COULD_NOT_WRITE.search(str(error)):
                raise
            reason = getattr(error, "strerror", None) or "it could not be written whole"
            self.problem = f"{path.name}: {reason}{_free(path.parent)}"


def write(folder: Path, files: dict[str, list]) -> None:
    """Writes the manifest of all ranks' files, which must be in the folder. Raises OSError."""
    missing = files.keys() - {path.name for path in folder.iterdir()}
    if missing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / min(missing)))
    (folder / NAME).write_text(_text(files))
    sync(folder / NAME)


def check(folder: Path) -> str | None:
    """What is wrong with the files of a folder, or None where each has the size and digest of the manifest."""
    try:
        text = (folder / NAME).read_text(encoding="ascii")
        files = json.loads(text)["files"]
        if not files or text != _text(files):
            raise ValueError
        listed = [(name, size, digest) for name, (size, digest) in files.items() if Path(name).name == name]
    except FileNotFoundError:
        return "it has no manifest (a save that never ended)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest can't be read"
    if len(listed) != len(files):
        return "its manifest names files elsewhere"
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
    """The sha256 of a file's content."""
    value = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value.update(block)
    return value.hexdigest()


def _text(files: dict[str, list]) -> str:
    return json.dumps({"files": dict(sorted(files.items()))}, indent=1)


def _free(folder: Path) -> str:
    try:
        return f" ({shutil.disk_usage(folder).free // 2**20} MB are free)"
    except OSError:
        return f" ({folder} is gone)"
