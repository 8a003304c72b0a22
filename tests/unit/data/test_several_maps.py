"""Cached maps of several teachers, and maps of sigma: read, augmented and resized like one map."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_data import write_png

from tiekd.data import contract, teacher_maps
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset
from tiekd.data.datasets.scenes import write_kitti_layout
from tiekd.data.decoded_cache import Decoded
from tiekd.data.loading.loader import training_batches, validation_batches
from tiekd.data.loading.sampler import MicroBatches
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.sample import in_metres
from tiekd.data.target import Target
from tiekd.errors import DataError, RecipeError, TeacherError
from tiekd.teachers.maps import CachedMaps
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
# Metres of level 65535: the second teacher sees twice as far, so its levels mean twice the depth.
SCALES = {"near": 80.0, "far": 160.0}
PLAIN = Augment(rotate_p=0.0, flip_p=0.0, colour_p=0.0)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """Two frames; `near` has maps of sigma, an eighth of its depth, and `far` half its levels."""
    root = tmp_path_factory.mktemp("several")
    write_kitti_layout(root, 0, 48, 96, 2, 1)
    frames = build_dataset(recipe(root, []).dataset, "train")
    rng = np.random.default_rng(0)
    for name, scale in SCALES.items():
        (root / name).mkdir()
        manifest = teacher_maps.make_manifest(80.0, None, {"name": name}, None, False, None, scale)
        manifest |= {teacher_maps.SIGMA_SCALE: 40.0} if name == "near" else {}
        teacher_maps.write_manifest(root / name, manifest)
    for index in range(len(frames)):
        levels = rng.integers(1, 5000, (48, 96)).astype(np.uint16) * 8
        levels[:10, :20] = 0
        name = frames.map_name(index)
        write_png(root / "near" / name, levels)
        write_png(root / "near" / teacher_maps.SIGMA / name, levels // 4)
        write_png(root / "far" / name, levels // 2)
    return root


def recipe(root: Path, teachers: list, **data) -> Recipe:
    node = {"name": "kitti", "root": str(root), "workers": 0} | data
    return Recipe({"network": {"max_depth": 80.0}, "teachers": teachers or None, "data": node})


def batches(frames, augment: Augment = PLAIN, resize: Resize = OWN_SIZE, count: int = 4) -> list:
    sampler = MicroBatches(len(frames), 2, range(count), seed=3)
    return list(training_batches(frames, sampler, augment, CPU, resize=resize))


BOTH = [{"maps": "near"}, {"maps": "far"}]


def test_planes_of_a_sample_are_depths_then_sigmas(ground):
    """Each map is in metres by its own scale; a teacher without sigma maps has sigma 0."""
    sample = in_metres(build_dataset(recipe(ground, BOTH).dataset, "train")[0])
    assert sample.teacher_depth.shape == (4, 48, 96)
    assert sample.sigma_planes == 2
    near, far, sigma, unknown = sample.teacher_depth
    torch.testing.assert_close(near, far)
    torch.testing.assert_close(sigma, near / 8)
    assert not unknown.any()
    assert near.max() > 20
    # Without sigma maps there are no planes for them, and order is that of the recipe.
    sample = build_dataset(recipe(ground, [{"maps": "far"}] * 2).dataset, "train")[0]
    assert sample.teacher_depth.shape == (2, 48, 96)
    assert sample.sigma_planes == 0


def test_whole_frames_have_all_maps(ground):
    """Frames that are read whole and in metres, as for an audit, have each teacher's maps."""
    frames = build_dataset(recipe(ground, BOTH).dataset, "train")
    contract.check_sample(frames[0], frames, 0)
    found = [batch for _, batch in validation_batches(frames, 1, CPU)]
    assert len(found) == 2
    for batch, sample in zip(found, frames, strict=True):
        assert torch.equal(batch.teacher_depth[0], sample.teacher_depth[:2])
        assert torch.equal(batch.teacher_sigma[0], sample.teacher_depth[2:])


@pytest.mark.parametrize(
    "augment",
    [
        PLAIN,
        Augment(crop=(32, 64), flip_p=1.0, rotate_p=0.0),
        Augment(crop=(32, 64), flip_p=0.5, rotate_p=1.0, rotate_deg=20.0),
        Augment(crop=(32, 64), zoom=(0.7, 1.4), zoom_depth="divide", rotate_p=0.0),
    ],
    ids=["plain", "flip", "rotation", "zoom"],
)
def test_all_maps_move_alike(ground, augment):
    """Flip, rotation, crop and zoom move each map alike, and divide sigma as depth."""
    frames = build_dataset(recipe(ground, BOTH).dataset, "train")
    found = batches(frames, augment)
    for batch in found:
        near, far = batch.teacher_depth.split(1, dim=1)
        sigma, unknown = batch.teacher_sigma.split(1, dim=1)
        torch.testing.assert_close(near, far, rtol=1e-3, atol=2e-3)
        # A mean of four pixels is rounded to levels of sigma, which are coarser.
        torch.testing.assert_close(sigma, near / 8, rtol=1e-3, atol=2e-3)
        assert not unknown.any()
        assert (near > 0).any()
        assert not near[~batch.inside].any()
    # The maps are those that one teacher alone has in the same batches.
    alone = build_dataset(recipe(ground, [{"maps": "far"}]).dataset, "train")
    for batch, other in zip(found, batches(alone, augment), strict=True):
        assert torch.equal(batch.teacher_depth[:, 1:], other.teacher_depth)
        assert torch.equal(batch.image, other.image)


