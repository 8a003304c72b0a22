"""Recipes and images for tests/digests.py, made by rule: no random number, nothing of tiekd.

All paths in the recipes are relative, so that a folder of runs can be copied and used elsewhere.
`PARTS` lists every part of tiekd that a recipe can name, with a recipe here that trains it.
"""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 64, 128
SCENES = "data/scenes"
ITERATIONS, SAVE_EVERY, KILLED_AFTER = 6, 2, 5
STUDENT_ITERATIONS = 3
RANGE = {"min_depth": 0.001, "max_depth": 80.0}
ENCODER = {
    "name": "mobilenet_v2",
    "width": 0.25,
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "dilations": [1] * 7,
    "taps": [1, 3],
}
DENSEDEPTH = {"name": "densedepth", "widths": [8, 16], "extra_ups": 1, "extra_width": 8}
DPM = {"name": "dpm", "num_bins": 33, "target": "gaussian", "sigma": 2.0, "beyond": "clamp"}
STUDENT = {"encoder": ENCODER, "decoder": DENSEDEPTH, "head": DPM, **RANGE}
TEACHER = {"encoder": ENCODER, "decoder": DENSEDEPTH, "head": {"name": "sigmoid"}, **RANGE}
# The teacher is trained for a few iterations, which its audit would not let pass.
UNAUDITED = {"audit": "off"}
TAUGHT = {
    **{"network": TEACHER, "checkpoint": "runs/teacher/best_abs_rel.pth", "flip": True},
    **UNAUDITED,
}
AUGMENT = {"rotate_p": 1.0, "rotate_deg": 5.0, "flip_p": 0.5, "crop": [64, 96], "colour_p": 0.5}
SCENES_DATA = {
    **{"name": "scenes", "root": SCENES, "height": HEIGHT, "width": WIDTH},
    **{"num_train": 16, "num_val": 4, "workers": 0, "augment": AUGMENT},
}
RESNET = {"name": "resnet", "depth": 18}
SWIN = {"width": 24, "depths": [2, 1, 1, 1], "heads": [1, 2, 4, 8], "window": 4, "drop_path": 0.2}

# Part by folder and name, and the recipe of those below that trains it. Folders are found wherever
# they lie in tiekd/; data sets are found in data/datasets, or in data/ itself.
PARTS = {
    "encoders": {
        "mobilenet_v2": "plain",
        "resnet": "resnet_bts",
        "efficientnet": "efficientnet_adabins",
        "swin": "swin_relu",
        "depthformer": "depthformer",
        "timm": "timm",
        "efficientnet_lite": "lite",
    },
    "necks": {"hahi": "depthformer"},
    "decoders": {
        "densedepth": "plain",
        "bts": "resnet_bts",
        "adabins": "efficientnet_adabins",
        "separable": "lite",
    },
    "heads": {
        "dpm": "plain",
        "sigmoid": "resnet_bts",
        "adabins": "efficientnet_adabins",
        "relu": "swin_relu",
    },
    "losses": {
        "dpm": "plain",
        "silog": "plain",
        "chamfer": "efficientnet_adabins",
        "mse": "swin_relu",
        "ssim": "swin_relu",
    },
    "datasets": {
        "scenes": "plain",
        "kitti": "resnet_bts",
        "nyu": "efficientnet_adabins",
        "folder": "swin_relu",
        "shards": "from_shards",
    },
}
STUDENTS = (
    "from_shards",
    "resnet_bts",
    "efficientnet_adabins",
    "swin_relu",
    "depthformer",
    "released",
    "resnet_dpm_log",
)
# Trained beside STUDENTS, but in no figures that earlier commits made, too.
LATER_STUDENTS = ("timm", "lite")


def _recipe(network: dict, losses: dict, iterations: int = ITERATIONS, **sections) -> dict:
    """Returns a recipe; `sections` replace its own, and one that is None is left out."""
    recipe = {
        "network": network,
        "teacher": TAUGHT,
        "losses": losses,
        "data": SCENES_DATA,
        "optimizer": {"name": "adamw", "lr": 0.001, "betas": [0.95, 0.99], "weight_decay": 0.01},
        "schedule": {"name": "one_cycle", "div_factor": 25, "final_div_factor": 100},
        "train": {"batch_size": 4, "iterations": iterations, "clip_norm": 35.0, "seed": 0},
        "evaluation": {"interval": 3, "by": "iteration", "crop": "none"},
        "checkpoint": {"interval": SAVE_EVERY, "by": "iteration", "keep_last": 9},
        "log": {"interval": 1},
        "tensorboard": {"image_interval": 3},
    }
    return {key: value for key, value in (recipe | sections).items() if value is not None}


def _student(network: dict, losses: dict, **sections) -> dict:
    return _recipe(network, losses, STUDENT_ITERATIONS, **sections)


