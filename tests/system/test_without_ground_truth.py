"""A run on a video without ground truth: validated against its teacher, averaged, stopped early."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support import programs, recipes

from tiekd.workdir import workdir

LABEL = "agreement with the teacher, not accuracy; same sequence, optimistic"


@pytest.fixture(scope="module")
def path(ground, tmp_path_factory) -> Path:
    """The recipe; 20 images in one folder, of which the last two are for validation."""
    folder = tmp_path_factory.mktemp("video")
    images = sorted((ground / "scenes" / "input").rglob("*.*"))[:20]
    assert len(images) == 20
    (folder / "video").mkdir()
    for number, image in enumerate(images):
        shutil.copy(image, folder / "video" / f"{number}{image.suffix}")
    node = recipes.recipe(ground, batch_size=4, validate=True)
    node["data"] = {"name": "folder", "root": str(folder), "images": "video", "workers": 0}
    node["data"]["augment"] = {"crop": [32, 64]}
    node["losses"] = {"dpm": {"weight": 1.0}}
    node["evaluation"] = {"against": "teacher", "crop": "none", "interval": 2, "by": "iteration"}
    # No improvement is larger than 1e6, so the second evaluation after the first ends the run.
    stop = {"name": "early_stop", "patience": 2, "min_delta": 1e6}
    node["hooks"] = [recipes.RECORDER, {"name": "ema", "decay": 0.9}, stop]
    return recipes.write_recipe(folder / "recipe.yaml", node)


@pytest.fixture(scope="module")
def work_dir(path) -> Path:
    work_dir = path.parent / "work"
    command = [programs.ROOT / "bin" / "train.py", path, "--work-dir", work_dir]
    result = programs.finish(command, ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    return work_dir


def test_run_stops_early_on_both_ranks(work_dir):
    """Both ranks end after iteration 6 with a checkpoint; the run is complete and says why."""
    assert len(programs.losses(work_dir)) == 6
    checkpoint = work_dir / "checkpoints" / "iter_6"
    assert json.loads((checkpoint / "state.json").read_text())["made_by"]["world_size"] == 2
    outcome = workdir.read_outcome(work_dir)
    assert (outcome.outcome, outcome.iteration) == ("stopped early", 6)
    assert "abs_rel hasn't improved by more than 1e+06 in 2 evaluations" in outcome.reason


def test_run_labels_agreement(work_dir):
    """The log, its rows and the best weights say that the figures are no accuracy."""
    text = programs.log_text(work_dir)
    assert "Training frames: 17\n" in text
    assert "Validation frames: 2\n" in text
    assert f"Validation: {LABEL}, compared with the network of" in text
    assert text.count(f"Summary, {LABEL}:") == 3
    best = torch.load(work_dir / "best_abs_rel.pth", weights_only=True)
    assert best["metrics_are"] == LABEL
    assert best["averaged"]["decay"] == 0.9
    rows = [json.loads(line) for log in work_dir.glob("*.log.json") for line in log.open()]
    assert [row["against"] for row in rows if row.get("mode") == "val"] == ["teacher"] * 3


def test_evaluate_repeats_figures_with_label(path, work_dir, tmp_path):
    """bin/evaluate.py on the best weights prints the label and the figures of the run."""
    evaluate = [programs.ROOT / "bin" / "evaluate.py", path, work_dir]
    result = programs.finish([*evaluate, "--out", tmp_path / "x.json"])
    assert result.code == 0, result.stderr[-3000:]
    assert f"{LABEL.upper()}: compared with the network of" in result.stdout
    node = json.loads((tmp_path / "x.json").read_text())
    assert node["protocol"]["figures_are"] == LABEL
    metrics = next(iter(node["networks"].values()))["metrics"]
    best = torch.load(work_dir / "best_abs_rel.pth", weights_only=True)
    assert metrics == pytest.approx(best["metrics"], rel=1e-5)
