"""Samples equal the published pipelines' numbers.

KITTI and NYU, in training, step by step, and in evaluation.

The frames are synthetic, by rule, and lie in the published folders. What the published code drew at
random is recorded and forced on ours. It doesn't turn the teacher's map with the image, ours
does: maps are compared unturned.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import golden
from support.frames import kitti_frames, nyu_frames

from tiekd.data.augment.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Decisions,
    colour_table,
    look_up,
    normalise,
)
from tiekd.data.augment.geometry import augment_on_cpu

CASES = golden.load_json("pipeline/cases.json")
SAMPLES = golden.load_arrays("pipeline/samples.npz")
TAGS = {
    "2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png": "pipe:kitti0",
    "2011_09_28/2011_09_28_drive_0002_sync/image_02/data/0000000069.png": "pipe:kitti1",
    "kitchen_0028b/rgb_00045.jpg": "pipe:nyu0",
    "bathroom_0001a/rgb_00012.jpg": "pipe:nyu1",
}
SIZES = {
    "pipe:kitti0": (375, 1242),
    "pipe:kitti1": (370, 1224),
    "pipe:nyu0": (480, 640),
    "pipe:nyu1": (480, 640),
}
FIRST = {
    "kitti": next(iter(TAGS)),
    "nyu": "bathroom_0001a/rgb_00012.jpg",
}  # the published sets sort by name
STEPS = ("KBCrop", "NYUCrop", "RandomRotate", "RandomFlip", "RandomCrop", "ColorAug", "Normalize")
FORCED_CROP = {"kitti": (0, 123, 352, 704), "nyu": (7, 13, 416, 544)}


def photo(tag, height, width):
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    wave = np.sin(2 * np.pi * ((1 + c) * x / width + (2 - c) * y / height) + 0.7 * c)
    bgr = 127.5 + 80 * wave + 25 * golden.normal(tag, (height, width, 3))
    return np.clip(np.rint(bgr), 0, 255).astype(np.uint8)[..., ::-1]


def levels(tag, height, width, highest, scale, keep=1.0):
    depth = golden.depth(tag, (1, 1, height, width), 1e-3, highest)[0, 0].double().numpy()
    depth = np.clip(np.rint(depth * scale), 0, 65535).astype(np.uint16)
    depth[golden.rs(f"{tag}:sparse").random_sample((height, width)) >= keep] = 0
    return depth


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The published folders with their files, whose pixels are the published ones to the bit."""
    root = tmp_path_factory.mktemp("published")
    for name, tag in TAGS.items():
        height, width = SIZES[tag]
        if "kitti" in tag:
            day, drive, _, _, file = name.split("/")
            pixels = {
                f"data/kitti/input/{name}": photo(f"{tag}:img", height, width),
                f"data/kitti/gt_depth/{drive}/proj_depth/groundtruth/image_02/{file}": levels(
                    f"{tag}:gt", height, width, 80.0, 256, 0.3
                ),
                f"data/kitti/gt_kd_adabins/{day}_{drive}_image_02_data_{file}": levels(
                    f"{tag}:kd", 352, 1216, 80.0, 65535 / 80
                ),
            }
        else:
            scene, file = name.split("/")
            depth = file.replace("rgb", "sync_depth").replace("jpg", "png")
            pixels = {
                f"data/nyu/{name}": photo(f"{tag}:img", height, width),
                f"data/nyu/{scene}/{depth}": levels(f"{tag}:gt", height, width, 10.0, 1000, 0.8),
                f"data/nyu/gt_kd_adabins_real/data_nyu_{scene}_{file[:-3]}png": levels(
                    f"{tag}:kd", height, width, 10.0, 6553.5
                ),
            }
        for path, array in pixels.items():
            stored = array[..., ::-1] if array.ndim == 3 else array
            assert sha256(stored) == CASES["inputs"][path]
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(array)).save(
                root / path, format="PNG", compress_level=0
            )
    (root / "data/kitti/kitti_eigen_train.txt").write_text("\n".join(CASES["split"]["kitti"]))
    (root / "data/nyu/nyu_train.txt").write_text("\n".join(CASES["split"]["nyu"]))
    (root / "data/nyu/nyu_test.txt").write_text("\n".join(CASES["split"]["nyu"]))
    return root


