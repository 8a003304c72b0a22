"""A folder of a user's own images.

How files are paired and split, what trains without depth, and one line for each error.
"""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.fake_data import write_png
from support.frames import folder_frames

from tiekd.config.build import build, settings
from tiekd.config.recipe import load_recipe
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset
from tiekd.data.datasets import folder
from tiekd.data.loading.loader import training_batches, validation_batches
from tiekd.data.loading.sampler import MicroBatches, iterations_per_epoch, size_groups
from tiekd.errors import DataError, RecipeError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.training.settings import Recipe

CPU = torch.device("cpu")
NAMES = ("a/1.jpg", "a/2.JPEG", "b/c/1.png", "d.jpg")


def write_picture(path, height=12, width=16, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(
        path, format="JPEG" if path.suffix != ".png" else "PNG"
    )


@pytest.fixture
def root(tmp_path):
    """Four images in nested folders, with depth of 1.5 m.

    Depth is PNG in millimetres, and for a/2 NPY in metres.
    """
    for index, name in enumerate(NAMES):
        write_picture(tmp_path / "images" / name, level=40 * index)
        depth = tmp_path / "depths" / Path(name).with_suffix(".png")
        if name == "a/2.JPEG":
            depth.parent.mkdir(parents=True, exist_ok=True)
            np.save(depth.with_suffix(".npy"), np.full((12, 16), 1.5))
        else:
            write_png(depth, np.full((12, 16), 1500, np.uint16))
    return tmp_path


def make(root, split="train", **options):
    return folder_frames(
        **{
            "images": "images",
            "split": split,
            "max_depth": 10.0,
            "root": str(root),
            "val_fraction": 0.0,
        }
        | options
    )


def names(data):
    return [frame.name for frame in data.frames]


def refused(act, kind=DataError):
    with pytest.raises(kind) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folder_pairs_by_path_without_suffix(root):
    """Images and depth maps are paired by their path without suffix."""
    write_png(root / "images" / ".hidden.png", np.zeros((3, 3, 3), np.uint8))
    (root / "images" / "notes.txt").write_text("")
    data = make(root, depths="depths", depth_unit=1000.0)
    assert names(data) == list(NAMES)
    assert data.num_skipped == 0
    for index, name in ((0, "png"), (2, "png"), (3, "png")):
        assert (data[index].depth == 1.5).all(), name
    np.save(root / "depths/a/2.npy", np.full((12, 16), 1500, np.uint16))
    assert (data[1].depth == 1.5).all()
    assert data[1].image.float().mean() == pytest.approx(40, abs=2)
    assert data.map_name(2) == "b_c_1.png"
    assert data.map_name(0) == "a_1.png"


def test_folder_npy_is_metres_without_unit(root):
    """Float NPY depth is in metres unless a unit is given; integer NPY needs one."""
    (root / "depths/a/1.png").unlink()
    for name in ("b/c/1.png", "d.png"):
        (root / "depths" / name).unlink()
    measured = np.full((12, 16), 2.25, np.float32)
    measured[0, :4] = np.nan, np.inf, -1, 0
    np.save(root / "depths/a/2.npy", measured)
    data = make(root, depths="depths", unmatched="allow")
    assert names(data) == ["a/2.JPEG"]
    assert data.num_skipped == 3
    depth = data[0].depth
    assert depth.dtype == torch.float32
    assert depth.shape == (1, 12, 16)
    assert (depth[0, 0, :4] == 0).all()
    assert (depth[0, 1:] == 2.25).all()
    some = {"depths": "depths", "unmatched": "allow"}
    assert (make(root, **some, depth_unit=100.0)[0].depth[0, 1:] == 2.25).all()
    assert (make(root, **some, float_depth_unit=100.0)[0].depth[0, 1:] == 2.25 / 100).all()
    assert (make(root, **some, invalid=[2.25])[0].depth == 0).all()
    np.save(root / "depths/a/2.npy", np.full((12, 16), 2250, np.int32))
    assert "a/2.npy: int32 without a unit; say how many make a metre" in refused(lambda: data[0])


def test_folder_without_depth_needs_teacher(root):
    """A folder without depth trains with a teacher and is refused without one."""
    data = make(root, needs_ground_truth=False)
    assert names(data) == list(NAMES)
    assert (data[0].depth == 0).all()
    assert data[0].depth.shape == (1, 12, 16)
    message = refused(lambda: make(root), RecipeError)
    assert "training without a teacher needs ground truth; give data.depths or a teacher" in message
    assert "give data.depths or --set train.validate=false" in refused(
        lambda: make(root, "val"), RecipeError
    )
    (root / "depths/d.png").unlink()
    some = {"depths": "depths", "depth_unit": 1000.0}
    assert len(make(root, **some)) == 3
    assert make(root, **some).num_skipped == 1
    assert len(make(root, needs_ground_truth=False, **some)) == 4


def test_folder_reads_teacher_maps(root):
    """Cached teacher maps are read, and a missing or misshapen one is refused by name."""
    levels = np.full((12, 16), 65535, np.uint16)
    write_png(root / "maps/b_c_1.png", levels)
    data = make(root, needs_ground_truth=False, maps="maps")
    assert (data[2].teacher_depth == 10).all()
    assert f"{root / 'maps' / 'a_1.png'}: no such teacher map; make" in refused(lambda: data[0])
    write_png(root / "maps/b_c_1.png", levels[1:])
    assert "teacher map of 11x16 for an image of 12x16; make the maps" in refused(lambda: data[2])


def test_folder_intrinsics_given_or_nan(root):
    """The intrinsics are those that the recipe gives, or NaN."""
    camera = make(root, needs_ground_truth=False, intrinsics=(50.0, 51.0, 7.0, 5.0))[0].intrinsics
    assert camera.tolist() == [[50, 0, 7], [0, 51, 5], [0, 0, 1]]
    assert make(root, needs_ground_truth=False)[0].intrinsics[:2].isnan().sum() == 4


def test_folder_split_lists_and_remainder(root):
    """A split file lists names; the split without a file gets the remaining frames."""
    (root / "val.txt").write_text("/a/2.JPEG\n\nd.jpg\n")
    (root / "train.txt").write_text("a/1.jpg\n")
    any_frames = {"needs_ground_truth": False}
    val = {"val_split": "val.txt"} | any_frames
    assert names(make(root, "val", **val)) == ["a/2.JPEG", "d.jpg"]
    assert names(make(root, "train", **val)) == ["a/1.jpg", "b/c/1.png"]
    train = {"train_split": str(root / "train.txt")} | any_frames
    assert names(make(root, "train", **train)) == ["a/1.jpg"]
    assert len(make(root, "val", **train)) == 3
    assert names(make(root, "train", **train, val_split="val.txt")) == ["a/1.jpg"]
    assert names(make(root, "val", **train, val_split="val.txt")) == ["a/2.JPEG", "d.jpg"]
    (root / "val.txt").write_text("a/1.jpg\nelsewhere/x.jpg\n")
    message = refused(lambda: make(root, **val))
    assert (
        f"{root / 'val.txt'}:2: no image elsewhere/x.jpg in {root / 'images'}; "
        "a line is a path such as" in message
    )
    (root / "val.txt").write_text("../x.jpg\n")
    assert "val.txt:1: ../x.jpg leads out of the data root" in refused(lambda: make(root, **val))
    (root / "val.txt").write_text("\n".join(NAMES))
    assert "none of its 4 images is left for train" in refused(lambda: make(root, **val))


def test_folder_val_fraction_by_name_with_depth(tmp_path):
    """`val_fraction` holds back a stable choice by name, of frames with ground truth only."""
    for index in range(40):
        write_picture(tmp_path / "images" / f"{index:03d}.jpg")
        if index < 30:
            write_png(tmp_path / "depths" / f"{index:03d}.png", np.ones((12, 16), np.uint16))
    options = {
        "depths": "depths",
        "depth_unit": 1000.0,
        "val_fraction": 0.2,
        "needs_ground_truth": False,
    }
    train, val = (set(names(make(tmp_path, split, **options))) for split in ("train", "val"))
    assert len(val) == 6
    assert len(train) == 34
    assert not train & val
    assert max(val) < "030.jpg"
    assert set(names(make(tmp_path, "val", **options))) == val
    assert len({int(name[:3]) // 10 for name in val}) == 3  # from all over the set
    write_picture(tmp_path / "images" / "new.jpg")
    assert set(names(make(tmp_path, "val", **options))) == val
    assert len(make(tmp_path, "val", **options | {"val_fraction": 0.001})) == 1
    assert make(tmp_path, "train", **options | {"needs_ground_truth": True}).num_skipped == 11
    nothing_held_back = make(tmp_path, "train", val_fraction=0.2, needs_ground_truth=False)
    assert len(nothing_held_back) == 41


def test_hash_picked_tells_equal_beginnings_apart(monkeypatch):
    """The frames with the smallest hashes are chosen, also if some hashes begin alike."""
    frames = {f"{number}.png": None if number % 3 == 0 else "x" for number in range(300)}

    def wanted(digest):
        known = [name for name, depth in frames.items() if depth]
        return set(sorted(known, key=lambda name: digest(name.encode()).digest())[:20])

    real = hashlib.sha256
    assert folder._hash_picked(frames, 0.1) == wanted(real)

    def alike(data):
        return SimpleNamespace(digest=lambda: b"12345678" + real(data).digest())

    monkeypatch.setattr(folder.hashlib, "sha256", alike)
    assert folder._hash_picked(frames, 0.1) == wanted(alike) == wanted(real)
    assert folder._hash_picked({"a": None}, 0.1) == folder._hash_picked(frames, 0.0) == set()


def test_folder_held_out_replaces_val_fraction(root):
    """`held_out` replaces the choice by `val_fraction` but not a user's split file."""
    data = {
        "name": "folder",
        "root": str(root),
        "images": "images",
        "depths": "depths",
        "depth_unit": 1000,
    }
    recipe = {
        "network": {"max_depth": 10.0},
        "data": data | {"val_fraction": 0.5},
        "train": {"validate": False},
    }
    assert names(build_dataset(Recipe(recipe).dataset, "train")) == list(NAMES)
    # What an evaluation of such a run sees.
    picked = names(build_dataset(Recipe(recipe).dataset, "val"))
    assert len(picked) == 2
    recipe["train"] = {}
    assert set(names(build_dataset(Recipe(recipe).dataset, "train"))) == set(NAMES) - set(picked)
    held_out = ["d.jpg", "gone.jpg"]
    assert names(build_dataset(Recipe(recipe).dataset, "val", held_out=held_out)) == ["d.jpg"]
    assert names(build_dataset(Recipe(recipe).dataset, "train", held_out=held_out)) == list(
        NAMES[:3]
    )
    (root / "val.txt").write_text("a/1.jpg\n")
    recipe["data"]["val_split"], recipe["train"] = "val.txt", {"validate": False}
    assert names(build_dataset(Recipe(recipe).dataset, "train")) == list(
        NAMES[1:]
    )  # a list of the user's stays out


def against_teacher(root: Path, **data) -> Recipe:
    """Returns a recipe whose evaluations compare with cached maps; there is no ground truth."""
    data = {"name": "folder", "root": str(root), "images": "images", **data}
    recipe = {"network": {"max_depth": 10.0}, "data": data, "teacher": {"maps": "maps"}}
    return Recipe(recipe | {"evaluation": {"against": "teacher"}})


def test_folder_against_teacher_holds_out_folders(root):
    """Without ground truth whole folders are held out, and validation frames have their maps."""
    for name in NAMES:
        write_png(root / "maps" / (name.replace("/", "_").rpartition(".")[0] + ".png"), levels())
    data = against_teacher(root, val_fraction=0.25).dataset
    val = build_dataset(data, "val")
    assert len(val) in (1, 2)
    assert len({Path(name).parent for name in names(val)}) == 1
    assert names(build_dataset(data, "train")) == [n for n in NAMES if n not in names(val)]
    assert val[0].depth.max() == 0
    assert val[0].teacher_depth.max() == pytest.approx(10.0 * 6553 / 65535)
    assert val.remark == ""
    # Ground truth of the same recipe is still needed, and picked by frame.
    plain = against_teacher(root, depths="depths", depth_unit=1000).node | {"evaluation": {}}
    assert build_dataset(Recipe(plain).dataset, "val").maps is None


def levels() -> np.ndarray:
    return np.full((12, 16), 6553, np.uint16)


def test_folder_against_teacher_cuts_one_sequence(tmp_path):
    """Of a flat folder the end is held out, with a gap that neither split has, and says so."""
    for number in range(40):
        write_picture(tmp_path / "images" / f"{number}.png")
    (tmp_path / "maps").mkdir()
    data = against_teacher(tmp_path).dataset
    train, val = (build_dataset(data, split) for split in ("train", "val"))
    assert set(names(val)) == {f"{number}.png" for number in range(36, 40)}
    assert set(names(train)) == {f"{number}.png" for number in range(34)}
    assert val.remark == "same sequence, optimistic"
    assert "same sequence, optimistic" in val.notes[-1]
    assert not train.notes
    # A resumed run keeps the frames of its start, and so the gap; maps are made of all frames.
    held_out = names(val)
    assert names(build_dataset(data, "train", held_out=held_out)) == names(train)
    assert len(build_dataset(data, "train", held_out=())) == 40


def test_folder_single_image_needs_no_validate(root):
    """A single image trains only without validation, and the error names `--no-validate`."""
    for name in NAMES[:3]:
        (root / "images" / name).unlink()
    data = {
        "name": "folder",
        "root": str(root),
        "images": "images",
        "depths": "depths",
        "depth_unit": 1000,
    }
    recipe = {"network": {"max_depth": 10.0}, "data": data}
    refusal = refused(lambda: build_dataset(Recipe(recipe).dataset, "train"))
    assert refusal.endswith(
        "is left for train; change the splits, or train on all of them with --no-validate"
    )
    assert names(
        build_dataset(Recipe(recipe | {"train": {"validate": False}}).dataset, "train")
    ) == ["d.jpg"]


def spoil_nothing_in_common(root):
    for path in (root / "depths").rglob("*.*"):
        path.rename(path.with_name(f"depth_{path.name}"))


def spoil_pictures_of_one_name(root):
    write_picture(root / "images/a/1.png")


def spoil_depths_of_one_name(root):
    np.save(root / "depths/d.npy", np.ones((12, 16)))


def spoil_joined_names(root):
    write_picture(root / "images/b_c/1.jpg")


def spoil_all_pictures(root):
    for path in [path for path in (root / "images").rglob("*") if path.is_file()]:
        path.rename(path.with_suffix(".bmp"))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            spoil_nothing_in_common,
            "; depth maps seem to be named depth_<image>. A depth map is named like its image",
        ),
        (spoil_pictures_of_one_name, "data.images: a/1."),
        (spoil_depths_of_one_name, "data.depths: d."),
        (
            spoil_joined_names,
            "b/c/1.png and b_c/1.jpg would share the teacher map b_c_1.png; rename one",
        ),
        (spoil_all_pictures, "data.images: no .jpg, .jpeg, .png files in or below"),
    ],
)
def test_folder_ambiguous_files_are_refused(root, spoil, line):
    """Files that can't be paired, or that share a name, are refused by name."""
    spoil(root)
    assert line in refused(lambda: make(root, depths="depths", depth_unit=1000.0))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"depths": "depths"}, "data.depth_unit: needed, for a PNG such as"),
        (
            {"depths": "depths", "depth_unit": 0.001},
            "data.depth_unit: got 0.001; it is how many levels make a metre",
        ),
        (
            {"float_depth_unit": 0.5},
            "data.float_depth_unit: got 0.5; it is how many levels make a metre",
        ),
        ({"invalid": 65535}, "data.invalid: got 65535; it must be a list, each a number"),
        (
            {"depths": "depths", "unmatched": "no"},
            "data.unmatched: got 'no'; allowed: refuse, allow",
        ),
        ({"val_fraction": 1.0}, "data.val_fraction: got 1.0; it must be from 0 to below 1"),
        (
            {"intrinsics": [50.0, 50.0]},
            "data.intrinsics: got [50.0, 50.0]; it must be [focal_x, focal_y, centre_x, centre_y]",
        ),
        ({"depth": "depths"}, "data (folder): unknown key 'depth'; did you mean 'depths'?"),
        ({"images": 3}, "data.images: got 3; it must be text"),
        ({"images": None}, "data (folder): needs images"),
    ],
)
def test_folder_wrong_option_is_one_line(root, arguments, line):
    """A wrong dataset option raises a `RecipeError` of one line."""
    node = {"name": "folder", "root": str(root), "images": "images"} | arguments
    node = {key: value for key, value in node.items() if value is not None}
    context = {"split": "train", "max_depth": 10.0, "maps": None, "needs_ground_truth": False}
    assert line in refused(
        lambda: build(node, "tiekd.data.datasets", "data", **context), RecipeError
    )


