"""NYU in the published layout.

Slashes, millimetres, the window of training frames, and the names of teacher maps.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_data import write_png
from support.frames import nyu_frames

from tiekd.config.build import build, settings
from tiekd.config.recipe import load_recipe
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset
from tiekd.errors import DataError, RecipeError
from tiekd.evaluation.evaluate import EvaluationSettings, mean_depth_map
from tiekd.training.settings import Recipe

CROP = (4, 16, 3, 27)


def make(root, without=()):
    """Three frames of 20x30 in two scenes.

    Blue is the row, red the column; depth is column + 1 centimetres.
    """
    lines = []
    for index, scene in enumerate(("bedroom_0001", "bedroom_0001", "office")):
        photo = np.zeros((20, 30, 3), np.uint8)
        photo[..., 0], photo[..., 2] = np.arange(30), np.arange(20)[:, None]
        write_png(root / scene / f"rgb_{index:05d}.png", photo)
        (root / scene / f"rgb_{index:05d}.png").rename(root / scene / f"rgb_{index:05d}.jpg")
        levels = np.tile(np.arange(10, 310, 10, dtype=np.uint16), (20, 1))
        levels[0] = 0
        write_png(root / scene / f"sync_depth_{index:05d}.png", levels)
        truth = "None" if index in without else f"/{scene}/sync_depth_{index:05d}.png"
        lines.append(f"/{scene}/rgb_{index:05d}.jpg {truth} 518.8579\n")
    (root / "nyu_train.txt").write_text("".join(lines))
    (root / "nyu_test.txt").write_text(
        "".join(lines).replace(" /", " ").replace("\n/", "\n").lstrip("/")
    )
    return str(root)


def refused(act, kind=DataError):
    with pytest.raises(kind) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nyu_crop_applies_to_training_only(tmp_path):
    """`nyu_crop` cuts training frames; validation frames stay whole."""
    root = make(tmp_path)
    sample = nyu_frames(root, "train", 10.0, nyu_crop=CROP)[1]
    assert sample.image.shape == (3, 12, 24)
    assert sample.name == "bedroom_0001/rgb_00001.jpg"
    assert sample.image[0, 0].tolist() == list(range(3, 27))
    assert sample.image[2, :, 0].tolist() == list(range(4, 16))
    assert torch.allclose(sample.depth[0, 0], torch.arange(4, 28) / 100)
    whole = nyu_frames(root, "val", 10.0, nyu_crop=CROP)[1]
    assert whole.image.shape == (3, 20, 30)
    assert whole.name == sample.name
    assert (whole.depth[0, 0] == 0).all()
    assert torch.allclose(whole.depth[0, 1], torch.arange(1, 31) / 100)
    assert (whole.intrinsics - sample.intrinsics)[:2, 2].tolist() == pytest.approx([3, 4], abs=1e-4)
    assert whole.intrinsics[:2].flatten().tolist() == pytest.approx(
        [518.8579, 0, 325.58245, 0, 519.46961, 253.73616]
    )


def test_nyu_leading_slash_is_data_root(tmp_path):
    """A leading slash means the data root, and a path that leads out of it is refused."""
    root = make(tmp_path)
    slashed, plain = nyu_frames(root, "train", 10.0), nyu_frames(root, "val", 10.0)
    assert [frame.image for frame in slashed.frames] == [frame.image for frame in plain.frames]
    for name in ("/../a.jpg", "/office/../../a.jpg", "../a.jpg"):
        (tmp_path / "nyu_train.txt").write_text(f"{name} None 518.8579\n")
        assert f"nyu_train.txt:1: {name} leads out of the data root" in refused(
            lambda: nyu_frames(root, "train", 10.0)
        )


def test_nyu_frames_without_depth_skipped_or_kept(tmp_path):
    """Frames without ground truth are skipped and counted, or kept for a teacher."""
    root = make(tmp_path, without=(0, 2))
    data = nyu_frames(root, "train", 10.0, needs_ground_truth=True)
    assert len(data) == 1
    assert data.num_skipped == 2
    assert data[0].name.endswith("1.jpg")
    data = nyu_frames(root, "train", 10.0, needs_ground_truth=False)
    assert len(data) == 3
    assert data.num_skipped == 0
    assert (data[0].depth == 0).all()
    assert (data[1].depth > 0).any()


def test_nyu_teacher_maps_whole_or_cropped(tmp_path):
    """Teacher maps may have the size before or after `nyu_crop`; another is refused."""
    root = make(tmp_path)
    (tmp_path / "gt_kd").mkdir()
    data = nyu_frames(root, "train", 10.0, nyu_crop=CROP, maps="gt_kd")
    name = "data_nyu_bedroom_0001_rgb_00001.png"
    assert data.map_name(1) == name
    columns = np.tile(np.arange(30, dtype=np.uint16), (20, 1))
    for levels in (columns, columns[4:16, 3:27]):
        write_png(tmp_path / "gt_kd" / name, levels)
        assert torch.allclose(data[1].teacher_depth[0, 0] * 6553.5, torch.arange(3.0, 27.0))
    write_png(tmp_path / "gt_kd" / name, columns[:7])
    message = refused(lambda: data[1])
    assert (
        f"{name}: teacher map of 7x30 for an image of 20x30, 12x24 after data.nyu_crop" in message
    )
    assert nyu_frames(root, "val", 10.0, maps="gt_kd")[1].teacher_depth is None
    assert "teacher.maps: no folder" in refused(
        lambda: nyu_frames(root, "train", 10.0, maps="none")
    )


def test_nyu_image_sizes_are_after_crop(tmp_path):
    """`image_sizes` returns the sizes of the frames as they are read."""
    root = make(tmp_path)
    assert nyu_frames(root, "train", 10.0, nyu_crop=CROP).image_sizes() == [(12, 24)] * 3
    assert nyu_frames(root, "train", 10.0).image_sizes() == [(20, 30)] * 3


def test_nyu_crop_outside_image_is_named(tmp_path):
    """A window that doesn't fit the image is refused with the image's name."""
    root = make(tmp_path)
    for crop in ((4, 21, 3, 27), (4, 16, 3, 31)):
        data = nyu_frames(root, "train", 10.0, nyu_crop=crop)
        for act in (lambda data=data: data[0], data.image_sizes):
            message = refused(act)
            assert "rgb_00000.jpg: 20x30 is smaller than data.nyu_crop asks for" in message


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"nyu_crop": [45, 472]},
            "data.nyu_crop: got [45, 472]; it must be a list of 4: a whole number,",
        ),
        (
            {"nyu_crop": [9, 9, 0, 5]},
            "data.nyu_crop: got [9, 9, 0, 5]; it must be [top, bottom, left, right] in pixels",
        ),
        ({"kb_crop": [3, 3]}, "data (nyu): unknown key 'kb_crop'; did you mean 'nyu_crop'?"),
    ],
)
def test_nyu_wrong_option_is_one_line(tmp_path, arguments, line):
    """A wrong dataset option raises a `RecipeError` of one line."""
    node = {"name": "nyu", "root": make(tmp_path)} | arguments
    context = {"split": "train", "max_depth": 10.0, "maps": None, "needs_ground_truth": True}
    assert line in refused(
        lambda: build(node, "tiekd.data.datasets", "data", **context), RecipeError
    )


def test_nyu_base_recipe_is_published_pipeline():
    """The base recipe for NYU has the published augmentation, crop and evaluation crop."""
    recipe = load_recipe(Path(__file__).parents[4] / "model_configs/_base_/datasets/nyu.yaml")
    augment = settings({"data.augment": recipe["data"]["augment"]}, "data.augment", Augment)
    assert augment == Augment(
        crop=[416, 544], brightness=[0.75, 1.25], gamma=[0.9, 1.1], channels=[0.9, 1.1]
    )
    assert recipe["data"]["nyu_crop"] == [45, 472, 43, 608]
    assert settings(recipe, "evaluation", EvaluationSettings).crop == "nyu_eigen"


@pytest.mark.skipif(
    "TIEKD_REAL_DATA" not in os.environ, reason="TIEKD_REAL_DATA names no folder with real frames"
)
@pytest.mark.parametrize(
    ("split", "count", "size"), [("train", 5, (427, 565)), ("val", 2, (480, 640))]
)
def test_nyu_real_frames_are_plausible(split, count, size):
    """Real NYU frames have plausible images, depths and intrinsics."""
    root = str(Path(os.environ["TIEKD_REAL_DATA"]) / "nyu")
    data = nyu_frames(root, split, 10.0, nyu_crop=(45, 472, 43, 608))
    assert len(data) == count
    assert data.image_sizes() == [size] * count
    for sample in data:
        assert sample.image.shape == (3, *size)
        assert 20 < sample.image.float().mean() < 230
        measured = sample.depth[sample.depth > 0]
        assert len(measured) / sample.depth.numel() > 0.5
        assert 0.4 < measured.min() < measured.max() <= 10.01
        assert sample.intrinsics[0, 0].item() == pytest.approx(518.8579)


def test_nyu_as_evaluated_training_frames_are_whole(tmp_path):
    """`as_evaluated` gives whole training frames; `mean_depth_map` refuses mixed sizes."""
    data = {"name": "nyu", "root": make(tmp_path), "nyu_crop": list(CROP)}
    recipe = {"network": {"max_depth": 10.0}, "data": data}
    cut, whole = (
        build_dataset(Recipe(recipe).dataset, "train"),
        build_dataset(Recipe(recipe).dataset, "train", as_evaluated=True),
    )
    assert cut[0].image.shape == (3, 12, 24)
    assert whole[0].image.shape == (3, 20, 30)
    assert mean_depth_map(whole).shape == (1, 1, 20, 30)
    with pytest.raises(DataError, match="needs frames of one size, there are 12x24 and 20x30"):
        mean_depth_map(torch.utils.data.ConcatDataset([cut, whole]))
