"""A loss, a hook, a data set, a teacher and an encoder in a folder outside the project.

They are used without an edit inside it.

The package lies beside the recipe, or in the current folder; PYTHONPATH says nothing about either.
"""

import json
import sys
from pathlib import Path

import pytest
from support import programs, recipes

from tiekd.data import teacher_maps
from tiekd.data.image_io import is_whole_depth_png

PACKAGE = {
    "__init__.py": "",
    "ramps.py": '''
"""Images whose grey level tells the depth.

Frame i is 4 + i metres far on the left, twice that on the right.
"""
import torch
from tiekd import Sample


class Ramps(torch.utils.data.Dataset):
    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        depth = (4.0 + index) * torch.linspace(1, 2, 64).expand(1, 32, 64).contiguous()
        image = (depth * 5).round().to(torch.uint8).expand(3, 32, 64).contiguous()
        inside = torch.ones_like(depth, dtype=torch.bool)
        return Sample(image, depth, inside, None, torch.eye(3), f"ramp_{index}.png")


def build(split: str, counts: dict):
    return Ramps(counts[split])
''',
    "oracle.py": '''
"""A teacher that reads the depth off the grey levels, and one metre too much."""
from torch import nn
from tiekd import IMAGENET_MEAN, IMAGENET_STD
from my_depth.numbers import LEVELS_A_METRE


class Oracle(nn.Module):
    def __init__(self, too_much: float):
        super().__init__()
        self.too_much = too_much

    def forward(self, batch):
        red = batch.image[:, :1] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
        return red / LEVELS_A_METRE + self.too_much


build = Oracle
''',
    "numbers.py": "LEVELS_A_METRE = 5\n",
    "relative.py": '''
"""The mean of |depth - target| / target."""
from torch import nn
from tiekd import mean_over_valid, valid_pixels


class Relative(nn.Module):
    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def forward(self, prediction, target):
        relative = (prediction.depth - target).abs() / target.clamp(min=1e-3)
        return mean_over_valid(relative**self.power, valid_pixels(target))


build = Relative
''',
    "diary.py": '''
"""Writes down what the loss was, on the main rank."""
import json
from tiekd import Hook, is_main, mean_over_ranks


class Diary(Hook):
    def __init__(self, file: str):
        self.file = file

    def after_iteration(self, state) -> None:
        losses = mean_over_ranks(state.losses)
        if is_main():
            teacher = [float(state.teacher_depth.min()), float(state.teacher_depth.max())]
            with (state.work_dir / self.file).open("a") as file:
                row = {"iteration": state.iteration, "teacher": teacher, **losses}
                file.write(json.dumps(row) + "\\n")


build = Diary
''',
    "plain.py": (programs.HERE / "parts" / "plain_encoder.py").read_text(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the package, and a recipe beside it."""
    folder = tmp_path_factory.mktemp("somebody")
    for name, text in PACKAGE.items():
        (folder / "my_depth").mkdir(exist_ok=True)
        (folder / "my_depth" / name).write_text(text)
    recipes.write_recipe(folder / "mine.yaml", recipe())
    return folder


def recipe() -> dict:
    return {
        "network": {**recipes.STUDENT, "encoder": {"name": "my_depth.plain"}},
        "teacher": {"name": "my_depth.oracle", "too_much": 1.0},
        "losses": {"relative": {"name": "my_depth.relative", "power": 1.0}, "dpm": {"weight": 0.1}},
        "data": {
            **{"name": "my_depth.ramps", "counts": {"train": 8, "val": 4}, "workers": 1},
            "augment": {"rotate_p": 0, "colour_p": 0},  # so that the teacher's depth is known
        },
        "optimizer": {"name": "adamw", "lr": 0.001},
        "train": {"batch_size": 4, "iterations": 2},
        "evaluation": {"crop": "none"},
        "log": {"interval": 1},
        "hooks": [{"name": "my_depth.diary", "file": "diary.jsonl"}],
    }


def run(command: list, cwd: Path) -> programs.Result:
    result = programs.finish(command, recorder=False, cwd=cwd)
    assert result.code == 0, result.stderr[-3000:]
    return result


def diary(work_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (work_dir / "diary.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The work dir of a run on two ranks.

    It was started in the project's folder and resumed in another process.
    """
    work_dir = folder / "work"
    train = [programs.ROOT / "bin" / "train.py", folder / "mine.yaml", "--work-dir", work_dir]
    run([*programs.deepspeed(2), *train], programs.ROOT)
    run(
        [
            sys.executable,
            programs.ROOT / "bin" / "resume",
            work_dir,
            "--num_gpus",
            "2",
            "--set",
            "train.iterations=3",
        ],
        "/",
    )
    return work_dir


def test_external_parts_found_beside_recipe(trained):
    """A package beside the recipe is found under the launcher and on resume."""
    rows = diary(trained)
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    # Frames are from 4 to 11 m at the left, and twice that at the right; the teacher says a metre
    # more.
    assert all(4.9 < row["teacher"][0] < 12.1 and 8.9 < row["teacher"][1] < 23.1 for row in rows)
    assert all(row["loss"] == pytest.approx(row["loss_relative"] + row["loss_dpm"]) for row in rows)
    text = programs.log_text(trained)
    assert "Teacher: my_depth.oracle, 0.00 M parameters, frozen" in text
    assert "Training frames: 8" in text
    assert "Teacher audit: left out, it needs 12 frames" in text
    assert "Hooks, in order: TextLog" in text
    assert "Diary" in text


def test_external_parts_found_in_current_folder(folder, trained):
    """A package in the current folder is found, and one rank has the losses of two."""
    recipes.write_recipe(folder / "elsewhere" / "mine.yaml", recipe())
    train = [
        sys.executable,
        programs.ROOT / "bin" / "train.py",
        "elsewhere/mine.yaml",
        "--work-dir",
        "alone",
    ]
    run(train, folder)
    alone = diary(folder / "alone")
    for name in ("loss", "loss_dpm"):
        assert [row[name] for row in alone] == pytest.approx(
            [row[name] for row in diary(trained)[:2]], rel=1e-4
        )


def test_evaluate_student_with_external_parts(trained):
    """`evaluate.py` evaluates a student with an encoder and a dataset from outside."""
    result = run(
        [sys.executable, programs.ROOT / "bin" / "evaluate.py", trained / "config.yaml"],
        programs.ROOT,
    )
    assert f"{trained}/best_abs_rel.pth" in result.stdout
    assert "4 val frames" in result.stdout


def test_cache_teacher_with_external_teacher(ground, folder):
    """`cache_teacher.py` caches the maps of a teacher from outside the project."""
    # The oracle knows no street, which an audit would notice; `audit` isn't passed to its build.
    teacher = recipe()["teacher"]
    node = recipes.recipe(ground) | {"teacher": teacher | {"audit": "off"}, "hooks": []}
    recipes.write_recipe(folder / "maps.yaml", node)
    cache = [
        sys.executable,
        programs.ROOT / "bin" / "cache_teacher.py",
        folder / "maps.yaml",
        "--out",
        folder / "maps",
    ]
    result = run(cache, programs.ROOT)
    assert "Teacher: my_depth.oracle, on 1 rank(s)" in result.stdout
    maps = list((folder / "maps").glob("*.png"))
    assert len(maps) == 16
    assert all(map(is_whole_depth_png, maps))
    assert teacher_maps.read_manifest(folder / "maps")["teacher_network"] == teacher
    assert "of my_depth.oracle, the weights with" in teacher_maps.describe(folder / "maps")


def test_cache_teacher_refuses_dataset_without_map_name(folder):
    """A dataset without `map_name` is refused with one line."""
    cache = [
        sys.executable,
        programs.ROOT / "bin" / "cache_teacher.py",
        folder / "mine.yaml",
        "--out",
        folder / "none",
    ]
    result = programs.finish(cache, recorder=False)
    (line,) = result.our_lines()
    assert result.code == 2
    assert "data.name: my_depth.ramps has no map_name" in line
    assert not (folder / "none").exists()
