"""Small tar shards for tests, and the data set that reads them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from support.frames import shards_frames

HEIGHT, WIDTH = 12, 16


def image(level: int, suffix: str = ".png") -> bytes:
    """Returns the content of an image of one grey level."""
    file = io.BytesIO()
    pixels = np.full((HEIGHT, WIDTH, 3), level % 256, np.uint8)
    Image.fromarray(pixels).save(file, format="PNG" if suffix == ".png" else "JPEG")
    return file.getvalue()


def depth(level: int) -> bytes:
    """Returns the content of a 16-bit depth PNG of one level."""
    file = io.BytesIO()
    Image.fromarray(np.full((HEIGHT, WIDTH), level, np.uint16)).save(file, format="PNG")
    return file.getvalue()


def camera(focal: float) -> bytes:
    """Returns the content of a JSON file with a camera, and with a key that is none of it."""
    numbers = {"fx": focal, "fy": focal, "cx": 7.5, "cy": 5.5, "width": WIDTH, "height": HEIGHT}
    return json.dumps(numbers | {"caption": "a street"}).encode()


def frame(number: int, folder: str = "a") -> list[tuple[str, bytes]]:
    """Returns the members of one frame, whose grey level, depth and camera follow from a number."""
    key = f"{folder}/{number:04d}"
    return [
        (f"{key}.png", image(number)),
        (f"{key}.depth.png", depth(1000 + number)),
        (f"{key}.json", camera(50.0 + number % 2)),
    ]


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Writes a shard with Python's tarfile in its default format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make(root: Path, counts: tuple[int, ...] = (3, 4, 2)) -> Path:
    """Writes shards s0.tar, s1.tar and so on with some frames each, and returns their folder."""
    number = 0
    for shard, count in enumerate(counts):
        members = [part for n in range(number, number + count) for part in frame(n, f"day{shard}")]
        write(root / f"s{shard}.tar", members)
        number += count
    return root


def frames(root: Path, split: str = "train", **options):
    """Returns the frames of a split, by default all of them in training."""
    options = {"val_fraction": 0.0, "depth_unit": 1000.0, "root": str(root)} | options
    return shards_frames(split=split, max_depth=80.0, **options)
