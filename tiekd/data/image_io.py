"""Reads and writes images and depth maps; every error names its file.

Pillow does all decoding and encoding, because torchvision's image functions are deprecated since
0.29, write 8 bits only and crash on a corrupt PNG with a segmentation fault. PNG checksums are
verified before decoding (`PIL.Image.verify`), because no decoder verifies those of the pixel data;
this takes about 1.5 ms per megabyte. Reading a KITTI image takes some 20 ms, and reading its depth
map 5 ms. Images and depth PNGs are returned upright, as their own EXIF orientation says
(tiekd/data/orientation.py). Not covered: formats that KITTI, NYU and common depth toolboxes don't
use, animations, and images of more than LARGEST_PIXELS.
"""

import errno
import io
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tiekd import console
from tiekd.data import orientation
from tiekd.data.stored import ShardMember, Source, as_openable, content_of
from tiekd.errors import DataError
from tiekd.files import cause_of, instead_of_file, replace_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = bytes(4) + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")
# A cached teacher map stores round(depth / full scale * 65535) in 16 bits. The full scale is the
# largest depth that the map can hold, in metres.
TEACHER_MAP_LEVELS = 65535
NO_RETURN = 65535  # value of pixels without a measurement in some 16-bit ground truth
LARGEST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # 178 million, above which Pillow refuses an image
_LFS = b"version https://git-lfs"
# Formats that can hold an animation, in Pillow's names. A TIFF or MPO with several pages isn't an
# animation.
_MAY_MOVE = (
    "GIF",
    "PNG",
    "WEBP",
    "AVIF",
)


class _Kind(NamedTuple):
    """Phrases about one kind of file (image, depth map or teacher map) for error messages.

    Attributes:
        noun: The name of the kind, such as "depth map".
        find: What the user can do if there is no such file.
        restore: What the user can do if the file is damaged.
        convert: What the user can do if the file has another format.
    """

    noun: str
    find: str = "check data.root and the split file"
    restore: str = "copy it from the original again"
    convert: str = "convert it from the original depth (a coloured image can't be used)"


_IMAGE = _Kind("image")
_DEPTH_MAP = _Kind("depth map")
_CACHE_TEACHER = console.command("cache_teacher")
_TEACHER_MAP = _Kind(
    "teacher map",
    find=f"make the missing maps with {_CACHE_TEACHER}, or set another teacher.maps",
    restore=f"make it again with {_CACHE_TEACHER}",
    convert=f"make the maps with {_CACHE_TEACHER}, or set another teacher.maps",
)


# Suppress Pillow's warning about images of more than half of LARGEST_PIXELS, which phones produce.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Source) -> Tensor:
    """Reads an 8-bit image, and turns it upright by its EXIF orientation.

    Args:
        path: The image file.

    Returns:
        (3, H, W) uint8 RGB, a permuted view of interleaved (H, W, 3) pixels.

    Raises:
        DataError: The file is missing, corrupt or not an 8-bit image.
    """
    image = _decode(path, _IMAGE)
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: an image must have 8 bits a channel, this has more; is it a depth map?",
            "bit depth",
        )
    return _rgb(orientation.upright(image))


def read_photo(path: Source) -> Tensor:
    """Reads an image of any common kind, and turns it upright by its EXIF orientation.

    Grey becomes RGB, transparency is dropped, and 16 bits are reduced to 8.

    Args:
        path: The image file.

    Returns:
        (3, H, W) uint8 RGB, a permuted view of interleaved (H, W, 3) pixels.

    Raises:
        DataError: The file is missing, corrupt or not an image, or its values aren't grey levels of
            8 or 16 bits.
    """
    return as_photo(_decode(path, _IMAGE), str(path))


