"""Images and videos of a folder: what is linked, left out and counted."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from support import videos

from tiekd.errors import DataError
from tiekd.tools.distill import images


def write(path, size=(48, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two good images, and files that the data set can't take."""
    rides = tmp_path / "rides"
    for name in ("a/1.jpg", "a/2.png", "a/2.jpg", "a_1.png", "b/3.bmp", "depth/1.png", ".x.jpg"):
        write(rides / name)
    (rides / "ride.mp4").write_bytes(b"")
    (rides / "notes.txt").write_text("x")
    return rides


def test_images_are_found_and_others_counted(folder):
    """Names that the data set would refuse are left out with a reason; other files aren't told."""
    found = images.find(folder, [folder / "depth"])
    assert sorted(found.images) == ["a/1.jpg", "a/2.jpg"]
    assert list(found.videos) == ["ride.mp4"]
    assert found.left_out.keys() == {"a/2.png", "a_1.png", "b/3.bmp"}
    assert "left out: 1 file, .bmp isn't read, only .jpg, .jpeg, .png (such as b/3.bmp)" in (
        found.describe_left_out()
    )


@pytest.mark.usefixtures("folder")
def test_images_are_found_by_list(tmp_path):
    """A list has paths from its own folder; names begin where they differ."""
    (tmp_path / "list.txt").write_text("rides/a/1.jpg\nrides/a_1.png\n\n")
    assert "a_1.png" in images.find(tmp_path / "list.txt").left_out
    (tmp_path / "list.txt").write_text("rides/a/1.jpg\nrides/b/9.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt: no file at .*rides/b/9\.jpg"):
        images.find(tmp_path / "list.txt")


def test_images_need_one(tmp_path):
    """A folder without images and videos is one line."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no .jpg, .jpeg, .png files and no videos in or below it"):
        images.find(tmp_path / "empty")


def test_images_are_linked_anew(folder, tmp_path):
    """OUT/images links to the files, and has nothing that was left out since."""
    found = images.find(folder, [folder / "depth"])
    frames = tmp_path / "frames" / "ride.mp4"
    write(frames / "000001.jpg")
    images.link(found, tmp_path, {"ride.mp4": frames})
    linked = tmp_path / "images"
    assert (linked / "a/1.jpg").readlink() == folder / "a/1.jpg"
    assert (linked / "ride.mp4/000001.jpg").is_file()
    del found.images["a/2.jpg"]
    images.link(found, tmp_path, {})
    assert [path.name for path in linked.rglob("*.jpg")] == ["1.jpg"]


def test_images_fingerprint_follows_sizes_and_names(folder):
    """Another size or name changes the fingerprint, another time doesn't."""
    before = images.fingerprint(images.find(folder))
    (folder / "notes.txt").write_text("another")
    assert images.fingerprint(images.find(folder)) == before
    write(folder / "a/1.jpg", (64, 48))
    changed = images.fingerprint(images.find(folder))
    assert changed != before
    write(folder / "a/9.jpg")
    assert images.fingerprint(images.find(folder)) != changed


def test_images_that_were_replaced_lose_their_maps(folder, tmp_path):
    """The maps of an image that has another file are removed, in the folders of all teachers."""
    images.link(images.find(folder, [folder / "depth"]), tmp_path, {})
    before = images.read_links(tmp_path)
    assert before["a/1.jpg"] == [str(folder / "a/1.jpg"), (folder / "a/1.jpg").stat().st_size]
    for name in ("a_1.png", "sigma/a_1.png", "a_2.png"):
        write(tmp_path / "maps" / name)
    images.drop_maps(tmp_path / "maps", before, images.read_links(tmp_path))
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 3
    write(folder / "a/1.jpg", (64, 48))
    images.drop_maps(tmp_path / "maps", before, images.read_links(tmp_path))
    assert [path.name for path in (tmp_path / "maps").rglob("*.png")] == ["a_2.png"]
    # One that is gone may come back as another.
    images.drop_maps(tmp_path / "maps", {"a/2.jpg": ["x", 1]}, {})
    assert list((tmp_path / "maps").rglob("*.png")) == []


def test_images_of_video_at_rate(tmp_path):
    """Of 2 s of video with 10 frames a second 2 a second are taken, once."""
    pytest.importorskip("av")
    videos.encode(tmp_path / "ride.mp4", count=20, rate=10)
    told = []
    out = tmp_path / "frames" / "ride.mp4"
    assert images.extract(tmp_path / "ride.mp4", out, 2.0, told.append) == 4
    assert sorted(path.name for path in out.iterdir()) == [f"{i:06}.jpg" for i in range(1, 5)]
    levels = [np.asarray(Image.open(path)).mean() for path in sorted(out.iterdir())]
    assert np.diff(levels) == pytest.approx(50, abs=5)
    assert images.extract(tmp_path / "gone.mp4", out, 2.0, told.append) == 4
    assert told == []


def test_images_of_damaged_video(tmp_path):
    """A video without a readable frame raises, and leaves no folder behind."""
    pytest.importorskip("av")
    (tmp_path / "ride.mp4").write_bytes(b"no video")
    with pytest.raises(DataError):
        images.extract(tmp_path / "ride.mp4", tmp_path / "frames" / "ride.mp4", 2.0, print)
    assert list((tmp_path / "frames").iterdir()) == []


def test_images_of_pairs_are_split(tmp_path):
    """Right images of a second camera aren't learned from, and are found by the new rule."""
    for name in ("left/images/1.png", "right/images/1.png", "left/images/2.png"):
        write(tmp_path / "rides" / name)
    found = images.find(tmp_path / "rides")
    rule = images.move_right_images(found, tmp_path / "out", ["left/", "right/"])
    assert sorted(found.images) == ["left/images/1.png", "left/images/2.png"]
    images.link(found, tmp_path / "out", {})
    left = str(tmp_path / "out/images/left/images/1.png")
    right = images.right_of(left, tuple(rule))
    assert images.Path(right).resolve() == tmp_path / "rides/right/images/1.png"
    with pytest.raises(DataError, match="no image has a right one"):
        images.move_right_images(found, tmp_path / "out", ["up", "down"])


@pytest.mark.parametrize(
    ("sizes", "mode"),
    [
        ({(375, 1242): 9, (370, 1224): 1}, "stretch"),
        ({(480, 640): 9, (640, 480): 1}, "contain"),
        ({(480, 640): 9, (240, 320): 1}, "stretch"),
    ],
)
def test_images_of_one_shape_are_stretched(sizes, mode):
    """Only images of several shapes are padded."""
    assert images.resize_mode(Counter(sizes)) == mode


@pytest.mark.parametrize(
    ("size", "working"),
    [
        ((375, 1242), [192, 640]),
        ((480, 640), [288, 416]),
        ((96, 128), [96, 128]),
        ((20, 20), [64, 64]),
    ],
)
def test_images_size_is_chosen(size, working):
    """The working resolution has the images' shape, sides of 32, and is never larger than them."""
    found = images.default_size(size)
    assert all(side % 32 == 0 for side in found)
    assert found == pytest.approx(working, abs=32)


def test_images_depth_must_match(folder, tmp_path):
    """Measured depth without the name of an image is refused."""
    found = images.find(folder)
    write(tmp_path / "depth" / "a" / "9.png")
    with pytest.raises(DataError, match="--depth: no .png or .npy file in .* has the path"):
        images.check_depth(tmp_path / "depth", found)
    write(tmp_path / "depth" / "a" / "1.png")
    images.check_depth(tmp_path / "depth", found)
