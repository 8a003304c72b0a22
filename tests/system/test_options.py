"""The options of bin/train.py, each in a run of its own (several in one process, see mains.py)."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import programs, recipes

from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights


def short(ground: Path, **train) -> dict:
    return recipes.recipe(ground, iterations=6, **train)


@pytest.fixture(scope="module")
def folder(ground, tmp_path_factory) -> Path:
    """All runs in one process, after each other; `results.json` has exit codes and stderr."""
    folder = tmp_path_factory.mktemp("options")
    recipe = short(ground)
    recipe["data"]["workers"] = 1
    recipes.write_recipe(folder / "plain.yaml", recipe)
    no_split = {**recipe["data"], "name": "kitti", "kb_crop": None, "val_split": "not_there.txt"}
    no_split = {
        k: v for k, v in no_split.items() if k not in ("height", "width", "num_train", "num_val")
    }
    with_evaluation = short(ground, validate=True)
    recipes.write_recipe(folder / "no_split.yaml", {**with_evaluation, "data": no_split})
    with_evaluation["train"] |= {"epochs": 5, "iterations": None, "batch_size": 8}
    recipes.write_recipe(
        folder / "evaluated.yaml",
        {**with_evaluation, "evaluation": {"interval": 2, "crop": "none"}},
    )
    write_student(folder / "same.pth", recipes.STUDENT)
    write_student(
        folder / "other.pth",
        {**recipes.STUDENT, "head": {**recipes.STUDENT["head"], "num_bins": 49}},
    )
    (folder / "elsewhere").mkdir()
    (folder / "linked").symlink_to(folder / "elsewhere")
    commands = {
        "deterministic_1": ["plain", "--deterministic"],
        "deterministic_2": ["plain", "--deterministic"],
        "seed_1": ["plain", "--seed", "1"],
        "no_validate": ["no_split", "--no-validate"],
        "evaluated": ["evaluated"],
        "loaded": ["plain", "--load-from", str(folder / "same.pth")],
        "refused": ["plain", "--load-from", str(folder / "other.pth")],
        "ignored": [
            "plain",
            "--load-from",
            str(folder / "other.pth"),
            "--set",
            "load.ignore=[head.*]",
        ],
        "linked/run": ["plain"],
        "set": ["plain", "--set", "train.iterations=2", "optimizer.lr=0.002"],
        "scaled": [
            "plain",
            "--set",
            "optimizer.lr_batch_size=16",
            "train.lr_scaling=linear",
            "train.iterations=2",
        ],
    }
    lists = [
        [str(folder / f"{c[0]}.yaml"), "--work-dir", str(folder / name), *c[1:]]
        for name, c in commands.items()
    ]
    (folder / "commands.json").write_text(json.dumps(lists))
    result = programs.finish([sys.executable, programs.HERE / "mains.py", folder / "commands.json"])
    assert result.code == 0, result.stderr[-3000:]
    results = json.loads((folder / "commands.out").read_text())
    (folder / "results.json").write_text(json.dumps(dict(zip(commands, results, strict=True))))
    return folder


def write_student(path: Path, network: dict) -> None:
    torch.manual_seed(5)
    write_weights(path, build_network(network).state_dict(), network, 3)


def result(folder: Path, name: str) -> programs.Result:
    return programs.Result(**json.loads((folder / "results.json").read_text())[name])


def test_deterministic_runs_have_same_bits(folder):
    """Two runs with `--deterministic` give the same weights bit for bit."""
    digests = [programs.digest(programs.student(folder / f"deterministic_{i}", 6)) for i in (1, 2)]
    assert digests[0] == digests[1] != programs.digest(programs.student(folder / "seed_1", 6))
    assert (
        yaml.safe_load((folder / "deterministic_1" / "config.yaml").read_text())["train"][
            "deterministic"
        ]
        is True
    )


def test_no_validate_needs_no_split_saves_no_best(folder):
    """`--no-validate` needs no validation split and saves no best checkpoint."""
    assert result(folder, "no_validate").code == 0, result(folder, "no_validate").stderr
    text = programs.log_text(folder / "no_validate")
    assert "Validation is off: no evaluation, and no best checkpoint will be saved" in text
    assert list((folder / "no_validate").glob("best_*")) == []


def test_evaluation_at_interval_and_end(folder):
    """The evaluation runs at its interval and at the end, and the best is saved."""
    assert result(folder, "evaluated").code == 0, result(folder, "evaluated").stderr
    (path,) = (folder / "evaluated").glob("*.log.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows if row.get("mode") == "val"] == [2, 4, 5]
    best = torch.load(folder / "evaluated" / "best_abs_rel.pth", weights_only=True)
    best_abs_rel = min(row["abs_rel"] for row in rows if row.get("mode") == "val")
    assert best["metrics"]["abs_rel"] == pytest.approx(best_abs_rel, abs=1e-4)


def test_load_from_starts_at_iteration_one(folder):
    """`--load-from` loads the weights and starts at iteration 1."""
    assert "Loaded 192 tensors from" in programs.log_text(folder / "loaded")
    rows = programs.recorded(folder / "loaded")
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["loss"] != programs.losses(folder / "deterministic_1")[0]


def test_load_from_wrong_shape_refused_or_ignored(folder):
    """`--load-from` refuses tensors that don't fit unless `load.ignore` names them."""
    refused = result(folder, "refused")
    assert refused.code == 2
    (line,) = refused.our_lines()
    assert line.startswith(
        f"CheckpointError: {folder / 'other.pth'}: 2 of 192 tensors don't fit: head.bias (got 49, "
    )
    assert line.endswith("--set 'load.ignore=[head.*]'")
    assert not (folder / "refused").exists()
    assert result(folder, "ignored").code == 0, result(folder, "ignored").stderr
    assert "Loaded 190 tensors" in programs.log_text(folder / "ignored")
    assert "left as initialised: head.bias, head.weight" in programs.log_text(folder / "ignored")