def as_photo(image: Image.Image, name: str) -> Tensor:
    """Converts a Pillow image of any common kind to an RGB tensor.

    The image is turned upright by its EXIF orientation. Grey becomes RGB, transparency is dropped,
    and 16 bits are reduced to 8.

    Args:
        image: The image, which needn't be decoded yet.
        name: The image's name in error messages.

    Returns:
        (3, H, W) uint8 RGB, a permuted view of interleaved (H, W, 3) pixels.

    Raises:
        DataError: The image can't be decoded, or its values aren't grey levels of 8 or 16 bits.
    """
    try:
        image = orientation.upright(image)
    except OSError as error:  # an image that the caller opened may be decoded only now
        raise DataError(
            f"{name}: can't be decoded as an image ({error}); the file is torn"
        ) from None
    if image.mode in ("I", "F"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.size == 0 or pixels.min() < 0 or pixels.max() > 65535:
            raise DataError(
                f"{name}: its numbers are no grey levels of 8 or 16 bits; save it as such",
                "bit depth",
            )
        image = Image.fromarray(pixels.astype(np.uint16))
    if image.mode.startswith("I;16"):
        levels = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(levels.astype(np.uint8))
    return _rgb(image)


def read_image_size(path: Source) -> tuple[int, int]:
    """Returns (height, width) of an image file in pixels, after it is turned upright.

    Only the file's header is read.

    Args:
        path: The image file.

    Raises:
        DataError: The file is missing, or its header can't be read.
    """
    if not _is_there(path):
        raise _missing(path, _IMAGE)
    content = as_openable(path)
    try:
        with Image.open(content) as image:
            return orientation.upright_size(image)
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from None
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except Exception:  # noqa: BLE001 - Pillow's plug-ins raise any type on corrupt files
        raise DataError(f"{path}: its size can't be read; the file is torn or no image") from None


def read_levels(path: Source) -> Tensor:
    """Reads a 16-bit depth PNG, and turns it upright by its EXIF orientation.

    Args:
        path: The depth PNG.

    Returns:
        (1, H, W) uint16 in the file's unit, 0 where not measured. KITTI has 256 levels per metre,
        NYU 1000.

    Raises:
        DataError: The file is missing or corrupt, or isn't a one-channel 16-bit PNG.
    """
    return _read_levels(path, _DEPTH_MAP)


def read_teacher_map(path: Source) -> Tensor:
    """Reads a cached teacher map, a 16-bit PNG.

    Args:
        path: The teacher map's file.

    Returns:
        (1, H, W) uint16, 0 where invalid. The depth in metres is level / 65535 * full scale;
        `teacher_maps.full_scale_m` returns the full scale.

    Raises:
        DataError: The file is missing or corrupt, or isn't a one-channel 16-bit PNG; the message
            says how to make the map.
    """
    return _read_levels(path, _TEACHER_MAP)


def _read_levels(path: Source, kind: _Kind) -> Tensor:
    raw = _decode(path, kind)
    if raw.format != "PNG":
        raise DataError(
            f"{path}: a {kind.noun} must be a one-channel 16-bit PNG, this is a {raw.format}; "
            f"{kind.convert}",
            "bit depth",
        )
    # Accept only 16-bit images, which have the mode I;16, or I in older versions of Pillow.
    if not raw.mode.startswith("I"):
        bits = content_of(path)[24]  # Pillow reports 8 bits for 16-bit images of several channels
        raise DataError(
            f"{path}: a {kind.noun} must be a one-channel 16-bit PNG, this has "
            f"{len(raw.getbands())} channel(s) of {bits} bits; {kind.convert}",
            "bit depth",
        )
    return torch.from_numpy(np.array(orientation.upright(raw), dtype=np.uint16))[None]


def read_measured_levels(path: Source) -> Tensor:
    """Reads ground truth from a 16-bit depth PNG; level NO_RETURN counts as not measured.

    Args:
        path: The depth PNG.

    Returns:
        (1, H, W) uint16 in the file's unit, 0 where not measured.

    Raises:
        DataError: The file is missing or corrupt, or isn't a one-channel 16-bit PNG.
    """
    return without_levels(read_levels(path), (NO_RETURN,))


def without_levels(levels: Tensor, invalid: Sequence[float]) -> Tensor:
    """Returns a depth map with invalid values set to 0; `levels` itself if it has none.

    Args:
        levels: The depth map, (1, H, W) uint16 as stored in its file.
        invalid: The values that mean "not measured".
    """
    values = levels.numpy()
    # Skip the comparison with invalid values that are above the map's largest value, as they often
    # are.
    largest = values.max(initial=0)
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
    path: Source,
    units_per_m: float | None,
    float_units_per_m: float | None = None,
    invalid: Sequence[float] = (),
) -> Tensor:
    """Reads a NumPy file of depths.

    Args:
        path: The file, which holds (H, W) or (1, H, W) numbers.
        units_per_m: Units per metre of a file with integers; None, i.e. unknown, raises an error
            for such a file.
        float_units_per_m: Units per metre of a file with floating-point values; None means metres.
        invalid: Stored values that mean "not measured". In uint16 files NO_RETURN is invalid, too.

    Returns:
        (1, H, W) float32, metres, 0 where invalid, not finite or not above 0.

    Raises:
        DataError: The file is missing, or doesn't hold such an array.
    """
    if not _is_there(path):
        raise _missing(path, _DEPTH_MAP)
    content = as_openable(path)
    try:
        depth = np.load(content, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - a corrupt header or archive raises any type
        reason = " ".join(str(error).split())
        reason = (
            "no numbers, but Python objects or another kind of file"
            if "pickle" in reason
            else reason
        )
        raise DataError(f"{path}: can't be read ({reason}); save it with numpy.save") from None
    # Check that the file holds one depth map with a known unit.
    if not isinstance(depth, np.ndarray):
        raise DataError(
            f"{path}: an NPZ archive, not a single array; save the depth map with numpy.save"
        )
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
    # Mark invalid values, then convert the depths to metres.
    unit = (float_units_per_m or 1.0) if is_float else units_per_m
    none = np.zeros(1, bool)
    for value in (*invalid, *((NO_RETURN,) if depth.dtype.str[1:] == "u2" else ())):
        none = none | (depth == value)
    with np.errstate(over="ignore"):  # values beyond float32's range become infinite, i.e. invalid
        metres = torch.from_numpy(depth.astype(np.float32))[None] / unit
    return torch.where(metres.isfinite() & (metres > 0) & ~torch.from_numpy(none), metres, 0.0)


def read_depth(
    path: Source,
    units_per_m: float | None,
    float_units_per_m: float | None,
    invalid: tuple[float, ...],
) -> Tensor:
    """Reads a depth file of a user's own.

    Args:
        path: The file, an NPY file or a 16-bit PNG.
        units_per_m: Units per metre of integers in an NPY file; None if unknown.
        float_units_per_m: Units per metre of floating-point values; None means metres.
        invalid: Values in an NPY file that mean "not measured".

    Returns:
        (1, H, W), 0 where invalid: float32 metres from an NPY file, uint16 levels from a PNG.
    """
    if path.suffix.lower() == ".npy":
        return read_depth_npy(path, units_per_m, float_units_per_m, invalid)
    return read_measured_levels(path)


def kind_of_depth(path: Source) -> str:
    """Returns the kind of a depth file: `16-bit PNG`, `float32 NPY` and so on.

    The dtype of an NPY file is read from its header. If the header can't be read, the result is
    `NPY`.

    Args:
        path: The depth file.
    """
    if needs_decoding(path):
        return "16-bit PNG"
    # Open only regular files, since opening a FIFO blocks. For other files, reading the depth map
    # raises the error.
    if not _is_there(path):
        return "NPY"
    # A member of a shard can't be mapped: its whole content is read.
    mode = None if isinstance(path, ShardMember) else "r"
    try:
        return f"{np.load(as_openable(path), mmap_mode=mode, allow_pickle=False).dtype.name} NPY"
    except Exception:  # noqa: BLE001 - reading the depth map raises the error
        return "NPY"


def encode_teacher_map(depth_m: np.ndarray, full_scale_m: float) -> bytes:
    """Encodes a teacher map as a 16-bit PNG of round(depth / full_scale * 65535).

    Valid depths (finite, above 0) become levels 1 to 65535, all others 0.

    Args:
        depth_m: (H, W) depths in metres.
        full_scale_m: Depth in metres that level 65535 encodes; farther depths are clipped to it.

    Returns:
        The bytes of the PNG file.
    """
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


def needs_decoding(path: Source) -> bool:
    """Returns True for a file with compressed pixels, False for an NPY file.

    Args:
        path: The file of an image or a depth map; only its suffix is used.
    """
    return path.suffix.lower() != ".npy"


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file atomically, so that even a power cut leaves it complete or absent.

    Args:
        path: The file, which is replaced if it exists.
        data: The file's content.

    Raises:
        DataError: The file can't be written.
    """
    try:
        replace_bytes(path, data)
    except OSError as error:
        cause = cause_of(error)
        message = f"{path}: can't be written ({cause}); check the disk and its permissions"
        raise DataError(message, "disk") from None


def is_whole_depth_png(path: Path) -> bool:
    """Returns True if a file is a one-channel 16-bit PNG with correct checksums.

    The pixels aren't decoded.

    Args:
        path: The file; the result is False if it doesn't exist.

    Raises:
        DataError: The permission to read the file is missing. The caller must then not replace the
            file.
    """
    if instead_of_file(path):
        return False
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except OSError:
        return False
    return is_whole_depth_content(data)


def is_whole_depth_content(data: bytes | np.ndarray) -> bool:
    """Returns True if bytes are a one-channel 16-bit PNG with correct checksums.

    The pixels aren't decoded.

    Args:
        data: The bytes, or an (N,) uint8 array of them.
    """
    data = bytes(data)
    # Check the PNG's header: byte 24 is the number of bits per channel, byte 25 the colour type (0
    # is grey).
    return (
        data.startswith(_PNG) and _is_whole_png(io.BytesIO(data)) and data[24:26] == bytes((16, 0))
    )


def write_depth_png(path: Path, depth_m: np.ndarray, units_per_m: float = 256.0) -> None:
    """Writes a depth map as a 16-bit PNG of round(depth * units_per_m), atomically.

    Values saturate at 65535. A depth above 0 becomes at least 1, since 0 means no depth.

    Args:
        path: The file to write.
        depth_m: (H, W) metres.
        units_per_m: Stored units per metre.
    """
    depth_m = np.nan_to_num(depth_m)
    levels = np.clip(np.rint(depth_m * units_per_m), depth_m > 0, 65535).astype(np.uint16)
    _write_png(path, levels)


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Writes an image as a PNG file, atomically.

    Args:
        path: The file to write.
        rgb: (H, W, 3) uint8 RGB.
    """
    _write_png(path, rgb)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    # Encode in memory, and write by `replace_bytes`, which removes the partial file if writing
    # fails.
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    replace_bytes(path, file.getvalue(), durable=False)


def _decode(path: Source, kind: _Kind) -> Image.Image:
    """Reads an image file, and returns it as a decoded Pillow image that isn't turned upright.

    Args:
        path: The file.
        kind: Phrases about the kind of file that is expected, for the error message.

    Raises:
        DataError: The file is missing, corrupt or of another kind.
    """
    noun = kind.noun
    if not _is_there(path):  # opening a FIFO would block
        raise _missing(path, kind)
    try:
        data = content_of(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    # Report common kinds of bad files here, because Pillow's message would be of no help.
    if len(data) == 0:
        raise DataError(f"{path}: an empty file, no {noun}; {kind.restore}")
    if data[: len(_LFS)].tobytes() == _LFS:
        raise DataError(
            f"{path}: the place of a file in Git LFS, no {noun}; fetch the file with git lfs pull"
        )
    file = io.BytesIO(data)
    if data[: len(_PNG)].tobytes() == _PNG and not _is_whole_png(file):
        raise DataError(f"{path}: a torn or damaged PNG ({len(data)} bytes); {kind.restore}")
    file.seek(0)
    try:
        image = Image.open(file)
        moves = image.format in _MAY_MOVE and getattr(image, "is_animated", False)
        image.load()
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from None
    except Exception as error:  # noqa: BLE001 - Pillow's plug-ins raise any type on corrupt files
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        article = "an" if kind is _IMAGE else "a"
        raise DataError(
            f"{path}: can't be decoded as {article} {noun}{reason}; the file is torn or no {noun}"
        ) from None
    if moves:
        raise DataError(
            f"{path}: an animation of {image.n_frames} frames ({image.format}), no {noun}; "
            "save the frames as files, or all as a video"
        )
    return image


def _is_there(source: Source) -> bool:
    """Returns True if a path is that of a regular file.

    Args:
        source: The path; or a member of a tar shard, for which the result is True without a check,
            because reading the member raises an error if it isn't there.
    """
    return isinstance(source, ShardMember) or os.path.isfile(source)


def _rgb(image: Image.Image) -> Tensor:
    """Converts a Pillow image of 8 bits per channel to a (3, H, W) uint8 RGB tensor."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if such an image is converted to RGB directly
    image = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _missing(path: Source, kind: _Kind) -> DataError:
    """Returns the DataError to raise for a path that isn't a regular file.

    Args:
        path: The path, which doesn't exist or is a folder, a broken link, a FIFO or the like.
        kind: Phrases about the kind of file that should be there.
    """
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return _unreadable(path, error)
        if os.path.islink(path):
            there = "leads back to itself" if error.errno == errno.ELOOP else "is not there"
            message = (
                f"{path}: a link to {os.readlink(path)}, which {there}; correct or remove the link"
            )
            return DataError(message, "missing")
        return DataError(f"{path}: no such {kind.noun}; {kind.find}", "missing")
    message = f"{path}: {instead_of_file(path)}, no {kind.noun}; put the file itself there"
    return DataError(message, "missing")


def _unreadable(path: Source, error: OSError) -> DataError:
    """Returns the DataError to raise for a file that the operating system can't read.

    Args:
        path: The file.
        error: The operating system's error, whose text is part of the message.
    """
    return DataError(
        f"{path}: can't be read ({error.strerror or error}); check its permissions and the disk"
    )


def _too_large(path: Source, error: Image.DecompressionBombError) -> DataError:
    """Returns the DataError to raise for an image with more than LARGEST_PIXELS pixels.

    Args:
        path: The image file.
        error: Pillow's error, from whose text the number of pixels is read. It begins "Image size
            (192000000 pixels) exceeds limit".
    """
    pixels = next(
        (int(word.strip("(")) for word in str(error).split() if word.strip("(").isdigit()), 0
    )
    return DataError(
        f"{path}: {pixels / 1e6:.0f} million pixels, more than the {LARGEST_PIXELS / 1e6:.0f} "
        "million that are read; scale it down"
    )


def _is_whole_png(file: io.BytesIO) -> bool:
    """Returns True if the checksums of all chunks of a PNG are correct.

    Pillow's `verify` stops after the type of the end chunk, so this function compares the whole end
    chunk.

    Args:
        file: The PNG's content.
    """
    file.seek(0)
    try:
        Image.open(file).verify()
    except Image.DecompressionBombError:
        return True  # decoding the file raises the error about too many pixels
    except Exception:  # noqa: BLE001 - Pillow raises any type on corrupt files
        return False
    file.seek(-8, os.SEEK_CUR)
    return file.read(len(_PNG_END)) == _PNG_END
