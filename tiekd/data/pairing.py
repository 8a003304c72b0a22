"""Checks that images and depth maps match by name, and reports files without a partner.

The report guesses the rule by which the depth maps are named. The check takes some milliseconds if
all files have a partner; if many of 24,000 don't, the guess takes some 2 s. Not covered: pairing
files by the guessed rule, since the user can rename or link them.
"""

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tiekd.errors import DataError, RecipeError

UNMATCHED = ("refuse", "allow")
_MOST = 0.5  # fraction of files without a partner above which "refuse" raises an error
_EXAMPLES = 3
_TRIED_DEPTHS = 3  # number of depth maps from which naming rules are derived
_TRIED_IMAGES = 200  # number of images with which each of these depth maps is compared
_COUNTED = 1000  # number of images on which each naming rule is tested
_RULE_FITS = 2  # minimum number of pairs that a naming rule must explain, or all if fewer


def check_unmatched(unmatched: str) -> None:
    """Raises RecipeError unless the value of `data.unmatched` is "refuse" or "allow".

    Args:
        unmatched: The value of the option.
    """
    if unmatched not in UNMATCHED:
        raise RecipeError(f"data.unmatched: got {unmatched!r}; allowed: {', '.join(UNMATCHED)}")


def check_pairs(
    images: Path,
    depths: Path,
    image_files: Mapping[str, str],
    depth_files: Mapping[str, str],
    unmatched: str,
) -> list[str]:
    """Checks that images and depth maps have partners, and reports a few that have none.

    An image and a depth map are partners if their files have the same key.

    Args:
        images: Folder of the images, for messages.
        depths: Folder of the depth maps, for messages.
        image_files: Paths of the images below `images`. A file's key is its path without suffix.
        depth_files: Paths of the depth maps below `depths`, with keys made in the same way.
        unmatched: "refuse" raises an error if more than half of the images have no partner, or if
            an image and more than half of the depth maps have none; "allow" accepts both.

    Returns:
        Up to two lines for the user: one about depth maps without a partner, and one about images,
        each only if there are such files. The first states the guessed naming rule.

    Raises:
        RecipeError: `unmatched` is another value.
        DataError: Too many files have no partner and `unmatched` is "refuse", or no depth map has a
            partner. The message gives the guessed naming rule.
    """
    check_unmatched(unmatched)
    # Find the depth maps and the images without a partner.
    unpaired_depths = sorted(key for key in depth_files if key not in image_files)
    unpaired_images = sorted(key for key in image_files if key not in depth_files)
    lines = []
    if unpaired_depths:
        named = _examples([depth_files[key] for key in unpaired_depths])
        lines.append(
            f"{len(unpaired_depths)} of {len(depth_files)} depth maps in {depths} match no image, "
            f"such as {named}"
        )
    if unpaired_images:
        named = _examples([image_files[key] for key in unpaired_images])
        lines.append(
            f"{len(unpaired_images)} of {len(image_files)} images in {images} match no depth map, "
            f"such as {named}"
        )
    # For the error message, guess the rule by which depth maps are named.
    rule = None
    if unpaired_images and unpaired_depths:
        rule = naming_rule(unpaired_images, unpaired_depths)
    guess = "" if rule is None else f"; depth maps seem to be named {rule}"
    too_many = too_many_unpaired(
        len(unpaired_images), len(image_files), len(unpaired_depths), len(depth_files)
    )
    nothing = len(unpaired_depths) == len(depth_files)
    if nothing or (too_many and unmatched == "refuse"):
        meant = "" if nothing else "; if that is meant, set data.unmatched=allow"
        raise DataError(
            f"data.depths: {'; '.join(lines)}{guess}. A depth map is named like its image (but for "
            f"the suffix): rename or link them{meant}"
        )
    return [line + (guess if index == 0 else "") for index, line in enumerate(lines)]


