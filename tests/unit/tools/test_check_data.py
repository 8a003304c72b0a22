"""The data check.

It finds every planted fault and nothing else, cleaned splits work, and nothing of the user's is
lost.
"""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import fake_data, faulty_data, stuck_disk
from support.fake_data import depth_name, image_name, write_png
from support.faulty_data import DROPPED_TRAIN, DROPPED_VAL, PLANTED, TRAIN, found

from tiekd.config.recipe import dump_recipe
from tiekd.data.build import build_dataset
from tiekd.data.checks import Examined
from tiekd.errors import DataError, LaunchError, RecipeError
from tiekd.tools import check_data
from tiekd.tools.check_data import splits_of
from tiekd.training.settings import Recipe


@pytest.fixture
def root(tmp_path) -> Path:
    return faulty_data.make(tmp_path / "data")


def check(recipe, out, which="both", neighbours=2, drop=(), workers=0):
    splits, stream = splits_of(Recipe(recipe), which), io.StringIO()
    check_data.claim(out)
    check_data.check(Recipe(recipe), splits, workers, 60, neighbours, drop, stream)
    return splits, check_data.write(Recipe(recipe), splits, out), stream.getvalue()


def numbers(path: Path) -> list[int]:
    return [int(line.split()[0][-8:-4]) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_check_data_finds_planted_faults_only(root, tmp_path, workers):
    """The report has every planted fault and nothing else, with file, line and advice."""
    _, short, progress = check(faulty_data.recipe(root), tmp_path / "out", workers=workers)
    assert found(tmp_path / "out/report.json") == PLANTED
    assert progress.splitlines()[-1].startswith("frames: 23/23, ")
    assert progress.endswith("eta: 0:00:00\n")
    rows = {line.split("  ")[0]: line.split() for line in short.splitlines()}
    assert rows["missing"][1:3] == ["3", "1"]
    assert rows["missing"][3] == f"{image_name(1)},"
    assert rows["bit depth"][2:4] == ["2", "0"]
    assert rows["neighbour"][1:] == [
        "2",
        "0",
        f"{image_name(18)},",
        image_name(24),
    ]
    text = (tmp_path / "out/report.txt").read_text()
    torn = (
        f"train unreadable: {root}/input/{image_name(2)}: a torn or damaged PNG (60 bytes); copy "
        "it from the original"
    )
    assert f"{torn} again ({root}/kitti_eigen_train.txt:5)\n" in text
    assert f"train duplicate: {image_name(7)}: the same image as {image_name(0)} (" in text
    assert (
        f"train shared: {image_name(8)}: the same image as validation frame {image_name(21)} ("
        in text
    )
    assert f"train neighbour: {image_name(18)}: 2 from validation frame {image_name(20)} (" in text
    assert "half of it is nearer than 0.01953 m, with max_depth 80; is the unit right?" in text
    assert "half of it is farther than 256 m, with max_depth 80" in text
    # Cameras are no faults; they are listed with what was read.
    report = json.loads((tmp_path / "out/report.json").read_text())
    remark = report["splits"]["train"]["remarks"][-1]
    assert remark.startswith("Cameras: intrinsics for 19 of 19 frames, from the data set's own")
    assert "focal length 721.5 pixels" in remark
    assert f"train: {remark}\n" in short
    assert "data.augment.crop: 12x16 is larger than the image, 8x30" in text


def test_check_data_writes_cleaned_splits(root, tmp_path):
    """The cleaned splits keep all lines but the faulty ones, and the originals are unchanged."""
    before = {path: path.read_bytes() for path in root.glob("*.txt")}
    _, short, _ = check(faulty_data.recipe(root), tmp_path / "out")
    assert numbers(tmp_path / "out/train.txt") == [
        frame for frame in TRAIN if frame not in DROPPED_TRAIN
    ]
    assert numbers(tmp_path / "out/val.txt") == [20, 21]
    kept = faulty_data.split_lines(root, "train")
    assert all(line in kept for line in (tmp_path / "out/train.txt").read_text().splitlines())
    assert {path: path.read_bytes() for path in root.glob("*.txt")} == before
    option = (
        f"--set data.train_split={tmp_path}/out/train.txt data.val_split={tmp_path}/out/val.txt"
    )
    assert short.endswith(
        f"Without the {len(DROPPED_TRAIN | DROPPED_VAL)} that can't be used: {option}"
    )
    recipe = faulty_data.recipe(root)
    recipe["data"] |= {
        f"{name}_split": str(tmp_path / f"out/{name}.txt") for name in ("train", "val")
    }
    for split in ("train", "val"):
        data = build_dataset(Recipe(recipe).dataset, split)
        assert all((data[index].depth > 0).any() for index in range(len(data)))
    splits, short, _ = check(recipe, tmp_path / "again", neighbours=0)
    assert {finding.kind for split in splits for finding in split.findings} == {
        "duplicate",
        "shared",
    }
    assert "--set" not in short
    assert not list((tmp_path / "again").glob("*/train.txt"))


def test_check_data_drop_applies_to_training_only(root, tmp_path):
    """The --drop option removes duplicate, shared and neighbour frames from training only."""
    write_png(
        root / "input" / image_name(23), np.array(Image.open(root / "input" / image_name(20)))
    )
    write_png(root / "gt_depth" / depth_name(23), np.full((20, 30), 1000, np.uint16))
    check(faulty_data.recipe(root), tmp_path / "out", drop=("duplicate", "shared", "neighbour"))
    assert ("val", "duplicate", 23) in found(tmp_path / "out/report.json")
    assert numbers(tmp_path / "out/train.txt") == [0, 14, 17], "the first of a duplicate stays"
    assert numbers(tmp_path / "out/val.txt") == [20, 21, 23]


def test_check_data_keeps_empty_frame_with_teacher(root, tmp_path):
    """With a teacher, a training frame without valid depth is kept; a validation frame is not."""
    write_png(root / "gt_depth" / depth_name(21), np.zeros((20, 30), np.uint16))
    check(faulty_data.recipe(root, teacher={"checkpoint": "x"}), tmp_path / "out")
    assert found(tmp_path / "out/report.json") == PLANTED | {("val", "empty", 21)}
    assert 6 in numbers(tmp_path / "out/train.txt")
    assert numbers(tmp_path / "out/val.txt") == [20]


def test_check_data_ignores_depth_outside_crop(tmp_path):
    """A frame whose valid depth lies outside the crop counts as empty."""
    root = fake_data.make(tmp_path / "data", num_frames=2)
    levels = np.zeros((20, 30), np.uint16)
    levels[:4] = 1000
    write_png(root / "gt_depth" / depth_name(1), levels)
    recipe = faulty_data.recipe(root)
    check(recipe, tmp_path / "whole", "train")
    recipe["data"]["kb_crop"] = [16, 30]
    check(recipe, tmp_path / "cut", "train")
    assert found(tmp_path / "whole/report.json") == set()
    assert found(tmp_path / "cut/report.json") == {("train", "empty", 1)}


def test_check_data_checks_teacher_maps(tmp_path):
    """Teacher maps are checked for size, bit depth and existence."""
    root = fake_data.make(tmp_path / "data", num_frames=4)
    for index, pixels in enumerate(
        [np.ones((20, 30), np.uint16), np.ones((9, 9), np.uint16), np.ones((20, 30), np.uint8)]
    ):
        write_png(root / "maps" / image_name(index).replace("/", "_"), pixels)
    recipe = faulty_data.recipe(root, teacher={"maps": "maps"})
    check(recipe, tmp_path / "out", "train")
    assert found(tmp_path / "out/report.json") == {
        ("train", k, i) for k, i in [("size", 1), ("bit depth", 2), ("missing", 3)]
    }


def test_check_data_ends_at_unresponsive_file(root, monkeypatch):
    """A file that a worker can't read in time ends the check with its name."""
    stuck_disk.hold(monkeypatch, root / "input" / image_name(14))
    recipe = faulty_data.recipe(root)
    splits = splits_of(Recipe(recipe), "train")
    with pytest.raises(
        DataError, match=rf"{image_name(14)}.*: not read by a data worker within 1 s"
    ):
        check_data.check(Recipe(recipe), splits, 1, 1, 2, (), io.StringIO())


def test_check_data_claim_never_overwrites(root, tmp_path):
    """An --out folder that holds a result file already, or can't be made, is rejected."""
    for name in ("report.json", "report.txt", "train.txt", "val.txt"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(
            LaunchError,
            match=f"^--out {out}: holds {name} already, which is not overwritten; give anot",
        ):
            check_data.claim(out)
    with pytest.raises(LaunchError, match="can't be made"):
        check_data.claim(root / "kitti_eigen_train.txt" / "out")


def test_run_returns_one_where_something_was_found(root, tmp_path, capsys):
    """The code is the program's; a data set without a finding has 0."""
    sound = fake_data.make(tmp_path / "sound", num_frames=2)
    for place, code in ((root, 1), (sound, 0)):
        recipe = place.parent / f"{place.name}.yaml"
        recipe.write_text(dump_recipe(faulty_data.recipe(place)))
        options = {"split": "train", "workers": 0, "neighbours": 0, "drop": (), "overrides": []}
        options |= {"out": tmp_path / f"out_{place.name}", "data_set": None}
        args = SimpleNamespace(recipe=recipe, **options)
        assert check_data.run(args) == code
        assert ("Nothing was found." in capsys.readouterr().out) == (code == 0)


def test_splits_of_follows_recipe(root, tmp_path, monkeypatch):
    """Only the splits that the recipe uses are checked; data without files is rejected."""
    assert [
        split.name
        for split in splits_of(Recipe(faulty_data.recipe(root, train={"validate": False})), "both")
    ] == ["train"]
    assert [split.name for split in splits_of(Recipe(faulty_data.recipe(root)), "val")] == ["val"]
    check(faulty_data.recipe(root), tmp_path / "out", "val")
    assert found(tmp_path / "out/report.json") == {row for row in PLANTED if row[0] == "val"}
    monkeypatch.setitem(sys.modules, "numbered_data", SimpleNamespace(build=lambda split: [1]))
    recipe = faulty_data.recipe(root)
    recipe["data"] = {"name": "numbered_data.data"}
    monkeypatch.setitem(sys.modules, "numbered_data.data", SimpleNamespace(build=lambda split: [1]))
    with pytest.raises(RecipeError, match="^data.name: numbered_data.data has no files to check"):
        splits_of(Recipe(recipe), "train")


def test_check_data_line_numbers_with_missing_truth(tmp_path):
    """Findings name the split's true line number although other lines have no ground truth."""
    root = fake_data.make(tmp_path / "data", num_frames=5, without=(0, 2))
    (root / "input" / image_name(3)).unlink()
    for teacher, kept in ((None, [1, 4]), ({"checkpoint": "x"}, [0, 1, 2, 4])):
        out = tmp_path / str(teacher is None)
        check(faulty_data.recipe(root, teacher=teacher), out, "train")
        (row,) = json.loads((out / "report.json").read_text())["findings"]
        assert row["where"] == f"{root}/kitti_eigen_train.txt:4"
        assert numbers(out / "train.txt") == kept


def test_check_data_folder_writes_both_lists(tmp_path):
    """For a folder, both cleaned lists are written, even if only one split is checked."""
    root = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for index in range(8):
        write_png(
            root / f"pictures/{index}.png", rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
        )
        write_png(root / f"depth/{index}.png", np.full((20, 30), 3000, np.uint16))
    data = {
        "name": "folder",
        "root": str(root),
        "images": "pictures",
        "depths": "depth",
        "depth_unit": 1000.0,
    }
    recipe = {"network": {"max_depth": 10.0}, "data": data | {"val_fraction": 0.25}}
    val = [frame.name for frame in build_dataset(Recipe(recipe).dataset, "val").frames]
    train = [frame.name for frame in build_dataset(Recipe(recipe).dataset, "train").frames]
    write_png(root / "depth" / train[2], np.ones((20, 30), np.uint8))
    check(recipe, tmp_path / "out", "train", neighbours=0)
    assert (tmp_path / "out/train.txt").read_text().split() == [*train[:2], *train[3:]]
    assert (tmp_path / "out/val.txt").read_text().split() == val
    recipe["data"] |= {
        f"{name}_split": str(tmp_path / f"out/{name}.txt") for name in ("train", "val")
    }
    assert len(build_dataset(Recipe(recipe).dataset, "train")) == 5
    assert len(build_dataset(Recipe(recipe).dataset, "val")) == 2


def mine(root, names):
    """A folder data set with an even slope of 3 to 6 m, and its recipe."""
    for index, name in enumerate(names):
        write_png(root / f"pictures/{name}.png", np.full((20, 30, 3), 5 * index, np.uint8))
        write_png(
            root / f"depth/{name}.png",
            np.linspace(3000, 6000, 600).reshape(20, 30).astype(np.uint16),
        )
    data = {
        "name": "folder",
        "root": str(root),
        "images": "pictures",
        "depths": "depth",
        "depth_unit": 1000.0,
    }
    return {"network": {"max_depth": 10.0}, "data": data | {"val_fraction": 0.25}}


def test_check_data_keeps_non_utf8_names(tmp_path):
    """File names that aren't UTF-8 pass unchanged through reports and cleaned lists."""
    names = [
        os.fsdecode(name) for name in (b"K\xe4fer", b"M\xfcnchen/1", b"\xff", b"4", b"5", b"6")
    ]
    recipe = mine(tmp_path / "mine", names)
    for which, name in (("train", 0), ("val", 0)):
        frame = build_dataset(Recipe(recipe).dataset, which).frames[name]
        Path(frame.depth).write_bytes(b"torn")
    check(recipe, tmp_path / "out", neighbours=0)
    lists = [tmp_path / f"out/{name}.txt" for name in ("train", "val")]
    kept = [line for path in lists for line in path.read_bytes().splitlines()]
    assert len(kept) == 4
    assert set(kept) <= {os.fsencode(f"{name}.png") for name in names}
    recipe["data"] |= {"train_split": str(lists[0]), "val_split": str(lists[1])}
    kept_again = [
        frame.name
        for which in ("train", "val")
        for frame in build_dataset(Recipe(recipe).dataset, which).frames
    ]
    assert sorted(map(os.fsencode, kept_again)) == sorted(kept)
    (tmp_path / "out/report.txt").read_text(encoding="utf-8")
    assert {
        row["frame"] for row in json.loads((tmp_path / "out/report.json").read_text())["findings"]
    } <= {f"{name}.png" for name in names}


def test_check_data_warns_of_unmatched_files(tmp_path):
    """Images and depth maps without a partner are reported as warnings."""
    recipe = mine(tmp_path / "mine", "12345678")
    splits, short, _ = check(recipe, tmp_path / "out", neighbours=0)
    assert short.endswith("Nothing was found.")
    assert not any(split.frames.notes for split in splits)
    (tmp_path / "mine/depth/3.png").rename(tmp_path / "mine/depth/depth_3.png")
    splits, short, _ = check(recipe, tmp_path / "again", neighbours=0)
    assert short.count("WARNING: 1 of 8 depth maps in ") == 1
    assert "match no image, such as depth_3.png; depth" in short
    assert short.count("WARNING: 1 of 8 images in ") == 1
    assert "Nothing was found" not in short
    report = json.loads((tmp_path / "again/report.json").read_text())
    assert "match no depth map, such as 3.png" in report["splits"]["train"]["remarks"][1]


def test_check_data_reports_units_and_exif(tmp_path):
    """The report states the depth unit and the images that EXIF rotates."""
    recipe = mine(tmp_path / "mine", "12345678")
    exif = Image.Exif()
    exif[0x0112] = 3
    name = build_dataset(Recipe(recipe).dataset, "train").frames[2].name
    photo = Image.open(tmp_path / "mine/pictures" / name)
    photo.save(tmp_path / "mine/pictures" / name, exif=exif)
    _, short, _ = check(recipe, tmp_path / "out", neighbours=0)
    assert (
        "train: 6 depth maps: 16-bit PNG is taken as 1000 levels a metre (data.depth_unit)\n"
        in short
    )
    told = (
        f"train: 1 image(s) are turned by their EXIF orientation, such as {name}: depth maps and "
        "intrinsics must be"
    )
    assert told in short
    assert short.endswith("Nothing was found.")


def test_check_data_names_exif_size_mismatch(tmp_path):
    """A depth map that fits only the unrotated image is reported with its EXIF orientation."""
    recipe = mine(tmp_path / "mine", "12345678")
    frame = build_dataset(Recipe(recipe).dataset, "train").frames[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(frame.image).save(frame.image, exif=exif)
    check(recipe, tmp_path / "out", neighbours=0)
    (row,) = json.loads((tmp_path / "out/report.json").read_text())["findings"]
    assert row["kind"] == "size"
    assert row["frame"] == frame.name
    assert row["message"] == (
        f"{frame.depth}: 20x30 does not fit its image {frame.name}, 30x20 once upright: it "
        "fits the pixels as stored, which the image's EXIF orientation (6) turns; turn it "
        "likewise, or remove the orientation from the image's EXIF"
    )


def test_check_data_writes_no_empty_split(tmp_path):
    """If no frame would be left, no cleaned split is written and the report says why."""
    root = fake_data.make(tmp_path / "data", num_frames=2)
    (root / "input").rename(root / "elsewhere")
    _, short, _ = check(faulty_data.recipe(root), tmp_path / "out")
    assert "No cleaned split is written, for no frame would be left in train.txt, val.txt" in short
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.json",
        "report.txt",
    ]


def test_check_data_reports_median_depths(tmp_path):
    """The report states the median depths of the frames and their 90 % range."""
    root = fake_data.make(tmp_path / "data", num_frames=5)
    _, short, _ = check(faulty_data.recipe(root), tmp_path / "out", "val")
    assert short.startswith(
        "val: 5 frames, the frames' median depths are 3 m (90 % of them 1.2 to 4.8 m)\n"
    )
    assert short.endswith("\nNothing was found.")


def test_check_data_escapes_control_characters_of_names(tmp_path):
    """Names are escaped in the summary and the report, which people read on a terminal."""
    recipe = mine(tmp_path / "mine", ["a\x1b[2J", "b"])
    recipe["data"]["val_fraction"] = 0.0
    (tmp_path / "mine/pictures/a\x1b[2J.png").write_bytes(b"")
    _, short, _ = check(recipe, tmp_path / "out", which="train")
    text = (tmp_path / "out/report.txt").read_text()
    for told in (short, text):
        assert r"a\x1b[2J.png" in told
        assert "\x1b" not in told


def test_check_data_names_an_enormous_working_size(tmp_path):
    """A frame whose working size is refused is a fault of its own, also among validation frames."""
    recipe = mine(tmp_path / "mine", ["a", "b"])
    recipe["data"] |= {"val_fraction": 0.0, "resize": {"short_side": 64}}
    write_png(tmp_path / "mine/pictures/a.png", np.zeros((1, 400, 3), np.uint8))
    write_png(tmp_path / "mine/depth/a.png", np.full((1, 400), 4000, np.uint16))
    recipe = Recipe(recipe)
    frames = build_dataset(recipe.dataset, "train")
    for augment in (None, recipe.augment):
        faults = Examined(frames, augment, recipe.resize).facts([0])[0].faults
        assert [kind for kind, _ in faults] == ["size"]
        assert faults[0][1].startswith("a.png: 1x400 would be 64x25600")
