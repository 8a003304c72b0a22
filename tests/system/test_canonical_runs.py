"""Runs with network.canonical_focal and zoom: on 1 and 2 ranks, resumed, evaluated and refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import programs, recipes

import tiekd

# The scenes' focal length at 64x128, about; canonical depth is then a bit larger than metres.
FOCAL = 100.0


def recipe(ground: Path, work_dir: Path | str = "none") -> dict:
    node = recipes.recipe(ground, validate=True)
    head = recipes.STUDENT["head"] | {"sigma": 6.0, "spacing": "log", "target": "released"}
    node["network"] = recipes.STUDENT | {"head": head, "canonical_focal": FOCAL}
    node["teacher"] = None
    node["losses"] = {"dpm": {"weight": 1.0}, "silog": {"weight": 1.0}}
    node["data"]["augment"]["zoom"] = [0.7, 1.4]
    node["evaluation"] = {"crop": "none", "interval": 10, "by": "iteration"}
    return node | {"work_dir": str(work_dir)}


@pytest.fixture(scope="module")
def runs(ground, tmp_path_factory) -> Path:
    """The work dirs `one` and `two`, of as many ranks, and `again`, resumed from iteration 10."""
    folder = tmp_path_factory.mktemp("canonical")
    path = recipes.write_recipe(folder / "one.json", recipe(ground, folder / "one"))
    train(path, folder / "one", 1)
    train(path, folder / "two", 2)
    shutil.copytree(folder / "one", folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "iter_20")
    train(path, folder / "again", 1, "--resume-from", "auto")
    return folder


def train(path: Path, work_dir: Path, ranks: int, *options: str) -> None:
    words = [programs.ROOT / "bin" / "train.py", path, "--work-dir", work_dir, *options]
    result = programs.finish([*programs.deepspeed(ranks), *words])
    assert result.code == 0, result.stderr[-3000:]


def test_two_ranks_equal_one(runs):
    """Two ranks have the losses of one: zoom and canonical targets depend on the sample alone."""
    one, two = (programs.losses(runs / name) for name in ("one", "two"))
    assert len(one) == 20
    # Rounding takes an activation to the other side of a kink sooner or later, which is a step in
    # the gradient, which norms of four images make larger. A wrong target shows at once.
    assert one[:4] == pytest.approx(two[:4], rel=2e-6)
    assert one == pytest.approx(two, rel=1e-2)


def test_resumed_run_equals_the_straight_one(runs):
    """A resumed run has the same losses and weights, and the same range of F / f."""
    assert programs.losses(runs / "again")[-10:] == programs.losses(runs / "one")[-10:]
    digests = {programs.digest(programs.student(runs / name)) for name in ("one", "again")}
    assert len(digests) == 1


def test_factors_are_logged_and_stored(runs):
    """The range of F / f is in the log, the work dir's recipe and the weights."""
    text = programs.log_text(runs / "one")
    assert "Canonical focal length: F = 100 pixels; F / f of the frames is" in text
    assert "spacing=log is preferred" not in text
    weights = runs / "one" / "best_abs_rel.pth"
    node = torch.load(weights, weights_only=True)["network"]
    low, high = node["canonical_factors"]
    assert high / low == pytest.approx(2.0, rel=0.01)  # zooms of 0.7 to 1.4, one camera
    checkpoint = runs / "one" / "checkpoints" / "iter_20" / "student.pth"
    stored = torch.load(checkpoint, weights_only=True)["network"]
    assert stored["canonical_factors"] == [low, high]


def test_evaluate_equals_validation(runs, tmp_path):
    """bin/evaluate.py, which takes the factors from the weights, gives validation's figures."""
    words = ["evaluate.py", runs / "one.json", "--out", tmp_path / "figures.json"]
    program = programs.ROOT / "bin" / words[0]
    result = programs.finish([sys.executable, program, *words[1:]])
    assert result.code == 0, result.stderr[-3000:]
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["networks"].values()
    saved = torch.load(runs / "one" / "best_abs_rel.pth", weights_only=True)["metrics"]
    assert figures["metrics"]["abs_rel"] == pytest.approx(saved["abs_rel"], rel=1e-6)


def test_programs_give_the_metres_of_load_student(runs, ground, tmp_path):
    """bin/predict.py and bin/export.py give the metres of load_student, at p99.9 1e-3."""
    line = (ground / "scenes" / "kitti_eigen_test.txt").read_text().split()
    picture, focal = ground / "scenes" / "input" / line[0], float(line[2])
    expected = tiekd.load_student(runs / "one" / "best_abs_rel.pth")(picture, focal=focal)
    predict = [programs.ROOT / "bin" / "predict.py", runs / "one.json", picture, "--raw"]
    predict += ["--out", tmp_path / "out", "--focal", f"{focal}"]
    result = programs.finish([sys.executable, *predict])
    assert result.code == 0, result.stderr[-3000:]
    found = np.load(next((tmp_path / "out" / "raw").rglob("*.npy")))
    assert np.quantile(abs(found - expected.numpy()), 0.999) <= 1e-3
    export = [programs.ROOT / "bin" / "export.py", runs / "one.json", "--focal", f"{focal}"]
    result = programs.finish([sys.executable, *export, "--out", tmp_path / "student.pt2"])
    assert result.code == 0, result.stderr[-3000:]
    run = torch.export.load(tmp_path / "student.pt2").module()
    pixels = tiekd.inference.student.as_pixels(picture)[None].contiguous()
    found = run(pixels)[0][0, 0]
    assert torch.quantile((found - expected).abs(), 0.999) <= 1e-3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (["network.canonical_focal=0"], "network.canonical_focal: got 0"),
        (["network.canonical_factors=[1, 1.1]"], "network.canonical_factors: got [1, 1.1]"),
        (["data.augment.zoom_depth=divide"], "data.augment.zoom_depth: got divide"),
        (["network.canonical_focal=null"], "data.augment.zoom: a zoomed image has another"),
        (
            ["data.resize={height: 64, width: 64, mode: stretch}", "data.augment.crop=null"],
            "changes the aspect ratio of an image of 64x128",
        ),
    ],
)
def test_wrong_recipe_is_one_line(runs, override, line, tmp_path):
    """A recipe that doesn't go with a canonical camera ends with one line and exit code 2."""
    words = [word for each in override for word in ("--set", each)]
    train = [programs.ROOT / "bin" / "train.py", runs / "one.json", "--work-dir", tmp_path / "w"]
    result = programs.finish([sys.executable, *train, *words])
    assert result.code == 2
    assert line in result.stderr
    assert "Traceback" not in result.stderr