def test_folder_missing_or_torn_files_are_named(root):
    """A missing folder, a torn depth file and a misshapen depth map are named."""
    assert "data.root: no folder at" in refused(lambda: make(root / "x"))
    assert f"data.images: no folder at {root / 'x'}" in refused(
        lambda: make(root, images="x", needs_ground_truth=False)
    )
    assert "data.depths: no folder at" in refused(lambda: make(root, depths="x"))
    data = make(root, depths="depths", depth_unit=1000.0)
    whole = (root / "depths/a/2.npy").read_bytes()
    (root / "depths/a/2.npy").write_bytes(whole[:200])
    assert str(root / "depths/a/2.npy") in refused(lambda: data[1])
    write_png(root / "depths/d.png", np.ones((12, 15), np.uint16))
    assert "d.png: 12x15 does not fit its image d.jpg, 12x16" in refused(lambda: data[3])


def test_folder_links_and_unlistable_folders(root, monkeypatch):
    """Links to known folders are skipped and noted; an unlistable one is an error or skipped."""
    some = {"depths": "depths", "depth_unit": 1000.0}
    (root / "images/again").symlink_to("b")
    (root / "images/a/up").symlink_to("..")
    data = make(root, **some)
    assert names(data) == list(NAMES)
    told = (
        f"data.images: 2 link(s) in {root}/images lead to folders that are read anyway, "
        "such as again, and"
    )
    assert data.notes == [f"{told} aren't followed"]
    scandir, barred = os.scandir, str(root / "images/b")

    def denied(place):
        if str(place) == barred:
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    told = (
        f"{root}/images/b: can't be listed (Permission denied); change its permissions, move it "
        "out of data.images"
    )
    assert refused(lambda: make(root, **some)).startswith(told)
    data = make(root, **some, on_error="skip")
    assert names(data) == [name for name in NAMES if not name.startswith("b/")]
    assert data.notes[0].startswith(
        "data.images: 1 folder(s) can't be listed and are left out, such as "
    )
    barred = str(root / "images")
    assert "or give another folder (data.images)" in refused(
        lambda: make(root, **some, on_error="skip")
    )


