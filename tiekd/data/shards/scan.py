"""Reads the members of one tar shard: which files it has, and where, without their content.

A key is a member's name without its ending: `KEY.jpg`, `.jpeg` or `.png` is an image,
`KEY.depth.png` or `.depth.npy` its depth map, `KEY.json` its camera. (This is WebDataset's layout,
except that a key may have dots.) Other members are passed over, as are hidden ones. Of each image
and depth map the first 4 kB are read, for the image's size and for the shard's digest; a shard of
1000 frames takes some 0.2 s. Left out: the rest of their content, which is checked when it is read.
"""

import hashlib
import io
import json
import math
import os
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from tiekd.data import orientation
from tiekd.data.cameras import files
from tiekd.data.cameras.calibration import Camera
from tiekd.errors import DataError
from tiekd.files import instead_of_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIXES = (".depth.png", ".depth.npy")
CAMERA_SUFFIX = ".json"
# Longer endings first: `1.depth.png` is a depth map and no image.
_SUFFIXES = (*DEPTH_SUFFIXES, *IMAGE_SUFFIXES, CAMERA_SUFFIX)
_CAMERA_KEYS = ("fx", "fy", "cx", "cy")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BLOCK = 512
_HEAD = 4096  # bytes of a member that count in the digest
_TAIL = 1 << 20  # bytes after the end of the archive that must be zero


class Place(NamedTuple):
    """One member.

    Attributes:
        name: Its name.
        offset: The first byte of its content in the shard.
        size: The number of its bytes.
    """

    name: str
    offset: int
    size: int


class ScannedFrame(NamedTuple):
    """One frame of a shard.

    Attributes:
        image: The image.
        depth: The depth map; None without one.
        camera: The camera that the JSON file gives, of the upright image; None without one.
        height: Rows of the upright image; 0 if the image's header can't be read.
        width: Columns of the upright image, likewise.
    """

    image: Place
    depth: Place | None
    camera: Camera | None
    height: int
    width: int


class Scan(NamedTuple):
    """The content of one shard.

    Attributes:
        frames: The frames, in the order of their images.
        alone: The names of depth maps and JSON files without an image.
        problems: One line for each JSON file that can't be read.
        digest: A digest of the members' names, places and first bytes, hexadecimal.
    """

    frames: list[ScannedFrame]
    alone: list[str]
    problems: list[str]
    digest: str


def key_of(name: str) -> tuple[str, str] | None:
    """Returns (key, ending in lower case) of a member; None for one that is passed over.

    Args:
        name: The member's name.
    """
    if os.path.basename(name).startswith("."):
        return None
    lower = name.lower()
    suffix = next((suffix for suffix in _SUFFIXES if lower.endswith(suffix)), None)
    return None if suffix is None else (name[: -len(suffix)], suffix)


def scan(path: Path) -> Scan:
    """Reads the members of a shard.

    Args:
        path: The shard.

    Raises:
        DataError: It isn't a whole tar file, has no images, or has two members of one key and kind.
    """
    found = instead_of_file(path)
    if found is not None:
        raise DataError(f"{path}: {found}, no tar shard; put the file itself there")
    try:
        with path.open("rb") as file:
            return _scan(path, file)
    except tarfile.TarError as error:
        raise DataError(
            f"{path}: a truncated or damaged tar file ({error}); copy it from the original again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); check its permissions and the disk"
        ) from None


def _scan(path: Path, file: BinaryIO) -> Scan:
    head = file.read(_BLOCK)
    packed = next((kind for mark, kind in _COMPRESSED.items() if head.startswith(mark)), None)
    if packed is not None:
        raise DataError(
            f"{path}: compressed by {packed}; members are read by their offsets, so decompress the "
            "shard"
        )
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller closes the file
    except tarfile.ReadError:
        raise DataError(f"{path}: no tar file; give tar shards (data.shards)") from None
    members: dict[str, dict[str, Place]] = {}
    digest = hashlib.blake2b(digest_size=16)
    for member in archive:
        found = key_of(member.name)
        if member.isdir() or found is None:
            continue
        place = Place(member.name, member.offset_data, member.size)
        if not member.isreg() or member.issparse():
            raise DataError(
                f"{path}:{member.name}: a link or a sparse file, which has no content of its own; "
                "write the shard with plain files"
            )
        _add(path, members, *found, place)
        digest.update(f"{place}\n".encode(errors="surrogateescape"))
        digest.update(_window(file, place).read(_HEAD))
    _check_end(path, file, archive.offset)
    scanned = _frames(path, file, members, digest.hexdigest())
    if not scanned.frames:
        raise DataError(
            f"{path}: no images in it; a shard has members {', '.join(IMAGE_SUFFIXES)}, with "
            "KEY.depth.png and KEY.json beside them; remove the shard, or give others (data.shards)"
        )
    return scanned


