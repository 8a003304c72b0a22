"""Depth Anything 3 as a teacher, with a stand-in that has the interface of its package."""

import sys
import types

import numpy as np
import pytest
import torch
from support.teacher_batches import batch_of, images_of
from torch import nn
from torch.nn.functional import interpolate

from tiekd.data.frames import Frame
from tiekd.errors import RecipeError, TeacherError
from tiekd.teaching import build_teacher

CPU = torch.device("cpu")
FOCAL = 100.0
FRAME = Frame("a.png", "a.png", None, None)
MAX_DEPTH = 60.0


class Model(nn.Module):
    """Depth is 1 + red / 255 of the resized image; the upper quarter of it is sky."""

    model_name = "da3metric-large"
    has_sky = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    @classmethod
    def from_pretrained(cls, name, *, revision=None, local_files_only=False):
        del revision
        assert isinstance(name, str)
        assert local_files_only
        return cls()

    def inference(self, image, extrinsics=None, intrinsics=None, *, process_res=504):
        del extrinsics, intrinsics
        # A list is the views of one scene.
        (pixels,) = image
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        factor = process_res / max(pixels.shape[:2])
        size = [max(14, round(side * factor / 14) * 14) for side in pixels.shape[:2]]
        self.seen.append(tuple(size))
        red = torch.from_numpy(pixels[..., 0].copy()).float()[None, None] / 255
        depth = 1 + interpolate(red, size, mode="bilinear", antialias=True)[0]
        sky = None
        if self.has_sky:
            sky = np.zeros((1, *size), bool)
            sky[:, : size[0] // 4] = True
        return types.SimpleNamespace(depth=depth.numpy(), sky=sky, conf=None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder, with the stand-in for the package."""
    package = types.ModuleType("depth_anything_3.api")
    package.DepthAnything3 = Model
    monkeypatch.setitem(sys.modules, "depth_anything_3", types.ModuleType("depth_anything_3"))
    monkeypatch.setitem(sys.modules, "depth_anything_3.api", package)
    (tmp_path / "da3").mkdir()
    (tmp_path / "da3" / "config.json").touch()
    return tmp_path / "da3"


def built(folder, **keys):
    node = {"name": "depth_anything_3", "model": str(folder), "resolution": 56, **keys}
    return build_teacher(node, CPU, max_depth_m=MAX_DEPTH)


def refusal(folder, **keys) -> str:
    with pytest.raises((TeacherError, RecipeError)) as error:
        built(folder, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def output_of(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    red = interpolate(images[:, :1].float() / 255, size, mode="bilinear", antialias=True)
    return interpolate(1 + red, images.shape[-2:], mode="bilinear", align_corners=False)


def test_da3_metric_uses_the_focal_of_the_image_that_it_saw(folder):
    """Metres are output * f / 300, with the mean of both sides' focal lengths after its resize."""
    teacher, images = built(folder), images_of(2)
    depth = teacher(batch_of(images, [FOCAL, 2 * FOCAL]))
    # 64x96 is seen as 42x56: the sides are scaled differently.
    assert teacher.predictor.model.seen == [(42, 56)] * 2
    factor = (42 / 64 + 56 / 96) / 2
    focal = torch.tensor([FOCAL, 2 * FOCAL]).view(2, 1, 1, 1) * factor
    expected = output_of(images, (42, 56)) * focal / 300
    torch.testing.assert_close(depth[:, :, 24:], expected[:, :, 24:])
    assert teacher.description["output"] == "canonical"
    assert teacher.description["architecture"] == "da3metric-large"


def test_da3_sky_is_beyond_the_student_s_range(folder):
    """Sky is as far as the student sees, not unknown."""
    depth = built(folder)(batch_of(images_of(1), [FOCAL]))
    # 10 of 42 rows are sky: 15.2 of 64.
    assert (depth[0, 0, :15] == MAX_DEPTH).all()
    assert (depth[0, 0, 16:] < 1).all()


def test_da3_without_sky_has_none(folder, monkeypatch):
    """A model without a sky head leaves depth as it is."""
    monkeypatch.setattr(Model, "has_sky", False)
    depth = built(folder)(batch_of(images_of(1), [FOCAL]))
    assert (depth < 1).all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_da3_metric_metres_follow_the_focal_not_the_image_size(folder, scale):
    """The network sees the same image at any size, so half the size with its focal is the same."""
    images = images_of(1)
    whole = built(folder)(batch_of(images, [FOCAL]))
    size = (round(64 * scale), round(96 * scale))
    small = interpolate(images.float(), size, mode="bilinear", antialias=True).round()
    depth = built(folder)(batch_of(small.to(torch.uint8), [FOCAL * scale]))
    back = interpolate(depth, (64, 96), mode="bilinear", align_corners=False)
    assert ((back - whole).abs() / whole)[..., 20:, :].median() < 0.02


def test_da3_without_a_focal_is_refused(folder):
    """Canonical depth without a focal length isn't metres."""
    teacher = built(folder)
    line = "image_0.png has no focal length, and its output is in metres only by the focal length"
    with pytest.raises(TeacherError, match=line):
        teacher(batch_of(images_of(1), [None]))
    with pytest.raises(TeacherError, match="1 of 1 frames have no focal length"):
        teacher.check_frames([FRAME])


def test_da3_meaning_is_that_of_the_model_s_name(folder, monkeypatch):
    """The nested model gives metres; of others the user says what they give."""
    monkeypatch.setattr(Model, "model_name", "da3nested-giant-large")
    images = images_of(1)
    depth = built(folder)(batch_of(images, [None]))
    torch.testing.assert_close(depth[:, :, 24:], output_of(images, (42, 56))[:, :, 24:])
    monkeypatch.setattr(Model, "model_name", "da3mono-large")
    assert refusal(folder).startswith("teacher.output: needed, because ")
    assert "depth_affine (depth = s * output + t) isn't metric without an anchor" in refusal(
        folder, output="depth_affine"
    )
    monkeypatch.setattr(Model, "model_name", "da3metric-large")
    assert "gives canonical by its own config" in refusal(folder, output="metres")


def test_da3_refuses_wrong_values(folder, monkeypatch):
    """Each value is named with what is allowed."""
    assert "teacher.resolution: got 7" in refusal(folder, resolution=7)
    (folder / "config.json").unlink()
    assert "has no config.json; give a model's folder" in refusal(folder)
    monkeypatch.setitem(sys.modules, "depth_anything_3.api", None)
    assert "teacher.name: depth_anything_3 needs the package depth_anything_3" in refusal(folder)