def test_folder_names_with_blanks_commas_newlines(root):
    """Blanks and commas in names are read; a line break in a name is refused."""
    for name in (" a .jpg", "x,y.jpg"):
        write_picture(root / "images" / name)
    (root / "val.txt").write_text(" a .jpg\nx,y.jpg \n")
    assert names(make(root, "val", val_split="val.txt", needs_ground_truth=False)) == [
        " a .jpg",
        "x,y.jpg",
    ]
    (root / "val.txt").write_text("d.jpg,depths/d.png\n")
    told = refused(lambda: make(root, "val", val_split="val.txt", needs_ground_truth=False))
    assert "no image d.jpg,depths/d.png in" in told
    assert "a line is one path and nothing else, such as" in told
    write_picture(root / "images/two\nlines.jpg")
    told = refused(lambda: make(root, needs_ground_truth=False))
    assert (
        told == f"data.images: 'two\\nlines.jpg' in {root}/images has a line break in its name; "
        "rename it"
    )


def test_folder_invalid_levels_have_no_depth(root):
    """The level 65535 and those in `invalid` count as no depth."""
    levels = np.full((12, 16), 65535, np.uint16)
    levels[0], levels[1], levels[2] = 1500, 7, 0
    write_png(root / "depths/d.png", levels)
    depth = make(root, depths="depths", depth_unit=1000.0, invalid=[7])[3].depth
    assert (depth[0, 0] == 1.5).all()
    assert (depth[0, 1:] == 0).all()
    assert (make(root, depths="depths", depth_unit=1000.0)[3].depth[0, 1] == 0.007).all()


