"""Making teacher maps: what is in the files, what is kept and what is refused."""

import io
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.cached_teacher import (
    CPU,
    CROP,
    NUM_TRAIN,
    TEACHER,
    cache,
    files_of,
    make_ground,
    recipe_of,
    refused,
)
from torch.utils.data import Subset

from tiekd.data import teacher_maps
from tiekd.data.augment.augment import normalise
from tiekd.data.build import build_dataset
from tiekd.data.loading.loader import validation_batches
from tiekd.data.resize import Resize
from tiekd.errors import DataError, TeacherError
from tiekd.models.build import build_network
from tiekd.models.flip import predict
from tiekd.models.weights.state_dicts import to_published
from tiekd.teaching import build_teacher
from tiekd.tools import cache_teacher
from tiekd.training.settings import Recipe
from tiekd.workdir.weights_file import write_weights


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


def levels_of(path: Path) -> np.ndarray:
    depth_map = Image.open(path)
    assert depth_map.mode == "I;16"
    return np.array(depth_map)


@pytest.mark.parametrize("flip", [None, False])
def test_cache_maps_encode_teacher_depth(ground, tmp_path, flip):
    """Each map holds the teacher's depth within half a level of the published encoding."""
    recipe = recipe_of(ground, **({} if flip is None else {"flip": flip}))
    told = cache(recipe, tmp_path / "maps")
    assert (
        f"Maps: {NUM_TRAIN} frames, 0 there already, {NUM_TRAIN} to make in {tmp_path / 'maps'}\n"
        in told
    )
    assert f"maps: {NUM_TRAIN}/{NUM_TRAIN}, " in told
    frames = cache_teacher.frames_of(Recipe(recipe), "train")
    names = [frame.name.replace("/", "_") for frame in frames.frames]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == sorted(
        [*names, "manifest.json"]
    )
    assert names[0] == "2000_01_01_2000_01_01_drive_0001_sync_image_02_data_0000000000.png"
    network = build_network(TEACHER).eval()
    network.load_state_dict(torch.load(ground / "teacher.pth", weights_only=True)["state_dict"])
    spread = []
    for sample, name in zip(frames, names, strict=True):
        levels = levels_of(tmp_path / "maps" / name)
        assert levels.shape == (48, 96)
        assert levels.min() >= 1
        depth = (
            predict(network, normalise(sample).image[None], flip=flip is None)[0, 0]
            .double()
            .numpy()
        )
        assert np.abs(levels * 80.0 / 65535 - depth).max() <= 0.5 * 80.0 / 65535
        spread.append(depth)
    assert np.ptp(spread) > 10


def test_run_caches_validation_of_agreement(ground, tmp_path, monkeypatch):
    """If evaluations compare with the teacher, the folder has maps of both splits."""
    monkeypatch.setattr(cache_teacher.process_group, "start_rank", lambda *_: CPU)
    recipe = recipe_of(ground, audit="off") | {"train": {"epochs": 1}}
    for against, count in (("ground_truth", NUM_TRAIN), ("teacher", NUM_TRAIN + 2)):
        path = tmp_path / f"{against}.json"
        node = recipe | {"evaluation": {"against": against}, "work_dir": str(tmp_path / "work")}
        path.write_text(json.dumps(node))
        args = SimpleNamespace(recipe=path, overrides=[], split="train", checkpoint=None)
        args.out, args.data_set = tmp_path / against, None
        cache_teacher.run(args)
        assert len(list(args.out.glob("*.png"))) == count
    # The student's validation frames have maps in that folder.
    student = Recipe(node | {"teacher": {"maps": str(tmp_path / "teacher")}})
    val = build_dataset(student.dataset, "val")
    assert all(val[index].teacher_depth.max() > 0 for index in range(2))


def test_cache_maps_audits_once(ground, tmp_path):
    """The teacher is audited before the first maps, not when a job resumes."""
    line = "Teacher audit: left out, it needs 12 frames\n"
    assert line in cache(recipe_of(ground), tmp_path / "maps")
    assert line not in cache(recipe_of(ground), tmp_path / "maps")
    assert "Teacher audit: off" in cache(recipe_of(ground, audit="off"), tmp_path / "other")


def test_cache_maps_val_split(ground, tmp_path):
    """Caching the validation split writes maps for its frames only."""
    cache(recipe_of(ground), tmp_path / "maps", "val")
    assert len(list((tmp_path / "maps").glob("*drive_0002*.png"))) == 2
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2


