"""Seeded nonsense in recipes, engine configs and files: a run trains, or says in a line why not.

A case replaces, deletes or misspells one leaf of a good recipe or engine config, or flips bits of a
file. Whatever it is, the run ends in bounded time, with code 0 or with code 2 and one line that
names the key or the file, and what is refused before the start leaves nothing in the work dir. All
cases of a kind share one process (mains.py).
"""

import copy
import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from support import programs, spoiling
from support import recipes as tiny_recipes

NONSENSE = [
    *[
        None,
        True,
        False,
        "",
        "abc",
        "x" * 5000,
        "1",
        "../..",
        "a\0b",
        -1,
        0,
        1,
        -0.5,
        2.5,
        1e300,
        1e-300,
    ],
    *[float("nan"), float("inf"), 2**40, 10**30, [], {}, [[]], [None], ["x"], [1, 2], [-1, -1]],
    *[{"a": {"b": 1}}, {"name": 5}, {"name": "mse"}],
]
LASTING = {
    ("train", "iterations"),
    ("train", "epochs"),
}  # a large number is allowed, and then takes its time


def recipes(place: Path) -> list[dict]:
    """Good recipes of two iterations that between them have most keys."""
    kitti = spoiling.good(place)
    kitti["train"] |= {"batch_size": 2, "iterations": 2}
    kitti["data"] |= {"kb_crop": [60, 120], "max_errors": 3, "timeout_s": 60.0, "on_error": "raise"}
    kitti["data"]["augment"] |= {"sizes": "crop", "gamma": [0.9, 1.1], "flip_p": 0.5}
    plain = copy.deepcopy(kitti)
    del plain["teacher"]
    plain["losses"] = {"silog": {"weight": 1.0}}
    plain["network"]["head"] = {"name": "sigmoid"}
    plain["train"] |= {
        "validate": True,
        "max_bad_iterations": 5,
        "timeout_minutes": 30.0,
        "lr_scaling": "linear",
    }
    group = {"match": "encoder.*", "lr_mult": 0.1, "weight_decay": 0.0}
    plain["optimizer"] = {
        "name": "sgd",
        "lr": 0.001,
        "momentum": 0.9,
        "lr_batch_size": 4,
        "groups": [group],
    }
    plain["schedule"] = {"name": "poly", "power": 0.9, "warmup_iterations": 1, "by": "iteration"}
    plain["evaluation"] = {
        "interval": 2,
        "by": "iteration",
        "crop": "garg",
        "flip": True,
        "cap": 80.0,
        "batch_size": 2,
    }
    plain["checkpoint"] |= {"interval": 1, "keep_every": 2, "on_error": "continue"}
    return [kitti, plain]


def engine_config(_: Path) -> list[dict]:
    section = {"stage": 1, "reduce_bucket_size": 1000, "overlap_comm": False}
    return [
        json.loads((programs.DS_CONFIGS / "fp32.json").read_text()) | {"zero_optimization": section}
    ]


def leaves(node, above=()) -> list[tuple]:
    """The keys that lead to everything in a node."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path for key, value in items for path in [(*above, key), *leaves(value, (*above, key))]]


def spoil(node: dict, pick: random.Random) -> list[str]:
    """Spoils one key or value; returns words of which the error's line must have one."""
    path = pick.choice(leaves(node))
    *parents, last = path
    for key in parents:
        node = node[key]
    words = [str(key) for key in path[1:] or path if isinstance(key, str)]
    way = pick.choice(["value"] * 6 + ["delete", "misspell"])
    if way == "misspell" and isinstance(last, str):
        place = pick.randrange(len(last))
        node[f"{last[:place]}qz{last[place:]}"] = node.pop(last)
        return [*words, "qz"]
    if way == "delete":
        del node[last]
    else:
        allowed = [
            v for v in NONSENSE if path not in LASTING or not isinstance(v, int | float) or v < 5
        ]
        node[last] = copy.deepcopy(pick.choice(allowed))
    return words


