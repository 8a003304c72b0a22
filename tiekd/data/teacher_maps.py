"""Folders of cached teacher maps: their manifest, and the check that they fit a recipe.

A map is a 16-bit PNG of depth / full scale * 65535, 0 where invalid; the full scale is the depth in
metres that level 65535 encodes. The dataset's method `map_name` returns a map's file name. Maps of
sigma, if the teacher gives any, have the same names and encoding, in the sub-folder `sigma`. Maps
of frames in tar shards are in tar shards, too (tiekd/data/shards/maps.py). The manifest in the
folder records how the maps were made. Published maps have no manifest and are assumed to fit the
recipe.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tiekd import console
from tiekd.data import image_io, learned_from
from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.errors import DataError, TeacherError
from tiekd.files import check_readable

MANIFEST = "manifest.json"
# Name of the sub-folder of sigma maps, and of the manifest's entry about them: the sigma in metres
# that level 65535 encodes. Without sigma maps there is no such entry.
SIGMA = "sigma"
SIGMA_SCALE = "sigma_full_scale_m"
# Name of the manifest entry that is true if the maps are in tar shards (tiekd/data/shards/maps.py).
# Without it each map is a file.
SHARDS = "shards"
# Name of the manifest entry about EXIF orientation. Old manifests lack it: their maps were made
# from images as stored, not turned upright.
ORIENTATION = "orientation"
# Names of entries that state where maps come from but don't affect their values. Older manifests
# lack them.
PROVENANCE_ENTRIES = (learned_from.KEY, "intrinsics")


def _is_length(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= sys.float_info.max


def _is_size(value: object) -> bool:
    """Returns True if a value is a list [height, width] of two integers above 0."""
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(type(side) is int and side > 0 for side in value)


def _is_missing_or(kind: type) -> Callable[[object], bool]:
    """Returns a function that returns True for None and for values of the type `kind`.

    Args:
        kind: The type of the allowed values.
    """
    return lambda value: value is None or isinstance(value, kind)


# The manifest's entries that are read: (name, description of the allowed values for the error
# message, function that checks a value).
_ENTRIES = (
    ("full_scale_m", "a number of metres above 0", _is_length),
    ("max_depth_m", "a number of metres above 0", _is_length),
    ("kb_crop", "[height, width] or null", lambda value: value is None or _is_size(value)),
    ("flip", "true or false", lambda value: isinstance(value, bool)),
    ("teacher_digest", "text or null", _is_missing_or(str)),
    ("teacher_network", "an object", _is_missing_or(dict)),
    ("resize", "an object", _is_missing_or(dict)),
    (SIGMA_SCALE, "metres above 0", lambda value: value is None or _is_length(value)),
    (SHARDS, "true or missing", lambda value: value is None or value is True),
)


def make_manifest(
    max_depth_m: float,
    kb_crop: Sequence[int] | None,
    teacher_node: dict,
    digest: str | None,
    flip: bool,
    resize: Mapping | None = None,
    teacher_max_depth_m: float | None = None,
) -> dict:
    """Returns the manifest of a folder of maps: it describes their teacher, images and encoding.

    The entry `full_scale_m`, the depth that level 65535 encodes, is the larger of the student's and
    the teacher's range. So a teacher's depths beyond the student's range aren't clipped in the
    maps, and the student's head decides how to use them.

    Args:
        max_depth_m: The student's range, i.e. the largest depth that it predicts, in metres.
        kb_crop: (height, width) of the images' crop; None for whole images.
        teacher_node: A dict that describes the teacher. For a network of this project it is the
            recipe's network node; for any other teacher it has a `name`.
        digest: Digest of the teacher's weights; None if they aren't accessible.
        flip: True if each map averages the predictions for the image and its mirror image.
        resize: Node of the size at which the teacher sees images, as `Resize.node` returns it; None
            or empty if it sees them at their own size.
        teacher_max_depth_m: The teacher's range in metres, if its node doesn't have it; None if
            unknown.

    Returns:
        The manifest as `read_manifest` would return it, i.e. with lists instead of tuples.
    """
    max_depth_m = float(max_depth_m)
    sees_m = max_depth_m if teacher_max_depth_m is None else float(teacher_max_depth_m)
    if "name" not in teacher_node:
        encoder = {
            key: value for key, value in teacher_node["encoder"].items() if key != "pretrained"
        }
        # Omit `pretrained`: those initial weights were replaced by the teacher's trained weights.
        teacher_node = teacher_node | {"encoder": encoder}
        sees_m = float(teacher_node["max_depth"])
    manifest = {
        "encoding": "uint16 PNG, depth = value / 65535 * full_scale_m, 0 = not valid",
        "full_scale_m": max(max_depth_m, sees_m),
        "max_depth_m": max_depth_m,
        "kb_crop": kb_crop,
        ORIENTATION: "upright",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "flip": flip,
        "teacher_digest": digest,
        "teacher_network": teacher_node,
        **({"resize": dict(resize)} if resize else {}),
    }
    return json.loads(json.dumps(manifest))  # as it is read from a file: lists instead of tuples


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes a folder's manifest atomically: it is never partially written.

    Args:
        folder: The folder of maps.
        manifest: The manifest, as `make_manifest` returns it.

    Raises:
        DataError: The file can't be written.
    """
    image_io.write_durably(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict | None:
    """Returns the manifest of a folder of maps; None if the folder has no manifest.

    Args:
        folder: The folder of maps.

    Raises:
        DataError: The manifest can't be read, or isn't one of teacher maps.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    check_readable(path, "manifest of teacher maps", DataError)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        wrong = next(
            (
                f"{key} is {str(manifest.get(key)):.80}, not {allowed}"
                for key, allowed, fits in _ENTRIES
                if not fits(manifest.get(key))
            ),
            None,
        )
        # Access both entries, because a missing entry must raise KeyError; the value `null` is
        # allowed.
        manifest["kb_crop"], manifest["flip"]
    except PermissionError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); change its permissions"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: not a manifest of teacher maps; make the maps again in another folder"
        ) from None
    if wrong is not None:
        raise DataError(
            f"{path}: not a manifest of teacher maps ({wrong}); make the maps again in another "
            "folder"
        )
    return manifest


def differing(found: Mapping, manifest: Mapping) -> list[str]:
    """Returns the names of the entries by which two manifests describe different maps.

    Args:
        found: The first manifest, such as that of a folder.
        manifest: The second manifest.
    """
    keys = [key for key in {**manifest, **found} if key not in PROVENANCE_ENTRIES]
    return [key for key in keys if found.get(key) != manifest.get(key)]


def full_scale_m(folder: Path, max_depth: float) -> float:
    """Returns the depth in metres that level 65535 of a folder's maps encodes.

    Args:
        folder: The folder of maps.
        max_depth: The student's largest depth in metres, which is returned if the folder has no
            manifest.
    """
    manifest = read_manifest(folder)
    return max_depth if manifest is None else float(manifest["full_scale_m"])


def sigma_full_scale_m(folder: Path) -> float | None:
    """Returns the sigma in metres that level 65535 of a folder's sigma maps encodes.

    Args:
        folder: The folder of maps.

    Returns:
        The sigma; None if the folder has no sigma maps.
    """
    manifest = read_manifest(folder)
    return None if manifest is None else manifest.get(SIGMA_SCALE)


def are_sharded(folder: Path) -> bool:
    """Returns True if a folder's maps are in tar shards, according to its manifest.

    Args:
        folder: The folder of maps.
    """
    manifest = read_manifest(folder)
    return manifest is not None and SHARDS in manifest


def are_of_stored_pixels(folder: Path | None) -> bool:
    """Returns True if a folder's maps were made from images as stored, i.e. not turned upright.

    Older versions of tiekd made such maps. They fit only images that are stored upright, i.e. whose
    EXIF orientation is 1.

    Args:
        folder: The folder of maps. The result is False for None, and for a folder without a
            manifest.
    """
    manifest = None if folder is None else read_manifest(folder)
    return manifest is not None and ORIENTATION not in manifest


def check(
    folder: Path, max_depth_m: float, kb_crop: Sequence[int] | None, option: str = "teacher.maps"
) -> None:
    """Raises TeacherError if a folder's maps were made for another depth range or another crop.

    Args:
        folder: The folder of maps; without a manifest nothing is checked.
        max_depth_m: The recipe's network.max_depth in metres.
        kb_crop: The recipe's data.kb_crop, (height, width); None for whole images.
        option: The option that names the folder, for the error message.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    pairs = {
        "network.max_depth": (manifest["max_depth_m"], float(max_depth_m)),
        "data.kb_crop": (manifest["kb_crop"], None if kb_crop is None else list(kb_crop)),
    }
    for setting, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise TeacherError(
                f"{option}: {folder} was made for {setting} {_yaml(theirs)}, this recipe has "
                f"{_yaml(ours)}; set the same, or make maps for this recipe with "
                f"{console.command('cache_teacher')}"
            )


def describe(folder: Path) -> str:
    """Returns a log line about a folder's maps: their teacher, its weights and its image size.

    The line is a warning if the folder has no manifest.

    Args:
        folder: The folder of maps.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return (
            f"Warning: the teacher's maps in {folder} have no {MANIFEST}; nothing says which "
            "teacher made them, and they are taken to have this recipe's max_depth and crop"
        )
    digest = manifest.get("teacher_digest")
    teacher = manifest.get("teacher_network") or {}
    name = teacher.get("name")
    # Name an external teacher by its name, and a network of this project by the digest of its
    # weights.
    parts = [name] if name else []
    recorded = learned_from.of_manifest(manifest, folder)[0]
    if "output" in teacher:
        parts = [f"{name} {teacher.get('model')}", f"output {teacher['output']}"]
        if recorded.get("revision"):
            parts.append(f"revision {recorded['revision']:.12}")
        parts.append(f"licence {teacher.get('licence') or 'not stated'}")
    if recorded["name"] == learned_from.NETWORK and recorded["model"]:
        parts.append(f"the network of {recorded['model']}")
    if digest:
        parts.append(f"the weights with digest {digest[:12]}")
    if not name:
        parts.append(f"flip averaging {'on' if manifest['flip'] else 'off'}")
    seen = manifest.get("resize")
    at = f"; it saw images at {_inline(seen)}" if seen and "at_most" not in seen else ""
    return f"Teacher: cached maps in {folder}, of {', '.join(parts)}{at}"


def _inline(node: Mapping) -> str:
    return f"{{{', '.join(f'{key}: {value}' for key, value in node.items())}}}"


def _yaml(value) -> str:
    return "null" if value is None else str(value)