def test_cache_maps_remakes_torn_and_missing(ground, tmp_path):
    """A rerun keeps whole maps untouched, remakes torn or missing ones and removes leftovers."""
    folder, recipe = tmp_path / "maps", recipe_of(ground)
    cache(recipe, folder)
    before = files_of(folder)
    names = sorted(name for name in before if name.endswith(".png"))
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes(before[names[1]][2][:-20])
    middle = len(before[names[2]][2]) // 2
    damaged = bytearray(before[names[2]][2])
    damaged[middle] ^= 16
    (folder / names[2]).write_bytes(damaged)
    (folder / f".{names[3]}.4711").write_bytes(b"left behind by a killed job")
    assert f"{NUM_TRAIN - 3} there already, 3 to make" in cache(recipe, folder)
    after = files_of(folder)
    assert after.keys() == before.keys()
    assert all(after[name][2] == before[name][2] for name in before)
    assert all(after[name] == before[name] for name in before if name not in names[:3])
    assert f"{NUM_TRAIN} there already, 0 to make" in cache(recipe, folder)
    assert files_of(folder) == after


def test_cache_maps_rejects_full_disk(ground, tmp_path, monkeypatch):
    """Too little free disk space raises a DataError before any map is written."""
    free = cache_teacher.shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(cache_teacher.shutil, "disk_usage", lambda _: free)
    message = refused(DataError, recipe_of(ground), tmp_path / "maps")
    assert message.startswith(f"{tmp_path / 'maps'}: {NUM_TRAIN} maps need ")
    assert "20.0 kB is free" in message
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["manifest.json"]


def test_cache_maps_estimates_disk_space(ground, tmp_path):
    """The disk estimate is printed first and exceeds the space used by less than 30 %."""
    told = cache(recipe_of(ground, audit="off"), tmp_path / "maps").splitlines()
    (line,) = (line for line in told if line.startswith("Disk: "))
    assert " GB free" in line
    needed_kb = float(line.split()[1])
    used_kb = sum(path.stat().st_size for path in (tmp_path / "maps").glob("*.png")) / 1000
    assert used_kb < needed_kb < 1.3 * used_kb


def test_cache_maps_rejects_other_settings(ground, tmp_path):
    """Maps made with other settings or weights are kept, and the differing key is named."""
    folder = tmp_path / "maps"
    cache(recipe_of(ground), folder)
    before = files_of(folder)
    told = {
        "flip": recipe_of(ground, flip=False),
        "kb_crop": recipe_of(ground) | {"data": recipe_of(ground)["data"] | {"kb_crop": [32, 64]}},
        "max_depth_m": recipe_of(ground, max_depth=60.0),
    }
    for key, recipe in told.items():
        assert f"holds maps of another kind (they differ in {key})" in refused(
            TeacherError, recipe, folder
        )
    torch.manual_seed(2)
    other = build_network(TEACHER)
    write_weights(tmp_path / "other.pth", other.state_dict(), TEACHER, 0)
    message = refused(
        TeacherError, recipe_of(ground), folder, checkpoint=str(tmp_path / "other.pth")
    )
    assert "(they differ in teacher_digest)" in message
    assert message.endswith("give another --out")
    assert files_of(folder) == before


def test_cache_maps_same_weights_other_file(ground, tmp_path):
    """The same weights in a published file count as the same teacher."""
    cache(recipe_of(ground), tmp_path / "maps")
    state = torch.load(ground / "teacher.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": to_published(state)}, tmp_path / "published.pth")
    told = cache(recipe_of(ground), tmp_path / "maps", checkpoint=str(tmp_path / "published.pth"))
    assert f"{NUM_TRAIN} there already" in told


def test_cache_maps_rejects_missing_manifest(ground, tmp_path):
    """A folder of maps without a manifest is rejected and left unchanged."""
    Image.fromarray(np.ones((48, 96), np.uint16)).save(tmp_path / "published.png")
    assert "nobody knows which teacher (no manifest)" in refused(
        TeacherError, recipe_of(ground), tmp_path
    )
    assert [path.name for path in tmp_path.iterdir()] == ["published.png"]


def test_cache_maps_refuses_folder_of_images(ground, tmp_path):
    """Maps are not written beside images, whose names they would have."""
    (tmp_path / "000.jpg").touch()
    assert "holds images (000.jpg, ...); give another --out" in refused(
        TeacherError, recipe_of(ground), tmp_path
    )
    assert [path.name for path in tmp_path.iterdir()] == ["000.jpg"]


