"""Reading cached teacher maps from tar shards: which map a frame has, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tar_shards
from support.frames import folder_frames
from support.tar_shards import frames, image, make

from tiekd.data import image_io, teacher_maps
from tiekd.data.checks import Examined
from tiekd.data.shards import maps
from tiekd.errors import DataError

COUNTS = (3, 4, 2)
SIGMA_SCALE = 40.0


def levels(number: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.full(size, 1000 + number, np.float32)


def png(number: int, size: tuple[int, int] = (12, 16)) -> bytes:
    return image_io.encode_teacher_map(levels(number, size), 65535.0)


def write_maps(root: Path, folder: Path, with_sigma: bool = True) -> Path:
    """Writes maps of level 1000 + the frame's number, and of sigma half of it."""
    data = frames(root, needs_ground_truth=False)
    for shard in maps.shards_of(data.frames.images, root, folder):
        rows = shard.rows.tolist()
        contents = [[png(row), png(row // 2)][: 1 + with_sigma] for row in rows]
        names = [(data.frames.names[row], int(data.frames.images.sizes[row])) for row in rows]
        maps.write(shard, names, iter(contents))
    manifest = teacher_maps.make_manifest(80.0, None, {"name": "mine"}, None, False)
    manifest |= {teacher_maps.SIGMA_SCALE: SIGMA_SCALE} if with_sigma else {}
    teacher_maps.write_manifest(folder, manifest | {teacher_maps.SHARDS: True})
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    """Shards s0.tar, s1.tar and s2.tar, and the shards of their maps in the folder kd."""
    make(tmp_path / "data", COUNTS)
    write_maps(tmp_path / "data", tmp_path / "data" / "kd")
    return tmp_path / "data"


def refused(act) -> str:
    with pytest.raises(DataError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def found(sample) -> list[int]:
    """Returns the number of a sample's frame by its image, its map and its map of sigma."""
    depth, sigma = sample.teacher_depth[:, 0, 0].tolist()
    by_map = round(depth / 80 * 65535) - 1000
    return [int(sample.image[0, 0, 0]), by_map, (round(sigma / SIGMA_SCALE * 65535) - 1000) * 2]


def test_maps_of_shards_are_those_of_the_frame(root):
    """Each frame has its own map at its scale, also in a part of a split."""
    data = frames(root, maps="kd")
    assert [found(data[index]) for index in range(9)] == [[n, n, n // 2 * 2] for n in range(9)]
    assert str(data.files(4)["teacher_sigma"][0]) == f"{root}/kd/s1.tar:day1/0004.sigma.png"
    val = frames(root, maps="kd", val_prefix=["day0", "day2"])
    assert [found(val[index])[1] for index in range(4)] == [3, 4, 5, 6]
    part = val.frames.take(np.array([3, 1])).maps["teacher_depth"]
    assert [part[index].name for index in range(2)] == [
        "day1/0006.depth.png",
        "day1/0004.depth.png",
    ]
    data.read_maps_of(None)
    assert list(data.files(0)) == ["image", "depth"]


def test_maps_of_frames_that_are_left_out(tmp_path):
    """Frames without ground truth are left out together with their maps."""
    members = [
        part for n in range(4) for part in tar_shards.frame(n) if n != 1 or "depth" not in part[0]
    ]
    tar_shards.write(tmp_path / "s.tar", members)
    write_maps(tmp_path, tmp_path / "kd")
    data = frames(tmp_path, maps="kd")
    assert data.num_skipped == 1
    assert [found(data[index])[:2] for index in range(3)] == [[0, 0], [2, 2], [3, 3]]


def test_maps_of_two_teachers_in_two_forms(root):
    """A folder of files and one of shards may be used together."""
    (root / "files").mkdir()
    for number in range(9):
        shard = 0 if number < 3 else 1 if number < 7 else 2
        (root / "files" / f"day{shard}_{number:04d}.png").write_bytes(png(100 + number))
    data = frames(root, maps="files")
    data.add_maps(root / "kd", "teachers[1].maps")
    depths = data[5].teacher_depth[:, 0, 0] / 80 * 65535
    assert [round(float(depth)) for depth in depths[:2]] == [1105, 1005]
    assert list(data.frames.maps) == ["teacher_depth_1", "teacher_sigma_1"]


def test_maps_of_shards_survive_a_copy(root, tmp_path):
    """A copy with other modification times is read."""
    shutil.copytree(root / "kd", tmp_path / "kd", copy_function=shutil.copyfile)
    assert found(frames(root, maps=str(tmp_path / "kd"))[8]) == [8, 8, 8]


def test_maps_that_are_missing_are_counted(root):
    """An unfinished folder, and maps of frames of other names, end the start in one line."""
    (root / "kd" / "s1.tar.maps.json").unlink()
    told = f"teacher.maps: 4 of 9 frames have no map in {root}/kd, such as day1/0003.png in s1.tar;"
    assert refused(lambda: frames(root, maps="kd")).startswith(told)
    # Frames of the finished shards alone can be used.
    assert len(frames(root, maps="kd", val_prefix=["day1"])) == 5
    shutil.copy(root / "kd" / "s0.tar", root / "kd" / "s1.tar")
    shutil.copy(root / "kd" / "s0.tar.maps.json", root / "kd" / "s1.tar.maps.json")
    assert refused(lambda: frames(root, maps="kd")).startswith(told)


def test_maps_of_other_images_are_refused(root, tmp_path):
    """Images of the same names and another size aren't those of the maps."""
    make(tmp_path / "other", COUNTS)
    content = image(3) + b"\0"
    members = [part for n in (3, 4, 5, 6) for part in tar_shards.frame(n, "day1")]
    members[0] = (members[0][0], content)
    tar_shards.write(tmp_path / "other" / "s1.tar", members)
    assert refused(lambda: frames(tmp_path / "other", maps=str(root / "kd"))) == (
        f"teacher.maps: the maps in {root}/kd were made of other shards: day1/0003.png had "
        f"{len(content) - 1} bytes there, and has {len(content)} in {tmp_path}/other/s1.tar; give "
        "the maps of these shards"
    )


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        ("s1.tar", lambda content: content[:-512], "s1.tar: truncated or damaged, "),
        ("s1.tar", lambda content: content + b"x", "s1.tar: truncated or damaged, "),
        ("s1.tar", None, "s1.tar: no such shard of teacher maps; make it again"),
        ("s1.tar.maps.json", lambda content: content[:-9], "s1.tar.maps.json: no record of"),
        (
            "s1.tar.maps.json",
            lambda content: b"\xff",
            "s1.tar.maps.json: no record of teacher maps",
        ),
        ("s1.tar.maps.json", lambda content: b"[]", "s1.tar.maps.json: no record of teacher maps"),
        (
            "s1.tar.maps.json",
            lambda content: content.replace(b"[", b"[true,", 1),
            "s1.tar.maps.json: no",
        ),
    ],
)
def test_maps_in_damaged_shards_are_refused(root, name, spoil, told):
    """A damaged shard of maps, or record of one, is named with what to do."""
    path = root / "kd" / name
    content = path.read_bytes()
    path.unlink()
    if spoil is not None:
        path.write_bytes(spoil(content))
    said = refused(lambda: frames(root, maps="kd"))
    assert said.startswith(f"{root}/kd/{told}")
    assert "bin/cache_teacher.py" in said


def test_maps_of_shards_without_sigma_contradict_their_manifest(root):
    """A shard without maps of sigma, in a folder that has them, is named."""
    manifest = teacher_maps.read_manifest(root / "kd")
    write_maps(root, root / "kd", with_sigma=False)
    assert frames(root, maps="kd")[0].teacher_depth.shape[0] == 1
    teacher_maps.write_manifest(root / "kd", manifest)
    told = refused(lambda: frames(root, maps="kd"))
    assert told.startswith(f"{root}/kd/s0.tar.maps.json: has no maps of sigma, unlike the folder's")


def test_maps_in_both_forms_are_refused(root):
    """Files beside shards of maps, and shards beside a manifest of files, are named."""
    (root / "kd" / "x.png").touch()
    assert refused(lambda: frames(root, maps="kd")) == (
        f"teacher.maps: {root}/kd: has maps in files, such as x.png, beside shards of maps; keep "
        "one form in a folder"
    )
    manifest = teacher_maps.read_manifest(root / "kd")
    del manifest["shards"]
    teacher_maps.write_manifest(root / "kd", manifest)
    told = f"teacher.maps: {root}/kd: has shards of maps, such as s0.tar, beside a manifest of"
    assert refused(lambda: frames(root, maps="kd")).startswith(told)
    (root / "kd" / "manifest.json").unlink()
    assert refused(lambda: frames(root, maps="kd")).startswith(told)


def test_maps_in_shards_are_for_frames_in_shards(root):
    """A data set of files refuses shards of maps, whose keys it doesn't have."""
    (root / "images").mkdir()
    (root / "images" / "0.png").write_bytes(image(0))
    options = {"root": str(root), "depths": None, "needs_ground_truth": False, "val_fraction": 0.0}
    told = refused(lambda: folder_frames("images", "train", 80.0, maps="kd", **options))
    assert told.startswith(
        f"teacher.maps: the maps in {root}/kd are in tar shards, which only frames in tar shards"
    )


def test_maps_arent_read_as_images(root):
    """A pattern that fits the shards of maps, too, is refused before they are indexed."""
    (root / "all.tar.index").unlink()
    told = refused(lambda: frames(root, shards="**/*.tar", val_fraction=0.0))
    assert told.startswith(
        f"data.shards: **/*.tar in {root} also fits {root}/kd/s0.tar, a shard of"
    )


def test_maps_places_that_are_read_as_images(root, tmp_path):
    """The pattern of the shards of images is compared with the paths of those of maps."""
    images = frames(root).frames.images
    for folder, pattern, is_read in (
        ("data/kd", "*.tar", False),
        ("data/kd", "*/*.tar", True),
        ("data/kd", "kd/s[1-9].tar", True),
        ("data/kd", "train/*.tar", False),
        ("data/kd", "**/*.tar", True),
        ("data/kd", "**/train-*.tar", False),
        ("data/kd", "train/**/*.tar", False),
        ("data/kd", "kd/**/*.tar", True),
        ("data", "*.tar", True),
        ("data/kd/..", "*.tar", True),
        ("kd", "**/*.tar", False),
    ):
        shards = maps.shards_of(images, root, tmp_path / folder)
        assert maps.are_read_as_images(shards, root, pattern) is is_read, (folder, pattern)


def test_maps_of_shards_that_are_wrong_are_named(root):
    """A damaged member, and one of another size, is named as shard:member."""
    shard = maps.shards_of(frames(root).frames.images, root, root / "kd")[0]
    names = [
        (f"day0/000{n}.png", json.loads(shard.record.read_text())["images"][f"day0/000{n}.png"][0])
        for n in range(3)
    ]
    torn = bytearray(png(1))
    torn[60] ^= 1
    contents = [[png(0, (12, 15)), png(0)], [bytes(torn), png(0)], [png(2), png(1)]]
    maps.write(shard, names, iter(contents))
    data = frames(root, maps="kd")
    told = refused(lambda: data[0])
    assert told.startswith(f"{root}/kd/s0.tar:day0/0000.depth.png: teacher map of 12x15 for an")
    told = f"{root}/kd/s0.tar:day0/0001.depth.png: a torn or damaged PNG ("
    assert refused(lambda: data[1]).startswith(told)
    assert Examined(data, None).facts([1])[0].faults[0][1].startswith(told)
    assert torch.equal(data[2].image, frames(root)[2].image)


def test_maps_stay_if_writing_them_again_is_interrupted(root):
    """A shard that is written again and isn't finished keeps its old maps and their record."""
    shard = maps.shards_of(frames(root).frames.images, root, root / "kd")[0]
    before = [path.read_bytes() for path in (shard.path, shard.record)]

    def stopped():
        yield [png(7), png(7)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        maps.write(shard, [("day0/0000.png", 1), ("day0/0001.png", 1)], stopped())
    assert [path.read_bytes() for path in (shard.path, shard.record)] == before


def test_maps_of_shards_outside_of_the_root_are_refused(root):
    """Their maps would be outside of the folder of maps, perhaps where the images are."""
    images = frames(root).frames.images
    told = refused(lambda: maps.shards_of(images, root / "kd", root / "maps"))
    assert told.startswith("data.shards: ../s0.tar isn't below data.root")
