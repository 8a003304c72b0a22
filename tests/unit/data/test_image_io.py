"""Depth maps and images on disk.

Round trips are exact, and DataErrors are one line that names the file.
"""

import errno
import pickle
import resource
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tiekd.data import orientation
from tiekd.data.image_io import (
    is_whole_depth_png,
    read_depth_npy,
    read_image,
    read_image_size,
    read_levels,
    read_measured_levels,
    read_photo,
    read_teacher_map,
    without_levels,
    write_depth_png,
    write_image,
)
from tiekd.errors import DataError

LEVELS = np.array([[0, 1, 255, 256], [257, 20000, 65534, 65535]], np.uint16)


def refused(read, path, *arguments):
    with pytest.raises(DataError) as error:
        read(path, *arguments)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("units_per_m", [256.0, 1000.0])
def test_depth_png_round_trip_is_exact(tmp_path, units_per_m):
    """Depth that is written as a 16-bit PNG is read back exactly."""
    write_depth_png(tmp_path / "d.png", LEVELS / units_per_m, units_per_m)
    levels = read_levels(tmp_path / "d.png")
    assert levels.dtype == torch.uint16
    assert torch.equal(levels, torch.from_numpy(LEVELS)[None])
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]


def test_write_depth_png_rounds_and_saturates(tmp_path):
    """`write_depth_png` rounds, saturates, writes 0 for NaN and keeps small depths above 0."""
    write_depth_png(tmp_path / "d.png", np.array([[0.2, 1.4, 1.6, np.nan, -1.0, 0.0, 1e9]]) / 256)
    assert read_levels(tmp_path / "d.png").tolist() == [[[1, 1, 2, 0, 0, 0, 65535]]]


def test_read_image_round_trip_rgb_and_grey(tmp_path):
    """An RGB image is read back exactly, and a grey one as three equal channels."""
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    write_image(tmp_path / "p.png", rgb)
    image = read_image(tmp_path / "p.png")
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(rgb).permute(2, 0, 1))
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    assert torch.equal(
        read_image(tmp_path / "grey.png"), torch.from_numpy(rgb[..., 0]).expand(3, 2, 4)
    )


@pytest.mark.parametrize(
    ("shape", "words"), [((4, 5), "1 channel(s) of 8 bits"), ((4, 5, 3), "3 channel(s) of 8 bits")]
)
def test_read_levels_refuses_8_bit(tmp_path, shape, words):
    """`read_levels` refuses an 8-bit image and says what it has."""
    Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / "d.png")
    message = refused(read_levels, tmp_path / "d.png")
    assert "must be a one-channel 16-bit PNG" in message
    assert words in message


def test_read_image_refuses_depth_map(tmp_path):
    """`read_image` refuses a 16-bit depth map."""
    Image.fromarray(LEVELS).save(tmp_path / "d.png")
    assert "8 bits a channel" in refused(read_image, tmp_path / "d.png")


def test_read_levels_refuses_truncated_png(tmp_path):
    """A PNG that is truncated at any place is refused as torn."""
    write_depth_png(tmp_path / "whole.png", np.random.default_rng(0).random((40, 60)) * 80)
    whole = (tmp_path / "whole.png").read_bytes()
    for size in (0, 4, 20, 60, len(whole) // 2, len(whole) - 20, len(whole) - 12, len(whole) - 1):
        (tmp_path / "torn.png").write_bytes(whole[:size])
        assert "torn" in refused(read_levels, tmp_path / "torn.png")


def test_read_image_refuses_damaged_png(tmp_path):
    """A PNG with one damaged byte raises a `DataError`."""
    write_image(
        tmp_path / "whole.png",
        np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8),
    )
    whole = (tmp_path / "whole.png").read_bytes()
    for place in range(8, len(whole), 97):
        (tmp_path / "torn.png").write_bytes(
            whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :]
        )
        assert "damaged" in refused(read_image, tmp_path / "torn.png")


