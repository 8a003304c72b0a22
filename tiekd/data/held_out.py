"""Chooses validation frames by sequence, so that none is the neighbour of a training frame.

Frames of one folder count as a sequence. Whole folders are held out, chosen by a hash of their
names, until they have about the wanted share of the frames. If the folders are too large for that,
as with one flat folder of a video's frames, the last frames in the order of their names are held
out, and the frames before them are left out of both splits (GAP of all frames). Validation on the
same sequence is optimistic, which SAME_SEQUENCE says in the log.

Folders are compared at the first level at which they differ: of a/left/1.png and b/left/1.png the
folders are a and b. Left out: sequences that continue in another folder, such as the two images of
a stereo pair; name whole sequences in data.val_split.
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import PurePosixPath

GAP = 0.05  # the share of all frames that separates two parts of one sequence
SAME_SEQUENCE = "same sequence, optimistic"
# Whole folders are held out if they have this many times the wanted number of frames.
_LEAST, _MOST = 0.5, 2


def choose(names: Collection[str], fraction: float) -> set[str]:
    """Returns the names of the validation frames.

    Args:
        names: The names of all frames, paths with `/`.
        fraction: The share to hold out, from 0 to below 1; above 0 at least one frame is held out.
    """
    if not fraction:
        return set()
    wanted = max(1, round(fraction * len(names)))
    # Take whole folders in the order of a hash, which depends on no other folder.
    chosen: set[str] = set()
    folders = _folders(names)
    for folder in sorted(folders, key=_digest):
        if len(chosen) < wanted and len(chosen) + len(folders[folder]) <= _MOST * wanted:
            chosen |= folders[folder]
    return chosen if len(chosen) >= _LEAST * wanted else set(_in_order(names)[-wanted:])


def gap(names: Collection[str], validation: Collection[str]) -> set[str]:
    """Returns the names of frames that are too near to a validation frame to be trained on.

    These are the frames of a folder that has validation frames, if they are less than GAP of all
    frames away from one. If whole folders are held out there are none.

    Args:
        names: The names of all frames.
        validation: The names of the validation frames.
    """
    distance, held_out = round(GAP * len(names)), set(validation)
    left_out: set[str] = set()
    for folder in _folders(names).values():
        ordered = _in_order(folder)
        # Count the steps since the last validation frame, forwards and backwards.
        for way in (ordered, ordered[::-1]):
            steps = distance + 1
            for name in way:
                steps = 0 if name in held_out else steps + 1
                if 0 < steps <= distance:
                    left_out.add(name)
    return left_out


def shares_sequence(names: Collection[str], validation: Collection[str]) -> bool:
    """Returns True if a folder has both validation frames and others.

    Args:
        names: The names of all frames.
        validation: The names of the validation frames.
    """
    held_out = set(validation)
    return any(folder & held_out and folder - held_out for folder in _folders(names).values())


def _folders(names: Collection[str]) -> dict[str, set[str]]:
    """Returns the names of the frames in each folder, at the first level where folders differ.

    Args:
        names: The names of all frames.
    """
    paths = {name: PurePosixPath(name).parent.parts for name in names}
    deepest = max(map(len, paths.values()), default=0)
    for level in range(1, deepest + 1):
        folders: dict[str, set[str]] = {}
        for name, parts in paths.items():
            folders.setdefault("/".join(parts[:level]), set()).add(name)
        if len(folders) > 1:
            return folders
    return {"": set(names)}


def _in_order(names: Collection[str]) -> list[str]:
    """Returns names in the order in which people count: frame_2 before frame_10."""

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", name)
        return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]

    return sorted(names, key=key)


def _digest(folder: str) -> bytes:
    return hashlib.sha256(folder.encode(errors="surrogateescape")).digest()
