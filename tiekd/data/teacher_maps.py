"""Folders of cached teacher maps: their manifest, and the check that a recipe may learn from them.

A map is a 16-bit PNG of depth / full scale * 65535, 0 where not valid, named as its dataset's
`map_name` says. The manifest beside the maps records how they were made. Published maps have none;
they are taken to fit the recipe.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiekd.data import image_io
from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.errors import DataError, TeacherError
from tiekd.files import check_readable

MANIFEST = "manifest.json"
# Absent from manifests that were written before images were turned upright.
ORIENTATION = "orientation"


def make_manifest(
    max_depth_m: float,
    kb_crop: Sequence[int] | None,
    teacher_node: dict,
    digest: str | None,
    flip: bool,
    resize: Mapping | None = None,
) -> dict:
    """Returns the manifest of a folder of maps: their teacher, their images and their encoding.

    full_scale_m, which 65535 stands for, is the larger of the student's and the teacher's range: a
    teacher that sees farther than its student must not be clipped before the student's head decides
    on it.

    Args:
        max_depth_m: The student's range in metres.
        kb_crop: (height, width) of the window of the images; None for whole images.
        teacher_node: The teacher's network node, or the `teacher` node of an external teacher.
        digest: Digest of the teacher's weights; None if they aren't accessible.
        flip: True if the maps are averaged over the image and its mirror image.
        resize: Node of the teacher's working resolution; left out if there is none.
    """
    max_depth_m = float(max_depth_m)
    sees_m = max_depth_m
    if "name" not in teacher_node:
        encoder = {
            key: value for key, value in teacher_node["encoder"].items() if key != "pretrained"
        }
        # The pretrained weights that it started from don't change what it is.
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
    return json.loads(json.dumps(manifest))  # as it will be read back: lists instead of tuples


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes the manifest so that it is whole or absent."""
    image_io.write_durably(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict | None:
    """Returns the manifest of a folder of maps, None if it has none.

    Raises:
        DataError: If it can't be read, or is no manifest of maps.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    check_readable(path, "manifest of teacher maps", DataError)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        # Accessing the required keys raises an error if one is missing or no number.
        (
            float(manifest["full_scale_m"]),
            float(manifest["max_depth_m"]),
            manifest["kb_crop"],
            manifest["flip"],
        )
        return manifest
    except PermissionError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); change its permissions"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{path}: not a manifest of teacher maps; make the maps anew in another folder"
        ) from None


def full_scale_m(folder: Path, max_depth: float) -> float:
    """Returns the metres that 65535 stands for: the manifest's, or max_depth without a manifest."""
    manifest = read_manifest(folder)
    return max_depth if manifest is None else float(manifest["full_scale_m"])


def are_of_stored_pixels(folder: Path | None) -> bool:
    """Returns True for maps made before images were turned upright.

    They fit only images that no orientation mark turns.
    """
    manifest = None if folder is None else read_manifest(folder)
    return manifest is not None and ORIENTATION not in manifest


def check(folder: Path, max_depth_m: float, kb_crop: Sequence[int] | None) -> None:
    """Raises TeacherError if maps were made for another depth range or another crop.

    Args:
        folder: The maps.
        max_depth_m: The student's range in metres.
        kb_crop: (height, width) of the window of the images; None for whole images.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    pairs = {
        "network.max_depth": (manifest["max_depth_m"], float(max_depth_m)),
        "data.kb_crop": (manifest["kb_crop"], None if kb_crop is None else list(kb_crop)),
    }
    for option, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise TeacherError(
                f"teacher.maps: {folder} was made for {option} {_yaml(theirs)}, this recipe has "
                f"{_yaml(ours)}; set the same, or make maps for this recipe with "
                "bin/cache_teacher.py"
            )


def describe(folder: Path) -> str:
    """Describes the maps in one line for the log; a warning if they have no manifest."""
    manifest = read_manifest(folder)
    if manifest is None:
        return (
            f"Warning: the teacher's maps in {folder} have no {MANIFEST}; nothing says which "
            "teacher made them, and they are taken to have this recipe's max_depth and crop"
        )
    digest = manifest["teacher_digest"]
    name = manifest.get("teacher_network", {}).get("name")
    # An external teacher is known by name, one of this project by its weights' digest.
    parts = [name] if name else []
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
