"""The audit of a recipe's teacher: exit codes, files, and what the teacher is asked."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tiekd.data import image_io
from tiekd.data.batch import Batch
from tiekd.data.build import build_dataset
from tiekd.data.datasets.scenes import render, write_kitti_layout
from tiekd.data.frame_table import Cameras
from tiekd.data.resize import Resize
from tiekd.errors import DataError, LaunchError, TeacherError
from tiekd.evaluation.teacher_audit import observe
from tiekd.evaluation.teacher_audit.observe import ChangedImages, Observer
from tiekd.teachers.external import OutsideTeacher
from tiekd.tools import audit_teacher
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
SIZE = (64, 160)
NUM_FRAMES = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Ten rendered frames, with maps of their exact depth, good and mirrored."""
    root = tmp_path_factory.mktemp("audit") / "kitti"
    write_kitti_layout(root, 0, *SIZE, NUM_FRAMES, 1)
    frames = build_dataset(_recipe(root).dataset, "train", held_out=())
    for name in ("good", "mirrored"):
        (root / name).mkdir()
    for index in range(NUM_FRAMES):
        depth = _depth(index)
        for name, shown in (("good", depth), ("mirrored", depth[:, ::-1])):
            encoded = image_io.encode_teacher_map(np.ascontiguousarray(shown), 80.0)
            (root / name / frames.map_name(index)).write_bytes(encoded)
    return root


def _depth(index: int) -> np.ndarray:
    depth = render(0, index, *SIZE).depth
    return np.where(depth > 0, depth, np.float32(79)).astype(np.float32)


def _recipe(root: Path, **teacher) -> Recipe:
    node = {
        "network": {"min_depth": 0.001, "max_depth": 80.0},
        "data": {"name": "kitti", "root": str(root), "workers": 0},
    }
    return Recipe(node | ({"teacher": teacher} if teacher else {}))


def _arguments(tmp_path: Path, **values) -> Namespace:
    defaults = {
        "recipe": "student.yaml",
        "split": "train",
        "frames": 8,
        "checkpoint": None,
        "focal": None,
        "no_truth": False,
        "sigma": False,
        "out": tmp_path / "out",
        "overrides": [],
    }
    return Namespace(**defaults | values)


@pytest.mark.parametrize("no_truth", [False, True])
def test_audit_good_and_mirrored_maps(root, tmp_path, capsys, no_truth):
    """Good maps end with code 0, mirrored ones with 1; both leave a table, JSON and an image."""
    for maps, code in (("good", 0), ("mirrored", 1)):
        args = _arguments(tmp_path, out=tmp_path / maps, no_truth=no_truth)
        assert audit_teacher.audit(_recipe(root, maps=maps), args, CPU) == code
        result = json.loads((tmp_path / maps / "audit.json").read_text())
        assert [found["kind"] for found in result["suspicions"]] == ["mirrored"] * code
        assert result["frames_with_ground_truth"] == (0 if no_truth else 8)
        assert ("abs_rel" in result["figures"]) == (not no_truth)
        with Image.open(tmp_path / maps / "audit.png") as image:
            assert image.size[0] > 4 * SIZE[1]
        assert result["shown"]["worst"] in result["names"]
        told = capsys.readouterr().out
        assert ("Nothing is above its limit." in told) == (code == 0)
        assert ("SUSPICION: mirrored maps: " in told) == (code == 1)


def test_audit_worst_frame(root, tmp_path):
    """The worst frame is the one whose map has the largest error without its scale."""
    frames = build_dataset(_recipe(root, maps="good").dataset, "train", held_out=())
    spoiled = root / "spoiled"
    spoiled.mkdir()
    for index in range(NUM_FRAMES):
        depth = _depth(index)
        if index == 5:
            depth = depth[:, ::-1].copy()
        encoded = image_io.encode_teacher_map(depth, 80.0)
        (spoiled / frames.map_name(index)).write_bytes(encoded)
    args = _arguments(tmp_path, frames=NUM_FRAMES)
    audit_teacher.audit(_recipe(root, maps="spoiled"), args, CPU)
    result = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert result["shown"]["worst"] == frames.frames[5].name


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"split": "val"}, "--split val: not for cached maps (teacher.maps); leave it out"),
        ({"checkpoint": "x.pth"}, "--checkpoint: not for cached maps (teacher.maps); leave it out"),
    ],
)
def test_audit_refuses_options_for_maps(root, tmp_path, values, told):
    """Cached maps are those of training frames, and have no weights."""
    with pytest.raises(TeacherError) as error:
        audit_teacher.audit(_recipe(root, maps="good"), _arguments(tmp_path, **values), CPU)
    assert str(error.value) == told


def test_audit_keeps_earlier_results(root, tmp_path):
    """A folder with results is refused in one line."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "audit.json").touch()
    with pytest.raises(LaunchError, match="holds audit.json already"):
        audit_teacher.audit(_recipe(root, maps="good"), _arguments(tmp_path), CPU)


def test_audit_too_few_frames(root, tmp_path):
    """Fewer than eight frames can't be judged."""
    recipe = _recipe(root, maps="good")
    split = root / "three.txt"
    lines = (root / "kitti_eigen_train.txt").read_text().splitlines(keepends=True)
    split.write_text("".join(lines[:3]))
    recipe.node["data"]["train_split"] = "three.txt"
    with pytest.raises(DataError, match="only 3 frames can be read, an audit needs 8"):
        audit_teacher.audit(recipe, _arguments(tmp_path), CPU)


