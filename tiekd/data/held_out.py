"""Chooses validation frames by sequence, so that none is adjacent to a training frame.

Frames of one folder count as a sequence. Whole folders are held out, chosen by a hash of their
names, until they have about the wanted share of the frames. If the folders are too large for that,
for example if all frames of a video are in one folder, the last frames in the order of their names
are held out. Some frames before them, the fraction GAP of all, are then in neither split. Metrics
on the same sequence are optimistic, which SAME_SEQUENCE says in the log.

Folders are compared at the first level at which they differ: for a/left/1.png and b/left/1.png
these are a and b. Not covered: sequences that continue in another folder, such as the two images of
a stereo pair; name whole sequences in data.val_split.
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import NamedTuple

# The fraction of all frames that are left out between the training part and the validation part of
# one sequence.
GAP = 0.05
SAME_SEQUENCE = "same sequence, optimistic"
# Multiples of the wanted number of frames between which the number of frames in the held-out
# folders must be; otherwise a part of a folder is held out.
_LEAST, _MOST = 0.5, 2
# The smallest fraction of all frames in whole folders that `fit_and_report_parts` accepts as the
# part to report.
_LEAST_REPORTED = 0.2
_NUMBER = re.compile(r"(\d+)")
_AS_ZEROS = str.maketrans("123456789", "000000000")


class FitAndReportParts(NamedTuple):
    """Two parts of some frames: one to fit something on, one to report how well it fits.

    Attributes:
        fitted: The names of the frames to fit on.
        reported: The names of the frames to report.
        shares_sequence: True if a folder has frames of both, so that the report is optimistic.
    """

    fitted: set[str]
    reported: set[str]
    shares_sequence: bool


def fit_and_report_parts(names: Collection[str]) -> FitAndReportParts:
    """Divides frames by sequence into a part to fit something on and a part to report the fit on.

    The part to report has at most half of the frames. It consists of whole folders, taken in the
    order of a hash of their names or, if these have less than a fifth of the frames, from large to
    small. If one folder has more than four fifths of the frames, the part to report is the last
    half of the frames in the order of their names. Then the last ones of the frames before it are
    in neither part, so that the parts aren't neighbours in a video: the fraction GAP of all frames,
    or one frame if that is less than one and there are three frames or more.

    Args:
        names: The names of two frames or more, paths with `/`.
    """
    most = len(names) // 2
    folders = _folders(names)
    hashed = sorted(folders, key=_digest)
    # Try the order by size, too: a small folder that is taken first may leave no room for any of
    # the larger ones.
    for order in (hashed, sorted(hashed, key=lambda folder: -len(folders[folder]))):
        reported: set[str] = set()
        for folder in order:
            if len(reported) + len(folders[folder]) <= most:
                reported |= folders[folder]
        if len(reported) >= _LEAST_REPORTED * len(names):
            return FitAndReportParts(set(names) - reported, reported, False)
    ordered = _in_order(names)
    left_out = max(round(GAP * len(names)), int(len(names) > 2))
    split = len(names) - most
    fitted, reported = set(ordered[: split - left_out]), set(ordered[split:])
    return FitAndReportParts(fitted, reported, shares_sequence(fitted | reported, reported))


def count_sequences(names: Collection[str], all_names: Collection[str]) -> int:
    """Returns the number of sequences, i.e. folders, that contain one of the given frames.

    Args:
        names: The names of the given frames.
        all_names: The names of all frames, from which follows at which level of their paths folders
            are compared.
    """
    some = set(names)
    return sum(bool(folder & some) for folder in _folders(all_names).values())


def choose(names: Collection[str], fraction: float) -> set[str]:
    """Chooses the validation frames, and returns their names.

    Args:
        names: The names of all frames, paths with `/`.
        fraction: The share to hold out, from 0 to below 1; above 0 at least one frame is held out.
    """
    if not fraction:
        return set()
    wanted = max(1, round(fraction * len(names)))
    # Take whole folders in the order of a hash of their names, so that the order of two folders
    # doesn't depend on the other folders.
    chosen: set[str] = set()
    folders = _folders(names)
    for folder in sorted(folders, key=_digest):
        if len(chosen) < wanted and len(chosen) + len(folders[folder]) <= _MOST * wanted:
            chosen |= folders[folder]
    return chosen if len(chosen) >= _LEAST * wanted else set(_in_order(names)[-wanted:])


def gap(names: Collection[str], validation: Collection[str]) -> set[str]:
    """Returns the names of frames that are too close to a validation frame to be trained on.

    A frame is too close if it is in the same folder as a validation frame, and the two are at most
    the fraction GAP of all frames apart in the order of names. There are no such frames if whole
    folders are held out.

    Args:
        names: The names of all frames.
        validation: The names of the validation frames.
    """
    distance, held_out = round(GAP * len(names)), set(validation)
    left_out: set[str] = set()
    for folder in _folders(names).values():
        ordered = _in_order(folder)
        # For each frame of the folder, count how many frames it is after the last validation frame,
        # in the order of names and in reverse order.
        for way in (ordered, ordered[::-1]):
            steps = distance + 1
            for name in way:
                steps = 0 if name in held_out else steps + 1
                if 0 < steps <= distance:
                    left_out.add(name)
    return left_out


def shares_sequence(names: Collection[str], validation: Collection[str]) -> bool:
    """Returns True if a folder has both validation frames and other frames.

    Args:
        names: The names of all frames.
        validation: The names of the validation frames.
    """
    held_out = set(validation)
    return any(folder & held_out and folder - held_out for folder in _folders(names).values())


def _folders(names: Collection[str]) -> dict[str, set[str]]:
    """Groups frames by folder, at the first level of their paths where folders differ.

    Args:
        names: The names of all frames, paths with `/`.

    Returns:
        folder -> names of its frames.
    """
    # Group frames by their whole folder first: of a million frames only folders become paths.
    within: dict[str, list[str]] = {}
    for name in names:
        within.setdefault(name.rpartition("/")[0], []).append(name)
    paths = {folder: PurePosixPath(folder).parts for folder in within}
    deepest = max(map(len, paths.values()), default=0)
    for level in range(1, deepest + 1):
        folders: dict[str, set[str]] = {}
        for folder, parts in paths.items():
            folders.setdefault("/".join(parts[:level]), set()).update(within[folder])
        if len(folders) > 1:
            return folders
    return {"": set(names)}


def _in_order(names: Collection[str]) -> list[str]:
    """Returns names sorted with numbers compared as numbers: frame_2 before frame_10."""
    # Numbers of one width at the same places are in the order of the text.
    if len({name.translate(_AS_ZEROS) for name in names}) <= 1:
        return sorted(names)
    numbers = (match.group() for name in names for match in _NUMBER.finditer(name))
    most = max(map(len, numbers), default=1)

    def key(name: str) -> str:
        # Each number is filled up to one width, and its own text tells 01 from 1. NUL ends a part:
        # it comes before every character of a name, as the end of a text does.
        parts = _NUMBER.split(name)
        return "\0".join(
            f"{int(part):0{most}}\0{part}" if place % 2 else part
            for place, part in enumerate(parts)
        )

    return sorted(names, key=key)


def _digest(folder: str) -> bytes:
    return hashlib.sha256(folder.encode(errors="surrogateescape")).digest()
