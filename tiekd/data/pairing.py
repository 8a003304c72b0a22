"""Pairs images with depth maps by name, and reports files without a partner.

The report guesses the rule by which the depth maps are named. Costs some milliseconds if all files
have a partner; if many of 24,000 don't, the guess takes some 2 s. Left out: pairing by the guessed
rule; the user renames or links the files.
"""

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tiekd.errors import DataError, RecipeError

UNMATCHED = ("refuse", "allow")
_MOST = 0.5
_EXAMPLES = 3
_TRIED_DEPTHS = 3
_TRIED_IMAGES = 200
_COUNTED = 1000
_RULE_FITS = 2  # pairs that a rule must explain, or all if there are fewer


def check_pairs(
    images: Path,
    depths: Path,
    image_files: Mapping[str, str],
    depth_files: Mapping[str, str],
    unmatched: str,
) -> list[str]:
    """Counts the files without a partner, and gives a few examples.

    Args:
        images: Folder of the images, for messages.
        depths: Folder of the depth maps, for messages.
        image_files: Paths below their folder, keyed by path without suffix, by which files pair.
        depth_files: Likewise.
        unmatched: One of UNMATCHED: what to do if more than half of the images have no partner, or
            more than half of the depth maps while an image has none.

    Returns:
        A line for each kind of file without a partner.

    Raises:
        RecipeError: If `unmatched` isn't allowed.
        DataError: If there are that many. The message says by which rule the depth maps seem to be
            named.
    """
    if unmatched not in UNMATCHED:
        raise RecipeError(f"data.unmatched: got {unmatched!r}; allowed: {', '.join(UNMATCHED)}")
    # Count both kinds.
    alone = sorted(key for key in depth_files if key not in image_files)
    without = sorted(key for key in image_files if key not in depth_files)
    said = []
    if alone:
        named = _examples([depth_files[key] for key in alone])
        said.append(
            f"{len(alone)} of {len(depth_files)} depth maps in {depths} match no image, such as "
            f"{named}"
        )
    if without:
        named = _examples([image_files[key] for key in without])
        said.append(
            f"{len(without)} of {len(image_files)} images in {images} match no depth map, such as "
            f"{named}"
        )
    # Guess the rule, then decide.
    rule = naming_rule(without, alone) if alone and without else None
    guess = "" if rule is None else f"; depth maps seem to be named {rule}"
    # If every image has its depth map, surplus depth maps are no sign of another naming.
    too_many_alone = bool(without) and len(alone) > _MOST * len(depth_files)
    too_many = too_many_alone or len(without) > _MOST * len(image_files)
    nothing = len(alone) == len(depth_files)
    if nothing or (too_many and unmatched == "refuse"):
        meant = "" if nothing else "; if that is meant, set data.unmatched=allow"
        raise DataError(
            f"data.depths: {'; '.join(said)}{guess}. A depth map is named like its image (but for "
            f"the suffix): rename or link them{meant}"
        )
    return [line + (guess if index == 0 else "") for index, line in enumerate(said)]


def naming_rule(images: Sequence[str], depths: Sequence[str]) -> str | None:
    """Guesses the rule by which most of the depth maps are named after images.

    Args:
        images: Names of images without a partner.
        depths: Names of depth maps without a partner.

    Returns:
        The rule in words; None if no rule is likely.
    """
    # First rules that make both names equal: case, accents, zeros, folders.
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
    # Then prefixes, suffixes and replaced parts, taken from a few pairs and counted on many images.
    known = set(depths)
    fitting = {}
    few = min(len(images), len(depths))
    for depth in depths[:_TRIED_DEPTHS]:
        for image in images[:_TRIED_IMAGES]:
            for words, depth_of in _rules_of(image, depth):
                if words not in fitting and (few > 1 or not words.startswith("with ")):
                    fitting[words] = sum(depth_of(name) in known for name in images[:_COUNTED])
    # Accept the best rule only if it explains half of the files.
    best = max(fitting, key=fitting.get, default=None)
    enough = max(min(_RULE_FITS, few), min(few, _COUNTED) // 2)
    return best if best is not None and fitting[best] >= enough else None


def _rules_of(image: str, depth: str) -> Iterator[tuple[str, Callable[[str], str | None]]]:
    """Yields rules (words, function) by which the depth map would be named after the image."""
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
    # The differing middle of both paths, with a common start and end.
    same_start = len(os.path.commonprefix([image, depth]))
    rest = image[same_start:]
    other = depth[same_start:]
    same_end = len(os.path.commonprefix([rest[::-1], other[::-1]]))
    old, new = rest[: len(rest) - same_end], other[: len(other) - same_end]
    if old and new:
        yield f"with {new} where the image has {old}", lambda name: name.replace(old, new, 1)


def _renamed(path: str, rename: Callable[[str], str]) -> str:
    """Returns the path with another name in the same folder."""
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
