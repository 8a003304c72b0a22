"""Reads split files, which list the frames of a split.

A line is `image ground_truth focal`, with `None` as ground truth for a frame without one. A file of
image names alone, as KITTI's benchmark has for its test set, is read too. A path with a leading
slash, as in NYU's published files, is relative to the data root. A million plain lines take some 2
s and twice the file's bytes; lines with anything unusual are parsed one by one, at 5 us each. Bytes
that aren't UTF-8 are decoded as Python decodes file names (surrogateescape), so that a split file
can list any name. Not covered: names with blanks and comma-separated values, for which an error is
raised.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.data.frame_table import Texts
from tiekd.errors import DataError
from tiekd.files import instead_of_file

_LINE = "`image ground_truth focal`"
_BLANKS = "names with spaces can't be separated here, so link or rename such files"
# The characters by which Python represents bytes that aren't UTF-8.
_ESCAPED = re.compile("[\udc80-\udcff]")
_UTF_16 = b"\xff\xfe", b"\xfe\xff"
_BLANK, _LINE_BREAK = ord(" "), ord("\n")
_BLOCK = 1 << 24  # bytes that are looked at together
_FILE = re.compile(r"\.[A-Za-z]{2,5}$|^None$")


class SplitLine(NamedTuple):
    """One line of a split file.

    Attributes:
        image: Path of the image below the dataset's folder of images.
        ground_truth: Path of the depth map below the dataset's folder of depth maps; None without
            ground truth.
        focal: Focal length in pixels; None if the file lists only image names.
    """

    image: str
    ground_truth: str | None
    focal: float | None


def read_split(path: Path) -> list[SplitLine]:
    """Returns the lines of a split file that aren't blank as `SplitLine`s, in order.

    Args:
        path: The split file. Its lines are all `image ground_truth focal`, or all image names.

    Raises:
        DataError: The file is missing or empty, or a line is malformed.
    """
    lines = read_lines(path, f"a line is {_LINE}")
    # Choose the format: if most lines have one word, the file lists only image names, and lines
    # with more words raise an error. Otherwise lines with one word raise an error.
    names_alone = sum(len(line.split()) == 1 for _, line in lines) * 2 > len(lines)
    parse = _parse_name if names_alone else _parse
    return [parse(line, f"{path}:{number}") for number, line in lines]


class SplitTable(NamedTuple):
    """All lines of a split file.

    Attributes:
        images: The paths of the images of the N lines.
        ground_truths: The paths of the N depth maps; an entry has no meaning where `has_depth` is
            False.
        has_depth: (N,) bool, True for lines with ground truth.
        focals: (N,) float64, focal lengths in pixels; None if the file has image names alone.
    """

    images: Texts
    ground_truths: Texts
    has_depth: np.ndarray
    focals: np.ndarray | None

    def line(self, index: int) -> SplitLine:
        """Returns one line as a `SplitLine`.

        Args:
            index: The line's index, from 0, among the lines that aren't blank.
        """
        truth = self.ground_truths[index] if self.has_depth[index] else None
        return SplitLine(
            self.images[index], truth, None if self.focals is None else float(self.focals[index])
        )


def read_table(path: Path) -> SplitTable:
    """Returns the lines of a split file that aren't blank as a table, in order.

    The table has the same content as the result of `read_split`, in less memory.

    Args:
        path: The split file.

    Raises:
        DataError: The file is missing or empty, or a line is malformed.
    """
    table = None if instead_of_file(path) else _plain_table(path)
    if table is not None:
        return table
    lines = read_split(path)
    focals = None
    if lines[0].focal is not None:
        focals = np.array([line.focal for line in lines], np.float64)
    return SplitTable(
        Texts.of(line.image for line in lines),
        Texts.of(line.ground_truth or "" for line in lines),
        np.array([line.ground_truth is not None for line in lines], bool),
        focals,
    )


def _plain_table(path: Path) -> SplitTable | None:
    """Returns the lines of a split file in plain form as a table; None for any other file.

    In plain form all lines are ASCII, have one word each or three words each with single spaces
    between them, and have no comma, semicolon or `..`; paths aren't empty, and focal lengths are
    above 0. `read_split` accepts all such lines, so its checks needn't be repeated here. It also
    reads the files in any other form.

    Args:
        path: The split file.
    """
    try:
        data = path.read_bytes().replace(b"\r\n", b"\n")
    except OSError:
        return None
    if not data.endswith(b"\n"):
        data += b"\n"
    if not data.isascii() or any(mark in data for mark in (b",", b";", b"..")):
        return None
    # Find the end of each word: the next space or control character. Below, the file is refused if
    # one of them is neither a space nor a line break, but a tab, for example.
    content = np.frombuffer(data, np.uint8)
    ends = np.concatenate(
        [
            np.flatnonzero(content[first : first + _BLOCK] <= _BLANK) + first
            for first in range(0, len(content), _BLOCK)
        ]
    )
    words = 3 if _BLANK in content[ends[:2]] else 1
    expected = np.array([_BLANK] * (words - 1) + [_LINE_BREAK], np.uint8)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if len(ends) % words or (content[ends].reshape(-1, words) != expected).any():
        return None
    # Take the first word of each line as the image's path, without leading slashes.
    images = _below_root(data, starts[::words], ends[::words])
    if words == 1:
        return images and SplitTable(images, images, np.zeros(len(images), bool), None)
    truths = _below_root(data, starts[1::words], ends[1::words])
    # Compare the second words, as they are written, with `None`, which means no ground truth.
    # `truths` can't be compared, since it has no leading slashes, and `/None` is a path.
    truth_words, focal_words = (
        Texts(data, starts[place::words], ends[place::words] - starts[place::words])
        for place in (1, 2)
    )
    has_depth = ~truth_words.begins_with("None") | (truth_words.lengths != len("None"))
    focals = _focals(focal_words)
    if images is None or truths is None or focals is None:
        return None
    return SplitTable(images, truths, has_depth, focals)


def _below_root(data: bytes, starts: np.ndarray, ends: np.ndarray) -> Texts | None:
    """Returns the paths at given positions of a split file, without their leading slashes.

    Args:
        data: The content of the split file. The result is None if a path consists of slashes alone.
        starts: (N,) int64, the index in `data` of each path's first byte.
        ends: (N,) int64, the index in `data` of the byte after each path.
    """
    content = np.frombuffer(data, np.uint8)
    while (is_slash := content[starts] == ord("/")).any():
        starts = starts + is_slash
    lengths = (ends - starts).astype(np.int32)
    return Texts(data, starts, lengths) if (lengths > 0).all() else None


def _focals(words: Texts) -> np.ndarray | None:
    """Converts words of a split file to focal lengths in pixels, (N,) float64.

    Args:
        words: The N words. The result is None if a word isn't a finite number above 0.
    """
    known: dict[bytes, float] = {}
    try:
        found = [known.get(raw) or known.setdefault(raw, float(raw)) for raw in words.raws()]
    except ValueError:
        return None
    focals = np.array(found, np.float64)
    return focals if ((focals > 0) & (focals < math.inf)).all() else None


def read_lines(
    path: Path, rule: str, strip: Callable[[str], str] = str.strip
) -> list[tuple[int, str]]:
    """Returns (line number from 1, text) of each line of a text file that isn't blank.

    Args:
        path: The text file.
        rule: Description of a valid line, for error messages.
        strip: Function that removes insignificant characters from both ends of a line.

    Raises:
        DataError: The file is missing, empty, unreadable or not text.
    """
    try:
        # Refuse a path that isn't a regular file, since opening a FIFO would block.
        found = instead_of_file(path)
        if found is not None:
            raise DataError(f"{path}: {found}, no split file; give a text file, {rule}")
        data = path.read_bytes()
    except FileNotFoundError:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.txt"))) or "none"
        raise DataError(
            f"{path}: no such split file; .txt files beside it: {near}; check data.root"
        ) from None
    except OSError as error:
        why = f"can't be read ({error.strerror})"
        raise DataError(f"{path}: {why}; change its permissions, or give another file") from None
    text = data.decode("utf-8-sig", errors="surrogateescape")
    # Refuse a file with a zero byte or a UTF-16 byte order mark, which isn't UTF-8 text. Names may
    # contain any other bytes.
    if _ESCAPED.search(text) and (b"\0" in data or data.startswith(_UTF_16)):
        raise DataError(f"{path}: no text; a split file is UTF-8, {rule}")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [(number, strip(line)) for number, line in enumerate(lines, 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: no frames in it; {rule}")
    return lines


def _refuse_other_separators(line: str, where: str) -> None:
    """Raises DataError for a line whose values are separated by commas or semicolons.

    A comma or semicolon within a single name is allowed.

    Args:
        line: The line's text.
        where: File and line number, for the error message.
    """
    # Find the line's parts: a comma or semicolon is a separator if a blank follows it, or if
    # several of the parts look like file names.
    parts = re.split(r"[,;]\s*", line)
    if len(parts) > 1 and (
        re.search(r"[,;]\s", line) or sum(bool(_FILE.search(part)) for part in parts) > 1
    ):
        raise DataError(
            f"{where}: got {line!r:.80}; a line is {_LINE}, with blanks and no commas between them"
        )


def below_root(name: str, where: str) -> str:
    """Checks a path from a split file, and returns it without leading slashes.

    Only the path's text is checked. The path may lead outside the data root by a symbolic link,
    since the user made such a link.

    Args:
        name: The path.
        where: File and line number, for the error message.

    Raises:
        DataError: The path contains `..`, names no file or has a zero byte.
    """
    if ".." in name.split("/"):
        raise DataError(f"{where}: {name} leads out of the data root; give a path below it")
    below = name.lstrip("/")
    if not below or "\0" in below:
        raise DataError(f"{where}: {name!r:.80} names no file; give a path below the data root")
    return below


def _parse(line: str, where: str) -> SplitLine:
    _refuse_other_separators(line, where)
    try:
        image, ground_truth, focal = line.split()
        focal = float(focal)
    except ValueError:
        focal = 0.0
    if not 0 < focal < math.inf:
        blanks = f"; {_BLANKS}" if len(line.split()) > 3 else ""
        raise DataError(
            f"{where}: got {line!r:.80}; a line is {_LINE}, focal in pixels > 0{blanks}"
        )
    return SplitLine(
        below_root(image, where),
        None if ground_truth == "None" else below_root(ground_truth, where),
        focal,
    )


def _parse_name(line: str, where: str) -> SplitLine:
    _refuse_other_separators(line, where)
    if len(line.split()) > 1:
        raise DataError(
            f"{where}: got {line!r:.80}, where most lines are a name alone; a line is such a name, "
            f"or in all lines {_LINE}; {_BLANKS}"
        )
    return SplitLine(below_root(line, where), None, None)
