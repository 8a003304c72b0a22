"""Runs whose images change between the start and a resume: their best figure and their log."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import programs, recipes


def write_frames(folder: Path, numbers, metres: float = 8.0) -> None:
    for place in ("pictures", "depth"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (48, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:03d}.png")
        depth = np.full((48, 96), metres * 1000 + number, np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{number:03d}.png")


def recipe(ground: Path, data: Path) -> dict:
    node = recipes.recipe(ground, batch_size=4, iterations=None, epochs=2, validate=True)
    node["teacher"], node["losses"], node["hooks"] = None, {"silog": {"weight": 1.0}}, []
    node["data"] = {
        "name": "folder",
        "root": str(data),
        "images": "pictures",
        "depths": "depth",
        "depth_unit": 1000,
    }
    node["data"] |= {"workers": 0, "augment": {"crop": [32, 64]}}
    node["checkpoint"], node["tensorboard"] = (
        {"interval": 1, "by": "epoch", "keep_last": 5},
        {"image_interval": 0},
    )
    return node


def call(folder: Path, *commands: list) -> list[programs.Result]:
    """Programs one after another in one process."""
    listing = folder / "commands.json"
    listing.write_text(json.dumps([[str(word) for word in command] for command in commands]))
    result = programs.finish([sys.executable, programs.HERE / "mains.py", listing])
    assert result.code == 0, result.stderr[-3000:]
    return [programs.Result(**row) for row in json.loads(listing.with_suffix(".out").read_text())]


def refused(result: programs.Result) -> str:
    assert result.code == 2, result.stderr[-3000:]
    assert "Traceback" not in result.stderr, result.stderr[-3000:]
    (line,) = result.our_lines()
    return line


@pytest.fixture(scope="module")
def accepted(ground, tmp_path_factory) -> tuple[Path, dict[str, programs.Result]]:
    """A run of 10 images; then 10 more come, and it is resumed without and with --accept-changes.

    The folder has the work dir as it was `before` and after the `refused` resume, too.
    """
    folder = tmp_path_factory.mktemp("changed")
    work_dir, more = folder / "run", ["--set", "train.epochs=4"]
    write_frames(folder / "data", range(10))
    recipes.write_recipe(folder / "recipe.yaml", recipe(ground, folder / "data"))
    results = {}
    (results["started"],) = call(folder, [folder / "recipe.yaml", "--work-dir", work_dir])
    shutil.copytree(work_dir, folder / "before")
    write_frames(folder / "data", range(10, 20))
    (results["refused"],) = call(folder, ["bin/resume", work_dir, *more])
    shutil.copytree(work_dir, folder / "refused")
    (results["accepted"],) = call(folder, ["bin/resume", work_dir, *more, "--accept-changes"])
    return folder, results


def test_resume_refuses_added_images(accepted):
    """A resume on more images is refused with one line and leaves the work dir unchanged."""
    folder, results = accepted
    assert results["started"].code == 0, results["started"].stderr[-3000:]
    assert refused(results["refused"]) == (
        f"CheckpointError: {folder / 'run' / 'checkpoints' / 'iter_6'}: not as at the start of "
        "the run: 10 train frames were added (010.png, 011.png, 012.png and 7 more); put that "
        "back, or resume with --accept-changes, which restarts the search for the best weights"
    )
    before, after = (programs.files_of(folder / name) for name in ("before", "refused"))
    assert {
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    } == {".lock"}


def test_accept_changes_resets_best_and_keeps_split(accepted):
    """An accepted change resets the best, keeps the validation split and renumbers the epochs."""
    folder, results = accepted
    assert results["accepted"].code == 0, results["accepted"].stderr[-3000:]
    text = sorted((folder / "run").glob("*.log"))[-1].read_text()
    assert "Training frames: 19" in text
    assert "Validation frames: 1\n" in text
    assert "Accepted changes: 10 train frames were added" in text
    assert "The validation frames stay those of the start" in text
    old, new = (
        json.loads((folder / name / "inputs.json").read_text()) for name in ("before", "run")
    )
    assert old["splits"]["val"] == new["splits"]["val"]
    assert new["splits"]["train"]["count"] == 19
    assert old["best_from"] == -1
    assert new["best_from"] == 6
    # Three iterations an epoch before, five now: iteration 6 was the end of epoch 2 and is in
    # epoch 2 again.
    assert "Epochs have 5 iterations now, 3 before: iteration 6 was iteration 3 of epoch 2" in text
    rows = [
        json.loads(line)
        for path in sorted((folder / "run").glob("*.log.json"))
        for line in path.open()
    ]
    (at,) = [place for place, row in enumerate(rows) if row.get("mode") == "epochs_renumbered"]
    before, after = (
        {(row["epoch"], row["iter"]) for row in part if row.get("mode") == "train"}
        for part in (rows[:at], rows[at:])
    )
    assert before & after == {(2, 2), (2, 3)}
    first = next(line for line in text.splitlines() if "Best abs_rel so far" in line)
    assert "at iteration 10," in first
    assert (folder / "run" / "abandoned_best_abs_rel.pth").read_bytes() == (
        folder / "before" / "best_abs_rel.pth"
    ).read_bytes()
    assert (
        len(
            torch.load(folder / "run" / "best_abs_rel.pth", weights_only=True)["trained_on"][
                "hashes"
            ]
        )
        == 19
    )


def test_checkpoint_before_accepted_change_has_no_best(accepted):
    """A resume from a checkpoint before an accepted change starts without a best.

    A run that is killed between the resume and its next checkpoint does this.
    """
    folder, _ = accepted
    for path in (folder / "run" / "checkpoints").glob("iter_*"):
        if path.name != "iter_6":
            shutil.rmtree(path)
    (result,) = call(folder, ["bin/resume", folder / "run", "--set", "train.epochs=2"])
    assert result.code == 0, result.stderr[-3000:]
    text = sorted((folder / "run").glob("*.log"))[-1].read_text()
    assert "Accepted" not in text
    assert "Best abs_rel so far" in text


def test_no_validate_trains_on_all_frames(ground, tmp_path):
    """Without validation every frame is trained on, and an evaluation on them is refused."""
    write_frames(tmp_path / "data", range(3))
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe(ground, tmp_path / "data"))
    one = recipes.write_recipe(tmp_path / "one.yaml", recipe(ground, tmp_path / "one"))
    write_frames(tmp_path / "one", range(1))
    zero = recipe(ground, tmp_path / "zero")
    write_frames(tmp_path / "zero", range(3))
    for depth in (tmp_path / "zero" / "depth").iterdir():
        Image.fromarray(np.zeros((48, 96), np.uint16)).save(depth)
    zero = recipes.write_recipe(tmp_path / "zero.yaml", zero)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    trained, of_one, of_none, whole, allowed, of_copy, twice = call(
        tmp_path,
        [path, "--work-dir", tmp_path / "run", "--no-validate"],
        [one, "--work-dir", tmp_path / "run_one", "--no-validate"],
        [zero, "--work-dir", tmp_path / "run_zero", "--set", "train.epochs=30"],
        ["bin/evaluate.py", path, tmp_path / "run"],
        [
            "bin/evaluate.py",
            path,
            tmp_path / "run",
            "--on-trained",
            "--out",
            tmp_path / "figures.json",
        ],
        ["bin/evaluate.py", path, tmp_path / "run", "--set", f"data.root={tmp_path / 'copy'}"],
        ["bin/resume", tmp_path / "run", "--set", "train.epochs=3"],
    )
    for result in (trained, of_one, allowed, twice):
        assert result.code == 0, result.stderr[-3000:]
    assert "Training frames: 3\n" in programs.log_text(tmp_path / "run")
    assert "Training frames: 1\n" in programs.log_text(tmp_path / "run_one")
    for result in (whole, of_copy):
        assert "was trained on all 1 frames that it would be evaluated on" in refused(result)
    assert "recipe: 1 of 1 frames were trained on" in allowed.stdout
    assert (
        json.loads((tmp_path / "figures.json").read_text())["networks"]["recipe"][
            "frames_trained_on"
        ]
        == 1
    )
    line = refused(of_none)
    assert line.startswith(
        "DataError: no training pixel counts: every loss was exactly 0 for 1 iterations"
    )
    assert not list((tmp_path / "run_zero").glob("checkpoints/iter_*"))
