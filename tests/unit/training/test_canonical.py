"""Training with a canonical camera: its range, its targets, and what is refused at the start."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.frames import folder_frames
from support.recipes import STUDENT

from tiekd.data.augment.augment import Augment
from tiekd.data.batch import Batch
from tiekd.data.loading.reader import BatchReader
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target
from tiekd.errors import DataError, RecipeError
from tiekd.models.canonical import Canonical
from tiekd.training import canonical
from tiekd.training.settings import Recipe
from tiekd.workdir import workdir


@pytest.fixture
def frames(tmp_path):
    """Three images of 24x32 with focal lengths 50, 60 and 80."""
    lines = []
    for index, focal in enumerate((50, 60, 80)):
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png {focal} {focal} 15.5 11.5 32 24")
    (tmp_path / "i.txt").write_text("\n".join(lines))
    return make(tmp_path, "i.txt")


def make(folder, intrinsics):
    return folder_frames(
        images=str(folder),
        root=str(folder),
        split="train",
        max_depth=80.0,
        val_fraction=0.0,
        needs_ground_truth=False,
        intrinsics=intrinsics,
    )


def recipe(folder, network=(), **data):
    node = STUDENT | {"canonical_focal": 120.0} | dict(network)
    return Recipe({"network": node, "data": data, "work_dir": str(folder / "work")})


def factors(recipe, frames, resuming=False, **others):
    made, told = canonical.with_factors(recipe, {"training": frames, **others}, resuming=resuming)
    return made.network["canonical_factors"], told


def test_factors_are_those_of_the_networks_input(frames, tmp_path):
    """F / f is of the image that the network sees, with every frame and zoom; the log says it."""
    assert factors(recipe(tmp_path), frames)[0] == pytest.approx([120 / 80, 120 / 50])
    half = recipe(tmp_path, resize={"scale": 0.5})
    assert factors(half, frames)[0] == pytest.approx([120 / 40, 120 / 25])
    zooming = recipe(tmp_path, augment={"zoom": [0.8, 2.0]})
    found, told = factors(zooming, frames)
    assert found == pytest.approx([120 / 80 / 2, 120 / 50 / 0.8])
    assert told[0] == (
        "Canonical focal length: F = 120 pixels; F / f of the frames is 0.75 to 3, so the head's "
        "range is 0.00075 to 240 m of canonical depth; the output is clamped to 80 m"
    )
    assert "network.head.spacing=log is preferred" in told[1]
    # Validation images aren't zoomed.
    assert factors(zooming, frames, validation=frames)[0] == pytest.approx([0.75, 3.0])


def test_recipe_without_canonical_focal_is_unchanged(frames):
    """Without canonical_focal the recipe stays the same object, and so do targets."""
    plain = Recipe({"network": STUDENT})
    assert canonical.with_factors(plain, {"training": frames}, resuming=False) == (plain, [])
    batch, depth = SimpleNamespace(depth=1), torch.ones(1)
    assert canonical.METRES(batch, depth) == (batch, depth)


def test_given_factors_hold_all_frames(frames, tmp_path):
    """Factors of the recipe are taken if they hold all frames, and refused otherwise."""
    wide = recipe(tmp_path, {"canonical_factors": [1.0, 3.0]})
    assert factors(wide, frames)[0] == [1.0, 3.0]
    narrow = recipe(tmp_path, {"canonical_factors": [1.0, 2.0]})
    with pytest.raises(RecipeError, match=r"canonical_factors: got .*is 1\.5 to 2\.4; widen"):
        factors(narrow, frames)


def test_resumed_run_keeps_its_factors(frames, tmp_path):
    """A resumed run has the factors that it was started with, and says if frames exceed them."""
    (tmp_path / "work").mkdir()
    begun = STUDENT | {"canonical_focal": 120.0, "canonical_factors": [1.6, 2.0]}
    (tmp_path / "work" / workdir.RECIPE).write_text(yaml.safe_dump({"network": begun}))
    found, told = factors(recipe(tmp_path), frames, resuming=True)
    assert found == [1.6, 2.0]
    assert told[-1].startswith("Warning: F / f of the frames is 1.5 to 2.4 now")
    assert factors(recipe(tmp_path), frames)[0] == pytest.approx([1.5, 2.4])


@pytest.mark.usefixtures("frames")
def test_frames_without_focal_are_refused_with_a_count(tmp_path):
    """Frames without a focal length are counted, and the remedy is named."""
    (tmp_path / "i.txt").write_text("1.png 60 60 15.5 11.5 32 24")
    unknown = make(tmp_path, "i.txt")
    line = r"2 of 3 training frames have no focal length, such as 0\.png; give data\.intrinsics"
    with pytest.raises(DataError, match=line) as error:
        factors(recipe(tmp_path), unknown)
    assert "\n" not in str(error.value)


def test_factors_of_many_frames_are_those_of_all_cameras(frames, tmp_path, monkeypatch):
    """Of many frames each camera is looked at, and the log says that not each frame is."""
    monkeypatch.setattr(canonical, "LARGE_DATA_SET", 2)
    monkeypatch.setattr(canonical, "_SAMPLED", 1)
    found, told = factors(recipe(tmp_path), frames)
    assert found == pytest.approx([120 / 80, 120 / 50])
    assert "F / f is that of all cameras and of 1 more training frames" in told


def test_stretch_beyond_five_percent_is_refused(frames, tmp_path):
    """A working resolution that changes the aspect ratio too much is refused by the first frame."""
    wide = recipe(tmp_path, resize={"height": 24, "width": 40, "mode": "stretch"})
    with pytest.raises(DataError, match=r"0\.png: data\.resize: 24x40, stretch changes the aspect"):
        factors(wide, frames)


def test_data_set_from_outside_needs_given_factors(tmp_path):
    """A data set that doesn't list its frames needs canonical_factors in the recipe."""
    with pytest.raises(RecipeError, match=r"network\.canonical_factors: needed"):
        factors(recipe(tmp_path), [1, 2])
    given = recipe(tmp_path, {"canonical_factors": [1.0, 3.0]})
    assert factors(given, [1, 2])[0] == [1.0, 3.0]


