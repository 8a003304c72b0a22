"""Bad data in real programs.

bin/check_data.py finds all of it, and training continues over it when asked to.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from support import faulty_data, programs, recipes

ITERATIONS = 8  # of 4 images from 16: two epochs
TORN, WITHOUT_DEPTH = "0000000003", "0000000009"


def test_check_data_finds_exactly_planted_faults(tmp_path):
    """`check_data.py` reports every planted fault, and its clean split files pass."""
    root = faulty_data.make(tmp_path / "data")
    before = programs.files_of(root)
    recipe = recipes.write_recipe(tmp_path / "faulty.yaml", faulty_data.recipe(root))
    check = [programs.ROOT / "bin" / "check_data.py", recipe, "--neighbours", "2", "--workers", "2"]
    result = programs.finish([sys.executable, *check], cwd=tmp_path)
    assert (result.code, result.stderr) == (1, ""), result.stderr[-3000:]
    out = tmp_path / "work_dirs" / "check_faulty"
    assert faulty_data.found(out / "report.json") == faulty_data.PLANTED
    lines = result.stdout.splitlines()
    assert lines[0].startswith("frames: 23/23, ")
    assert "missing           3      1  " in result.stdout
    assert f"--set data.train_split={out}/train.txt data.val_split={out}/val.txt" in lines[-1]
    assert programs.files_of(root) == before
    clean = [
        "--set",
        f"data.train_split={out}/train.txt",
        f"data.val_split={out}/val.txt",
        "--split",
        "val",
    ]
    result = programs.finish(
        [sys.executable, *check, "--out", tmp_path / "again", *clean], cwd=tmp_path
    )
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.endswith("Nothing was found.\n")
    result = programs.finish([sys.executable, *check], cwd=tmp_path)
    assert result.code == 2
    assert result.our_lines() == [
        "LaunchError: --out work_dirs/check_faulty: holds report.json already, which is not "
        "overwritten; give another folder"
    ]


def recipe_over_bad_files(ground: Path, folder: Path) -> dict:
    """Every epoch meets two files that can't be read."""
    shutil.copytree(ground / "scenes", folder)
    (torn,) = (folder / "input").glob(f"*/*_0001_sync/image_02/data/{TORN}.png")
    torn.write_bytes(torn.read_bytes()[:500])
    (eight_bit,) = (folder / "gt_depth").glob(
        f"*_0001_sync/proj_depth/groundtruth/image_02/{WITHOUT_DEPTH}.png"
    )
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(eight_bit)
    recipe = recipes.recipe(ground, iterations=ITERATIONS)
    augment = recipe["data"]["augment"]
    recipe["data"] = {
        "name": "kitti",
        "root": str(folder),
        "kb_crop": None,
        "workers": 1,
        "augment": augment,
    }
    recipe["data"] |= {"on_error": "skip", "max_errors": 2}
    recipe["checkpoint"] = {"interval": 4, "by": "iteration"}
    recipe["log"] = {"interval": 4}
    return recipe


@pytest.fixture(scope="module")
def skipping(ground, tmp_path_factory) -> Path:
    """A folder of runs over bad files.

    `one` trained its last half twice, `two` ran on two ranks, and `few` allows one bad file only.
    `results.json` has how the programs on one rank ended.
    """
    folder = tmp_path_factory.mktemp("skipping")
    recipe = recipe_over_bad_files(ground, folder / "data")
    path = recipes.write_recipe(folder / "recipe.yaml", recipe)
    one, few = ["--work-dir", str(folder / "one")], ["--work-dir", str(folder / "few")]
    commands = [
        [str(path), *one],
        [str(path), *one, "--resume-from", str(folder / "one" / "checkpoints" / "iter_4")],
        [str(path), *few, "--set", "data.max_errors=1"],
    ]
    listing = folder / "results.json"
    listing.write_text(json.dumps(commands))
    result = programs.finish([sys.executable, programs.HERE / "mains.py", listing])
    assert result.code == 0, result.stderr[-3000:]
    two = {"name": "two", "recipe": recipe, "engine": str(programs.DS_CONFIGS / "fp32.json")}
    programs.many([two], folder, ranks=2)
    return folder


def warnings(work_dir: Path) -> list[str]:
    return [
        line
        for line in programs.log_text(work_dir).splitlines()
        if "a training sample can't be read" in line
    ]


def test_skip_bad_samples_warns_once_per_file(skipping):
    """Training with `on_error: skip` names each unreadable file once, also after a resume."""
    results = json.loads((skipping / "results.out").read_text())
    assert [row["code"] for row in results[:2]] == [0, 0], (
        results[0]["stderr"][-3000:] + results[1]["stderr"][-3000:]
    )
    for name in ("one", "two"):
        lines = sorted(
            line.split("another takes its place ")[1] for line in warnings(skipping / name)
        )
        assert len(lines) == 2, "a resumed run does not repeat them"
        assert lines[0].startswith("(1 of at most 2): ")
        assert lines[1].startswith("(2 of at most 2): ")
        together = "\n".join(lines)
        assert f"{TORN}.png: a torn or damaged PNG (500 bytes)" in together
        assert f"{WITHOUT_DEPTH}.png: a depth map must be a one-channel 16-bit PNG" in together


