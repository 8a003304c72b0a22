"""Simulates a disk on which the read of one file never returns."""

import time
from pathlib import Path

from tiekd.data import image_io


def hold(monkeypatch, path: Path) -> None:
    """Makes each read of the file last an hour, in this process and processes forked from it."""
    read = image_io._decode

    def stuck(asked: Path, kind: str):
        if Path(asked) == path:
            time.sleep(3600)
        return read(asked, kind)

    monkeypatch.setattr(image_io, "_decode", stuck)
