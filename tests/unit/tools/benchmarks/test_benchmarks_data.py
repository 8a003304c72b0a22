"""The data's benchmarks.

The pipelines that they compare ours with give the same numbers, and they say what they compare.
"""

import argparse
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import fake_data

from tiekd.errors import DataError, LaunchError
from tiekd.evaluation.metrics import depth_metrics
from tiekd.tools.benchmarks import eval as evaluations
from tiekd.tools.benchmarks import loader, measure
from tiekd.tools.benchmarks.arguments import OF
from tiekd.tools.benchmarks.kitti_folder import kitti_folder, with_teacher_maps
from tiekd.tools.benchmarks.plain_evaluation import plain_metrics
from tiekd.tools.benchmarks.plain_sample import decode

KB_CROP = ["--kb-crop", "48", "96"]


def run(module, *options: str) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    OF[module.__name__.rpartition(".")[2]](parser)
    return module.run(parser.parse_args([*options]))


@pytest.mark.parametrize("with_data", [False, True])
def test_loader_agrees_with_plain_pipeline(tmp_path, with_data):
    """The loader's samples agree with the plain pipeline's within about a grey level."""
    data = ["--data", str(fake_data.make(tmp_path / "kitti", 3, 52, 103))] if with_data else []
    threads = torch.get_num_threads()
    result = run(loader, *data, *KB_CROP, "--crop", "40", "50")
    assert torch.get_num_threads() == threads
    json.dumps(result)
    assert result["frames"] == (3 if with_data else 8)
    assert result["rounds"] == 2
    assert result["time_ratio"] > 0
    assert result["memory_ratio"] >= 0
    assert " : decoding " in result["compared"]
    assert result["cached"]["time_ratio"] > 0
    assert result["with_device_share"]["time_ratio"] > 0
    assert result["plain"]["grey_levels_off"] < 0.52
    assert result["plain"]["grey_levels_off_after_colours"] < 1.2
    assert result["plain"]["share_of_depths_off"] < 1e-3
    assert all(milliseconds > 0 for milliseconds in result["ms_per_sample"].values())
    assert "ms_per_sample" in measure.as_text(result)


def test_evaluation_agrees_with_plain():
    """Every evaluation part gives the plain metrics within 1e-6 and reports its ratios."""
    result = run(evaluations, *KB_CROP, "--batch-size", "3")
    json.dumps(result)
    assert result["frames"] == 8
    assert result["batch_size"] == 3
    for part in (result, result["whole"], result["whole_decoded"]):
        assert part["figures_off"] < 1e-6, part["compared"]
        assert part["images_per_s_ratio"] == pytest.approx(1 / part["time_ratio"])
        assert part["memory_ratio"] >= 0


def test_evaluation_of_student_agrees_with_plain():
    """A given student's evaluation gives the plain metrics within 1e-5."""
    recipe = Path(__file__).parents[4] / "model_configs/students/tiekd_light_bts_kitti.yaml"
    size = ["--kb-crop", "64", "96"]
    result = run(
        evaluations, *size, "--student", str(recipe), "--student-frames", "1", "--rounds", "1"
    )
    assert result["student"]["figures_off"] < 1e-5
    assert str(recipe) in result["student"]["compared"]


def test_plain_metrics_equal_depth_metrics():
    """The plain metrics equal depth_metrics and are NaN without ground truth."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 90, (40, 60)) * (rng.random((40, 60)) < 0.3)
    prediction = np.where(truth > 0, truth, 5) * rng.normal(1, 0.2, truth.shape).clip(0.2)
    ours = depth_metrics(torch.from_numpy(prediction), torch.from_numpy(truth), 1e-3, 80.0, "garg")[
        0
    ]
    assert plain_metrics(prediction, truth, 1e-3, 80.0, "garg") == pytest.approx(
        ours.tolist(), rel=1e-9
    )
    assert np.isnan(plain_metrics(prediction, truth * 0, 1e-3, 80.0, "garg")).all()


def test_kitti_folder_removes_scratch(tmp_path):
    """Scratch maps of a given data folder are removed, and the folder is unchanged."""
    root = fake_data.make(tmp_path / "kitti", 2, 52, 103)
    before = sorted(tmp_path.rglob("*"))
    with kitti_folder(str(root), (48, 96)) as (given, scratch):
        frames = with_teacher_maps(given, scratch, (48, 96))
        assert given == root
        assert frames.stored(1).teacher_depth.shape == (1, 48, 96)
    assert not scratch.exists()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("module", [loader, evaluations])
def test_data_benchmarks_refuse_other_devices(module):
    """A device that holds no values is refused before any frame is rendered."""
    with pytest.raises(LaunchError, match="^--device meta: allowed: cpu, cuda$"):
        run(module, "--device", "meta")


def test_plain_decoding_refuses_a_pipe(tmp_path):
    """A pipe in the place of an image is named at once, and not waited for."""
    os.mkfifo(tmp_path / "a.png")
    frames = SimpleNamespace(files=lambda _: {"image": (tmp_path / "a.png", None)})
    with pytest.raises(DataError, match="a.png: a pipe, no image"):
        decode(frames, 0)
