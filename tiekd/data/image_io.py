"""Reads and writes pictures and depth maps; every failure names its file.

Everything is decoded and encoded by Pillow: torchvision's decoders are deprecated since 0.29, write 8 bits only and die
of a damaged PNG with a segmentation fault. A PNG's checksums are verified here, about 0.5 ms a megabyte, because no
decoder does it for pixels. A KITTI picture takes some 20 ms, its depth map 5.
Images and depth PNGs come upright, as their own EXIF orientation says (tiekd/data/orientation.py).
Left out: formats that KITTI, NYU and the toolboxes don't use, animations, and images of more than LARGEST_PIXELS.
"""

import errno
import io
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tiekd.data import orientation
from tiekd.errors import DataError
from tiekd.files import replace_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
TEACHER_MAP_LEVELS = (
    65535  # a cached teacher map stores round(depth / max_depth * 65535) in 16 bits
)
NO_RETURN = 65535  # in 16-bit ground truth: sensors and tools write it where nothing was measured
LARGEST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # 178 million; Pillow refuses more
_LFS = b"version https://git-lfs"
# Formats that hold animations; more pages in a TIFF or MPO are none.
_MAY_MOVE = (
    "GIF",
    "PNG",
    "WEBP",
    "AVIF",
)

# Phones make images of more than half of LARGEST_PIXELS, of which Pillow would warn.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path) -> Tensor:
    """An RGB picture, upright, as (3, H, W) uint8, a view of pixels that lie together. Raises DataError for a file that
    is missing, torn or no 8-bit picture."""
    picture = _decode(path, "picture")
    if picture.mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: a picture must have 8 bits a channel, this has more; is it a depth map?",
            "bit depth",
        )
    return _rgb(orientation.upright(picture))


def read_photo(path: Path) -> Tensor:
    """Any picture that people have, upright, as (3, H, W) uint8 RGB, a view of pixels that lie together.

    Grey becomes RGB, transparency is dropped, of 16 bits 8 are kept.
    Raises DataError for a file that is missing, torn or no picture, and for numbers that are no grey levels.
    """
    return as_photo(_decode(path, "picture"), str(path))


def as_photo(picture: Image.Image, name: str) -> Tensor:
    """A Pillow picture as `read_photo` gives it; name: what an error calls it."""
    try:
        picture = orientation.upright(picture)
    except OSError as error:  # a Pillow picture of the caller's that is loaded only now
        raise DataError(
            f"{name}: can't be decoded as a picture ({error}); the file is torn"
        ) from None
    if picture.mode in ("I", "F"):
        pixels = np.asarray(picture)
        if picture.mode == "F" or pixels.size == 0 or pixels.min() < 0 or pixels.max() > 65535:
            raise DataError(
                f"{name}: its numbers are no grey levels of 8 or 16 bits; save it as such",
                "bit depth",
            )
        picture = Image.fromarray(pixels.astype(np.uint16))
    if picture.mode.startswith("I;16"):
        levels = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535
        picture = Image.fromarray(levels.astype(np.uint8))
    return _rgb(picture)