def test_is_whole_depth_png_damaged(tmp_path):
    """Every byte counts, also those of the end chunk, which `verify` doesn't read."""
    path, comment = tmp_path / "a.png", PngInfo()
    comment.add_text("before", "the pixels")
    comment.add(b"prVt", b"behind them", after_idat=True)
    Image.fromarray(LEVELS).save(path, pnginfo=comment)
    whole = path.read_bytes()
    assert is_whole_depth_png(path)
    assert is_whole_depth_png(write_bytes(path, whole + b"more"))
    for place in range(len(whole)):
        assert not is_whole_depth_png(write_bytes(path, whole[:place])), place
        for flipped in (1, 16, 128):
            damaged = whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :]
            assert not is_whole_depth_png(write_bytes(path, damaged)), place


def test_read_image_refuses_truncated_jpeg(tmp_path):
    """A truncated JPEG is refused."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)).save(
        tmp_path / "a.jpg"
    )
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    assert "can't be decoded as an image" in refused(read_image, tmp_path / "torn.jpg")


def test_readers_refuse_missing_folder_and_text(tmp_path):
    """A missing file, a folder and a text file are refused by name."""
    assert "no such image; check data.root and the split file" in refused(
        read_image, tmp_path / "a.png"
    )
    assert "no such depth map" in refused(read_levels, tmp_path / "a.png")
    for read, kind in (
        (read_image, "image"),
        (read_depth_npy, "depth map"),
        (read_image_size, "image"),
    ):
        arguments = (None,) if read is read_depth_npy else ()
        assert f"a folder, no {kind}" in refused(read, tmp_path, *arguments)
    (tmp_path / "b.png").write_text("no image")
    assert "torn or no image" in refused(read_image, tmp_path / "b.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_read_image_size_reads_header_only(tmp_path, suffix):
    """`read_image_size` needs only the header of a file."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)).save(
        path
    )
    assert read_image_size(path) == (200, 300)
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    assert read_image_size(path) == (200, 300)
    path.write_bytes(whole[:10])
    assert "its size can't be read" in refused(read_image_size, path)
    path.unlink()
    assert "no such image" in refused(read_image_size, path)


def test_read_depth_npy_metres_or_levels(tmp_path):
    """Float NPY depth is read as metres, and integers as levels of the given unit."""
    depth = np.array([[1.5, np.nan, np.inf], [0, -2, 3]])
    for array in (depth, depth[None]):
        np.save(tmp_path / "d.npy", array)
        assert read_depth_npy(tmp_path / "d.npy", None).tolist() == [[[1.5, 0, 0], [0, 0, 3]]]
    np.save(tmp_path / "d.npy", LEVELS)
    metres = torch.from_numpy(np.where(LEVELS == 65535, 0, LEVELS).astype(np.float32)) / 256
    assert torch.equal(read_depth_npy(tmp_path / "d.npy", 256.0)[0], metres)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_read_depth_npy_float_ignores_integer_unit(tmp_path, kind):
    """The unit of integer levels doesn't apply to floats, which have one of their own."""
    np.save(tmp_path / "d.npy", np.array([[1.5, 4]], kind))
    assert read_depth_npy(tmp_path / "d.npy", 1000.0).tolist() == [[[1.5, 4]]]
    assert read_depth_npy(tmp_path / "d.npy", 1000.0, 2.0).tolist() == [[[0.75, 2]]]
    np.save(tmp_path / "d.npy", np.array([[1500, 4000]], np.int32))
    assert read_depth_npy(tmp_path / "d.npy", 1000.0, 2.0).tolist() == [[[1.5, 4]]]


def test_read_depth_npy_invalid_values_are_none(tmp_path):
    """Invalid values in NPY depth are read as 0."""
    np.save(tmp_path / "d.npy", np.array([[9.9, 1.5, 65535]], np.float32))
    assert read_depth_npy(tmp_path / "d.npy", None, 1.0, (9.9,)).tolist() == [[[0, 1.5, 65535]]]
    for kind, there in ((np.uint16, 0), (np.int32, 65.535), (">u2", 0)):
        np.save(tmp_path / "d.npy", np.array([[500, 7, 65535]], kind))
        depth = read_depth_npy(tmp_path / "d.npy", 1000.0, None, (7, 300000))
        assert depth.flatten().tolist() == pytest.approx([0.5, 0, there])