def spoiled_recipe(place: Path, pick: random.Random) -> list[str]:
    recipe = pick.choice(recipes(place))
    words = spoil(recipe, pick)
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return words


def spoiled_engine_config(place: Path, pick: random.Random) -> list[str]:
    tiny_recipes.write_recipe(place / "recipe.yaml", recipes(place)[0])
    (config,) = engine_config(place)
    words = spoil(config, pick)
    (place / "engine.json").write_text(json.dumps(config))
    return [*words, "batch_size", "clip_norm", "DeepSpeed", "engine config"]


def spoiled_file(place: Path, pick: random.Random) -> list[str]:
    """Damages a file that the first iterations read: flips bits, cuts it, or puts another there."""
    recipe = recipes(place)[0]
    recipe["train"] |= {"batch_size": 16}
    tiny_recipes.write_recipe(place / "recipe.yaml", recipe)
    names = [
        spoiling.SPLIT,
        f"data/input/{spoiling.FRAME}",
        f"data/gt_depth/{spoiling.TRUTH}",
        "teacher.pth",
    ]
    name, other = pick.sample(names, 2)
    path = place / name
    data = bytearray(path.read_bytes())
    way = pick.choice(["flip", "flip", "cut", "other"])
    if way == "other":
        shutil.copy(place / other, path)
    elif way == "cut":
        path.write_bytes(data[: pick.randrange(len(data))])
    else:
        for _ in range(pick.randrange(1, 20)):
            data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
        path.write_bytes(data)
    return [path.name, "data/input/", "data/gt_depth/"]  # a split file may name others


def run_all(ground: Path, folder: Path, make, seeds: range) -> None:
    places, words, commands = [], [], []
    for seed in seeds:
        place = spoiling.place_for(ground, folder / str(seed))
        words.append(make(place, random.Random(seed)))
        places.append(place)
        engine = (
            ["--deepspeed_config", place / "engine.json"]
            if (place / "engine.json").exists()
            else []
        )
        commands.append(
            [str(word) for word in [place / "recipe.yaml", "--work-dir", place / "work", *engine]]
        )
    (folder / "arguments.json").write_text(json.dumps(commands))
    command = [sys.executable, programs.HERE / "mains.py", folder / "arguments.json"]
    ended = programs.finish(command, cwd=folder, timeout_s=60 * len(seeds) + 600)
    assert ended.code == 0, ended.stderr[-3000:]
    results = [programs.Result(**row) for row in json.loads((folder / "arguments.out").read_text())]
    for seed, place, result, named in zip(seeds, places, results, words, strict=True):
        check(result, place, named, f"seed {seed}, {named}")


def check(result: programs.Result, place: Path, named: list[str], what: str) -> None:
    said = f"{what}: code {result.code}\n{result.stderr[-2000:]}"
    assert "Traceback" not in result.stderr + result.stdout, said
    assert result.code in (0, 2), said
    lines = result.our_lines()
    if result.code == 0:
        assert lines == [], said
        return
    assert len(lines) == 1, said
    assert len(lines[0]) < 2100, said
    kind = lines[0].partition(":")[0]
    assert (
        kind == "DivergedError" or any(word in lines[0] for word in named) or "memory" in lines[0]
    ), said
    if "Training frames" not in result.stderr:
        assert not (place / "work").exists() or not any((place / "work").iterdir()), said


FEW_AND_ALL = {spoiled_recipe: (24, 130), spoiled_engine_config: (10, 60), spoiled_file: (10, 60)}
CASES = [
    pytest.param(make, seeds, marks=marks, id=f"{make.__name__}-{name}")
    for make, (few, all_) in FEW_AND_ALL.items()
    for name, seeds, marks in (
        ("few", range(few), ()),
        ("rest", range(few, all_), pytest.mark.long),
    )
]


@pytest.mark.parametrize(("make", "seeds"), CASES)
def test_train_fuzzed_input_runs_or_ends_in_line(ground, tmp_path, make, seeds):
    """A run on a spoiled recipe, engine config or file trains or ends with one line."""
    run_all(ground, tmp_path, make, seeds)