def test_replacement_samples_same_on_resume_and_ranks(skipping):
    """Replacement samples depend on neither a resume nor the number of ranks."""
    rows = [
        json.loads(line) for line in (skipping / "one" / "recorded.jsonl").read_text().splitlines()
    ]
    assert [row["iteration"] for row in rows] == [*range(1, 9), *range(5, 9)]
    assert [row["loss"] for row in rows[4:8]] == [row["loss"] for row in rows[8:]], "bit for bit"
    # Rounding decides here and there what a ReLU lets through; another sample would be seen in the
    # second digit.
    assert programs.losses(skipping / "one") == pytest.approx(
        programs.losses(skipping / "two"), rel=1e-4
    )


def test_train_ends_above_max_errors(skipping):
    """A run with more unreadable samples than `data.max_errors` ends with one line and code 2."""
    few = programs.Result(**json.loads((skipping / "results.out").read_text())[2])
    (line,) = few.our_lines()
    assert few.code == 2
    assert "Traceback" not in few.stderr
    assert line.startswith(
        "DataError: data.max_errors: 2 training samples can't be read, 1 are allowed; "
        "look at all with"
    )


def copied(ground: Path, folder: Path, **data) -> dict:
    """A recipe on its own copy of the scenes, as plain KITTI with data workers."""
    shutil.copytree(ground / "scenes", folder / "data")
    recipe = recipes.recipe(ground, iterations=40)
    recipe["data"] = {
        "name": "kitti",
        "root": str(folder / "data"),
        "kb_crop": None,
        "workers": 2,
        **data,
    }
    recipe["data"]["augment"] = {"crop": [32, 64]}
    return recipe


@pytest.mark.long
def test_loader_read_timeout_ends_all_ranks(ground, tmp_path):
    """A file that isn't read within `data.timeout_s` ends all ranks with a line that names it."""
    recipe = copied(ground, tmp_path, timeout_s=3)
    (path,) = (tmp_path / "data" / "input").glob(f"*/*_0001_sync/image_02/data/{TORN}.png")
    recipe["data"] |= {"name": "support.parts.stuck_kitti", "stuck": str(path)}
    path_of_recipe = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    train = [
        *programs.deepspeed(2),
        programs.ROOT / "bin" / "train.py",
        path_of_recipe,
        "--work-dir",
        tmp_path / "work",
    ]
    with programs.Program(train) as program:
        result = program.result()
        left = [
            p.pid
            for p in psutil.process_iter()
            if p.pid > 1 and session_of(p.pid) == program.process.pid
        ]
    assert result.code == 2, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line.startswith("DataError: ")
    assert str(path) in line
    assert ": not read by a data worker within 3 s; " in line
    assert left == []


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_loader_killed_worker_ends_run(ground, tmp_path):
    """A killed data worker ends the run with one `DataError` line while it computes."""
    recipe = copied(ground, tmp_path)
    recipe["hooks"] = [{**recipes.RECORDER, "wait_for": str(tmp_path / "never")}]
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    with programs.Program(
        [sys.executable, programs.ROOT / "bin" / "train.py", path, "--work-dir", tmp_path / "work"]
    ) as program:
        program.wait_until((tmp_path / "work" / "recorded.jsonl").exists)
        workers = psutil.Process(program.process.pid).children()
        assert len(workers) == 2
        workers[1].kill()
        result = program.result(300)
    assert result.code == 2, result.stderr[-3000:]
    (line,) = result.our_lines()
    assert line.startswith(
        f"DataError: a data worker died (process {workers[1].pid}, by SIGKILL); "
    )


def test_check_data_interrupt_leaves_nothing(tmp_path):
    """An interrupted `check_data.py` ends with 130 and leaves neither a result nor a process."""
    root = faulty_data.make(tmp_path / "data")
    split = root / "kitti_eigen_train.txt"
    split.write_text(split.read_text() * 3_000)  # more than it can read before it is interrupted
    recipe = recipes.write_recipe(tmp_path / "faulty.yaml", faulty_data.recipe(root))
    command = [
        sys.executable,
        programs.ROOT / "bin" / "check_data.py",
        recipe,
        "--workers",
        "2",
        "--out",
        tmp_path / "out",
    ]
    with programs.Program(command) as program:
        program.wait_until(lambda: len(psutil.Process(program.process.pid).children()) == 2)
        time.sleep(0.3)
        program.process.send_signal(signal.SIGINT)
        result = program.result(300)
        left = [
            p.pid
            for p in psutil.process_iter()
            if p.pid > 1 and session_of(p.pid) == program.process.pid
        ]
    assert (result.code, left) == (130, []), result.stderr[-2000:]
    assert list((tmp_path / "out").iterdir()) == []
