"""Readings of test lists are counted before they happen, and test frames select nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
from support import small_experiment

from tiekd.config.recipe import load_recipe
from tiekd.errors import DataError
from tiekd.evaluation import floors
from tiekd.tools.experiment import runs, score
from tiekd.training.settings import Recipe


@pytest.fixture
def job(tmp_path, scenes) -> dict:
    """A job on a test list of one frame, read as KITTI."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    (scenes / "last.txt").write_text(lines[2])
    (scenes / "first.txt").write_text("".join(lines[:2]))
    data = f"data={{name: kitti, root: {scenes}, val_split: first.txt}}"
    spec = small_experiment.write(tmp_path, scenes)
    return {
        "recipe": str(spec.recipe_of("old")),
        "overrides": [data],
        "list": "last.txt",
        "readings": str(tmp_path / "counted" / "readings.jsonl"),
        "out": str(tmp_path / "run" / "figures_test.json"),
    }


def count(job):
    score._count_reading(job, Recipe(load_recipe(job["recipe"], job["overrides"])))


def test_count_reading_appends_a_line(job, scenes, monkeypatch):
    """Each reading is a line with the list, its state, the reader and the commit."""
    monkeypatch.setattr(score, "commit", lambda: "abc+changes")
    count(job)
    count(job)
    first, second = map(json.loads, Path(job["readings"]).read_text().splitlines())
    assert first["list"] == str(scenes / "last.txt")
    assert first["crc"] == second["crc"] is not None
    assert first["by"] == str(Path(job["out"]).parent)
    assert first["commit"] == "abc+changes"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", first["time"])
    assert len(score.readings_of(Path(job["readings"]), scenes / "last.txt")) == 2
    assert score.readings_of(Path(job["readings"]), scenes / "first.txt") == []
    assert score.readings_of(Path("none"), scenes / "first.txt") == []
    # A reading counts in whatever way the list is named.
    (scenes / "link.txt").symlink_to("last.txt")
    for other in (scenes / "link.txt", scenes / ".." / scenes.name / "last.txt"):
        assert len(score.readings_of(Path(job["readings"]), other)) == 2


def test_run_counts_reading_before_the_list_is_read(job, tmp_path, monkeypatch):
    """A reading is counted even if the evaluation fails at its beginning."""
    monkeypatch.setattr(score, "commit", lambda: "abc")
    monkeypatch.setattr(score.process_group, "start_rank", lambda: None)
    job["list"] = "missing.txt"
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(DataError, match="missing.txt"):
        score.run(tmp_path / "job.json")
    assert len(Path(job["readings"]).read_text().splitlines()) == 1


@pytest.mark.parametrize("labelled", [0, 1])
def test_run_makes_floors_of_labelled_training_frames(job, scenes, tmp_path, monkeypatch, labelled):
    """Training images without ground truth, all or one of them, don't end the evaluation."""
    monkeypatch.setattr(score.process_group, "start_rank", lambda: torch.device("cpu"))
    lines = (scenes / "kitti_eigen_train.txt").read_text().splitlines()[:2]
    lines[labelled:] = [f"{line.split()[0]} None {line.split()[2]}" for line in lines[labelled:]]
    (scenes / "partly.txt").write_text("\n".join(lines))
    job["overrides"] += ["data.train_split=partly.txt", "evaluation.crop=none"]
    out = tmp_path / "figures.json"
    changes = {"title": None, "weights": None, "list": None, "out": str(out), "made_from": {}}
    changes["scenes"] = {"regex": "."}
    (tmp_path / "job.json").write_text(json.dumps(job | changes))
    score.run(tmp_path / "job.json")
    content = json.loads(out.read_text())
    if labelled:
        assert tuple(content["figures"]) == floors.NAMES
        assert content["left_out"] == {}
    else:
        assert list(content["figures"]) == ["best constant"]
        assert "ground truth" in content["left_out"]["median map"]


def test_refuse_selection_frames(job, scenes):
    """A test frame that is a validation frame too is refused by name."""
    score._refuse_selection_frames(job)
    (scenes / "last.txt").write_text((scenes / "first.txt").read_text())
    with pytest.raises(DataError, match="last.txt: .*png is a validation frame too; selection"):
        score._refuse_selection_frames(job)


def test_commit_of_installed_tiekd_is_unknown(tmp_path, monkeypatch):
    """Without a checkout the commit is unknown."""
    monkeypatch.setattr(score, "_CHECKOUT", tmp_path)
    assert score.commit() == "unknown"


def test_made_from_holds_state_of_test_list(tmp_path, scenes):
    """Figures on a test list don't count any more when the list changes."""
    lines = (scenes / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    (scenes / "changing.txt").write_text(lines[0])
    (scenes / "others.txt").write_text(lines[1])
    streets = {"primary": ["new", "old"], "test": "changing.txt", "val": "others.txt"}
    sets = {"streets": streets | {"set": [f"data={{name: kitti, root: {scenes}}}"]}}
    spec = small_experiment.write(tmp_path, scenes, sets=sets, headline=True)
    job = runs.plan(spec)[0][0]
    before = runs.made_from(job, spec)
    assert before["split"] == "test"
    (scenes / "changing.txt").write_text(lines[2])
    assert runs.made_from(job, spec) != before
