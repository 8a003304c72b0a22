"""A disk that doesn't answer for one file."""

import time
from pathlib import Path

from tiekd.data import image_io


def hold(monkeypatch, path: Path) -> None:
    """Makes every read of the file wait for an hour, here and in processes forked from this one."""
    read = image_io._decode

    def stuck(asked: Path, kind: str):
        if Path(asked) == path:
            time.sleep(3600)
        return read(asked, kind)

    monkeypatch.setattr(image_io, "_decode", stuck)
