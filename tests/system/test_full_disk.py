"""A disk that fills up in a save.

Nothing earlier is lost, a line says so, and training continues, or ends by option.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs, recipes

from tiekd.workdir import checkpoints

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting isn't allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def train(ground, small_disk: Path, tmp_path: Path, **saving) -> tuple[programs.Result, Path]:
    """A run of 12 iterations on two ranks, with a save at every third.

    After the second save the disk is filled up but for 300 kB.
    """
    recipe = recipes.recipe(ground, batch_size=2, iterations=12, validate=True)
    recipe["checkpoint"] = {"interval": 3, "by": "iteration", "keep_last": 4, **saving}
    recipe["evaluation"] |= {"interval": 2, "by": "iteration"}
    recipe["tensorboard"] = {"image_interval": 0}
    recipe["hooks"] = [
        {"name": "support.parts.filler", "folder": str(small_disk), "after": 7, "free": 300_000},
        recipes.RECORDER,
    ]
    path = recipes.write_recipe(tmp_path / "recipe.yaml", recipe)
    work_dir = small_disk / "run"
    train = [
        *programs.deepspeed(2),
        programs.ROOT / "bin" / "train.py",
        path,
        "--work-dir",
        work_dir,
    ]
    return programs.finish(train), work_dir


def test_save_on_full_disk_keeps_training(ground, small_disk, tmp_path):
    """After a failed save training continues, earlier checkpoints stay and the run resumes."""
    result, work_dir = train(ground, small_disk, tmp_path)
    assert "Traceback" not in result.stderr, result.stderr[-4000:]
    failed = [line for line in result.stderr.splitlines() if "was not saved" in line]
    assert len(failed) == 2, failed
    assert "iter_9 was not saved, " in failed[0], failed
    assert "No space left" in failed[0] or "could be written only in part" in failed[0]
    assert "training continues, and the earlier checkpoints are unchanged" in failed[0]
    (line,) = result.our_lines()
    assert line.startswith("CheckpointError: ")
    assert "iter_12 was not saved" in line
    assert "bin/resume" in line
    assert result.code == 2
    there = sorted(p.name for p in (work_dir / checkpoints.FOLDER).iterdir())
    assert there == ["iter_3", "iter_6", "latest"]
    assert checkpoints.find(work_dir) == (work_dir / checkpoints.FOLDER / "iter_6", [])

    (small_disk / "filling").unlink()
    result = programs.finish(
        [
            sys.executable,
            programs.ROOT / "bin" / "resume",
            work_dir,
            f"--master_port={programs.free_port()}",
        ]
    )
    assert result.code == 0, result.stderr[-3000:]
    rows = programs.recorded(work_dir)
    assert [row["iteration"] for row in rows] == list(range(1, 13))
    assert checkpoints.find(work_dir)[0].name == "iter_12"


@pytest.mark.long
def test_save_on_full_disk_stops_by_option(ground, small_disk, tmp_path):
    """With `checkpoint.on_error: stop` the first failed save ends the run."""
    result, work_dir = train(ground, small_disk, tmp_path, on_error="stop")
    (line,) = result.our_lines()
    assert result.code == 2
    assert "iter_9 was not saved" in line
    assert "Traceback" not in result.stderr
    assert checkpoints.find(work_dir)[0].name == "iter_6"