def _add(
    path: Path, members: dict[str, dict[str, Place]], key: str, suffix: str, place: Place
) -> None:
    """Adds a member to those of its key.

    Args:
        path: The shard, for messages.
        members: key -> kind of member -> the member; changed in place.
        key: The member's key.
        suffix: Its ending.
        place: The member.

    Raises:
        DataError: There is another of its key and kind.
    """
    kind = "camera" if suffix == CAMERA_SUFFIX else "image"
    kind = "depth" if suffix in DEPTH_SUFFIXES else kind
    other = members.setdefault(key, {}).setdefault(kind, place)
    if other is not place:
        raise DataError(
            f"{path}: {other.name} and {place.name} have one key; a shard has one {kind} of each "
            "key, so write it again without one of them"
        )


def _check_end(path: Path, file: BinaryIO, end: int) -> None:
    """Raises DataError unless a tar file ends where its last member does.

    `tarfile` takes a damaged header for the end, and a file that was cut between two members.

    Args:
        path: The shard, for messages.
        file: The shard.
        end: The first byte after the last member.
    """
    file.seek(end)
    rest = file.read(_TAIL)
    if len(rest) < _BLOCK or any(rest[:_BLOCK]):
        raise DataError(
            f"{path}: truncated or damaged after {end} bytes, where no further member and no end "
            "is; copy it from the original again"
        )
    if rest.strip(b"\0"):
        raise DataError(
            f"{path}: goes on after its end at {end} bytes, as several tar files in one do; write "
            "them as one archive, or as several shards"
        )


def _frames(path: Path, file: BinaryIO, members: dict[str, dict[str, Place]], digest: str) -> Scan:
    frames, alone, problems = [], [], []
    for parts in members.values():
        if "image" not in parts:
            alone += [place.name for place in parts.values()]
            continue
        height, width, mark = _header(file, parts["image"])
        camera = None
        if "camera" in parts:
            try:
                camera = _camera(path, file, parts["camera"], (height, width), mark)
            except DataError as error:
                problems.append(str(error))
        frames.append(ScannedFrame(parts["image"], parts.get("depth"), camera, height, width))
    return Scan(frames, alone, problems, digest)


def _header(file: BinaryIO, place: Place) -> tuple[int, int, int]:
    """Returns height, width and EXIF orientation of an image; (0, 0, 1) if they can't be read.

    Args:
        file: The shard.
        place: The image.
    """
    try:
        with Image.open(_window(file, place)) as image:
            return *orientation.upright_size(image), orientation.mark_of(image)
    except Exception:  # noqa: BLE001 - decoding the image reports the error
        return 0, 0, orientation.UPRIGHT


def _camera(
    path: Path, file: BinaryIO, place: Place, size: tuple[int, int], mark: int
) -> Camera | None:
    """Returns the camera that a JSON file gives; None if it has none of a camera's keys.

    Args:
        path: The shard.
        file: The same, opened.
        place: The JSON file.
        size: (height, width) of the upright image; (0, 0) if unknown.
        mark: The image's EXIF orientation.

    Raises:
        DataError: It is no JSON object, or gives no camera of this image.
    """
    where = f"{path}:{place.name}"
    try:
        node = json.loads(_window(file, place).read())
    except (ValueError, RecursionError):
        node = None
    if not isinstance(node, dict):
        raise DataError(f"{where}: no JSON object; write fx, fy, cx, cy, width and height in it")
    if not any(key in node for key in _CAMERA_KEYS):
        return None
    calibration = files.of_plain(where, node)
    # An image whose header can't be read is reported when it is decoded.
    return calibration.at_size(*size, mark, where) if math.prod(size) else calibration.camera


class _Window(io.RawIOBase):
    """The content of a member as a file of its own, of which only what is asked for is read."""

    def __init__(self, file: BinaryIO, place: Place):
        self.file = file
        self.place = place
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.place.size}
        self.position = max(0, starts[whence] + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: bytearray) -> int:
        count = max(0, min(len(buffer), self.place.size - self.position))
        content = os.pread(self.file.fileno(), count, self.place.offset + self.position)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _window(file: BinaryIO, place: Place) -> BinaryIO:
    return io.BufferedReader(_Window(file, place), _HEAD)
