"""Filling the folder of decoded frames: what is made, kept, reported and refused."""

import io
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from support.decoded_frames import arrays, fill, make_root, recipe_of, refused
from support.fake_data import depth_name, image_name, write_png

from tiekd.data import decoded_cache
from tiekd.errors import DataError, RecipeError
from tiekd.tools import cache_frames
from tiekd.training.settings import Recipe


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "kitti")


@pytest.mark.parametrize("workers", [0, 2])
def test_fill_decodes_each_file_once(root, workers):
    """Each file is decoded once, after the counts and disk need are printed."""
    told = fill(root, workers)
    assert told[0] == f"Decoded: 15 files, 0 there already, 15 to make in {root / 'decoded'}"
    assert told[1].startswith("Disk: 0.000 GB needed, ")
    assert told[1].endswith(" GB free")
    assert told[2].startswith("files: 15/15, ")
    assert len(told) == 3
    assert len(arrays(root)) == 15
    cache = decoded_cache.Decoded(root / "decoded", root)
    assert all(
        cache.holds(source, thoroughly=True)
        for source in cache_frames.sources_of(Recipe(recipe_of(root)), ("train",))
    )


def test_sources_of_warns_once_of_unmatched(tmp_path):
    """An unmatched image gives one warning although two splits are read."""
    for folder, count in (("images", 8), ("depths", 7)):
        (tmp_path / folder).mkdir()
        for index in range(count):
            write_png(tmp_path / folder / f"{index}.png", np.full((20, 30), index + 1, np.uint16))
    data = {
        "name": "folder",
        "root": str(tmp_path),
        "images": "images",
        "depths": "depths",
        "augment": {},
    }
    data |= {"depth_unit": 256, "val_fraction": 0.5}
    out = io.StringIO()
    cache_frames.sources_of(
        Recipe({"network": {"max_depth": 80.0}, "data": data}), ("train", "val"), out
    )
    (told,) = out.getvalue().splitlines()
    assert told.startswith("Warning: ")
    assert "1 of 8" in told
    assert "7.png" in told


def test_fill_single_split(root):
    """A single split decodes only its own files."""
    lines = (root / "kitti_eigen_test.txt").read_text().splitlines(keepends=True)
    (root / "kitti_eigen_test.txt").write_text("".join(lines[:2]))
    assert fill(root, splits=("val",))[0].startswith("Decoded: 4 files, ")


def test_fill_redecodes_changed_files_only(root):
    """A rerun keeps decoded files untouched and redoes only those whose source changed."""
    fill(root)
    before = arrays(root)
    assert fill(root)[0] == f"Decoded: 15 files, 15 there already, 0 to make in {root / 'decoded'}"
    assert arrays(root) == before
    write_png(root / "input" / image_name(3), np.full((20, 30, 3), 77, np.uint8))
    assert "14 there already, 1 to make" in fill(root)[0]
    after = arrays(root)
    assert sum(after[name] != before[name] for name in after) == 1
    assert np.unique(np.load(root / "decoded" / "input" / f"{image_name(3)}.npy")).tolist() == [77]


def test_fill_redecodes_torn_files(root):
    """Truncated decoded files are redone, and leftover partial files are removed."""
    fill(root)
    before = {name: row[2] for name, row in arrays(root).items()}
    path = root / "decoded" / "gt_depth" / f"{depth_name(0)}.npy"
    path.write_bytes(path.read_bytes()[:-7])
    leaving = path.with_name(f".{path.name}.99999.partial")
    leaving.write_bytes(b"half")
    assert "14 there already, 1 to make" in fill(root)[0]
    assert {name: row[2] for name, row in arrays(root).items()} == before
    assert not leaving.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_fill_verify_finds_flipped_byte(root, workers):
    """A flipped byte in a decoded file is found and repaired only with verify."""
    fill(root)
    before = {name: row[2] for name, row in arrays(root).items()}
    path = root / "decoded" / "input" / f"{image_name(2)}.npy"
    content = bytearray(path.read_bytes())
    content[500] ^= 4
    path.write_bytes(content)
    assert "15 there already" in fill(root, workers)[0]
    told = fill(root, workers, verify=True)
    assert told[0].startswith("verified: 15/15, ")
    assert "14 there already, 1 to make" in told[1]
    assert {name: row[2] for name, row in arrays(root).items()} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_fill_names_undecodable_files(root, workers):
    """Files that can't be decoded are named in an error, and all others are decoded."""
    torn, lost = root / "input" / image_name(1), root / "gt_depth" / depth_name(4)
    torn.write_bytes(torn.read_bytes()[:60])
    lost.unlink()
    out = io.StringIO()
    recipe = recipe_of(root)
    sources = cache_frames.sources_of(Recipe(recipe), ("train", "val"))
    with pytest.raises(DataError) as error:
        cache_frames.fill(Recipe(recipe), sources, root / "decoded", workers, False, out)
    assert str(error.value).startswith(
        "2 of 15 files can't be decoded; all others are. bin/check_data.py"
    )
    told = out.getvalue().splitlines()
    assert f"{torn}: a torn or damaged PNG (60 bytes); copy it from the original again" in told
    assert any(line.startswith(f"{lost}: no such file") for line in told)
    assert len(arrays(root)) == 13


def test_fill_rejects_full_disk(root, monkeypatch):
    """Too little free disk space is rejected before anything is written."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 100_000))
    told = refused(root)
    assert (
        "15 decoded files need 0.000 GB, 0.000 GB is free; free some space, "
        "or give a folder on another" in told
    )
    assert arrays(root) == {}


def test_fill_rejects_unwritable_folder(root):
    """A cache path that can't be a folder raises a one-line error and stays unchanged."""
    (root / "decoded").write_text("a file")
    assert refused(root).startswith(f"{root / 'decoded'}: can't be written to (")
    assert (root / "decoded").read_text() == "a file"


def test_sources_of_rejects_data_without_files(root, monkeypatch):
    """A data set without files raises a RecipeError that lists those with files."""
    monkeypatch.setattr(cache_frames, "build_dataset", lambda *_: object())
    assert (
        refused(root, RecipeError)
        == "data.name: kitti has no files to decode; kitti, nyu and folder have"
    )


def test_sources_of_excludes_npy(root):
    """NPY depth maps are not decoded and are read from their own place."""
    for index in range(5):
        place = root / "metres" / f"{Path(image_name(index)).stem}.npy"
        place.parent.mkdir(exist_ok=True)
        np.save(place, np.full((20, 30), 2.5, np.float32))
        write_png(
            root / "pictures" / f"{Path(image_name(index)).stem}.png",
            np.zeros((20, 30, 3), np.uint8),
        )
    recipe = {
        "network": {"max_depth": 80.0},
        "data": {
            "name": "folder",
            "root": str(root),
            "images": "pictures",
            "depths": "metres",
            "decoded": "decoded",
        },
    }
    sources = cache_frames.sources_of(Recipe(recipe), ("train", "val"))
    assert len(sources) == 5
    assert all(path.suffix == ".png" for path in sources)
    cache_frames.fill(Recipe(recipe), sources, root / "decoded", 0, False, io.StringIO())
    sample = cache_frames.build_dataset(Recipe(recipe).dataset, "train")[0]
    assert sample.depth.unique().tolist() == [2.5]
    assert sample.image.shape == (3, 20, 30)