def test_reader_refuses_a_sample_without_focal(frames, tmp_path):
    """A sample without focal length, or with a stretched aspect ratio, is refused when read."""
    unknown = make(tmp_path, None)
    error = BatchReader(unknown, Augment(), 0, needs_focal=True).read([(0, 1)])
    assert isinstance(error, DataError)
    assert str(error).startswith("1.png: its focal length isn't known")
    assert not isinstance(BatchReader(unknown, Augment(), 0).read([(0, 1)]), DataError)
    wide = Resize(height=24, width=40, mode="stretch")
    error = BatchReader(frames, Augment(), 0, resize=wide, needs_focal=True).read([(0, 1)])
    assert "changes the aspect ratio" in str(error)


def test_targets_are_canonical():
    """Ground truth and teacher become depth * F / f; 0 stays 0, the batch's other fields stay."""
    intrinsics = torch.eye(3).repeat(2, 1, 1)
    intrinsics[0, :2] *= 50
    intrinsics[1, :2] *= 200
    depth = torch.tensor([10.0, 0.0]).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    batch = Batch(torch.zeros(2, 3, 1, 2), depth, depth > 0, None, intrinsics, ["a", "b"])
    targets = canonical.Targets(Canonical(100.0, 0.5, 2.0), OWN_SIZE)
    learned, teacher = targets(batch, depth * 2)
    assert learned.depth.flatten().tolist() == [20.0, 0.0, 5.0, 0.0]
    assert teacher.flatten().tolist() == [40.0, 0.0, 10.0, 0.0]
    assert batch.depth is depth
    assert learned.intrinsics is intrinsics
    assert targets(batch, None)[1] is None
    both = targets(batch, Target(depth.expand(2, 2, 1, 2), depth.expand(2, 2, 1, 2) / 10))[1]
    assert both.depth[:, 1].flatten().tolist() == [20.0, 0.0, 5.0, 0.0]
    assert both.sigma[:, 0].flatten().tolist() == [2.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("augment", "network", "blind", "line"),
    [
        ({"zoom": (0.7, 1.4)}, {}, False, "data.augment.zoom: a zoomed image has another focal"),
        ({"zoom_depth": "divide"}, {}, False, "data.augment.zoom_depth: got no zoom"),
        (
            {"zoom": (0.7, 1.4), "zoom_depth": "divide"},
            {"canonical_focal": 100.0},
            False,
            "data.augment.zoom_depth: got divide with network.canonical_focal",
        ),
        (
            {"zoom": (0.7, 1.4)},
            {"canonical_focal": 100.0},
            True,
            "the teacher's network doesn't know the focal length",
        ),
    ],
)
def test_zoom_that_makes_wrong_targets_is_refused(augment, network, blind, line):
    """A zoom whose targets would be wrong is refused in one line."""
    with pytest.raises(RecipeError, match=line) as error:
        canonical.check_zoom(Augment(**augment), network, is_blind_teacher=blind)
    assert "\n" not in str(error.value)


def test_zoom_with_right_targets_is_accepted():
    """Zoom goes with canonical_focal, or with zoom_depth: divide; no zoom goes with anything."""
    zoom, focal = Augment(zoom=(0.7, 1.4)), {"canonical_focal": 100.0}
    canonical.check_zoom(zoom, focal, is_blind_teacher=False)
    divided = Augment(zoom=(0.7, 1.4), zoom_depth="divide")
    canonical.check_zoom(divided, {}, is_blind_teacher=True)
    canonical.check_zoom(Augment(), focal, is_blind_teacher=True)


def test_weights_of_another_canonical_camera_are_told():
    """Weights to start from that mean other depths give a warning."""
    ours = {"canonical_focal": 100.0, "canonical_factors": [1.0, 2.0]}
    assert canonical.check_weights(ours, {"network": dict(ours)}, "w") == []
    assert canonical.check_weights(ours, {"state_dict": {}}, "w") == []
    (line,) = canonical.check_weights(ours, {"network": {}}, "w")
    assert line.startswith("Warning: w was trained with canonical_focal None")