def recipes() -> dict[str, dict]:
    """All recipes by name."""
    losses = {"dpm": {"weight": 1.0}, "silog": {"weight": 1.0, "against": "ground_truth"}}
    plain = _recipe(
        STUDENT,
        losses,
        data=SCENES_DATA | {"workers": 1},
        log={"interval": 1, "by_epoch": True},
    )
    killing = {"name": "killing.after", "iteration": KILLED_AFTER, "marker": "killed"}
    return {
        "teacher": _student(TEACHER, {"silog": {"weight": 1.0}}, teacher=None),
        "plain": plain,
        "killed": plain | {"hooks": [killing]},
        "on_maps": plain | {"teacher": {"maps": "maps", **UNAUDITED}},
        "on_decoded": plain
        | {
            "teacher": {"maps": "maps", **UNAUDITED},
            "data": plain["data"] | {"decoded": "decoded"},
        },
        "resnet_bts": _student(
            {
                "encoder": RESNET,
                "decoder": {"name": "bts", "width": 128},
                "head": {"name": "sigmoid"},
                **RANGE,
            },
            {"silog": {"weight": 1.0, "reduce": "batch", "warm_up": 1, "max_depth": 70.0}},
            teacher=None,
            data={
                **{"name": "kitti", "root": SCENES, "kb_crop": [64, 96], "workers": 0},
                "augment": {"rotate_p": 0.5, "flip_p": 0.5},
            },
            optimizer={"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": True},
            schedule={"name": "step", "milestones": [1, 2], "gamma": 0.5},
            evaluation={"interval": 2, "by": "iteration", "crop": "garg", "flip": False},
        ),
        "efficientnet_adabins": _student(
            {
                "encoder": {"name": "efficientnet", "variant": "b0"},
                "decoder": {"name": "adabins", "widths": [8, 16, 16, 32, 32]},
                "head": {
                    **{"name": "adabins", "num_bins": 32, "num_queries": 16, "width": 32},
                    **{"patch": 4, "num_positions": 200, "dropout": 0.1},
                },
                "min_depth": 0.001,
                "max_depth": 10.0,
            },
            {"silog": {"weight": 10.0}, "chamfer": {"weight": 0.1}},
            teacher=None,
            data={
                **{"name": "nyu", "root": "data/nyu", "nyu_crop": [0, 64, 8, 120], "workers": 0},
                "augment": {"crop": [64, 96], "brightness": [0.75, 1.25], "colour_p": 1.0},
            },
            optimizer={"name": "adam", "lr": 0.0005, "betas": [0.9, 0.999]},
            schedule={"name": "poly", "power": 0.9, "min_lr_ratio": 0.01},
        ),
        "from_shards": _student(
            {
                "encoder": {"name": "mobilenet_v2", "width": 0.25},
                "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8], "extra_ups": 1},
                "head": {"name": "sigmoid"},
                **RANGE,
            },
            {"silog": {"weight": 1.0}},
            data={
                **{"name": "shards", "root": "data/shards", "depth_unit": 256, "workers": 0},
                **{"window": 3, "val_shards": "s2.tar"},
                "augment": {"rotate_p": 0.5, "flip_p": 0.5},
            },
        ),
        "swin_relu": _student(
            {
                "encoder": {"name": "swin", **SWIN},
                "decoder": {"name": "densedepth", "widths": [8, 16, 16, 32], "extra_ups": 1},
                "head": {"name": "relu"},
                **RANGE,
            },
            {
                "mse": {"weight": 0.01},
                "ssim": {"weight": 1.0, "space": "log"},
                "shape": {"name": "ssim", "weight": 0.5, "space": "normalised", "max_depth": 80.0},
            },
            data={
                **{"name": "folder", "root": "data/folder", "images": "images", "workers": 0},
                **{"depths": "depths", "depth_unit": 256, "val_fraction": 0.25},
                "resize": {"height": 64, "width": 96, "mode": "stretch"},
                "augment": {"rotate_p": 0.5, "flip_p": 0.5},
            },
            schedule={"name": "cosine", "warmup_iterations": 2, "warmup_ratio": 0.1},
        ),
        "depthformer": _student(
            {
                "encoder": {"name": "depthformer", **SWIN},
                "neck": {
                    **{"name": "hahi", "width": 32, "num_heads": 4, "num_points": 2},
                    "dropout": 0.1,
                },
                "decoder": {
                    **{"name": "densedepth", "widths": [8, 16, 16, 32, 32]},
                    "activation": "leaky_relu",
                },
                "head": {"name": "relu"},
                **RANGE,
            },
            {"silog": {"weight": 1.0}},
            teacher=TAUGHT | {"flip": False, "precision": "bf16"},
            optimizer={
                **{"name": "adamw", "lr": 0.0005, "weight_decay": 0.01, "lr_batch_size": 8},
                "groups": [
                    {"match": ["encoder.swin.*norm*"], "weight_decay": 0.0},
                    {"match": "decoder.*", "lr_mult": 10},
                ],
            },
            schedule={"name": "constant"},
            train={
                **{"batch_size": 4, "iterations": STUDENT_ITERATIONS, "clip_norm": 0.5},
                **{"seed": 0, "lr_scaling": "sqrt"},
            },
        ),
        "released": _student(
            STUDENT | {"head": DPM | {"target": "released", "sigma": 0.5, "beyond": "ignore"}},
            {
                "dpm": {"weight": 1.0, "max_depth": 80.0, "top_crop": 8},
                "ssim": {"weight": 9.0, "released": True, "top_crop": 8},
            },
            data=SCENES_DATA | {"augment": AUGMENT | {"sizes": "keep_aspect", "rotate_deg": 20.0}},
        ),
        "resnet_dpm_log": _student(
            {
                "encoder": RESNET,
                "decoder": {
                    **{"name": "densedepth", "widths": [8, 8, 16, 16, 32]},
                    "extra_ups": 1,
                },
                "head": {"name": "dpm", "num_bins": 129, "sigma": 4.0, "spacing": "log"},
                **RANGE,
            },
            {"dpm": {"weight": 1.0}},
            data=SCENES_DATA | {"augment": {"crop": [64, 96], "sizes": "bucket"}},
        ),
        "timm": _student(
            {
                "encoder": {"name": "timm", "model": "test_resnet"},
                "decoder": {
                    **{"name": "densedepth", "widths": [8, 8, 16, 16, 32]},
                    "extra_ups": 1,
                },
                "head": {"name": "sigmoid"},
                **RANGE,
            },
            {"silog": {"weight": 1.0}},
            teacher=None,
        ),
        "lite": _student(
            {
                "encoder": {"name": "efficientnet_lite", "taps": [1, 2, 4]},
                "decoder": {"name": "separable", "widths": [8, 16, 16]},
                "head": DPM | {"upsampling": "convex"},
                **RANGE,
            },
            {"dpm": {"weight": 1.0}, "silog": {"weight": 1.0}},
        ),
    }