@pytest.fixture
def mixed(tmp_path):
    """Ten images: six of 12x16, three of 30x20, one of 24x48, each with a slanted depth."""
    for index in range(10):
        height, width = (12, 16) if index < 6 else (30, 20) if index < 9 else (24, 48)
        write_picture(tmp_path / "images" / f"{index}.png", height, width, level=index)
        np.save(
            _made(tmp_path / "depths") / f"{index}.npy",
            np.tile(np.linspace(1, 2, width), (height, 1)),
        )
    return tmp_path


def _made(path):
    path.mkdir(exist_ok=True)
    return path


def test_folder_mixed_sizes_batch_with_keep_aspect(mixed):
    """Images of all sizes train in one batch with `keep_aspect`."""
    data = make(mixed, depths="depths")
    augment = Augment(rotate_p=0, crop=(20, 24), sizes="keep_aspect", colour_p=0)
    batches = list(training_batches(data, MicroBatches(10, 5, range(2), seed=0), augment, CPU))
    assert [batch.image.shape for batch in batches] == [(5, 3, 20, 24)] * 2
    assert sorted(name for batch in batches for name in batch.names) == sorted(names(data))
    assert all(batch.depth.min() >= 1 and batch.depth.max() <= 2 for batch in batches)


def test_folder_bucket_batches_have_one_size(mixed):
    """With `bucket` each batch holds images of one size, and an epoch all of them."""
    data, augment = make(mixed, depths="depths"), Augment(sizes="bucket")
    groups = size_groups(data)
    assert iterations_per_epoch(len(data), 2, groups) == 3 + 2 + 1
    batches = list(
        training_batches(data, MicroBatches(10, 2, range(6), seed=0, groups=groups), augment, CPU)
    )
    assert (
        sorted(tuple(batch.image.shape[2:]) for batch in batches)
        == [(12, 16)] * 3 + [(24, 48)] + [(30, 20)] * 2
    )
    assert {name for batch in batches for name in batch.names} == set(names(data))


