"""bin/calibrate.py as people run it: after a training, before a resume, and what it refuses."""

import json
import shutil
from pathlib import Path

import torch
from support import programs, recipes

CALIBRATE = programs.ROOT / "bin" / "calibrate.py"


def train(ground: Path, folder: Path) -> Path:
    node = recipes.recipe(ground, batch_size=4, iterations=8, validate=True)
    node["teacher"] = None
    node["losses"] = {"dpm": {"weight": 1.0}}
    node["evaluation"] |= {"interval": 8, "by": "iteration", "flip": False}
    node["checkpoint"] = {"interval": 8, "by": "iteration"}
    path = recipes.write_recipe(folder / "recipe.yaml", node)
    work_dir = folder / "work"
    result = programs.finish([programs.ROOT / "bin/train.py", path, "--work-dir", work_dir])
    assert result.code == 0, result.stderr[-3000:]
    return work_dir


def test_calibrated_run_resumes_as_before(ground, tmp_path):
    """Calibrating changes no checkpoint: a resumed run has the weights of one that wasn't."""
    work_dir = train(ground, tmp_path)
    shutil.copytree(work_dir, tmp_path / "plain")
    before = programs.files_of(work_dir / "checkpoints")
    result = programs.finish([CALIBRATE, work_dir])
    assert result.code == 0, result.stderr[-3000:]
    found = json.loads((work_dir / "confidence.json").read_text())
    assert f"T = {found['temperature']:g}" in result.stdout
    assert programs.files_of(work_dir / "checkpoints") == before
    best = torch.load(work_dir / "best_abs_rel.pth", weights_only=True)
    assert best["confidence"]["temperature"] == found["temperature"]
    for folder in (work_dir, tmp_path / "plain"):
        resume = [programs.ROOT / "bin" / "resume", folder, "--set", "train.iterations=12"]
        result = programs.finish(resume)
        assert result.code == 0, result.stderr[-3000:]
    digests = {
        programs.digest(programs.student(folder, 12)) for folder in (work_dir, tmp_path / "plain")
    }
    assert len(digests) == 1
    assert programs.losses(work_dir) == programs.losses(tmp_path / "plain")
    refused = programs.finish([CALIBRATE, tmp_path])
    assert (refused.code, len(refused.our_lines())) == (2, 1), refused.stderr
    assert "no run to calibrate here" in refused.stderr