def test_audit_given_focal(root, tmp_path, capsys):
    """A focal length that differs from the listed one by more than a fifth is a suspicion."""
    listed = float((root / "kitti_eigen_train.txt").read_text().split()[2])
    recipe = _recipe(root, maps="good")
    near = _arguments(tmp_path, focal=listed * 1.1)
    assert audit_teacher.audit(recipe, near, CPU) == 0
    far = _arguments(tmp_path, focal=listed / 1.5, out=tmp_path / "far")
    assert audit_teacher.audit(recipe, far, CPU) == 1
    assert "a wrong focal length: the listed one is 1.50 times" in capsys.readouterr().out


def test_exif_focal(tmp_path):
    """26 mm on a full frame of 4000x3000 pixels are 3004 pixels; without EXIF there is none."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    Image.new("RGB", (4000, 3000)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (40, 30)).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    assert audit_teacher.exif_focal(tmp_path / "a.jpg") == pytest.approx(3004.6, abs=0.1)
    assert audit_teacher.exif_focal(tmp_path / "b.jpg") is None
    assert audit_teacher.exif_focal(tmp_path / "c.jpg") is None


class _Bright:
    """A teacher that sees: its depth is the image's brightness, and it notes what it was asked."""

    def __init__(self, turned: bool = False):
        self.turned, self.asked = turned, []

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.asked.append(batch)
        depth = 10 + batch.image[:, :1]
        return depth.flip(-1) if self.turned else depth


def _observe(root: Path, teacher, **changed_images):
    frames = build_dataset(_recipe(root).dataset, "train", held_out=())
    return Observer(
        teacher, frames, 80.0, CPU, changed_images=ChangedImages(**changed_images)
    ).observe(2)


def test_observe_asks_what_it_should(root):
    """Stored maps are asked for once a frame, others for each of the changed images, too."""
    teacher = _Bright()
    _observe(root, teacher)
    assert len(teacher.asked) == 2
    teacher = _Bright()
    _observe(root, teacher, swapped=True, covered=True, changed=True)
    assert len(teacher.asked) == 2 * 8


def test_observe_changes(root):
    """A teacher of single pixels agrees under flip and zoom, and changes where it is covered."""
    for frame in _observe(root, _Bright(), covered=True, changed=True):
        assert frame.flip == 0
        assert abs(frame.zoom[0]) < 0.01
        assert frame.zoom[1] < 0.01
        assert frame.response > 1
    for frame in _observe(root, _Bright(turned=True), covered=True):
        assert frame.response < -1


def test_observe_swapped_channels(root):
    """With exchanged channels the teacher gets the red of the image as its blue."""
    teacher = _Bright()
    _observe(root, teacher, swapped=True)
    plain, swapped = (observe.with_swapped_channels(b).image for b in teacher.asked[:2])
    assert torch.allclose(swapped, teacher.asked[0].image, atol=1e-5)
    assert torch.allclose(plain, teacher.asked[1].image, atol=1e-5)
    assert not torch.allclose(plain, swapped, atol=0.1)


def test_observe_intrinsics_of_changed_images(root):
    """Mirroring moves the principal point, zooming scales the focal length about the middle."""
    teacher = _Bright()
    _observe(root, teacher, changed=True)
    own, flipped, zoomed = (batch.intrinsics[0] for batch in teacher.asked[:3])
    assert flipped[0, 2] == SIZE[1] - 1 - own[0, 2]
    # The scenes' principal point is the middle, which mirroring leaves where it is.
    batch = teacher.asked[0]
    aside = batch.intrinsics.clone()
    aside[0, 0, 2] = 10
    assert observe.mirrored(batch._replace(intrinsics=aside)).intrinsics[0, 0, 2] == SIZE[1] - 11
    assert zoomed[0, 0] == pytest.approx(1.25 * own[0, 0].item())
    middle = (SIZE[0] - 1) / 2
    assert zoomed[1, 2] - middle == pytest.approx(1.25 * (own[1, 2].item() - middle), abs=1e-3)


def test_observe_leaves_out_unreadable(tmp_path):
    """A frame that can't be read is left out; the others keep their index."""
    write_kitti_layout(tmp_path / "k", 0, *SIZE, 3, 1)
    frames = build_dataset(_recipe(tmp_path / "k").dataset, "train", held_out=())
    Path(frames.frames[1].image).write_bytes(b"no image")
    observed = Observer(_Bright(), frames, 80.0, CPU).observe(3)
    assert [frame.index for frame in observed] == [0, 2]


@pytest.mark.parametrize("is_outside", [False, True])
def test_observe_focal_of_the_teacher(root, is_outside):
    """A teacher's own estimate is brought to the frame's own size; a listed focal must be there."""
    listed = float((root / "kitti_eigen_train.txt").read_text().split()[2])
    teacher = _Bright()
    teacher.estimate_focal = lambda batch: torch.full((len(batch.image),), 30.0)
    if is_outside:
        teacher = OutsideTeacher("mine.bright", teacher, CPU)
    frames = build_dataset(_recipe(root).dataset, "train", held_out=())
    half = Observer(teacher, frames, 80.0, CPU, resize=Resize(scale=0.5))
    assert half.observe(1)[0].focals == {"listed": pytest.approx(listed), "teacher": 60.0}
    unknown = Cameras.same(None, len(frames.frames))
    frames.frames = frames.frames.with_cameras(unknown)
    assert half.observe(1)[0].focals == {}


def test_observe_no_estimate_outside(root):
    """A teacher of the user's own needn't estimate focal lengths."""
    (frame, _) = _observe(root, OutsideTeacher("mine.bright", _Bright(), CPU))
    assert frame.focals.keys() == {"listed"}
