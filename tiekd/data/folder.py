"""A folder of one's own pictures, with or without measured depth: no code, no special layout, no ground truth needed.

Pictures are all JPEG and PNG files in or below `images`, pixels as stored (a camera's orientation mark is ignored).
Depth maps are 16-bit PNG or NPY files below `depths` with the same path but for the suffix: a/1.jpg and a/1.png. A
picture without one is trained on when there is a teacher, and otherwise skipped and counted. Cached teacher maps are
named by the picture's path joined by `_`, as PNG.
Left out: other ways to pair files (link or rename them), and cameras that differ from picture to picture.
"""

import hashlib
import math
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch

from tiekd.data.depth_io import read_depth_npy, read_levels
from tiekd.data.frames import Camera, Frame, Frames, data_root, joined_name
from tiekd.data.splits import below_root, read_lines
from tiekd.errors import DataError, RecipeError

_PICTURES, _DEPTHS = (".jpg", ".jpeg", ".png"), (".png", ".npy")


def build(
    images: str,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    root: str = ".",
    depths: str | None = None,
    depth_unit: float | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    val_fraction: float = 0.1,
    intrinsics: tuple[float, float, float, float] | None = None,
    maps: str | None = None,
    held_out: Collection[str] | None = None,
) -> Frames:
    """The frames of a split ("train" or "val").

    images, depths, train_split, val_split, maps: below `root`, or absolute; depths null: no ground truth at all.
    depth_unit: levels that make a metre (1000 for millimetres); PNG and whole numbers need it, floating-point NPY is in
    metres without it. train_split, val_split: text files, one picture a line (its path below `images`); where one is
    given, the other split is the rest. With neither, `val_fraction` of the frames with ground truth, picked by a hash
    of their names, is for validation; pictures of one video look alike, so list whole videos in val_split for an honest
    figure. held_out: names that are for validation in the place of such a pick: none in training
    without validation, and those of its start in a resumed run. intrinsics: [focal_x, focal_y,
    centre_x, centre_y] of all pictures in pixels. maps: cached teacher maps, read for training
    frames only.
    """
    if depth_unit is not None and not depth_unit >= 1:
        raise RecipeError(
            f"data.depth_unit: got {depth_unit}; it is how many levels make a metre, such as 1000 for millimetres"
        )
    if not 0 <= val_fraction < 1:
        raise RecipeError(f"data.val_fraction: got {val_fraction}; it must be from 0 to below 1")
    if intrinsics is not None and not (min(intrinsics[:2]) > 0 and all(map(math.isfinite, intrinsics))):
        raise RecipeError(
            f"data.intrinsics: got {intrinsics}; it must be [focal_x, focal_y, centre_x, centre_y] in pixels, focal "
            "lengths above 0"
        )
    folder = data_root(root, "the pictures")
    if depths is None and needs_ground_truth:
        remedy = "--set train.validate=false" if split == "val" else "a teacher"
        raise RecipeError(f"data.depths: none given, but {_PURPOSE[split]} ground truth; give data.depths or {remedy}")
    source = folder / Path(images).expanduser()
    frames = _frames(source, depths and folder / Path(depths).expanduser(), depth_unit, intrinsics)
    if train_split is None and val_split is None:
        picks = held_out is None
        validation = _hash_picked(frames, val_fraction) if picks else frames.keys() & set(held_out)
    else:
        listed = _listed(folder / (val_split or train_split), frames, source)
        validation = listed if val_split else frames.keys() - listed
    training = _listed(folder / train_split, frames, source) if train_split else frames.keys() - validation
    chosen = training if split == "train" else validation
    if not chosen:
        remedy = ", or train on all of them with --no-validate" if split == "train" else ""
        raise DataError(
            f"{source}: none of its {len(frames)} pictures is left for {split}; change the splits{remedy}"
        )
    return Frames(
        [frame for name, frame in frames.items() if name in chosen],
        source,
        partial(_read_depth, units_per_m=depth_unit),
        depth_unit,
        max_depth,
        needs_ground_truth,
        maps=folder / maps if maps and split == "train" else None,
    )


_PURPOSE = {"train": "training without a teacher needs", "val": "evaluation needs"}


def _frames(images: Path, depths: Path | None, depth_unit: float | None, intrinsics) -> dict[str, Frame]:
    """All frames by name, in the order of their names."""
    pictures = _files(images, _PICTURES, "data.images")
    measured = {} if depths is None else _files(depths, _DEPTHS, "data.depths")
    if measured and not pictures.keys() & measured.keys():
        raise DataError(
            f"data.depths: no file in {depths} is named like a picture in {images} (but for the suffix): there is "
            f"{next(iter(measured.values()))}, and a picture {next(iter(pictures.values()))}"
        )
    png = [measured[key] for key in pictures if measured.get(key, "").lower().endswith(".png")]
    if depth_unit is None and png:
        raise RecipeError(
            f"data.depth_unit: needed, for a PNG such as {depths / png[0]} doesn't say its unit; give how many levels "
            "make a metre, such as 1000 for millimetres or 256 for KITTI's"
        )
    camera = None if intrinsics is None else Camera(*intrinsics)
    frames, named = {}, {}
    for key, name in sorted(pictures.items(), key=lambda item: item[1]):
        other = named.setdefault(joined_name(name), name)
        if other != name:
            raise DataError(f"{images}: {other} and {name} would share the teacher map {joined_name(name)}; rename one")
        depth = f"{depths}/{measured[key]}" if key in measured else None
        frames[name] = Frame(name, f"{images}/{name}", depth, camera)
    return frames


def _files(folder: Path, suffixes: tuple[str, ...], option: str) -> dict[str, str]:
    """Paths below the folder, by the same without suffix; hidden files are left out, links followed."""
    if not folder.is_dir():
        raise DataError(f"{option}: no folder at {folder}; give the folder that holds the files")
    found = {}
    for place, _, files in os.walk(folder, followlinks=True):
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() not in suffixes or file.startswith("."):
                continue
            below = Path(place).relative_to(folder)
            key, name = (below / stem).as_posix(), (below / file).as_posix()
            if key in found:
                raise DataError(f"{option}: {found[key]} and {name} in {folder} differ in suffix only; remove one")
            found[key] = name
    if not found:
        raise DataError(f"{option}: no {', '.join(suffixes)} files in or below {folder}; give the folder that has them")
    return found


def _listed(split_file: Path, frames: dict[str, Frame], images: Path) -> set[str]:
    listed = set()
    for number, line in read_lines(split_file, "a line is a picture's path below data.images"):
        name = below_root(line, f"{split_file}:{number}")
        if name not in frames:
            example = next(iter(frames))
            raise DataError(f"{split_file}:{number}: no picture {name} in {images}; a line is a path such as {example}")
        listed.add(name)
    return listed


def _hash_picked(frames: dict[str, Frame], fraction: float) -> set[str]:
    """So many of the frames with ground truth; which, depends on their names alone, not on the order of the files."""
    names = [name for name, frame in frames.items() if frame.depth is not None]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(1, round(fraction * len(names))) if fraction else 0
    return set(names[:count])


def _read_depth(path: Path, units_per_m: float | None) -> torch.Tensor:
    return read_depth_npy(path, units_per_m) if path.suffix.lower() == ".npy" else read_levels(path)
