"""Tar shards of images with a tiny teacher, and folders of its cached maps in both forms."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from support.cached_teacher import cache, make_teacher, recipe_of
from support.tar_shards import write

from tiekd.data import teacher_maps

COUNTS = (3, 2, 2)  # frames of each shard
NUM_FRAMES = sum(COUNTS)
HEIGHT, WIDTH = 32, 64
# A teacher with maps of sigma beside those of depth.
SIGMA = {"flip": True, "sigma": {"from": "flip", "factor": 2.0}}


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write_images(root: Path, rows_of_zeros: int = 0) -> None:
    """Writes the shards day/s0.tar and so on, with images of noise and depth for each but 1.

    Args:
        root: the folder of the shards.
        rows_of_zeros: images with another number have the same names and another size in bytes.
    """
    numbers = iter(range(NUM_FRAMES))
    for shard, count in enumerate(COUNTS):
        members = []
        for _, number in zip(range(count), numbers, strict=False):
            random = np.random.default_rng(number)
            pixels = random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            pixels[:rows_of_zeros] = 0
            members.append((f"d{shard}/{number}.png", _png(pixels)))
            depth = _png(np.full((HEIGHT, WIDTH), 8000 + number, np.uint16))
            members += [(f"d{shard}/{number}.depth.png", depth)] if number != 1 else []
        write(root / "day" / f"s{shard}.tar", members)


def make(folder: Path) -> Path:
    """Writes `data/` with the shards of images and `teacher.pth`, and returns the folder."""
    write_images(folder / "data")
    make_teacher(folder)
    return folder


def recipe(ground: Path, data: dict | None = None, **teacher) -> dict:
    """Returns the recipe of a student of the teacher, without validation."""
    node = {"name": "shards", "root": str(ground / "data"), "shards": "day/*.tar"}
    node |= {"depth_unit": 1000, "workers": 0, "augment": {}}
    return recipe_of(ground, **({"audit": "off"} | teacher)) | {"data": node | (data or {})}


def cache_as_files(node: dict, folder: Path, sharded: Path) -> str:
    """Caches the maps of shards of images as files, as an older version of tiekd did.

    Args:
        node: the recipe.
        folder: the folder of the files.
        sharded: the folder of the same teacher's maps in shards.
    """
    manifest = teacher_maps.read_manifest(sharded)
    folder.mkdir()
    teacher_maps.write_manifest(
        folder, {key: value for key, value in manifest.items() if key != teacher_maps.SHARDS}
    )
    return cache(node, folder)


def learner(ground: Path, maps: Path | str, **data) -> dict:
    """Returns the recipe of a student that learns from cached maps; s2.tar is for validation."""
    return recipe(ground, {"val_shards": "day/s2.tar"} | data) | {"teacher": {"maps": str(maps)}}