def read_image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an upright picture from the head of its file. Raises DataError where there is none to read."""
    if not os.path.isfile(path):
        raise _missing(path, "picture")
    try:
        with Image.open(path) as picture:
            return orientation.upright_size(picture)
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from None
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except Exception:  # noqa: BLE001 - Pillow's plug-ins raise all kinds on damaged files
        raise DataError(f"{path}: its size can't be read; the file is torn or no picture") from None


def read_levels(path: Path) -> Tensor:
    """A 16-bit depth PNG, upright, as (1, H, W) uint16, 0 where not measured, in the file's own unit: 256 of them make
    a metre in KITTI, 1000 in NYU, 65535 / full scale in a cached teacher map. Raises DataError for a missing or torn
    file and for 8 bits."""
    raw = _decode(path, "depth map")
    if raw.format != "PNG":
        raise DataError(
            f"{path}: a depth map must be a one-channel 16-bit PNG, this is a {raw.format}",
            "bit depth",
        )
    if not raw.mode.startswith("I"):  # 16 bits are I;16 or, in older versions of Pillow, I
        with path.open("rb") as file:
            bits = file.read(25)[-1]  # Pillow gives 8 of 16 bits where there are several channels
        raise DataError(
            f"{path}: a depth map must be a one-channel 16-bit PNG, this has {len(raw.getbands())} "
            f"channel(s) of {bits} bits; convert it from the original depth (a coloured picture "
            "can't be used)",
            "bit depth",
        )
    return torch.from_numpy(np.array(orientation.upright(raw), dtype=np.uint16))[None]


def read_measured_levels(path: Path) -> Tensor:
    """`read_levels` of ground truth, where NO_RETURN, too, means not measured and becomes 0."""
    return without_levels(read_levels(path), (NO_RETURN,))


def without_levels(levels: Tensor, invalid: Sequence[float]) -> Tensor:
    """uint16 levels with 0 in place of the invalid ones; the tensor itself where it has none of them."""
    values = levels.numpy()
    largest = values.max(initial=0)  # mostly below all of them, which spares the comparisons
    present = [
        np.uint16(level) for level in invalid if 0 <= level <= largest and level == int(level)
    ]
    none = np.zeros(values.shape, bool)
    for level in present:
        none |= values == level
    return (
        torch.from_numpy(np.where(none, np.uint16(0), values)) if present and none.any() else levels
    )


def read_depth_npy(
    path: Path,
    units_per_m: float | None,
    float_units_per_m: float | None = None,
    invalid: Sequence[float] = (),
) -> Tensor:
    """Reads a NumPy file of depths.

    Args:
        path: holds (H, W) or (1, H, W) numbers.
        units_per_m: of whole numbers, which rarely are metres and need it. Floating-point ones are not divided by it.
        float_units_per_m: of floating-point numbers, which are metres without it.
        invalid: values that mean not measured, as the file has them; in 16-bit whole numbers NO_RETURN always does.

    Returns:
        (1, H, W) float32, metres, 0 for what is invalid, not finite or not above 0.

    Raises:
        DataError: for a missing file, and for anything else in it.
    """
    if not os.path.isfile(path):
        raise _missing(path, "depth map")
    try:
        depth = np.load(path, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - a damaged header or archive raises all kinds
        reason = " ".join(str(error).split())
        reason = (
            "no numbers, but Python objects or another kind of file"
            if "pickle" in reason
            else reason
        )
        raise DataError(f"{path}: can't be read ({reason}); save it with numpy.save") from None
    if not isinstance(depth, np.ndarray):
        raise DataError(f"{path}: an archive, no single array; save the depth map with numpy.save")
    depth = depth[0] if depth.ndim == 3 and len(depth) == 1 else depth
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        got = f"{depth.dtype} of shape {depth.shape}"
        raise DataError(
            f"{path}: a depth map must be numbers of shape (height, width), this is {got}"
        )
    is_float = depth.dtype.kind == "f"
    if units_per_m is None and not is_float:
        raise DataError(
            f"{path}: {depth.dtype} without a unit; say how many make a metre, such as "
            "data.depth_unit=1000"
        )
    unit = (float_units_per_m or 1.0) if is_float else units_per_m
    none = np.zeros(1, bool)
    for value in (*invalid, *((NO_RETURN,) if depth.dtype.str[1:] == "u2" else ())):
        none = none | (depth == value)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is none
        metres = torch.from_numpy(depth.astype(np.float32))[None] / unit
    return torch.where(metres.isfinite() & (metres > 0) & ~torch.from_numpy(none), metres, 0.0)


def kind_of_depth(path: Path) -> str:
    """What a depth file holds: `16-bit PNG`, or `float32 NPY` by its head; `NPY` for one that can't be read."""
    if needs_decoding(path):
        return "16-bit PNG"
    if not os.path.isfile(path):  # told by whoever reads it; opening a pipe would wait for ever
        return "NPY"
    try:
        return f"{np.load(path, mmap_mode='r', allow_pickle=False).dtype.name} NPY"
    except Exception:  # noqa: BLE001 - told by whoever reads it
        return "NPY"


def encode_teacher_map(depth_m: np.ndarray, full_scale_m: float) -> bytes:
    """(H, W) metres as a cached teacher map's PNG: round(depth / full_scale * 65535), saturating at 65535; what is
    valid (above 0, finite) is at least 1, the rest 0."""
    levels = np.clip(
        np.rint(depth_m.astype(np.float64) * (TEACHER_MAP_LEVELS / full_scale_m)),
        1,
        TEACHER_MAP_LEVELS,
    )
    valid = np.isfinite(depth_m) & (depth_m > 0)
    file = io.BytesIO()
    Image.fromarray(np.where(valid, levels, 0).astype(np.uint16)).save(
        file, format="PNG", compress_level=1
    )
    return file.getvalue()


