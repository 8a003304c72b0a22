"""A run from two data sets: ranks share its batches, and a killed run resumes bit for bit.

One set has ground truth and no teacher, the other cached maps and no ground truth. Batches of four
images are dealt one to two, so some micro-batches of two ranks have no image with ground truth.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import programs, recipes

from tiekd.data import image_io, learned_from, teacher_maps
from tiekd.data.frames import joined_name

ITERATIONS = 8
TRAIN = programs.ROOT / "bin" / "train.py"


@pytest.fixture(scope="module")
def recipe(ground, tmp_path_factory) -> Path:
    """A mixed recipe; without the file `to_the_end` beside it a run stays at iteration 5."""
    folder = tmp_path_factory.mktemp("mixed")
    node = recipes.recipe(ground, iterations=ITERATIONS, validate=True)
    node["network"] = node["network"] | {"encoder": {"name": "support.parts.plain_encoder"}}
    street, _ = node.pop("data") | {"set": "street", "weight": 1}, node.pop("teacher")
    own = {"set": "own", "name": "folder", "root": str(ground / "scenes"), "images": "input"}
    teacher = {"maps": str(folder / "maps"), "audit": "off"}
    own |= {"weight": 2, "validate": False, "teacher": teacher}
    _write_maps(ground / "scenes" / "input", folder / "maps")
    node["data"] = [street, own]
    node["checkpoint"] = {"interval": 3, "by": "iteration", "keep_last": 3}
    node["evaluation"] |= {"interval": 4, "by": "iteration", "set": "street"}
    node["tensorboard"] = {"image_interval": 4}
    node["hooks"] = [{**recipes.RECORDER, "wait_for": str(folder / "to_the_end"), "after": 5}]
    (folder / "to_the_end").touch()
    return recipes.write_recipe(folder / "mixed.yaml", node)


def _write_maps(images: Path, maps: Path) -> None:
    """Writes a map for each image: a ramp of depth, which differs from image to image."""
    maps.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        depth = np.linspace(5 + number, 60, 64 * 128, dtype=np.float32).reshape(64, 128)
        content = image_io.encode_teacher_map(depth, recipes.RANGE["max_depth"])
        image_io.write_durably(maps / joined_name(str(path.relative_to(images))), content)
    teacher = {"name": "some.teacher"}
    manifest = teacher_maps.make_manifest(80.0, None, teacher, "d" * 64, False, {})
    manifest[learned_from.KEY] = learned_from.of_description(teacher)
    teacher_maps.write_manifest(maps, manifest)


@pytest.fixture(scope="module")
def unbroken(recipe) -> Path:
    """The work dir of one rank's run in one go."""
    result = programs.finish([TRAIN, recipe, "--work-dir", recipe.parent / "one"])
    assert result.code == 0, result.stderr[-3000:]
    return recipe.parent / "one"


def test_two_ranks_equal_one(recipe, unbroken):
    """Two ranks have the losses, the weights and the metrics of one."""
    two = recipe.parent / "two"
    result = programs.finish([TRAIN, recipe, "--work-dir", two], ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    assert len(programs.losses(unbroken)) == ITERATIONS
    assert programs.losses(two) == pytest.approx(programs.losses(unbroken), rel=2e-6)
    weights = programs.student(two, ITERATIONS)
    for name, tensor in programs.student(unbroken, ITERATIONS).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=1e-5)
    log = programs.log_text(unbroken)
    assert "Data sets: 2, mixed by data.SET.weight; an epoch is 36 images" in log
    assert "The best weights are chosen by abs_rel, street" in log
    assert "|  street  |" in log
    # The frames of `street` are also in the folder of `own`, which has the validation frames, too.
    assert "saved as best_abs_rel.pth (4 of 4 frames were trained on) (street)" in log
    saved = torch.load(unbroken / "best_abs_rel.pth", weights_only=True)
    assert saved["teachers"] == learned_from.of_description({"name": "some.teacher"})


def test_killed_run_resumes_bit_for_bit(recipe, unbroken):
    """A run that is killed after iteration 5 resumes at 3, and ends with the same weights."""
    work_dir, to_the_end = recipe.parent / "killed", recipe.parent / "to_the_end"
    to_the_end.unlink()
    recorded = work_dir / "recorded.jsonl"
    command = [sys.executable, TRAIN, recipe, "--work-dir", work_dir]
    with programs.Program(command) as program:
        program.wait_until(
            lambda: recorded.is_file() and recorded.read_text().count("\n") >= 5,
        )
        program.kill()
    to_the_end.touch()
    result = programs.finish([*command, "--resume-from", "auto"])
    assert result.code == 0, result.stderr[-3000:]
    assert "Resumed from" in programs.log_text(work_dir)
    assert programs.losses(work_dir) == programs.losses(unbroken)
    weights = [programs.digest(programs.student(each, ITERATIONS)) for each in (work_dir, unbroken)]
    assert weights[0] == weights[1]
    names = [
        sorted(json.loads((each / "inputs.json").read_text())["splits"])
        for each in (work_dir, unbroken)
    ]
    assert names == [["own train", "street train", "street val"]] * 2