def too_many_unpaired(
    num_unpaired_images: int, num_images: int, num_unpaired_depths: int, num_depths: int
) -> bool:
    """Returns True if so many files have no partner that a mistake is likely.

    Args:
        num_unpaired_images: Number of images without a depth map.
        num_images: Number of all images.
        num_unpaired_depths: Number of depth maps without an image.
        num_depths: Number of all depth maps.
    """
    # Accept any number of further depth maps if every image has its depth map.
    too_many_depths = num_unpaired_images > 0 and num_unpaired_depths > _MOST * num_depths
    return too_many_depths or num_unpaired_images > _MOST * num_images


def naming_rule(images: Sequence[str], depths: Sequence[str]) -> str | None:
    """Guesses the rule by which the names of most depth maps are made from those of images.

    Args:
        images: Paths, without suffix, of images without a depth map of the same name.
        depths: Paths, without suffix, of depth maps without an image of the same name.

    Returns:
        The rule in words, such as "<image>_depth"; None if no rule is likely.
    """
    # First test if the names of depth files equal those of images except for one of these: case,
    # accents, leading zeros, folders.
    for words, alike in (
        ("like images but for upper and lower case", str.lower),
        (
            "like images but for the way in which accents are written (Unicode's normal form)",
            _normal_form,
        ),
        ("like images but for leading zeros", _without_zeros),
        ("like images but for the folder", _without_folder),
    ):
        of_images = {alike(name) for name in images}
        if len(of_images) == len(images) and sum(
            alike(name) in of_images for name in depths
        ) >= min(_RULE_FITS, len(depths), len(images)):
            return words
    # Then derive rules from a few pairs (an added or removed prefix and suffix, or a replaced
    # substring), and count for how many images each rule gives the name of a depth map.
    known = set(depths)
    fitting = {}
    few = min(len(images), len(depths))
    for depth in depths[:_TRIED_DEPTHS]:
        for image in images[:_TRIED_IMAGES]:
            for words, depth_of in _rules_of(image, depth):
                if words not in fitting and (few > 1 or not words.startswith("with ")):
                    fitting[words] = sum(depth_of(name) in known for name in images[:_COUNTED])
    # Accept the best rule only if it gives the names of half of the tested files without a partner,
    # and of at least _RULE_FITS of them if there are so many.
    best = max(fitting, key=fitting.get, default=None)
    enough = max(min(_RULE_FITS, few), min(few, _COUNTED) // 2)
    return best if best is not None and fitting[best] >= enough else None


def _rules_of(image: str, depth: str) -> Iterator[tuple[str, Callable[[str], str | None]]]:
    """Yields each rule by which a depth map's name may be made from an image's name.

    A rule is a pair: the rule in words, and a function from an image's path to the path that its
    depth map has by this rule. Paths are without suffix.

    Args:
        image: Path of an image without suffix, relative to the folder of images.
        depth: Path of a depth map without suffix, relative to the folder of depth maps.
    """
    image_name = PurePosixPath(image).name
    depth_name = PurePosixPath(depth).name
    if image_name in depth_name:
        start, _, end = depth_name.partition(image_name)
        yield f"{start}<image>{end}", lambda name: _renamed(name, lambda own: f"{start}{own}{end}")
    elif depth_name in image_name:
        start, _, end = image_name.partition(depth_name)
        yield (
            f"<name> where the image is {start}<name>{end}",
            lambda name: _renamed(name, lambda own: own.removeprefix(start).removesuffix(end)),
        )
    # Find a replaced substring: the rest of both paths without their common prefix and suffix.
    same_start = len(os.path.commonprefix([image, depth]))
    rest = image[same_start:]
    other = depth[same_start:]
    same_end = len(os.path.commonprefix([rest[::-1], other[::-1]]))
    old, new = rest[: len(rest) - same_end], other[: len(other) - same_end]
    if old and new:
        yield f"with {new} where the image has {old}", lambda name: name.replace(old, new, 1)


def _renamed(path: str, rename: Callable[[str], str]) -> str:
    """Returns a path whose file name, the part after the last slash, is changed by a function.

    Args:
        path: The path.
        rename: Function from the file name to the new one.
    """
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{rename(name)}"


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES])


def _normal_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _without_zeros(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.lstrip("0") or "0"))


def _without_folder(name: str) -> str:
    return PurePosixPath(name).name
