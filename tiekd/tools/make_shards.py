"""Writes the frames of a recipe's data set into tar shards, as `data.name: shards` reads them.

The files are copied byte by byte: an image and its depth map keep their format, so the units of the
recipe stay right. A camera that is known is written as KEY.json, where KEY is the image's name
without its suffix. Not covered: the crops kb_crop and nyu_crop, which the data set `shards` doesn't
support, and teacher maps, which are read from a folder of their own.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tiekd.config.recipe import load_recipe
from tiekd.console import Progress
from tiekd.data import read_folders
from tiekd.data.build import build_dataset
from tiekd.data.frames import Frames
from tiekd.data.shards.scan import DEPTH_SUFFIXES, key_of
from tiekd.data.shards.writing import write_shard
from tiekd.data.stored import source_of
from tiekd.errors import DataError, LaunchError, RecipeError
from tiekd.files import cause_of, check_output
from tiekd.training.settings import Recipe


def write_split(
    frames: Frames, split: str, out: Path, frames_per_shard: int, shuffle: int | None = None
) -> list[Path]:
    """Writes the frames of a split into tar files OUT/<split>-000000.tar, <split>-000001.tar, ...

    Args:
        frames: The dataset of the frames.
        split: The split's name, such as "train".
        out: The folder of the shards, called OUT here.
        frames_per_shard: Number of frames in a shard; the last shard may have fewer.
        shuffle: Seed of a random order; None for the order of the dataset.

    Returns:
        The paths of the shards.

    Raises:
        DataError: A frame's files can't be read, its name isn't allowed in a shard, or a shard
            can't be written.
    """
    rows = np.arange(len(frames))
    if shuffle is not None:
        rows = np.random.default_rng(shuffle).permutation(rows)
    parts = np.split(rows, range(frames_per_shard, len(rows), frames_per_shard))
    done = []
    with Progress(f"{split} shards", len(parts), lambda: len(done), sys.stdout) as progress:
        for number, part in enumerate(parts):
            path = out / f"{split}-{number:06d}.tar"
            try:
                write_shard(path, _members(frames, part.tolist()))
            except OSError as error:
                raise DataError(
                    f"{error.filename or path}: {cause_of(error)}; check the file, or the disk and "
                    "its permissions"
                ) from None
            done.append(path)
            progress.update()
    return done


def _members(frames: Frames, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of each file that a shard contains for some frames.

    For each frame these are the image, then the depth map and the camera if they are known.

    Args:
        frames: The dataset.
        rows: Indices of the frames.

    Raises:
        DataError: A frame's name isn't allowed in a shard.
    """
    for row in rows:
        frame = frames.frames[row]
        found = key_of(frame.name)
        # Refuse names such as `1.depth.png`, since readers of the shard would take the image for a
        # depth map.
        if found is None or found[1] in DEPTH_SUFFIXES:
            raise DataError(
                f"{frame.name}: can't be the name of a shard's image, which ends in .jpg, .jpeg or "
                ".png and not in .depth.png; rename it"
            )
        image = source_of(frame.image)
        if image.suffix.lower() != Path(frame.name).suffix.lower():
            raise DataError(f"{frame.name}: its file is {image}, of another kind; rename it")
        key, _ = found
        yield frame.name, image.read_bytes()
        if frame.depth is not None:
            depth = source_of(frame.depth)
            yield f"{key}.depth{depth.suffix.lower()}", depth.read_bytes()
        if frame.camera is not None:
            yield f"{key}.json", _camera(frames, row)


def _camera(frames: Frames, row: int) -> bytes:
    """Returns a frame's camera as JSON bytes: fx, fy, cx, cy, width and height, in pixels.

    They refer to the upright image, i.e. after its EXIF rotation. A principal point that isn't
    known is the image's centre.

    Args:
        frames: The dataset.
        row: Index of the frame.
    """
    camera = frames.frames[row].camera
    height, width = frames.file_size(row)
    centre_x = (width - 1) / 2 if camera.centre_x is None else camera.centre_x
    centre_y = (height - 1) / 2 if camera.centre_y is None else camera.centre_y
    numbers = {"fx": camera.focal_x, "fy": camera.focal_y, "cx": centre_x, "cy": centre_y}
    return json.dumps(numbers | {"width": width, "height": height}).encode()


def run(args: argparse.Namespace) -> None:
    """Runs bin/make_shards.py: writes the frames of a recipe's data set into tar files in --out.

    Args:
        args: The program's parsed command line.

    Raises:
        UserError: The recipe is invalid, the folder has tar files already, or files can't be read
            or written.
    """
    recipe = Recipe(load_recipe(args.recipe, args.overrides))
    out = args.out
    read_folders.refuse("--out", out, (".tar",), recipe.data, recipe.dataset.maps)
    check_output("--out", out, None)
    present = sorted(out.glob("*.tar"))
    if present:
        raise LaunchError(f"--out {out}: holds {present[0].name} already; give another folder")
    for split in recipe.splits(args.split):
        frames = build_dataset(recipe.dataset.from_files(), split)
        if not isinstance(frames, Frames):
            raise RecipeError(
                f"data.name: {recipe.data['name']} has no files for shards; kitti, nyu and folder "
                "have"
            )
        shards = write_split(frames, split, out, args.frames_per_shard, args.shuffle)
        print(f"{split}: {len(frames)} frames in {len(shards)} shards in {out}")