def test_folder_image_smaller_than_crop_is_named(mixed):
    """An image that is smaller than the crop raises a `DataError` with its name."""
    data = make(mixed, depths="depths")
    with pytest.raises(
        DataError, match=r"\d.png: data.augment.crop: 20x20 is larger than the image, 12x16"
    ):
        list(
            training_batches(
                data, MicroBatches(10, 5, range(2), seed=0), Augment(crop=(20, 20)), CPU
            )
        )


def test_folder_validation_keeps_image_sizes(mixed):
    """Validation batches have the images at their own sizes."""
    data = make(mixed, depths="depths")
    shapes = [tuple(batch.image.shape[2:]) for _, batch in validation_batches(data, 1, CPU)]
    assert shapes == data.image_sizes() == [(12, 16)] * 6 + [(30, 20)] * 3 + [(24, 48)]


def test_folder_base_recipe_needs_folders_only(root):
    """The base recipe for folders builds both splits from `data.root` alone."""
    recipe = load_recipe(
        Path(__file__).parents[4] / "model_configs/_base_/datasets/folder.yaml",
        [f"data.root={root}"],
    )
    assert (
        settings({"data.augment": recipe["data"]["augment"]}, "data.augment", Augment).sizes
        == "keep_aspect"
    )
    assert settings(recipe, "evaluation", EvaluationSettings).crop == "none"
    node = {
        key: value for key, value in recipe["data"].items() if key not in ("augment", "workers")
    }
    context = {"max_depth": 10.0, "maps": None, "needs_ground_truth": True}
    train, val = (
        build(node, "tiekd.data.datasets", "data", split=split, **context)
        for split in ("train", "val")
    )
    assert len(train) == 3
    assert len(val) == 1


@pytest.mark.skipif(
    "TIEKD_REAL_DATA" not in os.environ, reason="TIEKD_REAL_DATA names no folder with real frames"
)
def test_folder_real_images_of_two_sizes():
    """A folder of real KITTI images has 21 frames of two sizes."""
    data = folder_frames(
        "kitti/input", "train", 80.0, needs_ground_truth=False, root=os.environ["TIEKD_REAL_DATA"]
    )
    assert len(data) == 21
    assert set(data.image_sizes()) == {(375, 1242), (370, 1224)}