def test_cache_maps_rejects_replaced_manifest(ground, tmp_path, monkeypatch):
    """If another job replaces the manifest before it is locked, this job is rejected.

    Both saw no manifest; the other one's takes the place of ours before ours is locked.
    """
    lock = cache_teacher.fcntl.lockf

    def lock_late(file, how):
        teacher_maps.write_manifest(
            tmp_path / "maps", teacher_maps.read_manifest(tmp_path / "maps")
        )
        lock(file, how)

    monkeypatch.setattr(cache_teacher.fcntl, "lockf", lock_late)
    assert "another job is writing maps there" in refused(
        TeacherError, recipe_of(ground), tmp_path / "maps"
    )


def test_teacher_of_recipe_or_own_network(ground, tmp_path):
    """The source is the recipe's teacher, or else its own network; cached maps are rejected."""
    student = recipe_of(ground)
    assert (
        cache_teacher.teacher_settings(Recipe(student), "student.yaml", None).teacher.checkpoint
        == ground / "teacher.pth"
    )
    other = cache_teacher.teacher_settings(
        Recipe(student), "student.yaml", str(ground / "teacher.pth")
    )
    assert other.flip
    assert other.node["network"] == TEACHER
    own = {key: value for key, value in student.items() if key != "teacher"} | {
        "work_dir": str(tmp_path / "run")
    }
    with pytest.raises(
        TeacherError, match="no file at .*run; train one with bin/train.py big.yaml"
    ):
        cache_teacher.teacher_settings(Recipe(own), "big.yaml", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best_abs_rel.pth").write_bytes((ground / "teacher.pth").read_bytes())
    source = cache_teacher.teacher_settings(
        Recipe(own | {"teacher": {"flip": False}}), "big.yaml", None
    )
    assert source.teacher.checkpoint == tmp_path / "run" / "best_abs_rel.pth"
    assert source.flip is False
    assert source.node["network"] == own["network"]
    assert source.resize is None
    with pytest.raises(TeacherError, match="teacher.maps: student.yaml learns from cached maps"):
        cache_teacher.teacher_settings(
            Recipe(student | {"teacher": {"maps": "gt_kd"}}), "student.yaml", None
        )


def test_teacher_of_resize_override(ground, tmp_path):
    """A resize override applies to the recipe's own network, not to its separate teacher."""
    override, resize = ["data.resize={short_side: 32}"], {"resize": {"short_side": 32}}
    student = recipe_of(ground)
    student["data"] |= resize
    own = {key: value for key, value in student.items() if key != "teacher"}
    source = cache_teacher.teacher_settings(
        Recipe(own), "big.yaml", str(ground / "teacher.pth"), override
    )
    assert source.resize == Resize(short_side=32)
    cache_teacher.cache_maps(
        Recipe(own),
        source,
        cache_teacher.frames_of(Recipe(own), "val"),
        tmp_path / "maps",
        CPU,
        io.StringIO(),
    )
    assert teacher_maps.read_manifest(tmp_path / "maps")["resize"] == {"short_side": 32}
    assert (
        cache_teacher.teacher_settings(Recipe(student), "student.yaml", None, override).resize
        is None
    )  # the student's own affair


def test_default_folder_named_after_teacher(ground):
    """The default folder is gt_kd_ and the teacher's recipe, with _val for validation."""
    recipe = recipe_of(ground, recipe="/recipes/teachers/big.yaml")
    assert (
        cache_teacher.default_folder(Recipe(recipe), "student.yaml", "train")
        == ground / "kitti" / "gt_kd_big"
    )
    assert (
        cache_teacher.default_folder(Recipe(recipe), "student.yaml", "val")
        == ground / "kitti" / "gt_kd_big_val"
    )
    del recipe["teacher"]
    assert (
        cache_teacher.default_folder(Recipe(recipe), "recipes/big2.yaml", "train")
        == ground / "kitti" / "gt_kd_big2"
    )


def test_cache_maps_nyu_covers_full_frame(ground, tmp_path):
    """NYU maps cover the full frame and are cropped with the frame when they are read.

    Training cuts NYU's frames; the maps are cut with them, as they are read.
    """
    from tiekd.data.build import build_dataset

    source = (
        ground
        / "kitti"
        / "input"
        / "2000_01_01"
        / "2000_01_01_drive_0001_sync"
        / "image_02"
        / "data"
    )
    (tmp_path / "nyu" / "kitchen").mkdir(parents=True)
    (tmp_path / "nyu" / "kitchen" / "rgb_00001.png").write_bytes(
        (source / "0000000000.png").read_bytes()
    )
    (tmp_path / "nyu" / "nyu_train.txt").write_text("/kitchen/rgb_00001.png None 518.8579\n")
    crop = [5, 45, 7, 107]
    data = {"name": "nyu", "root": str(tmp_path / "nyu"), "nyu_crop": crop, "workers": 0}
    recipe = recipe_of(ground) | {"data": data}
    cache(recipe, tmp_path / "nyu" / "gt_kd")
    levels = levels_of(tmp_path / "nyu" / "gt_kd" / "data_nyu_kitchen_rgb_00001.png")
    assert levels.shape == (64, 128)
    sample = build_dataset(Recipe(recipe | {"teacher": {"maps": "gt_kd"}}).dataset, "train")[0]
    assert sample.teacher_depth.shape == sample.depth.shape == (1, 40, 100)
    np.testing.assert_allclose(
        sample.teacher_depth[0].numpy(), levels[5:45, 7:107] * (80 / 65535), rtol=1e-6
    )


def test_cache_maps_manifest_contents(ground, tmp_path):
    """The manifest states flip, crop, range, normalisation, network and teacher digest."""
    cache(recipe_of(ground), tmp_path / "maps")
    manifest = json.loads((tmp_path / "maps" / "manifest.json").read_text())
    assert manifest["flip"] is True
    assert manifest["kb_crop"] == CROP
    assert manifest["max_depth_m"] == 80.0
    assert len(manifest["teacher_digest"]) == 64
    assert manifest["mean"] == [123.675, 116.28, 103.53]
    assert manifest["teacher_network"]["decoder"] == TEACHER["decoder"]
    assert "pretrained" not in manifest["teacher_network"]["encoder"]


def test_cache_maps_warns_of_empty_maps(ground, tmp_path, monkeypatch):
    """Maps without any depth are counted, and the first one is named."""
    module = types.ModuleType("mine_of_nothing.teacher")
    module.build = lambda: lambda batch: batch.depth.clamp(max=0.5).round() * 0
    monkeypatch.setitem(sys.modules, "mine_of_nothing", types.ModuleType("mine_of_nothing"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    recipe = recipe_of(ground) | {"teacher": {"name": module.__name__, "audit": "off"}}
    told = cache(recipe, tmp_path / "maps")
    first = min(path.name for path in (tmp_path / "maps").glob("*.png"))
    assert f"Warning: {NUM_TRAIN} of {NUM_TRAIN} maps are empty, as the teacher gave no" in told
    assert f"such as for {first}\n" in told
    assert "maps are empty" not in cache(recipe_of(ground, audit="off"), tmp_path / "good")


def test_cache_maps_of_sigma_name_their_source(ground, tmp_path):
    """Maps of a source of sigma hold it, the manifest names it, and another one is refused."""
    sigma = {"from": "flip", "factor": 2.0}
    recipe = recipe_of(ground, flip=True, sigma=sigma)
    told = cache(recipe, tmp_path / "maps")
    assert "Warning: teacher.sigma: nothing shows that flip orders this teacher's errors" in told
    manifest = teacher_maps.read_manifest(tmp_path / "maps")
    assert manifest["sigma"] == {"from": "flip", "factors": [[1.0, 2.0]], "max_m": None}
    # The map is what the teacher gives for the whole frame.
    settings = Recipe(recipe)
    frames = cache_teacher.frames_of(settings, "train")
    teacher = build_teacher(recipe["teacher"], CPU)
    _, batch = next(iter(validation_batches(Subset(frames, [0]), 1, CPU)))
    expected = teacher(batch).sigma[0, 0].numpy()
    step = manifest[teacher_maps.SIGMA_SCALE] / 65535
    levels = levels_of(tmp_path / "maps" / teacher_maps.SIGMA / frames.map_name(0))
    assert expected.max() > 1
    assert np.abs(levels * step - expected).max() <= step
    # A constant needs no maps.
    told = cache(recipe_of(ground, sigma=0.5), tmp_path / "constant")
    assert "its constant sigma isn't in the maps; set teacher.sigma=0.5 beside teacher.maps" in told
    assert not (tmp_path / "constant" / teacher_maps.SIGMA).exists()
    other = recipe_of(ground, flip=True, sigma=sigma | {"factor": 3.0})
    assert "(they differ in sigma)" in refused(TeacherError, other, tmp_path / "maps")
