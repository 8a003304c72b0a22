"""Split files: one line a frame, `image ground_truth focal`; `None` stands for no ground truth."""

import math
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tiekd.errors import DataError


class Frame(NamedTuple):
    """One line: paths below the data set's folders, ground_truth None where there is none, focal length in pixels."""

    image: str
    ground_truth: str | None
    focal: float


def read_split(path: Path) -> list[Frame]:
    """The frames of a split file, in order. Raises DataError for a missing or empty file and for malformed lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text; a split file has lines `image ground_truth focal` in UTF-8") from None
    except OSError:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such split file; .txt files beside it: {near}") from None
    frames = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not frames:
        raise DataError(f"{path}: no frames in it; a line is `image ground_truth focal`")
    return frames


def _parse(line: str, where: str) -> Frame:
    parts = line.split()
    try:
        image, ground_truth, focal = parts[0], parts[1], float(parts[2])
    except (IndexError, ValueError):
        focal = 0.0
    if not 0 < focal < math.inf:
        raise DataError(f"{where}: got {line!r:.80}; a line is `image ground_truth focal`, focal in pixels > 0")
    for name in (image, ground_truth):
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise DataError(f"{where}: {name} leads out of the data root; give a path below it")
    return Frame(image, None if ground_truth == "None" else ground_truth, focal)