def test_max_level_is_none_in_ground_truth_only(tmp_path):
    """The level 65535 is no depth in ground truth, but valid in a teacher map."""
    Image.fromarray(LEVELS).save(tmp_path / "d.png")
    assert (LEVELS == 65535).any()
    assert np.array_equal(read_levels(tmp_path / "d.png")[0].numpy(), LEVELS)
    measured = read_measured_levels(tmp_path / "d.png")
    assert measured.dtype == torch.uint16
    assert np.array_equal(measured[0].numpy(), np.where(LEVELS == 65535, 0, LEVELS))
    levels = torch.tensor([[[1, 2, 3]]], dtype=torch.uint16)
    assert without_levels(levels, (2, 3.5, -1, 70000)).tolist() == [[[1, 0, 3]]]
    assert without_levels(levels, (65535,)) is levels


def test_broken_link_names_target(tmp_path):
    """A broken or circular link is named with its target."""
    path = tmp_path / "x.png"
    path.symlink_to(tmp_path / "gone.png")
    for read in (read_image, read_image_size, read_levels):
        assert refused(read, path).startswith(
            f"{path}: a link to {tmp_path / 'gone.png'}, which is not there; correct"
        )
    path.unlink()
    path.symlink_to(path)
    assert "a link to" in refused(read_image, path)
    assert "leads back to itself" in refused(read_image, path)


def test_image_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    """An image with too many pixels is refused as such and not as torn."""
    Image.new("L", (30, 40)).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for read in (read_image, read_photo, read_image_size):
        told = refused(read, tmp_path / "p.png").removeprefix(f"{tmp_path / 'p.png'}: ")
        assert told == "0 million pixels, more than the 179 million that are read; scale it down"


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp"])
def test_animation_is_refused(tmp_path, suffix):
    """An animation is refused with its number of frames."""
    pages = [Image.new("RGB", (8, 6), (level, 0, 0)) for level in (0, 100, 200)]
    path = tmp_path / f"p{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    path = path.rename(tmp_path / "p.png")
    for read in (read_image, read_photo):
        assert ": an animation of 3 frames (" in refused(read, path)
    pages[0].save(path, format=suffix[1:])
    assert read_image(path).shape == (3, 6, 8)


def test_odd_files_are_described(tmp_path):
    """An empty file, a Git LFS pointer and a 16-bit RGB image are described as what they are."""
    path = tmp_path / "p.png"
    path.touch()
    assert "an empty file, no image" in refused(read_image, path)
    assert "an empty file, no depth map" in refused(read_levels, path)
    write_bytes(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "no image; fetch the file with git lfs pull" in refused(read_image, path)
    sixteen = zlib.compress(
        b"\0" + bytes(range(12))
    )  # one row of two pixels of three channels of 16 bits
    head = (
        b"\x89PNG\r\n\x1a\n"
        + (2).to_bytes(4, "big")
        + (1).to_bytes(4, "big")
        + bytes([16, 2, 0, 0, 0])
    )
    empty = (
        head[:8] + b"\0\0\0\x0dIHDR" + head[8:] + zlib.crc32(b"IHDR" + head[8:]).to_bytes(4, "big")
    )
    end = b"\0\0\0\0IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")
    path.write_bytes(with_late_chunk(empty + end, b"IDAT", sixteen))
    assert "this has 3 channel(s) of 16 bits" in refused(read_levels, path)
    assert read_image(path).tolist() == read_photo(path).tolist() == [[[0, 6]], [[2, 8]], [[4, 10]]]


@pytest.mark.parametrize("mode", ["CMYK", "L", "YCbCr"])
def test_read_image_equals_read_photo(tmp_path, mode):
    """Training and prediction read the same RGB from every JPEG mode."""
    ramp = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(ramp).convert(mode).save(tmp_path / "p.jpg", quality=95)
    assert read_image(tmp_path / "p.jpg").shape == (3, 4, 4)
    assert torch.equal(read_image(tmp_path / "p.jpg"), read_photo(tmp_path / "p.jpg"))


