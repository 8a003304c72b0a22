"""Finds the right image of each left image by a rule for file names.

A rule is two texts: in the left image's path, the last occurrence of the first text is replaced by
the second. Without a rule, KITTI's folder image_02 is replaced by image_03. Not covered: a list of
right images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tiekd.data import image_io
from tiekd.data.frames import Frame
from tiekd.errors import TeacherError

KITTI = ("image_02", "image_03")


class Pair(NamedTuple):
    """The two images of one moment.

    Attributes:
        frame: The frame of the left image.
        right: Path of the right image.
    """

    frame: Frame
    right: str


def right_of(left: str, rule: tuple[str, str]) -> str | None:
    """Returns the path of a right image; None if the rule's first text isn't in the left path.

    Args:
        left: Path of the left image.
        rule: The text to replace, and its replacement.
    """
    head, found, tail = left.rpartition(rule[0])
    return head + rule[1] + tail if found else None


def pairs_of(
    frames: Sequence[Frame], rule: tuple[str, str] | None
) -> tuple[list[Pair], list[Frame]]:
    """Finds the right images of frames.

    Args:
        frames: The frames of the left images.
        rule: The text to replace, and its replacement; None for KITTI's folders.

    Returns:
        The pairs, and the frames whose right image is missing.

    Raises:
        TeacherError: The rule fits no path, more than half of the right images are missing, or the
            images of a pair differ in size.
    """
    find, replacement = rule or KITTI
    paths = [right_of(frame.image, (find, replacement)) for frame in frames]
    if not any(paths):
        raise TeacherError(
            f"teacher.right: {find!r} is in none of the {len(frames)} images' paths, such as "
            f"{frames[0].image}; give [TEXT, REPLACEMENT], as [left, right], which make a left "
            "image's path that of the right one"
        )
    pairs, missing = [], []
    for frame, path in zip(frames, paths, strict=True):
        if path is not None and Path(path).is_file():
            pairs.append(Pair(frame, path))
        else:
            missing.append(frame)
    if len(missing) > len(frames) / 2:
        first = missing[0]
        raise TeacherError(
            f"teacher.right: {len(missing)} of {len(frames)} frames have no right image, the first "
            f"is {first.name} (no file at {right_of(first.image, (find, replacement))}); check "
            f"teacher.right ([{find}, {replacement}]), and list left images in the split file"
        )
    for pair in pairs:
        _check_sizes(pair)
    return pairs, missing


def _check_sizes(pair: Pair) -> None:
    sizes = [image_io.read_image_size(Path(path)) for path in (pair.frame.image, pair.right)]
    if sizes[0] != sizes[1]:
        left, right = (f"{height}x{width}" for height, width in sizes)
        raise TeacherError(
            f"teacher.right: {pair.right} is {right} (height x width), its left image "
            f"{pair.frame.image} {left}; a rectified pair has one size"
        )
