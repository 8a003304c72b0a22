"""The stereo teacher: its maps, how they are cached, and what is refused."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cached_teacher import cache, refused
from support.frames import kitti_frames
from support.stereo_pairs import BASELINE_M, write_pairs
from support.teacher_batches import batch_of

from tiekd.config.teacher_node import TeacherNode
from tiekd.data import image_io, map_focals, teacher_maps
from tiekd.errors import RecipeError, TeacherError
from tiekd.evaluation.teacher_audit.observe import ChangedImages
from tiekd.teachers.pairs import matching
from tiekd.teachers.stereo import Options, StereoTeacher
from tiekd.teaching import build_teacher
from tiekd.tools import cache_teacher
from tiekd.tools.audit_teacher import observer_of
from tiekd.training import teacher_audit
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
FOCAL, COUNT, HEIGHT, WIDTH = 100.0, 13, 72, 144
# The pairs of a shorter split file; an audit needs all.
SHORT, FEW = "short.txt", (0, 1, 2, COUNT - 1)
NODE = {"name": "stereo", "baseline": BASELINE_M}
DRIVE = "2000_01_01/2000_01_01_drive_0001_sync"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A KITTI layout of 13 pairs of planes, of which the last has no right image."""
    folder = tmp_path_factory.mktemp("pairs")
    np.save(folder / "disparity.npy", write_pairs(folder, COUNT, FOCAL, height=HEIGHT, width=WIDTH))
    (folder / "input" / DRIVE / "image_03" / f"{COUNT - 1:03d}.png").unlink()
    lines = (folder / "kitti_eigen_train.txt").read_text().splitlines(keepends=True)
    (folder / SHORT).write_text("".join(lines[index] for index in FEW))
    return folder


def recipe_of(root: Path, split: str = SHORT, crop=None, **teacher) -> dict:
    data = {"name": "kitti", "root": str(root), "train_split": split, "kb_crop": crop}
    return {
        "network": {"max_depth": 80.0},
        "teacher": NODE | teacher,
        "data": data | {"workers": 0, "augment": {}},
    }


def built(**keys) -> StereoTeacher:
    return build_teacher(NODE | keys, CPU, max_depth_m=80.0)


