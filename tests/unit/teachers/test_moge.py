"""MoGe as a teacher, with a stand-in that has the interface of its package."""

import sys
import types

import pytest
import torch
from support.teacher_batches import batch_of, images_of
from torch import nn

from tiekd.data.frames import Frame
from tiekd.errors import RecipeError, TeacherError
from tiekd.teaching import build_teacher

CPU = torch.device("cpu")
FOCAL = 100.0
FRAME = Frame("a.png", "a.png", None, None)
OWN_FOV = 60.0


class Model(nn.Module):
    """Depth is the horizontal field of view / 10 plus the red grey level; the first row is sky."""

    is_metric = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        if self.is_metric:
            self.scale_head = nn.Identity()
        self.calls = []

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, model_kwargs=None, **hf_kwargs):
        del model_kwargs
        model = cls()
        model.loaded_from = (str(pretrained_model_name_or_path), hf_kwargs)
        return model

    @torch.inference_mode()
    def infer(
        self,
        image,
        num_tokens=None,
        resolution_level=9,
        force_projection=True,
        apply_mask=True,
        fov_x=None,
        use_fp16=True,
    ):
        del num_tokens, force_projection
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        self.calls.append((len(image), resolution_level, use_fp16))
        count, _, height, width = image.shape
        fov = torch.full((count,), OWN_FOV) if fov_x is None else fov_x
        depth = (fov / 10).view(count, 1, 1) + image[:, 0]
        mask = torch.ones(count, height, width, dtype=torch.bool)
        mask[:, 0] = False
        if apply_mask:
            depth = torch.where(mask, depth, torch.inf)
        # Focal lengths are fractions of width and height.
        focal = 1 / (2 * torch.tan(torch.deg2rad(fov) / 2))
        intrinsics = torch.eye(3).repeat(count, 1, 1)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal, focal * width / height
        found = {"depth": depth, "mask": mask, "points": torch.zeros(count, height, width, 3)}
        return found | {"intrinsics": intrinsics}


class Relative(Model):
    is_metric = False


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder, with the stand-in for the package."""
    for name in ("moge", "moge.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, model in (("moge.model.v1", Relative), ("moge.model.v2", Model)):
        module = types.ModuleType(name)
        module.MoGeModel = model
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "moge-2").mkdir()
    (tmp_path / "moge-2" / "model.pt").touch()
    return tmp_path / "moge-2"


def built(folder, **keys):
    node = {"name": "moge", "model": str(folder), **keys}
    return build_teacher(node, CPU, max_depth_m=80.0)


def refusal(folder, **keys) -> str:
    with pytest.raises((TeacherError, RecipeError)) as error:
        built(folder, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def expected_of(images: torch.Tensor, fovs: list[float]) -> torch.Tensor:
    depth = torch.tensor(fovs).view(-1, 1, 1, 1) / 10 + images[:, :1].float() / 255
    depth[:, :, 0] = 0
    return depth


def fov_of(focal: float, width: int = 96) -> float:
    return float(2 * torch.rad2deg(torch.atan(torch.tensor(width / (2 * focal)))))


def test_moge_gives_metres_with_the_known_field_of_view(folder):
    """The field of view is that of the focal length; masked pixels are 0."""
    teacher, images = built(folder), images_of(2)
    depth = teacher(batch_of(images, [FOCAL, 2 * FOCAL]))
    expected = expected_of(images, [fov_of(FOCAL), fov_of(2 * FOCAL)])
    torch.testing.assert_close(depth, expected)
    assert not depth.is_inference()
    assert teacher.predictor.model.calls == [(2, 9, False)]
    assert teacher.description["output"] == "metres"


def test_moge_estimates_the_field_of_view_where_no_focal_is_known(folder):
    """Images with and without a focal length may be in one batch."""
    teacher, images = built(folder), images_of(3)
    own = teacher(batch_of(images, [None] * 3))
    torch.testing.assert_close(own, expected_of(images, [OWN_FOV] * 3))
    mixed = teacher(batch_of(images, [FOCAL, None, FOCAL]))
    fov = fov_of(FOCAL)
    torch.testing.assert_close(mixed, expected_of(images, [fov, OWN_FOV, fov]))
    assert [count for count, *_ in teacher.predictor.model.calls] == [3, 1, 1, 1]
    assert teacher.check_frames([FRAME, FRAME._replace(camera=(FOCAL, FOCAL))]) == [
        "Teacher: 1 of 2 frames have no focal length; MoGe takes its own estimate of the field of "
        "view for them"
    ]
    assert teacher.check_frames([FRAME._replace(camera=(FOCAL, FOCAL))]) == []


def test_moge_estimates_the_focal_length(folder):
    """The audit gets the network's own focal length in pixels, whatever the data say."""
    batch = batch_of(images_of(2), [FOCAL, None])
    focal = built(folder).estimate_focal(batch)
    assert focal.shape == (2,)
    for value in focal.tolist():
        assert fov_of(value) == pytest.approx(OWN_FOV, rel=1e-5)


def test_moge_flip_averages_and_keeps_the_mask(folder):
    """The mirrored image's map is turned back."""
    images = images_of(1)
    depth = built(folder, flip=True)(batch_of(images, [FOCAL]))
    torch.testing.assert_close(depth, expected_of(images, [fov_of(FOCAL)]))


def test_moge_loads_a_folder_s_file_or_an_id(folder, tmp_path, monkeypatch):
    """A folder's model.pt is read; an ID goes to the package with its revision."""
    assert built(folder).predictor.model.loaded_from == (str(folder / "model.pt"), {})
    monkeypatch.chdir(tmp_path)
    asked = built("owner/moge-2", revision="abc").predictor.model.loaded_from
    assert asked == ("owner/moge-2", {"local_files_only": False, "revision": "abc"})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    description = built(folder).description
    assert (description["licence"], description["model"]) == ("mit", "moge-2")
    assert len(description["digest"]) == 64


def test_moge_1_is_relative(folder):
    """Without a head for the scale depth has an unknown one, whatever the user says."""
    line = refusal(folder, version="v1")
    assert line.startswith("teacher.output: depth_scale (depth = s * output) isn't metric")
    assert "gives depth_scale by its own config" in refusal(folder, version="v1", output="metres")


def test_moge_refuses_wrong_values(folder, monkeypatch):
    """Each value is named with what is allowed."""
    assert "teacher.version: got 'v9'; allowed: v1, v2" in refusal(folder, version="v9")
    assert "moge has fp32 and fp16" in refusal(folder, precision="bf16")
    assert "fp16 is not for CPUs" in refusal(folder, precision="fp16")
    assert "teacher.resolution_level: got 10; it must be 0 to 9" in refusal(
        folder, resolution_level=10
    )
    (folder / "model.pt").unlink()
    assert "has no model.pt, MoGe's weights" in refusal(folder)
    monkeypatch.setitem(sys.modules, "moge.model.v2", None)
    monkeypatch.setitem(sys.modules, "moge.model", None)
    monkeypatch.setitem(sys.modules, "moge", None)
    assert refusal(folder) == (
        "teacher.name: moge needs the package moge, which isn't installed; "
        "model_configs/TEACHERS.md says where to get it"
    )


def test_moge_that_cannot_be_loaded_is_one_line(folder, monkeypatch):
    """An error inside the package becomes a line with the folder."""

    def torn(*_, **__):
        raise RuntimeError("PytorchStreamReader failed\nreading zip")

    monkeypatch.setattr(Model, "from_pretrained", torn)
    assert refusal(folder) == (
        f"teacher.model: {folder}: the model can't be loaded: PytorchStreamReader failed reading "
        "zip"
    )