def test_read_depth_npy_refuses_other_arrays(tmp_path):
    """NPY files of a wrong shape, dtype or kind are refused."""
    path = tmp_path / "d.npy"
    assert "no such depth map" in refused(read_depth_npy, path, None)
    for array, words in (
        (np.ones((2, 3, 4)), "float64 of shape (2, 3, 4)"),
        (np.ones(3), "float64 of shape (3,)"),
        (np.ones((2, 3), bool), "bool of shape (2, 3)"),
        (
            np.array([[object()]]),
            "can't be read (no numbers, but Python objects or another kind of file)",
        ),
        (np.ones((2, 3), np.uint16), "uint16 without a unit"),
    ):
        np.save(path, array, allow_pickle=True)
        assert words in refused(read_depth_npy, path, None)
    np.savez(tmp_path / "d.npz", np.ones((2, 3)))
    (tmp_path / "d.npz").rename(path)
    assert "an NPZ archive, not a single array; save" in refused(read_depth_npy, path, None)
    np.save(path, np.ones((20, 30)))
    for size in (0, 5, 60, 200):
        path.write_bytes(path.read_bytes()[:size])
        assert "can't be read" in refused(read_depth_npy, path, None)


def test_read_depth_npy_refuses_damaged_header(tmp_path):
    """A damaged archive or NPY header is refused with one line."""
    path = tmp_path / "d.npy"
    np.save(path, np.ones((20, 30)))
    whole = path.read_bytes()
    for damaged in (
        b"PK\x03\x04" + bytes(40),
        whole.replace(b"(20, 30)", b"(20, 3("),
        whole.replace(b"(20, 30), }        ", b"(99999999999, 99), }"),
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        assert "can't be read" in refused(read_depth_npy, path, None)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_readers_never_unpickle(tmp_path):
    """No reader unpickles a file."""
    path, sprung = tmp_path / "d.npy", tmp_path / "sprung"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Trap(sprung))),
        lambda: np.save(path, np.array([Trap(sprung)])),
    ):
        write()
        assert "can't be read" in refused(read_depth_npy, path, None)
        assert "torn or no image" in refused(read_image, path)
    assert not sprung.exists()


def test_read_photo_applies_exif_orientation(tmp_path):
    """`read_photo` and `read_image` rotate a photo by its EXIF orientation."""
    rgb = np.zeros((16, 32, 3), np.uint8)
    rgb[:, :16] = 200  # the left half is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(rgb).save(tmp_path / "p.jpg", exif=exif, quality=95)
    photo = read_photo(tmp_path / "p.jpg")
    assert photo.shape == (3, 32, 16)
    assert photo[:, :12].float().mean() > 190
    assert photo[:, 20:].float().mean() < 10
    assert torch.equal(read_image(tmp_path / "p.jpg"), photo)


# EXIF's orientations (where the stored first row and column are), as the turn that makes the image
# upright.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("exif_orientation", UPRIGHT)
def test_exif_orientation_in_all_readers(tmp_path, exif_orientation, suffix):
    """Every reader applies each EXIF orientation in every format, and the size agrees."""
    stored = np.kron(
        np.random.default_rng(0).integers(0, 256, (2, 3, 3)), np.ones((16, 16, 1))
    ).astype(np.uint8)
    exif, path = Image.Exif(), tmp_path / f"p{suffix}"
    exif[0x0112] = exif_orientation
    Image.fromarray(stored).save(path, exif=exif, quality=100, lossless=True, subsampling=0)
    expected = torch.from_numpy(UPRIGHT[exif_orientation](stored).copy()).permute(2, 0, 1)
    for read in (read_image, read_photo):
        assert read(path).shape == expected.shape
        assert (read(path).short() - expected).abs().max() <= 4
    assert read_image_size(path) == expected.shape[1:]
    assert orientation.orientation_in(path) == exif_orientation