@pytest.fixture(scope="module")
def frame(root):
    """A function of (group, name, cut, evaluated) that reads a frame as our data set does."""

    @cache
    def dataset(group, cut, evaluated):
        folder = str(root / "data" / group.split("_")[0])
        if group.startswith("kitti"):
            maps = "gt_kd_adabins" if group == "kitti_kd" and cut else None
            return kitti_frames(
                folder, "train", 80.0, kb_crop=(352, 1216) if cut else None, maps=maps
            )
        maps = "gt_kd_adabins_real" if group == "nyu_kd" else None
        crop = (45, 472, 43, 608) if cut else None
        return nyu_frames(folder, "val" if evaluated else "train", 10.0, nyu_crop=crop, maps=maps)

    @cache
    def read(group, name, cut=True, evaluated=False):
        data = dataset(group, cut, evaluated)
        assert len(data) == 2
        return data[[f.name for f in data.frames].index(name)]

    return read


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def as_published(tensor, expected):
    """Returns ours in the published layout.

    Between the steps channels come last; depths have 2 or 3 axes.
    """
    channels_last = tensor.shape[0] == 3 and expected["shape"][-1] == 3
    return (tensor.permute(1, 2, 0) if channels_last else tensor).numpy().reshape(expected["shape"])


def check(tensor, expected, exact=False, share=1.0, **tolerance):
    array = as_published(tensor, expected)
    if exact:
        assert sha256(array) == expected["sha256"]
    index, value = SAMPLES[f"{expected['key']}_idx"], SAMPLES[f"{expected['key']}_val"]
    assert np.isclose(array.reshape(-1)[index], value, **tolerance).mean() >= share


def finished(sample, decisions):
    """Returns the image as it is on the device."""
    return look_up(augment_on_cpu(sample, decisions).image[None], colour_table(decisions)[None])[0]


def check_image(tensor, expected, turned, coloured=False, normalised=False):
    """Compares images: turned ones are within 2 grey levels in 99.5 % of their pixels.

    The published ones interpolate in steps of 1/32 pixel and round.
    """
    grey_level = 1 / min(IMAGENET_STD) if normalised else 1.0
    tensor = tensor if normalised else tensor.flip(0)  # theirs is BGR until then
    if turned:
        check(tensor, expected, share=0.995, rtol=0, atol=2 * 1.1 * 1.1 * grey_level)
    elif coloured:
        check(tensor, expected, rtol=1e-6, atol=255e-6 * grey_level)
    else:
        check(tensor, expected, exact=not normalised, rtol=0, atol=1e-6)


def check_depths(whole, decisions, expected):
    """Compares depth: to the bit, or the nearest pixel in 99.5 % of those of a turned map.

    The published teacher's map is never turned.
    """
    unturned = augment_on_cpu(whole, decisions._replace(angle=0.0))
    if "kd_gt" in expected:
        check(unturned.teacher_depth, expected["kd_gt"], rtol=1e-6)
    if decisions.angle == 0:
        check(unturned.depth, expected["depth_gt"], exact=True)
        return
    turned = whole._replace(
        depth=torch.from_numpy(turned_as_published(whole.depth[0].numpy(), decisions.angle))[None]
    )
    reference = augment_on_cpu(turned, decisions._replace(angle=0.0)).depth
    check(reference, expected["depth_gt"], exact=True)
    assert (augment_on_cpu(whole, decisions).depth == reference).float().mean() >= 0.995


def turned_as_published(depth, angle):
    """Turns (H, W) counter-clockwise by nearest pixels.

    Places are rounded to 1/1024 pixel, as OpenCV does.
    """
    height, width = depth.shape
    x, y = np.arange(width), np.arange(height)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    shift_x = centre_x - cosine * centre_x + sine * centre_y
    shift_y = centre_y - sine * centre_x - cosine * centre_y
    source_x = np.rint(1024 * cosine * x)[None] + np.rint(1024 * (shift_x - sine * y))[:, None]
    source_y = np.rint(1024 * sine * x)[None] + np.rint(1024 * (shift_y + cosine * y))[:, None]
    column, row = (np.floor((source + 512) / 1024).astype(int) for source in (source_x, source_y))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    turned = np.zeros_like(depth)
    turned[inside] = depth[row[inside], column[inside]]
    return turned


@pytest.mark.parametrize("name", CASES["seeded"])
def test_training_sample_equals_published_seeded(frame, name):
    """Training samples equal the published pipeline's for its recorded random draws."""
    case = CASES["seeded"][name]
    drawn = case["decisions"]
    height, width = case["depth_gt"]["shape"][1:]
    decisions = Decisions(
        angle=-drawn["angle_clockwise"],
        flip=drawn["flip"],
        top=drawn["top"],
        left=drawn["left"],
        height=height,
        width=width,
        gamma=drawn.get("gamma"),
        brightness=drawn.get("brightness", 1.0),
        channels=tuple(drawn.get("channels_bgr", (1.0, 1.0, 1.0))[::-1]),
    )
    whole = frame(case["group"], case["frame"])
    image, turned = finished(whole, decisions), decisions.angle != 0
    check_image(image, case["img"], turned, coloured=decisions.gamma is not None, normalised=True)
    check_depths(whole, decisions, case)