def refusal(**keys) -> str:
    with pytest.raises((TeacherError, RecipeError)) as error:
        built(**keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def true_depth(root: Path) -> np.ndarray:
    return FOCAL * BASELINE_M / np.load(root / "disparity.npy")


@pytest.mark.parametrize("crop", [None, [60, 96]])
def test_stereo_maps_have_the_depth_of_the_pair(root, tmp_path, crop):
    """Maps of whole and of cropped images have the known depth in metres, on the image's grid."""
    told = cache(recipe_of(root, crop=crop), tmp_path / "maps")
    assert "Teacher: stereo StereoSGBM of OpenCV, output metres, licence Apache-2.0" in told
    assert "Teacher: 1 of 4 frames have no right image, such as 2000_01_01/" in told
    assert "of the pixels match in 3 pairs, " in told
    assert "median depth 4." in told
    true, place = true_depth(root), (slice(None), slice(None))
    if crop is not None:
        place = slice(HEIGHT - 60, None), slice((WIDTH - 96) // 2, (WIDTH + 96) // 2)
    scale = teacher_maps.full_scale_m(tmp_path / "maps", 80.0) / 65535
    for index in FEW:
        name = f"{DRIVE}/image_02/{index:03d}.png".replace("/", "_")
        depth = image_io.read_teacher_map(tmp_path / "maps" / name)[0].numpy() * scale
        assert depth.shape == true[place].shape
        valid = depth > 0
        if index == COUNT - 1:
            assert not valid.any()  # without a right image
            continue
        # The left columns of the whole image aren't seen by the right camera, those of a crop are.
        assert valid.mean() > (0.85 if crop is None else 0.95)
        ratio = depth[valid] / true[place][valid]
        assert np.median(np.abs(ratio - 1)) < 0.02
        assert abs(np.median(ratio) - 1) < 0.005


def test_stereo_manifest_has_what_maps_depend_on(root, tmp_path):
    """The settings of the matcher are in it, and full scale is that of the smallest disparity."""
    cache(recipe_of(root, min_disparity=0.5), tmp_path / "maps")
    manifest = teacher_maps.read_manifest(tmp_path / "maps")
    assert manifest["full_scale_m"] == pytest.approx(FOCAL * BASELINE_M / 0.5)
    assert manifest["teacher_network"]["matching"] == matching.SETTINGS
    # The smallest disparity includes the offset of the two principal points.
    for offset in (10.0, -10.0):
        teacher = built(offset=offset, min_disparity=0.5)
        teacher.check_frames(kitti_frames(str(root), "train", 80.0).frames)
        assert teacher.max_depth_m == pytest.approx(FOCAL * BASELINE_M / 0.5)
    changes = {"baseline": 0.55, "max_disparity": 48, "offset": 0.5, "min_disparity": 4}
    digests = [built(**{key: value}).description["digest"] for key, value in changes.items()]
    assert len({built().description["digest"], *digests}) == 5


@pytest.mark.parametrize("crop", [None, [60, 96]])
def test_stereo_sigma_is_cached_beside_depth(root, tmp_path, crop):
    """Maps of sigma are those of depth^2 / (f b) * error, cropped alike, and 0 without a match."""
    cache(recipe_of(root, crop=crop, disparity_error=0.5), tmp_path / "maps")
    manifest = teacher_maps.read_manifest(tmp_path / "maps")
    assert manifest["teacher_network"]["sigma"] == {"disparity_error": 0.5, **matching.SIGMA}
    scale = manifest["full_scale_m"] / 65535
    for index in (1, COUNT - 1):
        name = f"{DRIVE}/image_02/{index:03d}.png".replace("/", "_")
        depth, sigma = (
            image_io.read_teacher_map(folder / name)[0].numpy() * scale
            for folder in (tmp_path / "maps", tmp_path / "maps" / "sigma")
        )
        assert ((sigma > 0) == (depth > 0)).all()
        plain = depth**2 / (FOCAL * BASELINE_M) * 0.5
        assert (sigma > plain * 0.98 - 1.5 * scale).all()
        if index == 1:
            assert sigma.shape == ((HEIGHT, WIDTH) if crop is None else tuple(crop))
            assert np.median(sigma[depth > 0] / plain[depth > 0]) == pytest.approx(1, abs=0.02)


def test_stereo_without_an_error_gives_depth_alone(root, tmp_path):
    """`disparity_error: 0` makes maps that also a released target can learn."""
    cache(recipe_of(root, disparity_error=0), tmp_path / "maps")
    assert not (tmp_path / "maps" / "sigma").exists()
    assert "sigma" not in teacher_maps.read_manifest(tmp_path / "maps")["teacher_network"]


def test_stereo_maps_are_of_one_focal_length(root, tmp_path):
    """The frames' focal lengths are recorded, and maps with others need another folder."""
    cache(recipe_of(root), tmp_path / "maps")
    made = map_focals.read(tmp_path / "maps")
    assert (len(made), set(made.values())) == (len(FEW), {FOCAL})
    recipe = recipe_of(root)
    recipe["data"]["intrinsics"] = [1.1 * FOCAL, 1.1 * FOCAL, WIDTH / 2, HEIGHT / 2]
    with pytest.raises(TeacherError, match="with another focal length, .* where this recipe has"):
        cache(recipe, tmp_path / "maps")


@pytest.mark.parametrize("focal", [90.0, 110.0])
def test_stereo_maps_of_both_splits_share_a_folder(root, tmp_path, monkeypatch, focal):
    """Validation frames of another camera get maps beside the training frames'."""
    monkeypatch.setattr(cache_teacher.process_group, "start_rank", lambda *_: CPU)
    lines = (root / "kitti_eigen_train.txt").read_text().splitlines()
    (root / "one.txt").write_text(f"{lines[0]}\n")
    (root / "other.txt").write_text(f"{lines[1].rpartition(' ')[0]} {focal}\n")
    recipe = recipe_of(root, "one.txt", disparity_error=0)
    recipe["network"]["max_depth"] = 10.0
    recipe["data"]["val_split"] = "other.txt"
    recipe |= {"train": {"epochs": 1}, "evaluation": {"against": "teacher"}}
    (tmp_path / "r.json").write_text(json.dumps(recipe | {"work_dir": str(tmp_path / "work")}))
    args = Namespace(recipe=tmp_path / "r.json", overrides=[], split="train", checkpoint=None)
    args.out, args.data_set = tmp_path / "maps", None
    for _ in range(2):
        cache_teacher.run(args)
    full_scale = teacher_maps.full_scale_m(args.out, 10.0)
    assert full_scale == pytest.approx(max(FOCAL, focal) * BASELINE_M / 3)
    focals = map_focals.read(args.out)
    for name, own in focals.items():
        depth = image_io.read_teacher_map(args.out / name)[0].numpy() * full_scale / 65535
        true = own * BASELINE_M / np.load(root / "disparity.npy")
        assert np.median(depth[depth > 0] / true[depth > 0]) == pytest.approx(1, abs=0.01)
    assert sorted(focals.values()) == sorted((FOCAL, focal))


def test_stereo_focal_length_of_a_calibration_serves_where_none_is_known(root, tmp_path):
    """Baseline, offset and focal length come from the file; the offset is added to disparities."""
    path = tmp_path / "calib.txt"
    path.write_text("P2: 100 0 50 0 0 100 9 0 0 0 1 0\nP3: 100 0 52 -54 0 100 9 0 0 0 1 0\n")
    frames = kitti_frames(str(root), "train", 80.0).frames[:2]
    teacher = build_teacher({"name": "stereo", "calibration": str(path)}, CPU, max_depth_m=80.0)
    teacher.check_frames([frame._replace(camera=None) for frame in frames])
    batch = batch_of(torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8), [None])
    depth = teacher(batch._replace(names=[frames[1].name])).depth[0, 0].numpy()
    true = 54 / (np.load(root / "disparity.npy") + 2)
    assert np.median(depth[depth > 0] / true[depth > 0]) == pytest.approx(1, abs=0.005)
    # A calibration of other images is refused by either, focal length or size.
    other = [frame._replace(camera=frame.camera._replace(focal_x=103.0)) for frame in frames]
    with pytest.raises(TeacherError, match="has a focal length of 100 pixels, .* has 103; give"):
        teacher.check_frames(other)
    path.write_text(path.read_text() + "P_rect_02: 0\nS_rect_02: 200 72\n")
    teacher = build_teacher({"name": "stereo", "calibration": str(path)}, CPU, max_depth_m=80.0)
    with pytest.raises(TeacherError, match=r"is of images of 72x200 \(height x width\), .* 72x144"):
        teacher.check_frames([frame._replace(camera=None) for frame in frames])


def test_stereo_without_focal_length_is_refused(root):
    """The count of frames is named, and the two ways to give one."""
    frames = list(kitti_frames(str(root), "train", 80.0).frames[:3])
    frames[2] = frames[2]._replace(camera=None)
    with pytest.raises(TeacherError, match="1 of 3 frames have no focal length.*teacher.calibra"):
        built().check_frames(frames)


def test_stereo_needs_a_data_set_that_lists_files():
    """A data set of the user's own may list none."""
    with pytest.raises(TeacherError, match="stereo reads image files, and this data set doesn't"):
        built().check_frames([])


def test_stereo_refuses_images_that_it_has_not_looked_for():
    """An image that isn't among the checked frames has no pair."""
    with pytest.raises(TeacherError, match="image_0.png isn't one that it has looked for"):
        built()(batch_of(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [None]))


class Counting(StereoTeacher):
    """Counts the images that it is asked for."""

    calls = 0

    def __call__(self, batch):
        self.calls += len(batch.names)
        return super().__call__(batch)


def test_stereo_is_audited_with_unchanged_images(root):
    """Both audits ask once for each frame, since changed images would make no difference."""
    frames = kitti_frames(str(root), "train", 80.0)
    teacher = Counting(Options(baseline=BASELINE_M))
    teacher.check_frames(frames.frames)
    how = {"max_depth_m": 80.0, "device": CPU, "resize": teacher.resize}
    (told,) = teacher_audit.audit(TeacherNode(NODE), teacher, frames, **how)
    assert told == "Teacher audit: 13 frames, nothing is above its limit"
    assert teacher.calls == COUNT
    recipe = Recipe(recipe_of(root))
    args = Namespace(split="train", checkpoint=None, recipe="r.yaml", overrides=(), focal=None)
    observer = observer_of(recipe, args, CPU)
    assert observer.changed_images == ChangedImages()
    (frame,) = observer.observe(1)
    assert frame.valid > 0.8


def test_stereo_refuses_exchanged_cameras(root):
    """A list of right images, whose rule finds the left ones."""
    frames = [
        frame._replace(image=frame.image.replace("image_02", "image_03"))
        for frame in kitti_frames(str(root), "train", 80.0).frames[:4]
    ]
    with pytest.raises(TeacherError, match="left and right look exchanged"):
        built(right=["image_03", "image_02"]).check_frames(frames)


def test_stereo_cropped_image_needs_its_camera(root):
    """Without intrinsics nothing says where a crop is."""
    frame = kitti_frames(str(root), "train", 80.0).frames[0]
    teacher = built()
    teacher.check_frames([frame])
    teacher._frames[frame.name] = frame._replace(camera=None)
    teacher.calibration = matching.Rig  # anything but None: the focal length isn't read
    teacher._focal = lambda frame: FOCAL
    batch = batch_of(torch.zeros(1, 3, 60, 96, dtype=torch.uint8), [None])
    with pytest.raises(TeacherError, match="cropped from 72x144 to 60x96, and without intrinsics"):
        teacher(batch._replace(names=[frame.name]))


@pytest.mark.parametrize("baseline", [0.0, -0.5, 53.2, 532.0, float("nan")])
def test_stereo_baseline_in_another_unit_is_refused(baseline):
    """Centimetres and millimetres are too long for a rig."""
    message = refusal(baseline=baseline)
    assert message.startswith("teacher.baseline: got a baseline of")
    assert "in metres, above 0 and at most 3" in message


def test_stereo_short_baseline_in_centimetres_is_stopped_by_the_audit(root, tmp_path):
    """What a rig's limits can't show, the audit does: depth of ten times the truth."""
    message = refused(
        TeacherError, recipe_of(root, "kitti_eigen_train.txt", baseline=2.7), tmp_path / "maps"
    )
    assert message.startswith("teacher: ")
    assert "bin/audit_teacher.py" in message


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"calibration": "x.txt"}, "needs either `baseline`, in metres, or `calibration`"),
        ({"right": ["left", "left"]}, "teacher.right: got ['left', 'left']; it must be two"),
        ({"right": ["", "right"]}, "it must be two different texts"),
        ({"right": "right"}, "teacher.right: got 'right'; it must be a list of 2: text, text"),
        ({"min_disparity": 0}, "teacher.min_disparity: got 0; it must be pixels above 0"),
        (
            {"disparity_error": -0.5},
            "teacher.disparity_error: got -0.5; it must be pixels above 0, or 0 for depth without",
        ),
        ({"max_disparity": 3}, "teacher.max_disparity: got 3; it must be pixels above min"),
        ({"model": "x"}, "teacher (stereo): unknown key 'model'"),
    ],
)
def test_stereo_refuses_options(keys, words):
    """Each in one line that says what is allowed."""
    assert words in refusal(**keys)


def test_stereo_without_opencv_says_what_to_install(monkeypatch):
    """The package is missing: the extra to install is in TEACHERS.md."""
    matching.opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "stereo needs the package cv2, which isn't installed" in refusal()
    matching.opencv.cache_clear()
