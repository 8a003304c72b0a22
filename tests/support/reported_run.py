"""Makes the work dir of a run for tests of its report, without training: weights are random."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from PIL import Image
from support import recipes

from tiekd.config.recipe import dump_recipe
from tiekd.data.build import build_dataset
from tiekd.models.build import build_network
from tiekd.training import inputs
from tiekd.training.settings import Recipe
from tiekd.workdir import weights_file, workdir
from tiekd.workdir.launch_record import LaunchRecord
from tiekd.workdir.workdir import Outcome

# Names with all that HTML gives a meaning to, and a byte that isn't UTF-8.
SEQUENCES = ("a<b>", 'c"d&', "e'f")
BAD_BYTE = os.fsdecode(b"x\xff.png")
HEIGHT, WIDTH = 48, 64
RANGE = {"min_depth": 0.1, "max_depth": 10.0}
NETWORK = recipes.STUDENT | RANGE | {"head": recipes.STUDENT["head"] | {"sigma": 0.5}}
TEACHERS = [{"name": "huggingface", "model": "m<1>", "licence": "cc-by-nc-4.0", "digest": "f" * 64}]


def make(folder: Path, against: str = "ground_truth", validate: bool = True) -> Path:
    """Writes images, a recipe and the files of a run, and returns its work dir.

    Args:
        folder: An empty folder.
        against: The recipe's `evaluation.against`.
        validate: The recipe's `train.validate`.
    """
    _write_images(folder / "data")
    torch.manual_seed(1)
    teacher = build_network(recipes.TEACHER | RANGE)
    weights_file.write_weights(
        folder / "teacher.pth", teacher.state_dict(), recipes.TEACHER | RANGE, 0
    )
    node = recipes.recipe(folder, iterations=8, validate=validate)
    node["network"] = NETWORK
    node["teacher"]["network"] = recipes.TEACHER | RANGE
    node["data"] = {"name": "folder", "root": str(folder / "data"), "images": "pictures"}
    node["data"] |= {"depths": "depth", "depth_unit": 1000, "val_fraction": 0.4, "workers": 0}
    node["evaluation"] = {"crop": "none", "against": against, "batch_size": 2}
    del node["hooks"]
    work_dir = folder / "work"
    work_dir.mkdir()
    (work_dir / workdir.RECIPE).write_text(dump_recipe(node))
    (work_dir / workdir.ENVIRONMENT).write_text("CPU: test <cpu>\nPyTorch: 2\n")
    launch = LaunchRecord("mine.yaml", "deepspeed", 2, 2, None, 1, str(folder))
    (work_dir / "launch.json").write_text(json.dumps(asdict(launch)))
    outcome = Outcome("finished", 8, 8, None, "2026-01-01T12:00:00")
    (work_dir / workdir.OUTCOME).write_text(json.dumps(asdict(outcome)))
    _write_log(work_dir / "20260101.log.json", against)
    _write_inputs(work_dir, node)
    torch.manual_seed(2)
    weights_file.write_weights(
        work_dir / "best_abs_rel.pth",
        build_network(NETWORK).state_dict(),
        NETWORK,
        8,
        teachers=TEACHERS,
    )
    return work_dir


def mix(work_dir: Path, *names: str) -> None:
    """Changes the files of a run to those of one with several data sets; the first is validated.

    Args:
        work_dir: What `make` returned.
        names: The names of the sets, which all have the same images.
    """
    recipe = work_dir / workdir.RECIPE
    node = yaml.safe_load(recipe.read_text())
    data = node["data"]
    node["data"] = [data | {"set": name, "validate": name == names[0]} for name in names]
    recipe.write_text(dump_recipe(node))
    record = json.loads((work_dir / inputs.NAME).read_text())
    splits = {f"{names[0]} {split}": found for split, found in record["splits"].items()}
    inputs.write(work_dir, record | {"recipe": node, "splits": splits})
    (log,) = work_dir.glob("*.log.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if "abs_rel" in row:
            # The mean of all sets is another value.
            row |= {f"{names[0]}/abs_rel": row["abs_rel"], "abs_rel": 2 * row["abs_rel"]}
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_images(root: Path) -> None:
    draw = np.random.default_rng(0)
    for sequence in SEQUENCES:
        for place, name in enumerate(("1.png", "2<.png", "3.png", BAD_BYTE)):
            picture, depth = (root / kind / sequence / name for kind in ("pictures", "depth"))
            picture.parent.mkdir(parents=True, exist_ok=True)
            depth.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(picture)
            # A near and a far wall, so that there are edges.
            levels = np.full((HEIGHT, WIDTH), 2000 + 100 * place, np.uint16)
            levels[:, WIDTH // 2 :] = 6000
            Image.fromarray(levels).save(depth)


def _write_log(path: Path, against: str) -> None:
    rows = [{"exp_name": "x"}]
    for i in range(1, 9):
        losses = {"decode.loss_dpm": 3.0 / i, "decode.loss_silog": 1.0 / i, "loss": 4.0 / i}
        rows.append(
            {"mode": "train", "epoch": 1, "iter": i, "lr": 0.001, "grad_norm": 1.0, **losses}
        )
        if i % 2 == 0:
            said = {"against": "teacher"} if against == "teacher" else {}
            rows.append({"mode": "val", "epoch": 1, "iter": 4, "abs_rel": 0.5 / i, **said})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_inputs(work_dir: Path, node: dict) -> None:
    recipe = Recipe(node)
    names = ("train", "val") if recipe.validates else ("train",)
    datasets = {name: build_dataset(recipe.dataset, name) for name in names}
    engine = SimpleNamespace(values={})
    inputs.write(work_dir, inputs.collect(recipe, work_dir / workdir.RECIPE, engine, datasets, 2))