def test_maps_are_resized_by_themselves(ground):
    """A working resolution resizes each plane as if it were the only one."""
    frames = build_dataset(recipe(ground, BOTH).dataset, "train")
    half = Resize(scale=0.5)
    (batch,) = batches(frames, resize=half, count=1)
    assert batch.teacher_depth.shape == batch.teacher_sigma.shape == (2, 2, 24, 48)
    alone = build_dataset(recipe(ground, [{"maps": "far"}]).dataset, "train")
    (other,) = batches(alone, resize=half, count=1)
    assert torch.equal(batch.teacher_depth[:, 1:], other.teacher_depth)


def test_cached_maps_of_each_place(ground):
    """A teacher of cached maps gets its own plane, with its sigma if there are any."""
    (batch,) = batches(build_dataset(recipe(ground, BOTH).dataset, "train"), count=1)
    for place in (0, 1):
        found = CachedMaps(place)(batch)
        assert isinstance(found, Target)
        assert torch.equal(found.depth, batch.teacher_depth[:, place : place + 1])
        assert torch.equal(found.sigma, batch.teacher_sigma[:, place : place + 1])
    (batch,) = batches(build_dataset(recipe(ground, [{"maps": "far"}]).dataset, "train"), count=1)
    assert CachedMaps()(batch) is batch.teacher_depth
    assert CachedMaps()(batch._replace(teacher_depth=None)) is None


def test_decoded_frames_have_all_maps(ground, tmp_path):
    """A cache of decoded frames holds the maps of every teacher."""
    frames = build_dataset(recipe(ground, BOTH).dataset, "train")
    kinds = ["image", "depth", "teacher_depth", "teacher_depth_1", "teacher_sigma"]
    assert list(frames.files(0)) == kinds
    wanted = frames[0].teacher_depth
    frames.decoded = Decoded(tmp_path, ground)
    for path, decode in frames.files(0).values():
        frames.decoded.write(path, decode)
    assert torch.equal(frames[0].teacher_depth, wanted)


def test_validation_frames_have_no_maps(ground):
    """Maps are read for training frames alone."""
    frames = build_dataset(recipe(ground, BOTH).dataset, "val")
    assert frames.map_folders == []
    assert frames[0].teacher_depth is None


def test_validation_frames_have_all_maps_against_the_teacher(ground):
    """An evaluation against several teachers reads each one's maps; a missing folder is named."""
    node = recipe(ground, BOTH).node | {"evaluation": {"against": "teacher"}}
    frames = build_dataset(Recipe(node).dataset, "val")
    assert [(each.option, each.path) for each in frames.map_folders] == [
        (f"teachers[{place}].maps", ground / name) for place, name in enumerate(SCALES)
    ]
    assert frames.maps == ground / "near"
    node["teachers"] = [{"maps": "absent"}, *BOTH]
    with pytest.raises(DataError, match=r"^teachers\[0\].maps: no folder at "):
        build_dataset(Recipe(node).dataset, "val")


def refused(kind, *arguments, **data) -> str:
    with pytest.raises(kind) as error:
        build_dataset(recipe(*arguments, **data).dataset, "train")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_folders_are_named_by_their_teachers(ground, tmp_path):
    """A missing folder, or one for another range, is that of a teacher in the list."""
    for place in (0, 1):
        several = [*BOTH[:place], {"maps": "absent"}, *BOTH[place:]]
        told = refused(DataError, ground, several)
        assert told.startswith(f"teachers[{place}].maps: no folder at {ground / 'absent'}; ")
    other = teacher_maps.make_manifest(40.0, None, {"name": "x"}, None, False)
    teacher_maps.write_manifest(tmp_path, other)
    told = refused(TeacherError, ground, [*BOTH, {"maps": str(tmp_path)}])
    assert told.startswith(f"teachers[2].maps: {tmp_path} was made for network.max_depth 40.0")


def test_a_map_of_another_size_is_named(ground, tmp_path):
    """The second teacher's map that doesn't fit its image is named by its file."""
    frames = build_dataset(recipe(ground, BOTH).dataset, "train")
    path = tmp_path / frames.map_name(0)
    write_png(path, np.ones((10, 10), np.uint16))
    several = [{"maps": "near"}, {"maps": str(tmp_path)}]
    frames = build_dataset(recipe(ground, several).dataset, "train")
    with pytest.raises(DataError, match=f"^{path}: teacher map of 10x10 for an image of 48x96"):
        frames[0]


def test_a_data_set_from_outside_reads_one_teachers_maps(ground, tmp_path, monkeypatch):
    """Several folders are refused for a data set that can't read them."""
    (tmp_path / "mine_several").mkdir()
    (tmp_path / "mine_several" / "two.py").write_text(
        "class Two:\n    def __len__(self):\n        return 2\n"
        "    def __getitem__(self, i):\n        raise IndexError\n"
        "def build(root, maps=None):\n    return Two()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = recipe(ground, BOTH).node
    node["data"] = {"name": "mine_several.two", "root": str(ground)}
    with pytest.raises(RecipeError, match=r"^teachers\[1\].maps: data.name mine_several.two reads"):
        build_dataset(Recipe(node).dataset, "train")


@pytest.mark.parametrize("scale", [0, -1, "x", True])
def test_damaged_scale_of_sigma_is_refused(tmp_path, scale):
    """A manifest with an impossible scale of sigma isn't one."""
    manifest = teacher_maps.make_manifest(80.0, None, {"name": "x"}, None, False)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"sigma_full_scale_m": scale}))
    with pytest.raises(DataError, match=r"not a manifest of teacher maps \(sigma_full_scale_m is"):
        teacher_maps.read_manifest(tmp_path)