@pytest.mark.parametrize("exif_orientation", UPRIGHT)
def test_read_levels_applies_exif_orientation(tmp_path, exif_orientation):
    """`read_levels` rotates a depth map by its EXIF orientation."""
    stored = np.random.default_rng(0).integers(0, 65536, (5, 7)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    Image.fromarray(stored).save(tmp_path / "d.png", exif=exif)
    assert np.array_equal(
        read_levels(tmp_path / "d.png")[0].numpy(), UPRIGHT[exif_orientation](stored)
    )


def with_late_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """The file with a chunk between its pixels and its end."""
    chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return png[:-12] + chunk + png[-12:]


def test_png_exif_after_pixels_is_applied(tmp_path):
    """An EXIF chunk behind the pixels of a PNG is applied; a damaged one is ignored."""
    exif = Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / "p.png"
    Image.new("RGB", (40, 30)).save(path)
    path.write_bytes(
        with_late_chunk(path.read_bytes(), b"eXIf", exif.tobytes()[len(b"Exif\0\0") :])
    )
    assert read_image(path).shape[1:] == read_image_size(path) == (40, 30)
    path.write_bytes(with_late_chunk(path.read_bytes(), b"eXIf", b"no EXIF"))
    assert read_image(path).shape[1:] == read_image_size(path)


@pytest.mark.parametrize("exif_orientation", [0, 9, 65535])
def test_exif_unknown_orientation_is_ignored(tmp_path, exif_orientation):
    """An unknown EXIF orientation is ignored."""
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "p.jpg", exif=exif)
    assert (
        read_image(tmp_path / "p.jpg").shape[1:] == read_image_size(tmp_path / "p.jpg") == (30, 40)
    )


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


@pytest.mark.parametrize(
    "pil_image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(np.dstack([GREY] * 3 + [GREY * 0])),  # transparent all over
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY).convert("RGB").quantize(64),
    ],
    ids=["grey", "16 bits", "grey and alpha", "rgba", "palette", "colour palette"],
)
def test_read_photo_returns_8_bit_rgb(tmp_path, pil_image):
    """`read_photo` returns every image mode as 8-bit RGB."""
    pil_image.save(tmp_path / "p.png")
    photo = read_photo(tmp_path / "p.png")
    assert photo.dtype == torch.uint8
    assert torch.equal(photo, torch.from_numpy(GREY).expand(3, 3, 4))


def test_read_photo_scales_16_bit_refuses_float(tmp_path):
    """`read_photo` scales 16-bit levels to 8 bits and refuses a float image."""
    Image.fromarray(np.array([[0, 128, 32767, 65535]], np.uint16)).save(tmp_path / "p.png")
    assert read_photo(tmp_path / "p.png")[0].tolist() == [[0, 0, 127, 255]]
    Image.fromarray(np.array([[0.5, 3.0]], np.float32)).save(tmp_path / "p.tif")
    assert "no grey levels" in refused(read_photo, tmp_path / "p.tif")
    assert "torn" in refused(read_photo, write_bytes(tmp_path / "q.jpg", b"no image"))


def write_bytes(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda path: path.unlink(),
            "no such teacher map; make the missing maps with bin/cache_te",
        ),
        (
            lambda path: path.write_bytes(b""),
            "an empty file, no teacher map; make it again with bin",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:40]),
            "a torn or damaged PNG (40 bytes); make it again with bin/cache_teacher.py",
        ),
        (
            lambda path: Image.fromarray(np.zeros((4, 5), np.uint8)).save(path),
            "a teacher map must be a one-channel 16-bit PNG, this has 1 channel(s) of 8 bits; make "
            "the maps with bin/cache_teacher.py",
        ),
        (
            lambda path: Image.fromarray(np.zeros((4, 5), np.uint8)).save(path, format="GIF"),
            "a teacher map must be a one-channel 16-bit PNG, this is a GIF; make the maps with",
        ),
    ],
)
def test_read_teacher_map_calls_it_that_and_says_how_to_make_it(spoil, told, tmp_path):
    """A bad teacher map isn't called a depth map, and the remedy is the program that makes it."""
    path = tmp_path / "a.png"
    Image.fromarray(np.ones((4, 5), np.uint16)).save(path)
    assert read_teacher_map(path).shape == (1, 4, 5)
    spoil(path)
    message = refused(read_teacher_map, path)
    assert message.startswith(f"{path}: {told}")
    assert "depth map" not in message


@pytest.mark.parametrize("write", [write_image, write_depth_png])
def test_write_png_leaves_nothing_where_the_disk_takes_no_more(write, tmp_path):
    """A PNG that can't be written whole leaves no partial file, and the error names the PNG."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write(tmp_path / "a.png", pixels if write is write_image else pixels[..., 0] / 3.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (error.value.filename, error.value.errno) == (str(tmp_path / "a.png"), errno.EFBIG)
    assert list(tmp_path.iterdir()) == []
