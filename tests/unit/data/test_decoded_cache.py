"""Decoded frames have the numbers of the files, and give the same batches bit for bit.

They are read as the files are now, or refused.
"""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support import fake_data
from support.fake_data import depth_name, image_name, write_png
from support.frames import kitti_frames

from tiekd.data import image_io
from tiekd.data.augment.augment import Augment
from tiekd.data.build import build_dataset, settings_of
from tiekd.data.decoded_cache import Decoded, attach, describe
from tiekd.data.loading.loader import Loading, training_batches, validation_batches
from tiekd.data.loading.sampler import MicroBatches
from tiekd.errors import DataError, RecipeError

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path):
    """Five frames of noise, with teacher maps as large as the window."""
    root, rng = fake_data.make(tmp_path / "kitti"), np.random.default_rng(0)
    for index in range(5):
        write_png(
            root / "input" / image_name(index), rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        )
        write_png(
            root / "gt_depth" / depth_name(index), rng.integers(0, 65536, (20, 30), dtype=np.uint16)
        )
        map_name = image_name(index).replace("/", "_")
        write_png(root / "maps" / map_name, rng.integers(0, 65536, (16, 24), dtype=np.uint16))
    return root


def frames_of(root, split="train"):
    return kitti_frames(str(root), split, 80.0, kb_crop=(16, 24), maps="maps")


def filled(root, frames, folder="decoded"):
    cache = Decoded(root / folder, root)
    for index in range(len(frames)):
        for path, decode in frames.files(index).values():
            cache.write(path, decode)
    return cache