KILLING = '''"""A hook from outside the project that kills a run, once, after an iteration."""

import os
import signal
from pathlib import Path

try:
    from tiekd import Hook  # has the moments that aren't below
except ImportError:
    Hook = object


class After(Hook):
    def __init__(self, iteration: int, marker: str):
        self.iteration, self.marker = iteration, Path(marker)

    def before_train(self, state):
        pass

    def after_iteration(self, state):
        if state.iteration != self.iteration or os.environ["RANK"] != "0" or self.marker.exists():
            return
        self.marker.touch()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def after_evaluation(self, state, metrics):
        pass

    def after_train(self, state):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


build = After
'''


def write(folder: Path) -> None:
    """Writes the recipes (JSON is YAML) and the hook that kills a run."""
    for name, node in recipes().items():
        path = folder / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(node, indent=1))
    (folder / "killing").mkdir(exist_ok=True)
    (folder / "killing" / "__init__.py").write_text("")
    (folder / "killing" / "after.py").write_text(KILLING)


def write_other_data(folder: Path) -> None:
    """Lays out the scenes as NYU and as one's own folder; writes images to predict."""
    scenes = folder / SCENES
    lines = (scenes / "kitti_eigen_train.txt").read_text().splitlines()
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for index, line in enumerate(lines[:12]):
        image_name, depth_name, _ = line.split()
        image, depth = scenes / "input" / image_name, scenes / "gt_depth" / depth_name
        rgb, levels = f"street/rgb_{index:05d}.png", f"street/sync_depth_{index:05d}.png"
        _copy(image, folder / "data" / "nyu" / rgb)
        # Levels of 1/256 m read as millimetres: streets of up to 20 m.
        _copy(depth, folder / "data" / "nyu" / levels)
        split = "train" if index < 8 else "test"
        splits[split].append(f"/{rgb} /{levels} 518.8579\n")
        own = folder / "data" / "folder"
        _copy(image, own / "images" / "drive" / f"{index}.png")
        if index % 2:
            _copy(depth, own / "depths" / "drive" / f"{index}.png")
        else:
            metres = np.asarray(Image.open(depth)).astype(np.float32) / 256
            np.save(_made(own / "depths" / "drive" / f"{index}.npy"), metres)
    for shard in range(3):
        members = sorted((folder / "data" / "folder" / "images").rglob("*.png"))[shard::3]
        with tarfile.open(_made(folder / "data" / "shards" / f"s{shard}.tar"), "w") as archive:
            for image in members:
                index = int(image.stem)
                depth = scenes / "gt_depth" / lines[index].split()[1]
                archive.add(image, f"drive/{index}.png")
                archive.add(depth, f"drive/{index}.depth.png")
    for split, rows in splits.items():
        (folder / "data" / "nyu" / f"nyu_{split}.txt").write_text("".join(rows))
    pictures = folder / "data" / "pictures"
    Image.fromarray(image_by_rule(64, 128)).save(_made(pictures / "even.png"))
    Image.fromarray(image_by_rule(75, 131)).save(pictures / "odd.png")
    film = [Image.fromarray(image_by_rule(64, 96, frame)) for frame in range(3)]
    film[0].save(folder / "data" / "film.gif", save_all=True, append_images=film[1:], duration=100)


def image_by_rule(height: int, width: int, shift: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: slopes, a wave and an edge, the same everywhere."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    wave = (x * (3 + c) + 5 * shift) % 64
    edge = 80 * ((x + 2 * y + 9 * shift) % width > width // 2)
    return (y * 100 // height + wave + edge + 4 * c).astype(np.uint8)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, _made(target))
