"""Tables of user errors, by kind, with the error message that each must cause.

Each entry has a function that makes the error (spoiling.py), the name of the exception's class, and
a text that the error's line must contain.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from support import programs
from support.spoiling import (
    LONG,
    SPLIT,
    Bomb,
    add_tensor,
    array,
    cut,
    depth,
    enormous_png,
    file,
    flip_bits,
    folder_instead,
    image,
    in_json,
    in_recipe,
    in_split,
    jpeg_cut,
    json_text,
    moving,
    npy,
    numbers,
    other_network,
    other_zip,
    pickled,
    pipe,
    quarter_turn_mark,
    recipe_text,
    spoil,
    start_from,
    to_bytes,
    train_with,
    weights,
    without,
    words,
)


class Mistake(NamedTuple):
    make: Callable[[Path, dict], list[str] | None]
    kind: str
    text: str


RECIPES = {
    "misspelt key": Mistake(
        lambda _, recipe: recipe["train"].update(batchsize=recipe["train"].pop("batch_size")),
        "RecipeError",
        "train: unknown key 'batchsize'; did you mean 'batch_size'?",
    ),
    "unknown encoder": Mistake(
        in_recipe("network.encoder", {"name": "mobilenetv2"}),
        "RecipeError",
        "network.encoder.name: no 'mobilenetv2'; there are (nearest first): mobilenet_v2",
    ),
    "missing recipe": Mistake(
        words("{}/recipes.yaml", "--work-dir", "{}/work"),
        "RecipeError",
        "recipes.yaml: no such recipe; near it: recipe.yaml",
    ),
    "torn yaml": Mistake(
        recipe_text("train: {epochs: 1"), "RecipeError", "own.yaml: not YAML that is allowed: "
    ),
    "a date": Mistake(
        recipe_text("train: {seed: 2024-01-01, epochs: 1}"),
        "RecipeError",
        "train.seed: got '2024-01-01'; it must be a",
    ),
    "no blank": Mistake(
        recipe_text("train: {seed:3}"),
        "RecipeError",
        "own.yaml: not YAML that is allowed: 'seed:3'",
    ),
    "code in yaml": Mistake(
        recipe_text("work_dir: !!python/object/apply:os.system [ls]"),
        "RecipeError",
        "could not determine a constructor",
    ),
    "anchor in itself": Mistake(
        recipe_text("network: &a {neck: *a}"), "RecipeError", "own.yaml: not YAML that is"
    ),
    "a list": Mistake(
        recipe_text("- train"),
        "RecipeError",
        "a recipe is a mapping of sections (network, teacher,",
    ),
    "base of itself": Mistake(
        recipe_text("_base_: own.yaml"), "RecipeError", "its _base_ leads back to itself; remove"
    ),
    "text for a number": Mistake(
        in_recipe("train.batch_size", "4"),
        "RecipeError",
        "train.batch_size: got '4'; it must be a whole number; write numbers without quotes",
    ),
    "enormous seed": Mistake(
        in_recipe("train.seed", 10**30), "RecipeError", "whole number of at most 64 bits"
    ),
    "negative seed": Mistake(
        in_recipe("train.seed", -1), "RecipeError", "train.seed: got -1; it must be a whole numb"
    ),
    "enormous batch": Mistake(
        in_recipe("train.batch_size", 10**9), "RecipeError", "train.batch_size: got 1000000000"
    ),
    "workers": Mistake(
        in_recipe("data.workers", 10**9), "RecipeError", "must be a whole number from 0 to 1024"
    ),
    "enormous depth": Mistake(
        in_recipe("network.max_depth", 1e300), "RecipeError", "min < max, 1e-6 to 1e6"
    ),
    "enormous network": Mistake(
        in_recipe("network.decoder.widths", [2**40, 16]),
        "LaunchError",
        "not enough memory; smaller batches, images",
    ),
    "no section": Mistake(
        in_recipe("losses", {}),
        "RecipeError",
        "losses: got {}; give at least one term, for example",
    ),
    "epochs and iterations": Mistake(
        in_recipe("train.epochs", 1),
        "RecipeError",
        "give either epochs or iterations; there are epochs 1 and iterations 8, so set the one "
        "that isn't meant to null; train.epochs is from recipe.yaml; train.iterations is from rec",
    ),
    "mapping for a name": Mistake(
        in_recipe("schedule.name", {"a": 1}),
        "RecipeError",
        "schedule.name: no {'a': 1}; there are (nearest first): ",
    ),
    "no learning rate": Mistake(
        without("optimizer.lr"), "RecipeError", "optimizer.lr: got None; it must be a number"
    ),
    "key of a section unused": Mistake(
        in_recipe("evaluation.crp", "garg"),
        "RecipeError",
        "evaluation: unknown key 'crp'; did you mean 'crop'?",
    ),
    "teacher's network": Mistake(
        in_recipe("teacher.network.encoder.width", -1),
        "RecipeError",
        "teacher.network.encoder.width: got -1; a factor above 0",
    ),
    "long checkpoint": Mistake(
        in_recipe("teacher.checkpoint", LONG), "LaunchError", "too long; give a shorter path"
    ),
    "crop too large": Mistake(
        in_recipe("data.augment.crop", [96, 128]),
        "DataError",
        "make the crop smaller, set data.augment.sizes=",
    ),
    "module without build": Mistake(
        in_recipe("hooks", [{"name": "os.path"}]), "RecipeError", "os.path has no build;"
    ),
}
ENGINES = {
    "misspelt json key": Mistake(
        in_json(gradient_cliping=1.0),
        "RecipeError",
        "unknown key 'gradient_cliping'; did you mean 'gradient_clipping'?",
    ),
    "contradicting json": Mistake(
        in_json(gradient_clipping=1.0),
        "RecipeError",
        "gradient_clipping is 1.0, but the recipe's train.clip_norm is 35.0; write \"",
    ),
    "no json": Mistake(
        json_text("{'a': 1}"), "LaunchError", "engine.json: not JSON (Expecting property name"
    ),
    "nested json": Mistake(
        json_text("[" * 100_000), "LaunchError", "engine.json: not JSON (maximum recursion depth"
    ),
    "kind of a section": Mistake(
        in_json(fp16="on"), "RecipeError", "engine config: fp16: got 'on'; it must be a mapping"
    ),
    "kind of a switch": Mistake(
        in_json(wall_clock_breakdown="x"),
        "RecipeError",
        "wall_clock_breakdown: got 'x'; it must be true or false",
    ),
    "zero": Mistake(
        in_json(steps_per_print=0),
        "RecipeError",
        "engine config: steps_per_print is 0; it must be above 0",
    ),
    "stage": Mistake(
        in_json(zero_optimization={"stage": 9}),
        "RecipeError",
        "engine config: stage: Input should be",
    ),
    "key of a section": Mistake(
        in_json(bf16={"on": True}), "RecipeError", "engine config: on: Extra inputs are not"
    ),
    "unknown type": Mistake(
        in_json(data_types={"grad_accum_dtype": "fp99"}),
        "RecipeError",
        "DeepSpeed refuses it ('fp99' is not a valid",
    ),
    "an optimizer": Mistake(
        in_json(optimizer={}), "RecipeError", "'optimizer' belongs to the recipe (optimizer, sched"
    ),
}
SPLITS = {
    "missing split": Mistake(
        file(SPLIT, Path.unlink),
        "DataError",
        "kitti_eigen_train.txt: no such split file; .txt files beside it: kitti_eigen_test",
    ),
    "empty split": Mistake(
        in_split(lambda _: b"\n \n"),
        "DataError",
        "kitti_eigen_train.txt: no frames in it; a line is",
    ),
    "folder for a split": Mistake(
        file(SPLIT, folder_instead),
        "DataError",
        "kitti_eigen_train.txt: a folder, no split file; give a text",
    ),
    "pipe for a split": Mistake(
        file(SPLIT, pipe), "DataError", "kitti_eigen_train.txt: a pipe, no split file; give"
    ),
    "two columns": Mistake(
        in_split(
            lambda text: b"".join(line.rsplit(b" ", 1)[0] + b"\n" for line in text.splitlines())
        ),
        "DataError",
        "kitti_eigen_train.txt:1: got '2000_01_01/",
    ),
    "UTF-16": Mistake(
        in_split(lambda text: text.decode().encode("utf-16")),
        "DataError",
        "no text; a split file is UTF-8, a line is",
    ),
    "out of the root": Mistake(
        in_split(lambda text: text.replace(b"2000_01_01/", b"../2000_01_01/", 1)),
        "DataError",
        "leads out of the data root",
    ),
    "NUL": Mistake(
        in_split(lambda text: text.replace(b"3.png", b"\0.png")),
        "DataError",
        "train.txt:4: '2000_01_01/",
    ),
    "names with blanks": Mistake(
        in_split(lambda text: text.replace(b"data/", b"my data/")),
        "DataError",
        "names with spaces can't be separated",
    ),
    "commas": Mistake(
        in_split(lambda text: text.replace(b" ", b",")),
        "DataError",
        "with blanks and no commas between them",
    ),
    "weights": Mistake(
        file(SPLIT, lambda path: path.write_bytes((path.parents[1] / "teacher.pth").read_bytes())),
        "DataError",
        "no text; a split file is UTF-8",
    ),
}
IMAGES = {
    "missing image": Mistake(
        image(Path.unlink),
        "DataError",
        "0000000003.png: no such image; check data.root and the split file",
    ),
    "truncated png": Mistake(
        image(cut(500)),
        "DataError",
        "0000000003.png: a torn or damaged PNG (500 bytes); copy it from the original again",
    ),
    "flipped bits": Mistake(
        image(flip_bits), "DataError", "0000000003.png: a torn or damaged PNG ("
    ),
    "no bytes": Mistake(
        image(cut(0)), "DataError", "0000000003.png: an empty file, no image; copy it from"
    ),
    "truncated jpeg": Mistake(
        image(jpeg_cut), "DataError", "0000000003.png: can't be decoded as an image (image file is"
    ),
    "one pixel": Mistake(
        image(array(np.zeros((1, 1, 3), np.uint8))),
        "DataError",
        "64x128 does not fit its image 2000_01_01/",
    ),
    "16 bits": Mistake(
        image(array(np.zeros((64, 128), np.uint16))),
        "DataError",
        "an image must have 8 bits a channel, this has more;",
    ),
    "folder for an image": Mistake(
        image(folder_instead), "DataError", "0000000003.png: a folder, no image; put the file"
    ),
    "pipe for an image": Mistake(
        image(pipe), "DataError", "0000000003.png: a pipe, no image; put the file itself"
    ),
    "enormous image": Mistake(
        image(enormous_png), "DataError", "million pixels, more than the 179 million that are read"
    ),
    "link to nothing": Mistake(
        image(lambda path: (path.unlink(), path.symlink_to("nowhere"))),
        "DataError",
        "03.png: a link to nowhere, which",
    ),
    "link to itself": Mistake(
        image(lambda path: (path.unlink(), path.symlink_to(path.name))),
        "DataError",
        "which leads back to itself; correct",
    ),
    "animation": Mistake(
        image(moving),
        "DataError",
        "0000000003.png: an animation of 2 frames (PNG), no image; save the frames",
    ),
    "file in Git LFS": Mistake(
        image(lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")),
        "DataError",
        "0000000003.png: the place of a file in Git LFS, no image; fetch the file",
    ),
    "turned against its depth": Mistake(
        image(quarter_turn_mark),
        "DataError",
        "fits the pixels as stored, which the image's EXIF orientation (6)",
    ),
}
PLANE = np.ones((64, 128), np.float32)
DEPTHS = {
    "eight-bit depth": Mistake(
        depth(array(np.zeros((64, 128), np.uint8))),
        "DataError",
        "0000000003.png: a depth map must be a one-channel 16-bit PNG, this has 1 channel",
    ),
    "coloured depth": Mistake(
        depth(array(np.zeros((64, 128, 3), np.uint8))),
        "DataError",
        "this has 3 channel(s) of 8 bits",
    ),
    "tiff depth": Mistake(
        depth(array(PLANE, format="TIFF")), "DataError", "a one-channel 16-bit PNG, this is a TIFF"
    ),
    "truncated depth": Mistake(
        depth(cut(300)), "DataError", "0000000003.png: a torn or damaged PNG (300 bytes); copy it"
    ),
    "size of depth": Mistake(
        depth(array(np.zeros((60, 128), np.uint16))),
        "DataError",
        "0000000003.png: 60x128 does not fit its image 2000_",
    ),
    "pickled depth": Mistake(
        npy(pickled), "DataError", "0000000003.npy: can't be read (no numbers, but Python objects"
    ),
    "complex depth": Mistake(
        npy(numbers(PLANE.astype(complex))), "DataError", "this is complex128 of shape (64, 128)"
    ),
    "flat depth": Mistake(
        npy(numbers(PLANE.ravel())),
        "DataError",
        "of shape (height, width), this is float32 of shape (8192",
    ),
    "size of npy": Mistake(
        npy(numbers(PLANE[:30])),
        "DataError",
        "0000000003.npy: 30x128 does not fit its image 2000_",
    ),
    "empty npy": Mistake(
        npy(lambda target: None),
        "DataError",
        "0000000003.npy: can't be read (No data left in file); save",
    ),
}
CHECKPOINTS = {
    "no teacher there": Mistake(
        file("teacher.pth", Path.unlink), "TeacherError", "teacher.pth; train one with bin/train.py"
    ),
    "unfitting teacher": Mistake(
        file("teacher.pth", other_network),
        "TeacherError",
        "tensors don't fit: decoder.extras.0.first.weight (got 8x16x3x3, wanted 8x8x3x3)",
    ),
    "no folder": Mistake(
        train_with("--resume-from", "{}/iter_5"),
        "CheckpointError",
        "no such checkpoint folder; give .../",
    ),
    "text for weights": Mistake(
        file("teacher.pth", lambda path: path.write_text("weights")),
        "TeacherError",
        "teacher.pth: truncated, or not a torch file (",
    ),
    "another zip": Mistake(
        file("teacher.pth", other_zip),
        "TeacherError",
        "teacher.pth: truncated, or not a torch file (RuntimeError)",
    ),
    "truncated weights": Mistake(
        file("teacher.pth", cut(3000)),
        "TeacherError",
        "truncated, or not a torch file (RuntimeError); copy",
    ),
    "weights of NaN": Mistake(
        weights(spoil),
        "TeacherError",
        "encoder.conv1.conv.weight (holds NaN or infinite numbers); use",
    ),
    "weights too many": Mistake(
        weights(add_tensor),
        "TeacherError",
        "1 of 192 tensors don't fit: more.weight (not in the net",
    ),
    "weights of 8 bits": Mistake(weights(to_bytes), "TeacherError", "(got int8, wanted float32)"),
    "weights by number": Mistake(
        weights(lambda state: dict(enumerate(state["state_dict"].values()))),
        "TeacherError",
        "holds no tensors by name; save",
    ),
    "list of weights": Mistake(
        start_from(lambda path: torch.save([1], path)),
        "CheckpointError",
        "start.pth: holds a list; it must be a dict of",
    ),
    "code for weights": Mistake(
        start_from(lambda path: torch.save({"state_dict": Bomb()}, path)),
        "CheckpointError",
        "start.pth: holds more than tensors and plain values (getattr); save its state dict alone",
    ),
    "another network": Mistake(
        start_from(other_network),
        "CheckpointError",
        "or leave them out, as in --set 'load.ignore=[head.*]'",
    ),
}
COMMANDS = {
    "no override": Mistake(
        train_with("--set", "train"),
        "RecipeError",
        "--set train: must be key.sub=value, for example",
    ),
    "work dir is a file": Mistake(
        words("{}/recipe.yaml", "--work-dir", "{}/teacher.pth"),
        "LaunchError",
        "teacher.pth: can't be written to (File exi",
    ),
    "nothing to resume": Mistake(
        words("bin/resume", "{}/data"), "CheckpointError", "data: no run to resume here; give the w"
    ),
    "nothing to evaluate": Mistake(
        words("bin/evaluate.py", "{}/recipe.yaml", "{}/none.pth"),
        "CheckpointError",
        "none.pth: no such file; give a check",
    ),
    "other to evaluate": Mistake(
        words("bin/evaluate.py", "{}/recipe.yaml", "{}/teacher.pth"),
        "CheckpointError",
        "teacher.pth: 7 of 192 tensors don't",
    ),
    "no teacher to cache": Mistake(
        words("bin/cache_teacher.py", "{}/recipe.yaml", "--checkpoint", "{}/none.pth"),
        "TeacherError",
        "no file at /",
    ),
    "maps over a file": Mistake(
        words("bin/cache_teacher.py", "{}/recipe.yaml", "--out", "{}/teacher.pth"),
        "TeacherError",
        "give another --out",
    ),
    "recipe for weights": Mistake(
        words("bin/import_weights.py", "{}/recipe.yaml", "{}/recipe.yaml", "--out", "{}/new.pth"),
        "CheckpointError",
        "recipe.yaml: truncated, or not a torch file (",
    ),
    "weights over weights": Mistake(
        words(
            "bin/import_weights.py", "{}/teacher.pth", "{}/recipe.yaml", "--out", "{}/teacher.pth"
        ),
        "CheckpointError",
        "teacher.pth: exists; give another --out, or --overwrite",
    ),
    "nowhere to check": Mistake(
        words(
            "bin/check_data.py",
            "{}/recipe.yaml",
            "--set",
            "data.root={}/none",
            "--out",
            "{}/report",
        ),
        "DataError",
        "none; put KITTI there or say --set data.root=FOLDER",
    ),
    "nothing to audit": Mistake(
        words("bin/audit_teacher.py", "{}/recipe.yaml", "--out", "{}/teacher.pth"),
        "LaunchError",
        "teacher.pth: can't be made (File exists); give another folder",
    ),
    "no batch to show": Mistake(
        words("bin/show_batch.py", "{}/data", "--iteration", "1"),
        "CheckpointError",
        "data: no run to resume here; give the",
    ),
}
UNDIVISIBLE = Mistake(
    lambda place, recipe: (
        in_recipe("train.batch_size", 5)(place, recipe)
        or shutil.copy(programs.DS_CONFIGS / "fp32_accumulate2.json", place / "engine.json")
        and None
    ),
    "RecipeError",
    "with accumulation 2; nearest global batches that fit: 4, ",
)