def refused(act, *arguments):
    with pytest.raises(DataError) as error:
        act(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_batches_are_bit_identical(root, workers):
    """Training and validation batches from the cache equal those from the files bit for bit."""

    def batches(decoded):
        train, val = frames_of(root), frames_of(root, "val")
        if decoded:
            train.decoded, val.decoded = filled(root, train), filled(root, val)
        augment = Augment(crop=(12, 16), rotate_p=0.5, rotate_deg=20.0)
        sampler = MicroBatches(len(train), 2, range(20), seed=3)
        loading = Loading(workers=workers)
        yield from training_batches(train, sampler, augment, CPU, loading=loading)
        yield from (batch for _, batch in validation_batches(val, 2, CPU, loading=loading))

    for one, other in zip(batches(decoded=False), batches(decoded=True), strict=True):
        assert one.names == other.names
        assert (one.teacher_depth is None) == (other.teacher_depth is None)
        tensors = [
            pair for pair in zip(one, other, strict=True) if isinstance(pair[0], torch.Tensor)
        ]
        assert len(tensors) >= 4
        assert all(
            a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes() for a, b in tensors
        )


def test_decoded_frame_decodes_no_file(root, monkeypatch):
    """A cached frame is read without decoding its source."""
    frames = frames_of(root)
    frames.decoded = filled(root, frames)
    monkeypatch.setattr(image_io, "_decode", None)
    assert frames[0].image.shape == (3, 16, 24)


def test_decoded_files_are_npy_at_source_paths(root):
    """Decoded files are NPY files under the paths of their sources."""
    cache = filled(root, frames_of(root))
    source = root / "input" / image_name(2)
    assert cache.path(source) == root / "decoded" / "input" / f"{image_name(2)}.npy"
    array = np.load(cache.path(source))
    assert array.dtype == np.uint8
    assert np.array_equal(array, image_io.read_image(source).numpy())
    depth = np.load(cache.path(root / "gt_depth" / depth_name(2)))
    assert depth.dtype == np.uint16
    assert depth.shape == (1, 20, 30)


def test_decoded_source_outside_root(root, tmp_path):
    """A source outside the data root is cached inside the cache folder."""
    source, cache = tmp_path / "elsewhere.png", Decoded(root / "decoded", root)
    write_png(source, np.full((4, 5), 300, np.uint16))
    cache.write(source, image_io.read_levels)
    assert cache.path(source).is_relative_to(root / "decoded")
    assert cache.read(source).unique().tolist() == [300]


def test_decoded_read_returns_copy(root):
    """`read` returns a copy, so a change of it doesn't reach the file."""
    frames, source = frames_of(root), root / "input" / image_name(0)
    cache = filled(root, frames)
    before = cache.path(source).read_bytes()
    cache.read(source).zero_()
    assert cache.path(source).read_bytes() == before
    assert cache.holds(source, thoroughly=True)


def test_decoded_missing_file_is_named(root):
    """A frame that isn't cached is named with the program that caches it."""
    source, cache = root / "input" / image_name(1), Decoded(root / "decoded", root)
    told = refused(cache.read, source)
    assert told == f"{source}: not in {root / 'decoded'} (data.decoded); run bin/cache_frames.py"
    assert not cache.holds(source)


@pytest.mark.parametrize("change", ["bytes", "time", "gone"])
def test_decoded_changed_source_is_refused(root, change):
    """A source that has changed or is gone is refused."""
    source, cache = root / "input" / image_name(1), filled(root, frames_of(root))
    if change == "gone":
        source.unlink()
        assert "no such file" in refused(cache.read, source)
    elif change == "bytes":  # within the same tick of the clock
        old = source.stat()
        write_png(source, np.zeros((20, 30, 3), np.uint8))
        os.utime(source, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert "has changed since" in refused(cache.read, source)
    else:
        os.utime(source, ns=(0, time.time_ns() + 1))
        assert "bin/cache_frames.py" in refused(cache.read, source)
    assert not cache.holds(source)


@pytest.mark.parametrize("size", [0, 10, 127, 200, -1])
def test_decoded_torn_file_is_refused(root, size):
    """A truncated cache file is refused by name."""
    source, cache = root / "input" / image_name(1), filled(root, frames_of(root))
    path = cache.path(source)
    path.write_bytes(path.read_bytes()[:size])
    told = refused(cache.read, source)
    assert told.startswith(f"{path}: ")
    assert told.endswith("make it again with bin/cache_frames.py")
    assert not cache.holds(source)


@pytest.mark.parametrize("place", [5, 200, 1000])
def test_decoded_flipped_byte_found_when_thorough(root, place):
    """A flipped byte is found by the thorough check alone."""
    source, cache = root / "input" / image_name(1), filled(root, frames_of(root))
    content = bytearray(cache.path(source).read_bytes())
    content[place] ^= 1
    cache.path(source).write_bytes(content)
    assert cache.holds(source)
    assert not cache.holds(source, thoroughly=True)


def test_decoded_footer_every_byte_is_checked(root):
    """A change of any byte of the footer is found."""
    source, cache = root / "input" / image_name(1), filled(root, frames_of(root))
    content = bytearray(cache.path(source).read_bytes())
    for place in range(1, 45):
        content[-place] ^= 1
        cache.path(source).write_bytes(content)
        assert not cache.holds(source, thoroughly=True), place
        content[-place] ^= 1
    cache.path(source).write_bytes(content)
    assert cache.holds(source, thoroughly=True)


def test_decoded_torn_source_leaves_no_file(root):
    """A source that can't be decoded leaves no cache file."""
    source, cache = root / "input" / image_name(1), Decoded(root / "decoded", root)
    source.write_bytes(source.read_bytes()[:60])
    assert "torn or damaged PNG" in refused(cache.write, source, image_io.read_image)
    assert not cache.path(source).exists()


def test_decoded_folder_from_recipe(root):
    """`data.decoded` names the cache folder, relative to the root or absolute."""

    def settings(**data):
        return settings_of({"name": "kitti", "root": str(root), "kb_crop": [16, 24]} | data, 80.0)

    assert settings(decoded="there").decoded_folder == root / "there"
    assert settings(decoded="/absolute").decoded_folder.as_posix() == "/absolute"
    assert settings().decoded_folder is None
    assert settings(decoded="there").from_files() == settings()
    (root / "there").mkdir()
    assert build_dataset(settings(decoded="there"), "train").decoded.folder == root / "there"
    assert build_dataset(settings(), "train").decoded is None
    told = refused(build_dataset, settings(decoded="nowhere"), "train")
    assert str(root / "nowhere") in told
    assert "bin/cache_frames.py" in told


def test_describe_counts_missing_decoded_files(root):
    """`describe` counts the files that are missing or stale in the cache."""
    frames = frames_of(root)
    assert describe(frames) == describe(object()) == []
    frames.decoded = filled(root, frames)
    assert describe(frames) == [f"Decoded frames: all 15 files are in {root / 'decoded'}"]
    frames.decoded.path(root / "gt_depth" / depth_name(0)).unlink()
    (root / "input" / image_name(1)).write_bytes(b"something else")
    (line,) = describe(frames)
    assert line.startswith(f"WARNING: 2 of 15 files aren't in {root / 'decoded'}")
    assert "bin/cache_frames.py" in line


def turn(path):
    """Marks an image as one to be turned by half, its pixels unchanged.

    Both sides keep their lengths.
    """
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


def of_before(path):
    """Returns the decoded file as it was written before images came upright."""
    path.write_bytes(path.read_bytes().replace(b"tiekd 2\n", b"tiekd 1\n"))
    return path


def test_decoded_old_format_refused_for_exif_images(root):
    """Files of the old format are read except for images with an EXIF orientation."""
    frames = frames_of(root)
    turn(root / "input" / image_name(1))
    plain = [frames[0], frames[1]]
    frames.decoded = filled(root, frames)
    assert all(torch.equal(frames[index].image, plain[index].image) for index in (0, 1))
    for index in (0, 1):
        path = of_before(frames.decoded.path(root / "input" / image_name(index)))
    assert torch.equal(frames[0].image, plain[0].image)
    told = refused(frames.__getitem__, 1)
    assert told.startswith(
        f"{root / 'input' / image_name(1)}: {path} was made by a version that ignored EXIF "
        "orientation; make"
    )
    assert not frames.decoded.holds(root / "input" / image_name(1))


def test_decoded_old_format_max_level(root):
    """In old files the level 65535 is no depth in ground truth, but valid in teacher maps."""
    depth, taught = (
        root / "gt_depth" / depth_name(0),
        root / "maps" / image_name(0).replace("/", "_"),
    )
    write_png(depth, np.full((20, 30), 65535, np.uint16))
    write_png(taught, np.full((16, 24), 65535, np.uint16))
    frames = frames_of(root)
    frames.decoded = filled(root, frames)
    cache = frames.decoded
    assert (frames[0].depth == 0).all()
    assert (frames[0].teacher_depth == 80).all()
    cache.write(depth, image_io.read_levels)  # as it was written before
    for source in (depth, taught):
        of_before(cache.path(source))
    assert (frames[0].depth == 0).all()
    assert (frames[0].teacher_depth == 80).all()


def test_decoded_refuses_dataset_without_files(root):
    """`data.decoded` is refused for a dataset that has no files."""
    with pytest.raises(
        RecipeError, match="data.decoded: noise has no files to decode; kitti, nyu and folder have"
    ):
        attach(object(), root, root, "noise")
