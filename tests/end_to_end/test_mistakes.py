"""What a user gets wrong ends in one line that says what to do, code 2, and everything as it was.

Each mistake is tried in one process, through bin/train.py's own main (see mains.py); six again under the launcher.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from PIL import Image

from tiekd.checkpoint import write_weights
from tiekd.models.factory import build_network

FRAME = "2000_01_01/2000_01_01_drive_0001_sync/image_02/data/0000000003.png"
TRUTH = "2000_01_01_drive_0001_sync/proj_depth/groundtruth/image_02/0000000003.png"


def place_for(ground: Path, folder: Path) -> Path:
    """A folder with its own copy of the data, as plain KITTI, for a mistake to be made in."""
    shutil.copytree(ground / "scenes", folder / "data")
    shutil.copy(ground / "teacher.pth", folder)
    return folder


def good(place: Path) -> dict:
    recipe = runs.recipe(place, iterations=8)
    recipe["data"] = {
        "name": "kitti",
        "root": str(place / "data"),
        "kb_crop": None,
        "workers": 1,
        "augment": recipe["data"]["augment"],
    }
    recipe["hooks"] = []
    return recipe


def misspelt_recipe_key(place, recipe):
    recipe["train"]["batchsize"] = recipe["train"].pop("batch_size")


def misspelt_json_key(place, recipe):
    config = json.loads((runs.DS_CONFIGS / "fp32.json").read_text()) | {"gradient_cliping": 1.0}
    (place / "engine.json").write_text(json.dumps(config))


def unknown_encoder(place, recipe):
    recipe["network"] = {**recipe["network"], "encoder": {"name": "mobilenetv2"}}


def missing_recipe(place, recipe):
    recipe["missing"] = True


def missing_split(place, recipe):
    (place / "data" / "kitti_eigen_train.txt").unlink()


def missing_image(place, recipe):
    (place / "data" / "input" / FRAME).unlink()


def truncated_png(place, recipe):
    path = place / "data" / "input" / FRAME
    path.write_bytes(path.read_bytes()[:500])


def eight_bit_depth(place, recipe):
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(place / "data" / "gt_depth" / TRUTH)


def no_teacher_there(place, recipe):
    (place / "teacher.pth").unlink()


def unfitting_teacher(place, recipe):
    other = {**runs.TEACHER, "decoder": {**runs.TEACHER["decoder"], "widths": [16, 8]}}
    write_weights(place / "teacher.pth", build_network(other).state_dict(), other, 0)


def undivisible_batch(place, recipe):
    recipe["train"]["batch_size"] = 5
    config = json.loads((runs.DS_CONFIGS / "fp32_accumulate2.json").read_text())
    (place / "engine.json").write_text(json.dumps(config))


def contradicting_json(place, recipe):
    config = json.loads((runs.DS_CONFIGS / "fp32.json").read_text()) | {"gradient_clipping": 1.0}
    (place / "engine.json").write_text(json.dumps(config))


def empty_work_dir(place, recipe):
    (place / "work").mkdir()


# What is done wrong -> class of the error, and what its line must hold: what was given, and what to do.
MISTAKES = {
    misspelt_recipe_key: ("RecipeError", "train: unknown key 'batchsize'; did you mean 'batch_size'?"),
    misspelt_json_key: ("RecipeError", "unknown key 'gradient_cliping'; did you mean 'gradient_clipping'?"),
    unknown_encoder: ("RecipeError", "network.encoder.name: no 'mobilenetv2'; there are (nearest first): mobilenet_v2"),
    missing_recipe: ("RecipeError", "recipes.yaml: no such recipe; near it: recipe.yaml"),
    missing_split: ("DataError", "kitti_eigen_train.txt: no such split file; .txt files beside it: kitti_eigen_test"),
    missing_image: ("DataError", "0000000003.png: no such picture; check data.root and the split file"),
    truncated_png: ("DataError", "0000000003.png: a torn or damaged PNG (500 bytes); copy it from the original again"),
    eight_bit_depth: ("DataError", "0000000003.png: a depth map must be a one-channel 16-bit PNG, this has 1 channel"),
    no_teacher_there: ("TeacherError", "teacher.pth; train one with bin/train.py"),
    unfitting_teacher: (
        "TeacherError",
        "tensors don't fit: decoder.extras.0.first.weight (got 8x16x3x3, wanted 8x8x3x3)",
    ),
    undivisible_batch: ("RecipeError", "with accumulation 2; nearest global batches that fit: 4, "),
    contradicting_json: ("RecipeError", "gradient_clipping is 1.0, but the recipe's train.clip_norm is 35.0; write \""),
    empty_work_dir: ("CheckpointError", "no checkpoint to resume from; start the run with bin/train.py first"),
}
WITH_TWO_RANKS = [
    misspelt_recipe_key,
    misspelt_json_key,
    missing_image,
    unfitting_teacher,
    undivisible_batch,
    missing_split,
]


def arguments(place: Path, mistake) -> list[str]:
    recipe = good(place)
    mistake(place, recipe)
    path = place / ("recipes.yaml" if recipe.pop("missing", False) else "recipe.yaml")
    runs.write_recipe(place / "recipe.yaml", recipe)
    options = ["--work-dir", str(place / "work")]
    if (place / "engine.json").exists():
        options += ["--deepspeed_config", str(place / "engine.json")]
    if mistake is empty_work_dir:
        options += ["--resume-from", "auto"]
    return [str(path), *options]


@pytest.fixture(scope="module")
def outcomes(ground, tmp_path_factory) -> dict:
    """Per mistake: how the program ended, and whether the files of before are all as they were."""
    folder = tmp_path_factory.mktemp("mistakes")
    places = {mistake: place_for(ground, folder / mistake.__name__) for mistake in MISTAKES}
    commands = [arguments(place, mistake) for mistake, place in places.items()]
    before = [runs.files_of(place) for place in places.values()]
    (folder / "arguments.json").write_text(json.dumps(commands))
    result = runs.finish([sys.executable, runs.HERE / "mains.py", folder / "arguments.json"])
    assert result.code == 0, result.stderr[-3000:]
    results = [runs.Result(**row) for row in json.loads((folder / "arguments.out").read_text())]
    lost = [list_lost(place, files) for place, files in zip(places.values(), before, strict=True)]
    return dict(zip(places, zip(results, lost, strict=True), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_in_one_process(outcomes, mistake):
    result, lost = outcomes[mistake]
    check(result, mistake)
    assert lost == []


@pytest.mark.parametrize("mistake", WITH_TWO_RANKS, ids=lambda mistake: mistake.__name__)
def test_under_the_launcher(ground, tmp_path, mistake):
    place = place_for(ground, tmp_path / "place")
    command = arguments(place, mistake)
    before = runs.files_of(place)
    result = runs.finish([*runs.deepspeed(2), runs.ROOT / "bin" / "train.py", *command])
    check(result, mistake)
    assert list_lost(place, before) == []


def check(result: runs.Result, mistake) -> None:
    assert result.code == 2, (result.code, result.stderr[-3000:])
    assert "Traceback" not in result.stderr + result.stdout, result.stderr[-3000:]
    (line,) = result.our_lines()
    kind, text = MISTAKES[mistake]
    assert line.startswith(f"{kind}: ") and text in line, line


def list_lost(place: Path, before: dict[str, str]) -> list[str]:
    """Files that changed or went, and files that came outside the work dir (a frame's mistake is met in training)."""
    after = runs.files_of(place)
    changed = [name for name in before if after.get(name) != before[name]]
    return changed + [name for name in after.keys() - before.keys() if not name.startswith("work/")]
