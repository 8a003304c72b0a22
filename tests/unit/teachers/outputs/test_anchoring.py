"""Relative teachers with an anchor: their maps, the fits that are kept, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.cached_teacher import cache, make_ground, recipe_of, refused
from support.teacher_batches import batch_of, images_of
from torch import nn

from tiekd.config.kinds import kind_of
from tiekd.data import teacher_maps
from tiekd.data.frames import Frame
from tiekd.errors import RecipeError, TeacherError
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.outputs.anchoring import Anchor
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, RunOptions
from tiekd.teaching import build_teacher

CPU = torch.device("cpu")
MAX_DEPTH = 80.0


class Predictor:
    """Gives the red grey level as a relative inverse depth with an unknown shift."""

    output_kind, max_depth_m, needs_focal, without_focal = "inverse_affine", None, False, None
    description = {"name": "test", "model": "m", "digest": "0" * 64}

    def __call__(self, images, intrinsics):
        del intrinsics
        return Output(images[:, :1].float())


def anchored(**how) -> FoundationTeacher:
    anchor = Anchor(GroundTruth(), "ground_truth", MAX_DEPTH)
    return FoundationTeacher(Predictor(), RunOptions(CPU, MAX_DEPTH, **how), anchor)


def test_relative_output_is_fitted_image_by_image():
    """Each image has a scale and a shift of its own; an image without anchor points is empty."""
    images = images_of(3)
    red = images[:, :1].float()
    scales, shifts = torch.tensor([1e-3, 2e-3, 1e-3]), torch.tensor([0.05, 0.02, 0.05])
    truth = 1 / (scales.view(3, 1, 1, 1) * red + shifts.view(3, 1, 1, 1))
    sparse = truth * (torch.rand(truth.shape, generator=torch.manual_seed(0)) < 0.3)
    sparse[2] = 0
    batch = batch_of(images, [None] * 3)._replace(depth=sparse)
    for batch_size in (1, 2):
        teacher = anchored(batch_size=batch_size)
        depth = teacher(batch)
        torch.testing.assert_close(depth[:2], truth[:2], rtol=1e-3, atol=0)
        assert (depth[2] == 0).all()
        assert [fit.name for fit in teacher.qualities] == batch.names
        assert [fit.fit.is_good for fit in teacher.qualities] == [True, True, False]
        assert "0 anchor points" in teacher.qualities[2].fit.reason
    assert teacher.description["anchor"] == "ground_truth"


def test_frames_without_ground_truth_are_counted():
    """Some are told, all of them are refused before the first image is read."""
    with_truth = Frame("a.png", "a.png", "a_depth.png", None)
    without = with_truth._replace(depth=None)
    assert anchored().check_frames([with_truth]) == []
    assert anchored().check_frames([with_truth, without]) == [
        "Teacher: 1 of 2 frames have no ground truth to anchor its output; their maps are empty"
    ]
    with pytest.raises(TeacherError, match="ground_truth, but no frame has any; give a metric"):
        anchored().check_frames([without, without])


class Grey(nn.Module):
    """The sum of the channels, as relative inverse depth."""

    def forward(self, image):
        return image.sum(1, keepdim=True)


class MetresOfGrey(nn.Module):
    """Metres whose inverse is linear in the sum of the channels."""

    def forward(self, image):
        return 1 / (0.1 * image.sum(1, keepdim=True) + 0.02)


def program(path: Path, network: nn.Module) -> Path:
    auto = torch.export.Dim.AUTO
    image = torch.zeros(2, 3, 32, 48)
    shapes = ({0: auto, 2: auto, 3: auto},)
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=shapes), path)
    return path


def node_of(path: Path, output: str, **keys) -> dict:
    node = {"name": "exported", "file": str(path), "output": output, "range": 1}
    return node | {"mean": [0.0] * 3, "std": [1.0] * 3} | keys


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    folder = make_ground(tmp_path_factory.mktemp("ground"))
    program(folder / "relative.pt2", Grey())
    program(folder / "metric.pt2", MetresOfGrey())
    return folder


def test_cached_maps_of_a_relative_teacher_have_the_metric_teacher_s_scale(ground, tmp_path):
    """Maps are metres, the fits are kept beside them, and an interrupted job keeps both."""
    metric = node_of(ground / "metric.pt2", "metres")
    recipe = recipe_of(ground) | {
        "teacher": node_of(ground / "relative.pt2", "inverse_affine", anchor=metric)
    }
    told = cache(recipe, tmp_path / "maps")
    assert "Anchor: 0 of 5 maps are left out; anchor.jsonl has the fit of each\n" in told
    cache(recipe_of(ground) | {"teacher": metric}, tmp_path / "metric")
    names = sorted(path.name for path in (tmp_path / "metric").glob("*.png"))
    for name in names:
        ours, theirs = (np.array(Image.open(tmp_path / f / name), int) for f in ("maps", "metric"))
        assert np.ptp(theirs) > 1000
        assert (np.abs(ours - theirs) <= 1 + 1e-3 * theirs).mean() > 0.999
    lines = (tmp_path / "maps" / "anchor.jsonl").read_text().splitlines()
    rows = {row["map"]: row for row in map(json.loads, lines)}
    assert sorted(rows) == names
    assert all(row["reason"] == "" and row["scale"] > 0 for row in rows.values())
    manifest = teacher_maps.read_manifest(tmp_path / "maps")
    assert manifest["teacher_network"]["anchor"]["model"] == "metric.pt2"
    # A killed job has left some maps unmade, and lines in the file of a rank.
    (tmp_path / "maps" / "anchor.jsonl").unlink()
    (tmp_path / "maps" / names[0]).unlink()
    cut = json.dumps(rows[names[0]])[:20]
    (tmp_path / "maps" / "anchor_3.jsonl").write_text("\n".join([*lines[1:], cut]))
    assert "4 there already, 1 to make" in cache(recipe, tmp_path / "maps")
    again = (tmp_path / "maps" / "anchor.jsonl").read_text().splitlines()
    assert {row["map"]: row for row in map(json.loads, again)} == rows
    assert not list((tmp_path / "maps").glob("anchor_*.jsonl"))
    # Another anchor makes other maps.
    recipe["teacher"]["anchor"] = "ground_truth"
    assert "(they differ in teacher_network)" in refused(TeacherError, recipe, tmp_path / "maps")


def test_maps_that_cannot_be_fitted_are_left_out_and_counted(ground, tmp_path):
    """The log has the count and the first reason; the maps are empty."""
    recipe = recipe_of(ground) | {
        "teacher": node_of(ground / "relative.pt2", "inverse_affine", anchor="ground_truth")
    }
    told = cache(recipe, tmp_path / "maps")
    assert "Teacher: 1 of 5 frames have no ground truth to anchor its output" in told
    lines = (tmp_path / "maps" / "anchor.jsonl").read_text().splitlines()
    poor = [row for row in map(json.loads, lines) if row["reason"]]
    assert f"Anchor: {len(poor)} of 5 maps are left out (empty), as {poor[0]['map']}: " in told
    for row in poor:
        assert not np.array(Image.open(tmp_path / "maps" / row["map"])).any()
    assert any("0 anchor points" in row["reason"] for row in poor)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"anchor": "truth"}, "teacher.anchor: got 'truth'; it must be ground_truth, or a metric"),
        ({"anchor": {"name": "mine.teacher"}}, "teacher.anchor: got {'name': 'mine.teacher'}; it"),
        ({"anchor": {"name": "mogge"}}, "teacher.anchor.name: got 'mogge'; allowed: moge, "),
        ({"anchor": {}}, "teacher.anchor: got {}; it must be ground_truth"),
        ({"anchor": 3}, "teacher.anchor: got 3; it must be text or a mapping"),
        (
            {"anchor": {"name": "huggingface", "model": "/nowhere"}},
            "teacher.anchor.model: no folder /nowhere; give a model's folder",
        ),
        (
            {"anchor": {"name": "stereo", "baseline": 0.5}},
            "teacher.anchor: stereo reads image pairs by itself and can't be an anchor; use a",
        ),
        (
            {"anchor": {"name": "moge", "model": "m", "sigma": 0.5}},
            "teacher.anchor.sigma: an anchor gives the scale alone, and no sigma is learned from",
        ),
        (
            {"output": "metres", "anchor": "ground_truth"},
            "teacher.anchor: relative.pt2 gives metres, which needs no anchor; leave it out",
        ),
    ],
)
def test_wrong_anchors_are_refused(ground, keys, line):
    """An anchor is the ground truth or a metric teacher of the project, for a relative one."""
    node = node_of(ground / "relative.pt2", "inverse_affine") | keys
    with pytest.raises((TeacherError, RecipeError)) as error:
        build_teacher(node, CPU, max_depth_m=MAX_DEPTH)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_relative_anchor_is_refused(ground):
    """An anchor has to be metric itself."""
    relative = node_of(ground / "relative.pt2", "inverse")
    with pytest.raises(TeacherError, match="^teacher.anchor.output: inverse .* isn't metric"):
        build_teacher(
            node_of(ground / "relative.pt2", "inverse_affine", anchor=relative),
            CPU,
            max_depth_m=MAX_DEPTH,
        )


def test_keys_of_an_anchor_are_those_of_its_kind():
    """`--set teacher.anchor.model=...` is a path, as teacher.model is."""
    teacher = {"name": "exported", "anchor": {"name": "huggingface"}}
    assert kind_of(("teacher", "anchor", "model"), {"teacher": teacher}) is Path
    assert kind_of(("teacher", "anchor", "flip"), {"teacher": teacher}) is bool
