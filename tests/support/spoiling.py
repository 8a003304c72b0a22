"""Functions that put an error into a valid run's recipe, engine config, files or command line.

mistakes.py lists the error message of each. The functions here return a function (place, recipe).
`place` is a folder of its own for each error, with `data/`, `teacher.pth` and a valid recipe. The
returned function changes the recipe or the files, and may return another command line, in which
`{}` is replaced by the place.
"""

import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support import programs, recipes

from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights

FRAME = "2000_01_01/2000_01_01_drive_0001_sync/image_02/data/0000000003.png"
TRUTH = "2000_01_01_drive_0001_sync/proj_depth/groundtruth/image_02/0000000003.png"
SPLIT = "data/kitti_eigen_train.txt"
LONG = "x" * 3000
OTHER_TEACHER = {**recipes.TEACHER, "decoder": {**recipes.TEACHER["decoder"], "widths": [16, 8]}}


def place_for(ground: Path, folder: Path) -> Path:
    """Copies the data (as plain KITTI) and the teacher to a folder in which an error is made."""
    shutil.copytree(ground / "scenes", folder / "data")
    shutil.copy(ground / "teacher.pth", folder)
    return folder


def good(place: Path) -> dict:
    recipe = recipes.recipe(place, iterations=8)
    augment = recipe["data"]["augment"]
    recipe["data"] = {
        "name": "kitti",
        "root": str(place / "data"),
        "kb_crop": None,
        "workers": 0,
        "augment": augment,
    }
    recipe["hooks"] = []
    return json.loads(json.dumps(recipe))  # a deep copy, since recipes share their nodes


def in_recipe(key: str, value):
    def make(_place, recipe):
        *parents, last = key.split(".")
        node = recipe
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value

    return make


def without(key: str):
    def make(_place, recipe):
        section, _, name = key.partition(".")
        del recipe[section][name]

    return make


def recipe_text(text: str):
    def make(place, _recipe):
        (place / "own.yaml").write_text(text)
        return ["{}/own.yaml", "--work-dir", "{}/work"]

    return make


def in_json(**values):
    return json_text(
        json.dumps(json.loads((programs.DS_CONFIGS / "fp32.json").read_text()) | values)
    )


def json_text(text: str):
    def make(place, _recipe):
        (place / "engine.json").write_text(text)

    return make


def file(name: str, change: Callable[[Path], None]):
    def make(place, _recipe):
        change(place / name)

    return make


def in_split(change: Callable[[bytes], bytes]):
    return file(SPLIT, lambda path: path.write_bytes(change(path.read_bytes())))


def image(change: Callable[[Path], None]):
    return file(f"data/input/{FRAME}", change)


def depth(change: Callable[[Path], None]):
    return file(f"data/gt_depth/{TRUTH}", change)


def array(pixels: np.ndarray, **options):
    return lambda path: Image.fromarray(pixels).save(path, **options)


def npy(save: Callable[[Path], None]):
    """Returns a function that changes to a folder dataset and saves ground truth as NPY."""

    def make(place, recipe):
        for path in (place / "data/gt_depth").rglob("*.png"):
            drive = path.relative_to(place / "data/gt_depth").parts[0]
            moved = place / "data/depths" / drive[:10] / drive / "image_02/data" / path.name
            moved.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, moved)
        recipe["data"] |= {
            "name": "folder",
            "images": "input",
            "depths": "depths",
            "depth_unit": 256.0,
        }
        recipe["data"].pop("kb_crop")
        path = place / "data/depths" / FRAME
        path.unlink()
        with path.with_suffix(".npy").open("wb") as target:
            save(target)

    return make


def weights(change: Callable[[dict], dict | None]):
    """Returns a function that changes the teacher's weights file."""

    def change_file(path):
        state = torch.load(path, weights_only=True)
        torch.save(change(state) or state, path)

    return file("teacher.pth", change_file)


def start_from(save: Callable[[Path], None]):
    def make(place, _recipe):
        save(place / "start.pth")
        return ["{}/recipe.yaml", "--work-dir", "{}/work", "--load-from", "{}/start.pth"]

    return make


def words(*command: str):
    return lambda place, recipe: list(command)


def train_with(*options: str):
    return words("{}/recipe.yaml", "--work-dir", "{}/work", *options)


def cut(size: int):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def flip_bits(path: Path) -> None:
    pick, data = random.Random(0), bytearray(path.read_bytes())
    for _ in range(3):
        data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def jpeg_cut(path: Path) -> None:
    Image.open(path).save(path, format="JPEG")
    cut(1000)(path)


def quarter_turn_mark(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def moving(path: Path) -> None:
    """Writes an animation of two frames."""
    Image.new("L", (8, 8)).save(path, save_all=True, append_images=[Image.new("L", (8, 8), 9)])


def enormous_png(path: Path) -> None:
    """Writes a PNG file of a hundred bytes whose header says 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head, pixels = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0), zlib.compress(bytes(1000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")


def other_network(path: Path) -> None:
    write_weights(path, build_network(OTHER_TEACHER).state_dict(), OTHER_TEACHER, 0)


def spoil(state: dict) -> None:
    next(iter(state["state_dict"].values())).fill_(float("nan"))


def add_tensor(state: dict) -> None:
    state["state_dict"]["more.weight"] = torch.zeros(3)


def to_bytes(state: dict) -> None:
    state["state_dict"] = {
        name: tensor.to(torch.int8) for name, tensor in state["state_dict"].items()
    }


class Bomb:
    """An object that creates the file `exploded` when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def pickled(target) -> None:
    objects = np.empty((64, 128), object)
    objects[0, 0] = Bomb()
    np.save(target, objects, allow_pickle=True)


def numbers(values: np.ndarray):
    return lambda target: np.save(target, values)
