"""bin/evaluate.py as people run it.

On one rank or two, with our weights and published ones, to files and images, and what it refuses.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import programs, recipes

from tiekd.data.image_io import read_image_size
from tiekd.evaluation import floors
from tiekd.evaluation.metrics import METRIC_NAMES
from tiekd.models.build import build_network
from tiekd.models.weights.state_dicts import to_published
from tiekd.workdir.weights_file import write_weights

EVALUATE = programs.ROOT / "bin" / "evaluate.py"


@pytest.fixture(scope="module")
def folder(ground, tmp_path_factory) -> Path:
    """A student's recipe with the best weights in its work dir.

    Beside it is its teacher's recipe with published weights.
    """
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(2)
    student = build_network(recipes.STUDENT)
    (folder / "work").mkdir()
    write_weights(folder / "work" / "best_abs_rel.pth", student.state_dict(), recipes.STUDENT, 5)
    state = torch.load(ground / "teacher.pth", weights_only=True)["state_dict"]
    torch.save({"meta": {"epoch": 24}, "state_dict": to_published(state)}, folder / "published.pth")
    student = {**recipes.recipe(ground), "work_dir": str(folder / "work"), "hooks": []}
    recipes.write_recipe(folder / "student.yaml", student)
    recipes.write_recipe(
        folder / "big.yaml",
        {**student, "network": recipes.TEACHER, "teacher": None, "work_dir": "none"},
    )
    return folder


def arguments(folder: Path, to: Path) -> list:
    against = ["--against", f"{folder / 'big.yaml'}:{folder / 'published.pth'}"]
    files = [
        "--out",
        to / "figures.json",
        "--per-image",
        to / "frames.csv",
        "--show-dir",
        to / "pictures",
    ]
    options = [*files, "--panel", to / "panel.png", "--floors"]
    return [EVALUATE, folder / "student.yaml", *against, *options]


@pytest.fixture(scope="module")
def alone(folder) -> programs.Result:
    result = programs.finish([sys.executable, *arguments(folder, folder / "alone")])
    assert result.code == 0, result.stderr[-3000:]
    return result


def test_evaluate_prints_weights_protocol_and_metrics(folder, alone):
    """`evaluate.py` prints the weights, the protocol and the metrics of each network."""
    lines = alone.stdout.splitlines()
    assert f"student: {folder / 'work' / 'best_abs_rel.pth'}" in lines
    assert f"big: {folder / 'published.pth'}" in lines
    figures = json.loads((folder / "alone" / "figures.json").read_text())
    pixels = figures["protocol"]["pixels"]
    assert f"4 val frames, 4 of them with ground truth that counts, {pixels} pixels" in lines
    assert "ground truth 0.001 < d < 80 m, crop none, flip averaging on, mean over images" in lines
    (row,) = (line for line in lines if line.startswith("student  ") and line.count(".") > 9)
    metrics = figures["networks"]["student"]["metrics"]
    assert row.split()[1:10] == [f"{metrics[name]:.4f}" for name in METRIC_NAMES]
    assert sum(row["pixels"] for row in figures["networks"]["big"]["ranges"]) == pixels
    assert any(line.startswith("student - big ") for line in lines)
    assert "frames [" not in alone.stderr
    assert "frames:" not in alone.stderr  # it is no terminal


def test_evaluate_writes_row_and_image_per_frame(folder, alone):
    """The CSV file has a row, and the folder an image, for each frame."""
    to = folder / "alone"
    figures = json.loads((to / "figures.json").read_text())
    rows = list(csv.DictReader((to / "frames.csv").open()))
    names = [row["name"] for row in rows if row["network"] == "student"]
    assert list(figures["networks"]) == ["big", *floors.NAMES, "student"]
    assert len(rows) == 4 * 5
    assert names == sorted(names)
    assert len(set(names)) == 4
    for network in figures["networks"]:
        mean = np.mean([float(row["abs_rel"]) for row in rows if row["network"] == network])
        assert mean == pytest.approx(figures["networks"][network]["metrics"]["abs_rel"], rel=1e-12)
    images = sorted(path.name for path in (to / "pictures").iterdir())
    assert [name.split("_")[0] for name in images] == ["0", "1", "2", "3"]
    assert all(read_image_size(to / "pictures" / name)[1] > 640 for name in images)
    assert np.asarray(Image.open(to / "panel.png")).std() > 30
    for path in ("figures.json", "frames.csv", "panel.png", "pictures"):
        assert f"Written: {to / path}" in alone.stdout


@pytest.mark.usefixtures("alone")
def test_evaluate_two_ranks_same_files(folder):
    """Two ranks write the same figures, rows and images as one."""
    result = programs.finish(arguments(folder, folder / "two"), ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    for name in ("figures.json", "frames.csv"):
        assert (folder / "two" / name).read_text() == (folder / "alone" / name).read_text()
    assert result.stdout.count("Worst frames of student") == 1
    one, two = (
        programs.files_of(folder / "alone" / "pictures"),
        programs.files_of(folder / "two" / "pictures"),
    )
    assert one == two
    assert len(one) == 4


@pytest.mark.usefixtures("alone")
def test_evaluate_options_change_protocol(folder):
    """`--no-flip`, `--crop`, `--cap` and `--mean-map` change the protocol and the metrics."""
    out = folder / "other" / "figures.json"
    options = ["--no-flip", "--crop", "garg", "--cap", "40", "--out", out, "--mean-map"]
    big = [folder / "big.yaml", folder / "published.pth"]
    result = programs.finish([sys.executable, EVALUATE, *big, *options])
    assert result.code == 0, result.stderr[-3000:]
    assert (
        "ground truth 0.001 < d < 40 m, crop garg, flip averaging off, mean over images"
        in result.stdout
    )
    figures, before = (
        json.loads(out.read_text()),
        json.loads((folder / "alone" / "figures.json").read_text()),
    )
    assert list(figures["networks"]) == ["mean map", "big"]
    assert figures["networks"]["big"]["metrics"] != before["networks"]["big"]["metrics"]
    assert figures["protocol"]["pixels"] < before["protocol"]["pixels"]
    assert [row["to_m"] for row in figures["networks"]["big"]["ranges"]] == [10, 20, 40]


def test_evaluate_refusals_are_one_line(folder):
    """A refused evaluation ends with one line and leaves every file unchanged."""
    student, big, before = (
        str(folder / "student.yaml"),
        str(folder / "big.yaml"),
        programs.files_of(folder),
    )
    cases = {
        (
            "--out",
            student,
        ): f"LaunchError: --out {student}: a file that ends in .json is written; give one",
        (
            "--show-dir",
            student,
        ): f"LaunchError: --show-dir {student}: {student} can't be made (File exists)",
        (
            "--cap",
            "0",
        ): "RecipeError: evaluation.cap: got 0; it must be metres > 0, or left out for max_depth",
        ("--cap", "far"): "RecipeError: evaluation.cap: got 'far'; it must be a number",
        (
            "--against",
            big,
        ): "CheckpointError: there are no weights in none; train it with bin/train",
        ("--against", f"{student}:{folder / 'no.pth'}"): f"CheckpointError: {folder / 'no.pth'}",
        (str(folder / "published.pth"),): f"CheckpointError: {folder / 'published.pth'}: ",
    }
    listing = folder.parent / "refusals.json"
    listing.write_text(json.dumps([["bin/evaluate.py", student, *case] for case in cases]))
    assert programs.finish([sys.executable, programs.HERE / "mains.py", listing]).code == 0
    for row, words in zip(
        json.loads(listing.with_suffix(".out").read_text()), cases.values(), strict=True
    ):
        result = programs.Result(**row)
        (line,) = result.our_lines()
        assert result.code == 2, (line, words)
        assert words in line, (line, words)
        assert "Traceback" not in result.stderr, (line, words)
    assert programs.files_of(folder) == before
