"""UniDepth V2 as a teacher, with a stand-in that has the interface of its package."""

import sys
import types

import pytest
import torch
from support.teacher_batches import batch_of, images_of
from torch import nn

from tiekd.errors import RecipeError, TeacherError
from tiekd.teaching import build_teacher

CPU = torch.device("cpu")
OWN_FOCAL, OWN_CENTRE = 50.0, 40.0


class Model(nn.Module):
    """Depth is focal / 100 + cx / 100 + the column / 1000 + red / 255."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    @classmethod
    def from_pretrained(cls, name, *, revision=None, local_files_only=False):
        model = cls()
        model.loaded_from = (str(name), revision, local_files_only)
        return model

    @torch.no_grad()
    def infer(self, rgb, camera=None, normalize=True):
        assert normalize
        assert rgb.dtype == torch.uint8
        count, _, _, width = rgb.shape
        focal, centre = torch.full((count,), OWN_FOCAL), torch.full((count,), OWN_CENTRE)
        if camera is not None:
            assert camera.shape == (count, 3, 3)
            focal, centre = camera[:, 0, 0], camera[:, 0, 2]
        place = ((focal + centre) / 100).view(count, 1, 1, 1)
        intrinsics = torch.eye(3).repeat(count, 1, 1)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal, focal
        depth = place + torch.arange(width) / 1000 + rgb[:, :1].float() / 255
        return {"depth": depth, "intrinsics": intrinsics}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder, with the stand-in for the package."""
    package = types.ModuleType("unidepth.models")
    package.UniDepthV2 = Model
    monkeypatch.setitem(sys.modules, "unidepth", types.ModuleType("unidepth"))
    monkeypatch.setitem(sys.modules, "unidepth.models", package)
    (tmp_path / "unidepth-v2").mkdir()
    (tmp_path / "unidepth-v2" / "config.json").touch()
    return tmp_path / "unidepth-v2"


def built(folder, **keys):
    node = {"name": "unidepth", "model": str(folder), **keys}
    return build_teacher(node, CPU, max_depth_m=80.0)


def refusal(folder, **keys) -> str:
    with pytest.raises((TeacherError, RecipeError)) as error:
        built(folder, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def expected_of(images, places) -> torch.Tensor:
    columns = torch.arange(images.shape[-1]) / 1000
    return torch.tensor(places).view(-1, 1, 1, 1) / 100 + columns + images[:, :1].float() / 255


def test_unidepth_takes_the_known_camera_else_its_own(folder):
    """Grey levels and the camera matrix go in; without one the network estimates it."""
    teacher, images = built(folder), images_of(3)
    own = OWN_FOCAL + OWN_CENTRE
    depth = teacher(batch_of(images, [100.0, None, 200.0]))
    torch.testing.assert_close(depth, expected_of(images, [147.5, own, 247.5]))
    depth = teacher(batch_of(images, [100.0] * 3))
    torch.testing.assert_close(depth, expected_of(images, [147.5] * 3))
    assert teacher.description["output"] == "metres"
    assert teacher.predictor.model.resolution_level == 9
    assert teacher.predictor.model.loaded_from == (str(folder), "main", True)


def test_unidepth_estimates_the_focal_length(folder):
    """The audit gets the network's own focal length in pixels, whatever the data say."""
    focal = built(folder).estimate_focal(batch_of(images_of(2), [100.0, None]))
    assert focal.tolist() == [OWN_FOCAL, OWN_FOCAL]


def test_unidepth_flip_mirrors_the_camera_too(folder):
    """The principal point of the mirrored image is mirrored."""
    images = images_of(1)
    batch = batch_of(images, [100.0])
    batch.intrinsics[0, 0, 2] = 30
    depth = built(folder, flip=True)(batch)
    columns = torch.arange(96) / 1000
    expected = (2 * 100 + 30 + (95 - 30)) / 200 + (columns + columns.flip(0)) / 2
    torch.testing.assert_close(depth, expected + images[:, :1].float() / 255)


def test_unidepth_refuses_wrong_values(folder, monkeypatch):
    """Each value is named with what is allowed."""
    assert "gives metres by its own config" in refusal(folder, output="inverse")
    assert "teacher.resolution_level: got -1" in refusal(folder, resolution_level=-1)
    assert "unknown key 'precision'" in refusal(folder, precision="fp16")
    (folder / "config.json").unlink()
    assert "has no config.json; give a model's folder" in refusal(folder)
    monkeypatch.setitem(sys.modules, "unidepth.models", None)
    assert "teacher.name: unidepth needs the package unidepth" in refusal(folder)


def test_unidepth_names_what_its_package_lacks(folder, monkeypatch, tmp_path):
    """A package that is there but lacks one of its own is told apart."""
    monkeypatch.delitem(sys.modules, "unidepth.models")
    monkeypatch.delitem(sys.modules, "unidepth")
    (tmp_path / "there" / "unidepth" / "models").mkdir(parents=True)
    (tmp_path / "there" / "unidepth" / "__init__.py").touch()
    (tmp_path / "there" / "unidepth" / "models" / "__init__.py").write_text("import wandb_not\n")
    monkeypatch.syspath_prepend(tmp_path / "there")
    line = refusal(folder)
    assert "needs the package unidepth with all that it needs (wandb_not is missing)" in line
    for name in ("unidepth", "unidepth.models"):
        sys.modules.pop(name, None)
