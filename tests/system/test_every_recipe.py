"""Every recipe makes a step and saves as it is.

One frame of 128x96, random teachers, tiny KITTI and NYU folders.

Before that, a dry run of it. All chosen recipes run in one process, after each other. With the
large teachers a recipe takes a minute and up to 6 GB of memory.
"""

import json
import math
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support import fake_data, programs

from tiekd.config.recipe import load_recipe
from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights

MODEL_CONFIGS = programs.ROOT / "model_configs"
RECIPES = sorted(
    path
    for path in MODEL_CONFIGS.rglob("*.yaml")
    if not {"_base_", "experiments"} & set(path.parts)
)
HEIGHT, WIDTH = 128, 96
TIMEOUT_S = 3 * 3600
SMALL = [
    "train.batch_size=1",
    "train.epochs=null",
    "train.iterations=1",
    f"data.augment.crop=[{HEIGHT}, {WIDTH}]",
    "data.workers=0",
    "log.interval=1",
]
DATA = {
    "kitti": ["data.kb_crop=null"],
    "nyu": ["data.nyu_crop=null"],
    # A depth model of transformers isn't at hand here; ground truth takes its place.
    "folder": ["teacher=null", "data.val_fraction=0.5"],
    "scenes": [
        f"data.height={HEIGHT}",
        f"data.width={2 * WIDTH}",
        "data.num_train=2",
        "data.num_val=1",
    ],
}
pytestmark = pytest.mark.long


def id_of(path: Path) -> str:
    return str(path.relative_to(MODEL_CONFIGS).with_suffix(""))


def overrides(path: Path) -> list[str]:
    """AdaBins' 128 queries would need 129 patches of 32x32 pixels."""
    recipe = load_recipe(path)
    given = SMALL + DATA[recipe["data"]["name"]]
    for where, network in (
        ("network", recipe["network"]),
        ("teacher.network", recipe.get("teacher", {}).get("network")),
    ):
        if network and network["head"]["name"] == "adabins":
            given = [*given, f"{where}.head.num_queries=3"]
    return given


def make_nyu(root: Path) -> None:
    lines = []
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        fake_data.write_png(root / "kitchen" / f"rgb_{index:05d}.png", image)
        levels = np.full((HEIGHT, WIDTH), 1000 * (index + 1), np.uint16)
        fake_data.write_png(root / "kitchen" / f"sync_depth_{index:05d}.png", levels)
        lines.append(f"/kitchen/rgb_{index:05d}.png /kitchen/sync_depth_{index:05d}.png 518.8579\n")
    for split in ("train", "test"):
        (root / f"nyu_{split}.txt").write_text("".join(lines))


def make_folder(root: Path) -> None:
    for index in range(4):
        image = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        fake_data.write_png(root / "images" / f"{index}.png", image)
        levels = np.full((HEIGHT, WIDTH), 1000 * (index + 1), np.uint16)
        fake_data.write_png(root / "depths" / f"{index}.png", levels)


def make_maps(folder: Path, names: list[str]) -> None:
    ramp = np.linspace(3000, 60000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for name in names:
        fake_data.write_png(folder / name, ramp)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """Makes data/kitti and data/nyu with every folder of teacher maps that a recipe names.

    Teachers' weights are made later.
    """
    folder = tmp_path_factory.mktemp("every_recipe")
    fake_data.make(folder / "kitti", 2, HEIGHT, WIDTH)
    make_nyu(folder / "nyu")
    make_folder(folder / "folder")
    names = {
        "kitti": [fake_data.image_name(i).replace("/", "_") for i in range(2)],
        "nyu": [f"data_nyu_kitchen_rgb_{i:05d}.png" for i in range(2)],
    }
    for path in RECIPES:
        recipe = load_recipe(path)
        maps = recipe.get("teacher", {}).get("maps")
        if maps and not (folder / recipe["data"]["name"] / maps).is_dir():
            make_maps(folder / recipe["data"]["name"] / maps, names[recipe["data"]["name"]])
    return folder


@pytest.fixture(scope="module")
def results(request, ground) -> dict[str, dict]:
    """The results of the recipes that this session tests, by id; their work dirs are gone."""
    chosen = [
        item.callspec.params["path"] for item in request.session.items if item.path == request.path
    ]
    chosen = list(dict.fromkeys(chosen))
    jobs = []

    @cache
    def weights_of(teacher: str) -> str:
        node = json.loads(teacher)
        torch.manual_seed(0)
        path = ground / f"{len(list(ground.glob('*.pth')))}.pth"
        write_weights(path, build_network(node).state_dict(), node, 0)
        return str(path)

    for path in chosen:
        given = overrides(path)
        recipe = load_recipe(path, given)
        given += [f"data.root={ground / recipe['data']['name']}"]
        if "network" in recipe.get("teacher", {}):
            # The range is no weight: teachers for NYU and KITTI share a file.
            node = recipe["teacher"]["network"] | {"max_depth": 80.0}
            given += [f"teacher.checkpoint={weights_of(json.dumps(node))}"]
        work_dir = ground / "work" / path.stem
        for name, option in ((f"dry {id_of(path)}", "--dry-run"), (id_of(path), "--no-validate")):
            command = [str(path), "--work-dir", str(work_dir), option, "--set", *given]
            jobs.append({"name": name, "arguments": command, "work_dir": str(work_dir)})
    (ground / "jobs.json").write_text(json.dumps(jobs))
    with programs.Program(
        [sys.executable, programs.HERE / "each.py", ground / "jobs.json"]
    ) as program:
        result = program.result(TIMEOUT_S)
    assert result.code == 0, result.stderr[-3000:]
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"name"')]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("path", RECIPES, ids=id_of)
def test_recipe_trains_one_step_and_saves(results, path):
    """Every recipe trains one step with finite losses and saves a valid checkpoint."""
    result, recipe = results[id_of(path)], load_recipe(path, overrides(path))
    assert result["code"] == 0, result["stderr"][-3000:]
    terms = {f"decode.loss_{key}" for key in recipe["losses"]}
    assert terms == {key for key in result["row"] if key.startswith("decode.loss_")}
    assert all(math.isfinite(result["row"][key]) for key in (*terms, "loss", "grad_norm"))
    assert result["row"]["grad_norm"] > 0
    assert result["problem"] is None
    with torch.device("meta"):
        state = build_network(recipe["network"]).state_dict()
    assert result["shapes"] == {name: list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("path", RECIPES, ids=id_of)
def test_recipe_dry_run_succeeds(results, path):
    """A dry run of every recipe ends with code 0 and prints each estimate."""
    result, recipe = results[f"dry {id_of(path)}"], load_recipe(path, overrides(path))
    assert result["code"] == 0, result["stderr"][-3000:]
    told = dict(re.findall(r"^([A-Z][\w ]+): (.*)$", result["stdout"], re.M))
    assert told["Global batch"] == "1 = 1 a rank x 1 accumulated x 1 ranks"
    assert told["Iterations"].endswith(" an epoch, 1 in all")
    assert told["Student"].endswith(" M parameters, trainable")
    assert float(told["Student"].split()[0]) > 0
    assert ("Teacher" in told) == ("network" in recipe.get("teacher", {}))
    assert {"Time per iteration", "Evaluations", "ETA", "Peak memory", "Disk"} <= told.keys()
