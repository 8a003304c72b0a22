"""Caching the maps of frames in tar shards: which shards are written, kept, copied and refused."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from support.cached_teacher import cache, files_of, refused
from support.sharded_ground import (
    NUM_FRAMES,
    SIGMA,
    cache_as_files,
    learner,
    make,
    recipe,
    write_images,
)
from support.tar_shards import write

from tiekd.data import teacher_maps
from tiekd.data.build import build_dataset
from tiekd.data.shards import maps as map_shards
from tiekd.errors import DataError, TeacherError
from tiekd.training.settings import Recipe

NO_INDEX = shutil.ignore_patterns("*.index")  # of the shards before they are changed


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def unbroken(ground) -> Path:
    """The folder of the maps of an unbroken job."""
    cache(recipe(ground, **SIGMA), ground / "unbroken")
    return ground / "unbroken"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: row[2] for name, row in files_of(folder / "day").items()}


def test_cache_shards_are_the_files_in_shards(ground, unbroken):
    """Members have the bytes of the files of a folder of files, and a student reads the same."""
    told = cache_as_files(recipe(ground, **SIGMA), ground / "files", unbroken)
    assert f"{NUM_FRAMES} to make in {ground / 'files'}\n" in told
    assert sorted(contents(unbroken)) == [
        f"s{shard}.tar{suffix}" for shard in range(3) for suffix in ("", ".maps.json")
    ]
    with tarfile.open(unbroken / "day" / "s1.tar") as archive:
        assert archive.getnames() == [
            f"d1/{number}.{kind}.png" for number in (3, 4) for kind in ("depth", "sigma")
        ]
        for kind, place in (("depth", "."), ("sigma", "sigma")):
            member = archive.extractfile(f"d1/4.{kind}.png").read()
            assert member == (ground / "files" / place / "d1_4.png").read_bytes()
    manifests = [teacher_maps.read_manifest(folder) for folder in (unbroken, ground / "files")]
    assert manifests[0].pop("shards") is True
    assert manifests[0] == manifests[1]
    samples = [
        list(build_dataset(Recipe(learner(ground, folder)).dataset, "train"))
        for folder in (unbroken, ground / "files")
    ]
    assert [len(each) for each in samples] == [5, 5]
    for one, other in zip(*samples, strict=True):
        assert torch.equal(one.teacher_depth, other.teacher_depth)
        assert one.teacher_depth.shape[0] == 2
        assert one.teacher_depth.amax((1, 2)).min() > 0
        assert one.name == other.name
    # Evaluations against the teacher read the maps of the validation frames there.
    against = learner(ground, unbroken) | {"evaluation": {"against": "teacher"}}
    val = build_dataset(Recipe(against).dataset, "val")
    assert [val[index].teacher_depth.amax((1, 2)).min() > 0 for index in range(len(val))] == [
        True
    ] * 2


def test_cache_shards_continues_at_first_unfinished(ground, unbroken, tmp_path, monkeypatch):
    """A finished shard stays as it is, and the rest is that of an unbroken job."""
    folder, node = tmp_path / "maps", recipe(ground, **SIGMA)
    write_shard, written = map_shards.write_shard, []

    def stop(path, members):
        if written:
            next(members)
            (path.parent / f".{path.name}.4711.partial").write_bytes(b"left by a killed job")
            raise KeyboardInterrupt
        written.append(path)
        return write_shard(path, members)

    monkeypatch.setattr(map_shards, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        cache(node, folder)
    monkeypatch.undo()
    before = files_of(folder / "day")
    assert sorted(before) == [".s1.tar.4711.partial", "s0.tar", "s0.tar.maps.json"]
    told = cache(node, folder)
    assert f"Maps: {NUM_FRAMES} frames, 3 there already, 4 to make in 3 tar shards in" in told
    assert f"maps: {NUM_FRAMES}/{NUM_FRAMES}, " in told
    after = files_of(folder / "day")
    assert contents(folder) == contents(unbroken)
    assert all(after[name] == before[name] for name in ("s0.tar", "s0.tar.maps.json"))
    # A shard without a record is unfinished, and a whole folder is left alone.
    (folder / "day" / "s2.tar.maps.json").unlink()
    assert "5 there already, 2 to make" in cache(node, folder)
    after = files_of(folder / "day")
    assert f"{NUM_FRAMES} there already, 0 to make" in cache(node, folder)
    assert files_of(folder / "day") == after
    assert contents(folder) == contents(unbroken)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "record"])
def test_cache_shards_makes_damaged_ones_again(ground, unbroken, tmp_path, damage):
    """A damaged map is made again and the shard's others are copied; a damaged shard is remade."""
    folder = tmp_path / "maps"
    shutil.copytree(unbroken, folder)
    shard = folder / "day" / "s0.tar"
    record = json.loads((folder / "day" / "s0.tar.maps.json").read_text())
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        offset, size = record["images"]["d0/1.png"][3:]
        content[offset + size // 2] ^= 16
        shard.write_bytes(content)
    elif damage == "truncated":
        shard.write_bytes(content[:-600])
    else:
        (folder / "day" / "s0.tar.maps.json").write_text("{")
    count = 1 if damage == "flipped" else 3
    assert f"{count} to make" in cache(recipe(ground, **SIGMA), folder)
    assert contents(folder) == contents(unbroken)


def test_cache_shards_of_parts_of_a_shard_are_joined(ground, unbroken, tmp_path):
    """Jobs of several parts of a shard add to it, and don't lose what is there."""
    folder = tmp_path / "maps"
    shutil.copytree(ground / "data", tmp_path / "data", ignore=NO_INDEX)
    # Rename one frame, so that a shard has frames of two prefixes.
    shard = tmp_path / "data" / "day" / "s0.tar"
    with tarfile.open(shard) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    write(shard, [(name.replace("d0/2", "other/2"), content) for name, content in members])
    data = {"root": str(tmp_path / "data")}
    for prefix in ("other", "d0"):
        node = recipe(ground, data | {"val_prefix": [prefix]}, **SIGMA)
        assert "1 frames, 0 there already, 1 to make" in cache(node, folder, "val")
    kept = _depths_in(folder / "day" / "s0.tar")
    assert list(kept) == ["d0/0.depth.png", "other/2.depth.png"]
    node = recipe(ground, data, **SIGMA)
    assert "7 frames, 2 there already, 5 to make" in cache(node, folder)
    found = _depths_in(folder / "day" / "s0.tar")
    assert list(found) == ["d0/0.depth.png", "d0/1.depth.png", "other/2.depth.png"]
    assert kept.items() <= found.items()
    assert contents(folder)["s1.tar"] == contents(unbroken)["s1.tar"]


def test_cache_shards_refuse_maps_of_other_images(ground, unbroken, tmp_path):
    """Shards of equal names and keys with other images aren't continued."""
    write_images(tmp_path / "data", rows_of_zeros=9)
    before = files_of(unbroken / "day")
    node = recipe(ground, {"root": str(tmp_path / "data")}, **SIGMA)
    told = refused(TeacherError, node, unbroken)
    assert told.startswith(f"the maps in {unbroken} were made of other shards: d0/0.png had ")
    assert told.endswith("s0.tar; give the maps of these shards, or another --out")
    assert files_of(unbroken / "day") == before


def test_cache_shards_refuse_folders_of_other_files(ground, tmp_path):
    """Nothing is written where images would be replaced, or maps read as images."""
    images = (ground / "data" / "day" / "s0.tar").read_bytes()
    told = refused(TeacherError, recipe(ground, **SIGMA), ground / "data")
    assert (
        "the data set would read the maps there as shards of images (data.shards: day/*.tar" in told
    )
    everywhere = recipe(ground, {"shards": "**/*.tar", "val_shards": "*s2.tar"}, **SIGMA)
    shutil.copytree(ground / "data", tmp_path / "data", ignore=NO_INDEX)
    everywhere["data"]["root"] = str(tmp_path / "data")
    assert "as shards of images" in refused(TeacherError, everywhere, tmp_path / "data" / "maps")
    # Another data set's shards have the names of the maps' shards.
    shutil.copytree(ground / "data", tmp_path / "other")
    told = refused(TeacherError, recipe(ground, **SIGMA), tmp_path / "other")
    assert told == (
        f"{tmp_path / 'other'}: holds s0.tar, and no manifest says that it has maps; give another "
        "--out"
    )
    for folder in (ground / "data", tmp_path / "other"):
        assert (folder / "day" / "s0.tar").read_bytes() == images
        assert not (folder / "manifest.json").exists()


def test_cache_shards_refuse_both_forms(ground, unbroken, tmp_path):
    """A folder with files and shards of maps isn't continued."""
    shutil.copytree(unbroken, tmp_path / "maps")
    (tmp_path / "maps" / "d0_0.png").write_bytes(b"a map")
    told = refused(TeacherError, recipe(ground, **SIGMA), tmp_path / "maps")
    assert told == (
        f"{tmp_path / 'maps'}: has maps in files, such as d0_0.png, beside shards of maps; keep "
        "one form in a folder"
    )


def test_cache_shards_that_cant_be_written_are_named(ground, tmp_path, monkeypatch):
    """An error of the disk names the shard."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(map_shards, "write_shard", fail)
    told = refused(DataError, recipe(ground), tmp_path / "maps")
    assert told.startswith(f"{tmp_path / 'maps' / 'day' / 's0.tar'}: can't be written (No space")


def _depths_in(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as archive:
        return {
            member.name: archive.extractfile(member).read()
            for member in archive
            if "depth" in member.name
        }


def test_cache_shards_refuse_another_image_of_a_key(ground, unbroken, tmp_path):
    """`d1/4.jpg` in place of `d1/4.png` would take over its map."""
    shutil.copytree(ground / "data", tmp_path / "data", ignore=NO_INDEX)
    shard = tmp_path / "data" / "day" / "s1.tar"
    with tarfile.open(shard) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    write(shard, [(name.replace("d1/4.png", "d1/4.jpg"), content) for name, content in members])
    before = files_of(unbroken / "day")
    told = refused(
        TeacherError, recipe(ground, {"root": str(tmp_path / "data")}, **SIGMA), unbroken
    )
    assert f"were made of other shards: d1/4.png there is d1/4.jpg in {shard}" in told
    assert files_of(unbroken / "day") == before
