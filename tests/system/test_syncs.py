"""Between two lines of the log the host never waits for the device on our account.

Watched are the teacher, the student, the losses, the loop and the hooks.

On a CPU by looking for what would wait on a GPU; where there is a GPU, by what torch warns of
there.
"""

import json

import pytest
import torch
from support import programs, recipes

ON_GPU = torch.cuda.is_available()
FIRST, LAST, ITERATIONS = 12, 18, 20
CONFIGS = ["fp32", "fp32_zero2", "bf16_autocast", *(["fp16", "fp16_zero1"] if ON_GPU else [])]


def watched(folder, ground, name: str, **changes) -> dict:
    """SyncWatch's findings between the log's lines at iterations 10 and 20.

    Images are written at the latter.
    """
    recipe = recipes.recipe(ground, iterations=ITERATIONS)
    recipe["log"] = {"interval": 10, "by_epoch": False}
    recipe["tensorboard"] = {"image_interval": 20}
    recipe["data"]["workers"] = 1
    recipe["losses"]["structure"] = {"name": "ssim", "weight": 0.1}
    watch = {"name": "support.parts.sync_watch", "first": FIRST, "last": LAST}
    recipe["hooks"] = [{"name": "ema"}, watch]
    path = recipes.write_recipe(folder / "recipe.yaml", recipe | changes)
    command = [
        programs.sys.executable,
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        folder / "work",
    ]
    result = programs.finish([*command, "--deepspeed_config", programs.DS_CONFIGS / f"{name}.json"])
    assert result.code == 0, result.stderr[-3000:]
    return json.loads((folder / "work" / "syncs.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_training_never_syncs_between_log_steps(name, ground, tmp_path):
    """Between two log steps the project's code never waits for the device.

    One of the engine configs has two teachers, each with a sigma.
    """
    changes = {}
    if name == "fp32_zero2":
        teacher = recipes.recipe(ground)["teacher"]
        several = [teacher | {"sigma": sigma, "weight": sigma} for sigma in (2.0, 4.0)]
        changes = {"teacher": None, "teachers": several}
    told = watched(tmp_path, ground, name, **changes)
    assert told["found"] == []
    if ON_GPU:
        assert told["num_all"] <= told["num_bare"], told["others"]


def test_sync_watch_finds_waiting_hook(ground, tmp_path):
    """The watch finds a hook that waits for the device each iteration."""
    hooks = [
        {"name": "support.parts.recorder"},
        {"name": "support.parts.sync_watch", "first": FIRST, "last": LAST},
    ]
    told = watched(tmp_path, ground, "fp32", hooks=hooks)
    # The recorder's means over ranks, and its count of skipped steps, once an iteration.
    files = [line.split(" at ")[1].split(":")[0] for line in told["found"]]
    assert set(files) == {"tiekd/distributed/comm.py", "tiekd/engine/step.py"}
    assert all(files.count(file) >= LAST - FIRST for file in set(files))