def test_work_dir_symlink_is_followed(folder):
    """A run in a linked work dir writes to the target of the link."""
    assert (folder / "elsewhere" / "run" / "checkpoints" / "iter_6" / "student.pth").is_file()
    assert (folder / "linked").is_symlink()


def test_set_overrides_recipe_and_is_saved(folder):
    """`--set` overrides the recipe, and the saved config has the new values."""
    saved = yaml.safe_load((folder / "set" / "config.yaml").read_text())
    assert (saved["train"]["iterations"], saved["optimizer"]["lr"]) == (2, 0.002)
    assert len(programs.recorded(folder / "set")) == 2


def test_lr_scaling_is_logged_and_applied(folder):
    """A global batch other than `lr_batch_size` is logged, and `lr_scaling` scales the rate."""
    assert (
        "meant for a global batch of 16, this run has 4: train.lr_scaling linear multiplies it "
        "by 0.25" in programs.log_text(folder / "scaled")
    )
    # Two iterations of one cycle: the top, then the end.
    assert max(row["lr"][0] for row in programs.recorded(folder / "scaled")) <= 0.00025


def test_saved_config_repeats_run(folder, tmp_path):
    """The saved config alone repeats the run from another folder without `PYTHONPATH`."""
    work_dir = folder / "deterministic_1"
    config = yaml.safe_load((work_dir / "config.yaml").read_text())
    config["hooks"] = []  # the recorder is found through PYTHONPATH only
    saved = recipes.write_recipe(
        tmp_path / "again.yaml", {k: v for k, v in config.items() if k != "work_dir"}
    )
    options = ["--deepspeed_config", work_dir / "ds_config.json"]
    result = programs.finish(
        ["python", programs.ROOT / "bin" / "train.py", saved.name, *options],
        cwd=tmp_path,
        recorder=False,
    )
    assert result.code == 0, result.stderr[-3000:]
    again = tmp_path / "work_dirs" / "again"
    losses = [[row["loss"] for row in programs.json_log(folder)] for folder in (again, work_dir)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert programs.digest(programs.student(again, 6)) == programs.digest(
        programs.student(work_dir, 6)
    )
