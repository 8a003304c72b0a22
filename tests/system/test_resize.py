"""A run at a working resolution.

Its evaluation, bin/evaluate.py on any number of ranks, load_student and cached maps agree.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import programs, recipes
from support.frames import scenes_frames

import tiekd
from tiekd.data.image_io import read_levels
from tiekd.evaluation import metrics
from tiekd.models.build import build_network
from tiekd.workdir.weights_file import write_weights

CONTAIN = {"height": 40, "width": 64, "mode": "contain"}
STRETCH = {"height": 48, "width": 72, "mode": "stretch"}
SIZE = {"height": 64, "width": 128, "num_train": 16, "num_val": 4}


@pytest.fixture(scope="module", params=[CONTAIN, STRETCH], ids=["contain", "stretch"])
def trained(ground, tmp_path_factory, request) -> Path:
    """The folder of a recipe that was trained for four iterations on two ranks, resized."""
    folder = tmp_path_factory.mktemp("resize")
    node = recipes.recipe(ground, iterations=4, validate=True)
    node["data"] |= {"resize": request.param}
    node["data"]["augment"] = {"rotate_deg": 20.0}
    node |= {
        "evaluation": {"crop": "none", "flip": False, "by": "iteration", "interval": 4},
        "hooks": [],
    }
    node["work_dir"] = str(folder / "work")
    recipe = recipes.write_recipe(folder / "student.yaml", node)
    result = programs.finish([programs.ROOT / "bin" / "train.py", recipe], ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    return folder


def evaluated(folder: Path, ranks: int) -> dict:
    out = folder / f"figures_{ranks}.json"
    result = programs.finish(
        [programs.ROOT / "bin" / "evaluate.py", folder / "student.yaml", "--out", out],
        ranks=ranks,
    )
    assert result.code == 0, result.stderr[-3000:]
    assert "scored there" in result.stdout
    return json.loads(out.read_text())["networks"]["student"]


def test_resize_evaluations_and_student_agree(ground, trained):
    """The run's evaluation, `evaluate.py` on one and two ranks and `load_student` agree."""
    log = next((trained / "work").glob("*.log.json")).read_text().splitlines()
    logged = next(row for row in map(json.loads, log) if row.get("mode") == "val")
    one, two = evaluated(trained, 1), evaluated(trained, 2)
    assert one["metrics"] == two["metrics"]
    assert one["resize"] == two["resize"] != {}
    assert logged["abs_rel"] == pytest.approx(one["metrics"]["abs_rel"], abs=6e-5)

    student = tiekd.load_student(trained / "work" / "best_abs_rel.pth")
    frames = scenes_frames(str(ground / "scenes"), "val", 80.0, **SIZE)
    rows = []
    for index in range(len(frames)):
        depth, truth = student(frames[index].image.contiguous()), frames[index].depth[0]
        assert depth.shape == truth.shape == (64, 128)
        rows.append(metrics.depth_metrics(depth, truth, 0.001, 80.0, "none"))
    assert metrics.aggregate(torch.cat(rows))["abs_rel"] == pytest.approx(
        one["metrics"]["abs_rel"], rel=1e-6
    )


def test_resize_cached_maps_equal_teacher_at_own_resize(ground, tmp_path):
    """Cached maps equal the teacher's output at the resize in its own weights file."""
    torch.manual_seed(5)
    teacher, maps = tmp_path / "teacher.pth", tmp_path / "maps"
    write_weights(
        teacher, build_network(recipes.TEACHER).state_dict(), recipes.TEACHER, 1, resize=CONTAIN
    )
    node = recipes.recipe(ground)
    node["data"]["resize"] = STRETCH
    node["teacher"] |= {"checkpoint": str(teacher), "flip": False}
    recipe = recipes.write_recipe(tmp_path / "student.yaml", node)
    result = programs.finish(
        [sys.executable, programs.ROOT / "bin" / "cache_teacher.py", recipe, "--out", maps]
    )
    assert result.code == 0, result.stderr[-3000:]
    student = tiekd.load_student(teacher)
    frames = scenes_frames(str(ground / "scenes"), "train", 80.0, **SIZE)
    for index in range(4):
        cached = (
            read_levels(maps / frames.map_name(index))[0].numpy().astype(np.float64) * 80 / 65535
        )
        said = student(frames[index].image.contiguous()).numpy()
        assert cached.shape == said.shape == (64, 128)
        assert abs(cached - said).max() <= 0.5 * 80 / 65535 + 1e-5
