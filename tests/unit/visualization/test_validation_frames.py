import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from tiekd.data.resize import Resize
from tiekd.data.sample import Sample
from tiekd.models.network import Network, Prediction
from tiekd.teachers.outputs.cameras import focal_of
from tiekd.teachers.outputs.teacher import FoundationTeacher, Output, RunOptions
from tiekd.visualization.validation_frames import ShownFrames
from tiekd.visualization.views import View

CPU = torch.device("cpu")


class Frames(Dataset):
    """Frames; frame i is i metres away, its image of grey level i."""

    def __init__(self, count):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        like = torch.ones(1, 20, 40)
        image = torch.full((3, 20, 40), index, dtype=torch.uint8)
        return Sample(image, like * index, like.bool(), None, torch.eye(3), str(index))


class Head(nn.Module):
    def forward(self, features, size, target=None):
        return Prediction(features.mean((1, 2, 3), keepdim=True).expand(-1, 1, *size) + 40)


class Pass(nn.Module):
    def forward(self, features, size):
        return features


def make_network():
    network = Network(nn.Identity(), Pass(), Head(), 1e-3, 80.0)
    network.register_parameter("any", nn.Parameter(torch.zeros(1)))
    return network.eval()


def test_shown_frames_spread_and_cached():
    """Frames are spread over the set, and each is read and taught only once."""
    frames, taught = Frames(40), []

    def teacher(batch):
        taught.append(batch.names[0])
        return batch.depth * 2

    shown = ShownFrames(frames, make_network(), teacher, CPU, num_frames=4)
    first, again = shown.views(), shown.views()
    assert frames.read == [5, 15, 25, 35]
    assert taught == ["5", "15", "25", "35"]
    assert [float(view.truth[0, 0]) for view in first] == [5, 15, 25, 35]
    assert [float(view.teacher[0, 0]) for view in again] == [10, 30, 50, 70]
    assert (first[0].image == 5).all()
    assert len(ShownFrames(Frames(2), make_network(), None, CPU).views()) == 2


def test_shown_frames_without_teacher():
    """Views have no teacher depth without a teacher, or if it has no map."""
    for teacher in (None, lambda batch: batch.teacher_depth):
        assert all(
            v.teacher is None for v in ShownFrames(Frames(3), make_network(), teacher, CPU).views()
        )


def test_shown_frames_of_a_foundation_teacher():
    """The teacher's focal length is that of the resized image; a frame without one has no map."""

    class Predictor:
        output_kind, max_depth_m, needs_focal = "canonical", None, True
        without_focal, description = "it needs one", {"model": "m"}

        def __call__(self, images, intrinsics):
            return Output(images[:, :1].float(), focal=focal_of(intrinsics))

    frames, teacher = Frames(3), FoundationTeacher(Predictor(), RunOptions(CPU, 80.0))
    get = frames.__getitem__

    def with_focal(index):
        known = torch.nan if index == 1 else 300.0
        return get(index)._replace(intrinsics=torch.diag(torch.tensor([known, known, 1.0])))

    frames = [with_focal(index) for index in range(3)]
    shown = ShownFrames(frames, make_network(), teacher, CPU, resize=Resize(scale=0.5)).views()
    assert shown[1].teacher is None
    assert shown[2].teacher.shape == (10, 20)
    assert (shown[2].teacher == 2 * 150 / 300).all()


def test_shown_frames_errors_by_range():
    """Errors are signed, grouped by depth range and limited to the crop and the cap."""
    truth = np.zeros((100, 100), np.float32)
    truth[50, 50], truth[50, 51], truth[60, 60], truth[70, 70] = 19.9, 20.0, 79.9, 80.0
    truth[0, 0] = 30.0  # outside the crop
    student = truth + np.where(truth > 40, -3, 2).astype(np.float32)
    view = View(np.zeros((100, 100, 3), np.uint8), truth, None, student)
    shown = ShownFrames(Frames(1), make_network(), None, CPU, crop="garg")
    found = shown.errors_by_range([view, view])
    assert {name: errors.tolist() for name, errors in found.items()} == {
        "0-20m": [2.0, 2.0],
        "20-40m": [pytest.approx(2, abs=1e-5)] * 2,
        "40-80m": [-3.0, -3.0],
    }
    student[50, 50] = np.nan
    assert set(shown.errors_by_range([view])) == {"20-40m", "40-80m"}
    nearer = ShownFrames(Frames(1), make_network(), None, CPU, crop="garg", cap=50.0)
    assert set(nearer.errors_by_range([view])) == {"12.5-25m"}
