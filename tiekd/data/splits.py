"""Split files: one line a frame, `image ground_truth focal`; `None` stands for no ground truth.

A file of image names alone, as KITTI's benchmark has for its test set, is read too. A leading slash, as in NYU's
published files, means the data root and not the machine's. 24,000 lines take some 0.05 s.
"""

import math
from pathlib import Path
from typing import NamedTuple

from tiekd.errors import DataError


class SplitLine(NamedTuple):
    """Paths below the data set's folders, ground_truth None where there is none, focal length in pixels or None."""

    image: str
    ground_truth: str | None
    focal: float | None


def read_split(path: Path) -> list[SplitLine]:
    """The frames of a split file, in order. Raises DataError for a missing or empty file and for malformed lines."""
    lines = read_lines(path, "a line is `image ground_truth focal`")
    parse = _parse_name if all(len(line.split()) == 1 for _, line in lines) else _parse
    return [parse(line, f"{path}:{number}") for number, line in lines]


def read_lines(path: Path, rule: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that aren't blank, numbered from 1; `rule` tells the user what a line is."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: a folder or device, no split file; give a text file, {rule}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: no text; a split file is UTF-8, {rule}") from None
    except OSError:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such split file; .txt files beside it: {near}; check data.root") from None
    lines = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: no frames in it; {rule}")
    return lines


def below_root(name: str, where: str) -> str:
    """The name without leading slashes. Raises DataError, naming `where`, for one that leads out by `..` or is none.

    Only the name is looked at: links below the root, and a root that is one, are the user's own and are followed.
    """
    if ".." in name.split("/"):
        raise DataError(f"{where}: {name} leads out of the data root; give a path below it")
    below = name.lstrip("/")
    if not below or "\0" in below:
        raise DataError(f"{where}: {name!r:.80} names no file; give a path below the data root")
    return below


def _parse(line: str, where: str) -> SplitLine:
    parts = line.split()
    try:
        image, ground_truth, focal = parts[0], parts[1], float(parts[2])
    except (IndexError, ValueError):
        focal = 0.0
    if not 0 < focal < math.inf:
        raise DataError(f"{where}: got {line!r:.80}; a line is `image ground_truth focal`, focal in pixels > 0")
    return SplitLine(
        below_root(image, where), None if ground_truth == "None" else below_root(ground_truth, where), focal
    )


def _parse_name(line: str, where: str) -> SplitLine:
    return SplitLine(below_root(line, where), None, None)
