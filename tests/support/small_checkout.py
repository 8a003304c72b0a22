"""Makes a small copy of the checkout, in which each command of the README takes seconds.

Programs and recipes are unchanged. The bases of the recipes in model_configs/_base_ are overwritten
with networks of some ten thousand parameters, crops of 32x64 pixels and two epochs of two
iterations. data/ contains a KITTI folder of 10 frames and a folder of the user's own images. The
files for the README's placeholders exist, too.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support import fake_data, programs, recipes

from tiekd.config.recipe import load_recipe
from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights

FRAMES, HELD_OUT, HEIGHT, WIDTH = 10, 2, 56, 104
_COPIED = [
    "README.md",
    "setup.py",
    "pyproject.toml",
    "bin",
    "ds_configs",
    "model_configs",
    "tests",
    "tiekd",
]
_AUGMENT = {"rotate_p": 0.5, "rotate_deg": 2.5, "flip_p": 0.5, "crop": [32, 64]}
_EVALUATION = {"interval": 1, "by": "epoch", "flip": True, "save_best": "abs_rel"}
_SIGMOID = recipes.STUDENT | {"head": {"name": "sigmoid"}}
_KITTI = {
    "name": "kitti",
    "root": "data/kitti",
    "kb_crop": [48, 96],
    "augment": _AUGMENT,
    "workers": 0,
}
_FOLDER = {
    "name": "folder",
    "root": "data/mine",
    "images": "images",
    "augment": _AUGMENT | {"sizes": "keep_aspect"},
}
BASES = {
    "datasets/kitti": {"data": _KITTI, "evaluation": _EVALUATION | {"crop": "garg"}},
    "datasets/folder": {"data": _FOLDER, "evaluation": _EVALUATION | {"crop": "none"}},
    "networks/adabins_kitti": {"network": recipes.TEACHER},
    "networks/bts_r50_kitti": {"network": recipes.TEACHER},
    "networks/light_kitti": {"network": recipes.STUDENT},
    "networks/mobilenet_v2_dpm_kitti": {"network": recipes.STUDENT},
    "networks/mobilenet_v2_sigmoid_kitti": {"network": _SIGMOID},
    "schedules/one_cycle_24e": {
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.95, 0.99], "lr_batch_size": 4},
        "schedule": {
            "name": "one_cycle",
            "pct_start": 0.3,
            "div_factor": 25,
            "final_div_factor": 100,
        },
        "train": {"batch_size": 4, "epochs": 2, "clip_norm": 35.0, "seed": 0},
        "log": {"interval": 1},
        "checkpoint": {"interval": 1, "by": "epoch", "keep_last": 3},
    },
}


def make(folder: Path) -> Path:
    """Makes the copy in a new folder, and returns the folder."""
    folder.mkdir()
    for name in _COPIED:
        if (programs.ROOT / name).is_dir():
            shutil.copytree(
                programs.ROOT / name,
                folder / name,
                ignore=shutil.ignore_patterns("__pycache__", "golden"),
            )
        else:
            shutil.copy2(programs.ROOT / name, folder / name)
    for name, node in BASES.items():
        recipes.write_recipe(folder / "model_configs" / "_base_" / f"{name}.yaml", node)
    kitti = fake_data.make(folder / "data" / "kitti", FRAMES, HEIGHT, WIDTH)
    lines = (kitti / "kitti_eigen_train.txt").read_text().splitlines(keepends=True)
    (kitti / "kitti_eigen_train.txt").write_text("".join(lines[:-HELD_OUT]))
    (kitti / "kitti_eigen_test.txt").write_text("".join(lines[-HELD_OUT:]))
    _own_pictures(folder / "data" / "mine")
    _picture(folder / "street.jpg", *_KITTI["kb_crop"])  # the size that exported files take
    for place in ("rides/1.jpg", "rides/2.jpg"):
        _picture(folder / place, HEIGHT, WIDTH)
    recipe = load_recipe(folder / "model_configs" / "teachers" / "adabins_nyu.yaml")
    torch.manual_seed(0)
    write_weights(
        folder / "adabins_nyu.pth",
        build_network(recipe["network"]).state_dict(),
        recipe["network"],
        0,
    )
    return folder


def _own_pictures(folder: Path) -> None:
    for index in range(FRAMES):
        height, width = HEIGHT + index, WIDTH - index
        _picture(folder / "pictures" / f"{index}.jpg", height, width)
        levels = np.full((height, width), 1000 * (index + 1), np.uint16)
        fake_data.write_png(folder / "depth" / f"{index}.png", levels)


def _picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