@pytest.mark.parametrize(
    ("group", "step"),
    [
        (group, step)
        for group, steps in CASES["forced"].items()
        for step in steps
        if "rotate" not in group and step != "camera"
    ],
)
def test_each_step_equals_published_forced(frame, group, step):
    """Each step of the pipeline equals the published one for forced decisions."""
    expected, data = CASES["forced"][group][step], group.split("_")[0]
    name = step.removesuffix("_Base")
    reached = STEPS[: STEPS.index(name) + 1] if name in STEPS else ()
    whole = frame(group, FIRST[data], cut=bool(reached))
    height, width = whole.image.shape[-2:]
    decisions = Decisions(0.0, False, 0, 0, height, width, None, 1.0, (1.0, 1.0, 1.0))
    if not reached:
        check_image(whole.image, expected["img"], turned=False)
        camera = np.array(CASES["forced"][group]["camera"])
        if data == "nyu":  # the published matrix has the second focal length in the wrong column
            camera[1, :2] = camera[1, 1::-1]
        np.testing.assert_allclose(whole.intrinsics, camera, rtol=1e-6)
        if "depth_gt" in expected:
            check(whole.depth, expected["depth_gt"], exact=True)
        if "kd_gt" in expected:  # KITTI's maps are cut already, so that whole frames have none
            mapped = frame(group, FIRST[data]) if data == "kitti" else whole
            check(mapped.teacher_depth, expected["kd_gt"], rtol=1e-6)
        return
    if "RandomRotate" in reached:
        decisions = decisions._replace(angle=-1.75)
    if "RandomFlip" in reached:
        decisions = decisions._replace(flip=True)
    if "RandomCrop" in reached:
        decisions = decisions._replace(
            **dict(zip(("top", "left", "height", "width"), FORCED_CROP[data], strict=True))
        )
    if "ColorAug" in reached:
        decisions = decisions._replace(gamma=1.07, brightness=0.93, channels=(1.09, 1.02, 0.91))
    turned, normalised = decisions.angle != 0, step.startswith("Normalize")
    image = (
        finished(whole, decisions)
        if turned or normalised
        else augment_on_cpu(whole, decisions).image
    )
    if turned and not normalised:
        image = image * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(
            3, 1, 1
        )
    check_image(image, expected["img"], turned, normalised=normalised)
    check_depths(whole, decisions, expected)


def test_rotation_other_way_equals_published(frame):
    """A rotation in the other direction equals the published one."""
    whole = frame("kitti_kd", FIRST["kitti"])
    decisions = Decisions(2.5, False, 0, 0, 352, 1216, None, 1.0, (1.0, 1.0, 1.0))
    expected = CASES["forced"]["kitti_kd_rotate_minus2.5"]
    check_image(augment_on_cpu(whole, decisions).image, expected["img"], turned=True)
    check_depths(whole, decisions, expected)


@pytest.mark.parametrize("name", CASES["test"])
def test_evaluation_image_equals_published(frame, name):
    """Images in evaluation equal the published pipeline's, straight and flipped."""
    group, number = name.rsplit("_", 1)
    names = sorted(name for name, tag in TAGS.items() if group.split("_")[0] in tag)
    image = normalise(frame(group, names[int(number)], evaluated=True)).image
    for ours, expected in zip((image, image.flip(-1)), CASES["test"][name], strict=True):
        check_image(ours, expected, turned=False, normalised=True)


@pytest.mark.parametrize("group", CASES["opened"])
def test_frame_opens_published_files(root, group):
    """A frame opens the depth map and the teacher map that the published code opens."""
    read = kitti_frames if group.startswith("kitti") else nyu_frames
    maps = {"kitti_kd": "gt_kd_adabins", "nyu_kd": "gt_kd_adabins_real"}[group]
    frames = read(str(root / "data" / group.split("_")[0]), "train", 80.0, maps=maps)
    index = [frame.name for frame in frames.frames].index(FIRST[group.split("_")[0]])
    opened = [frames.frames[index].depth, frames.maps / frames.map_name(index)]
    assert [str(Path(path).relative_to(root)) for path in opened] == CASES["opened"][group]


def test_published_cases_are_complete():
    """The recorded published cases are all there."""
    assert len(CASES["seeded"]) == 28
    assert len(CASES["test"]) == 8
    assert len(CASES["opened"]) == 2
    assert (
        sum(
            len([s for s in steps if s != "camera"])
            for g, steps in CASES["forced"].items()
            if "rot" not in g
        )
        == 36
    )