def needs_decoding(path: Path) -> bool:
    """False for files that hold their numbers as they are."""
    return path.suffix.lower() != ".npy"


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that it is whole or not there, even after a power cut. Raises DataError where it can't be."""
    try:
        replace_bytes(path, data)
    except OSError as error:
        message = f"{path}: can't be written ({error.strerror}); check the disk and its permissions"
        raise DataError(message, "disk") from None


def is_whole_depth_png(path: Path) -> bool:
    """Whether a file is a one-channel 16-bit PNG with all its checksums right; False where there is none. Raises
    DataError for one that may not be read, which is not ours to replace."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except OSError:
        return False
    whole = data[: len(_PNG)].tobytes() == _PNG and _is_whole_png(data)
    return whole and data[24:26].tolist() == [16, 0]  # bits a channel, and the colour type of grey


def write_depth_png(path: Path, depth_m: np.ndarray, units_per_m: float = 256.0) -> None:
    """Writes (H, W) metres as a 16-bit PNG of round(depth * units), saturating at 65535, atomically; depth above 0 is
    at least 1, since 0 means none."""
    depth_m = np.nan_to_num(depth_m)
    levels = np.clip(np.rint(depth_m * units_per_m), depth_m > 0, 65535).astype(np.uint16)
    _write_png(path, levels)


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB as PNG, atomically."""
    _write_png(path, rgb)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Image.fromarray(pixels).save(partial, format="PNG", compress_level=1)
    os.replace(partial, path)


def _decode(path: Path, kind: str) -> Image.Image:
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise _missing(path, kind)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) == 0:
        raise DataError(f"{path}: an empty file, no {kind}; copy it from the original again")
    if data[: len(_LFS)].tobytes() == _LFS:
        raise DataError(
            f"{path}: the place of a file in Git LFS, no {kind}; fetch the file with git lfs pull"
        )
    if data[: len(_PNG)].tobytes() == _PNG and not _is_whole_png(data):
        raise DataError(
            f"{path}: a torn or damaged PNG ({len(data)} bytes); copy it from the original again"
        )
    try:
        picture = Image.open(io.BytesIO(data))
        moves = picture.format in _MAY_MOVE and getattr(picture, "is_animated", False)
        picture.load()
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from None
    except Exception as error:  # noqa: BLE001 - Pillow's plug-ins raise all kinds on damaged files
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise DataError(
            f"{path}: can't be decoded as a {kind}{reason}; the file is torn or no {kind}"
        ) from None
    if moves:
        raise DataError(
            f"{path}: an animation of {picture.n_frames} frames ({picture.format}), no {kind}; "
            "save the frames as files, or all as a video"
        )
    return picture


def _rgb(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8 of a picture of 8 bits a channel."""
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns of going to RGB at once
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _missing(path: Path, kind: str) -> DataError:
    """What to say of a path that is no file."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return _unreadable(path, error)
        if os.path.islink(path):
            there = "leads back to itself" if error.errno == errno.ELOOP else "is not there"
            message = (
                f"{path}: a link to {os.readlink(path)}, which {there}; mend the link, or remove it"
            )
            return DataError(message, "missing")
        return DataError(f"{path}: no such {kind}; check data.root and the split file", "missing")
    return DataError(f"{path}: a folder or device, no {kind}; put the file itself there", "missing")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: can't be read ({error.strerror or error}); check its permissions and the disk"
    )


def _too_large(path: Path, error: Image.DecompressionBombError) -> DataError:
    """Pillow's error begins "Image size (192000000 pixels) exceeds limit"."""
    pixels = next(
        (int(word.strip("(")) for word in str(error).split() if word.strip("(").isdigit()), 0
    )
    return DataError(
        f"{path}: {pixels / 1e6:.0f} million pixels, more than the {LARGEST_PIXELS / 1e6:.0f} "
        "million that are read; scale it down"
    )


def _is_whole_png(data: np.ndarray) -> bool:
    """Whether the chunks follow each other to the end mark, each with the checksum that it should have."""
    start = len(_PNG)
    kind = b""
    while kind != b"IEND":
        end = start + 8 + int.from_bytes(data[start : start + 4].tobytes(), "big")
        kind = data[start + 4 : start + 8].tobytes()
        checksum = data[end : end + 4].tobytes()
        if len(checksum) < 4 or zlib.crc32(data[start + 4 : end]) != int.from_bytes(
            checksum, "big"
        ):
            return False
        start = end + 4
    return True
