"""Lists the members of one tar shard: their names, positions and sizes, and the images' sizes.

A key is a member's name without its ending: `KEY.jpg`, `.jpeg` or `.png` is an image,
`KEY.depth.png` or `.depth.npy` its depth map, `KEY.json` its camera. (This is WebDataset's layout,
except that a key may have dots.) Hidden members and those with other endings are ignored. Of each
member the first 4 kB are read for the shard's digest; a shard of 1000 frames takes some 0.2 s. Not
covered: the rest of images and depth maps, which is checked when a frame is read.
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
# Endings in the order in which they are tried, longer ones first, so that `1.depth.png` is
# recognised as a depth map and not as an image.
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


class Member(NamedTuple):
    """The name of a member of a tar shard, and the position of its content.

    Attributes:
        name: The member's name.
        offset: The position in the shard of the content's first byte.
        size: The number of bytes of the content.
    """

    name: str
    offset: int
    size: int


class ScannedFrame(NamedTuple):
    """The members of one frame in a shard, and the size of its image.

    Attributes:
        image: The member with the image.
        depth: The member with the depth map; None if there is none.
        camera: The camera of the upright image from the frame's JSON file; None if there is none.
        height: Rows of the upright image; 0 if the image's header can't be read.
        width: Columns of the upright image; 0 if the image's header can't be read.
    """

    image: Member
    depth: Member | None
    camera: Camera | None
    height: int
    width: int


class Scan(NamedTuple):
    """The content of one shard.

    Attributes:
        frames: The frames, in the order in which their first members are in the shard.
        unpaired: The names of depth maps and JSON files without an image of the same key.
        problems: An error message for each JSON file that can't be read.
        digest: A hash, in hexadecimal, of the members' names, positions, sizes and first 4 kB.
    """

    frames: list[ScannedFrame]
    unpaired: list[str]
    problems: list[str]
    digest: str


def key_of(name: str) -> tuple[str, str] | None:
    """Splits the name of a shard's member into its key and its ending.

    Args:
        name: The member's name, such as "day/1.depth.png".

    Returns:
        (key, ending in lower case), such as ("day/1", ".depth.png"). None for a hidden member, or
        one with an unknown ending; such members are ignored.
    """
    if os.path.basename(name).startswith("."):
        return None
    lower = name.lower()
    suffix = next((suffix for suffix in _SUFFIXES if lower.endswith(suffix)), None)
    return None if suffix is None else (name[: -len(suffix)], suffix)


def scan(path: Path) -> Scan:
    """Returns a `Scan` of a tar shard: its frames, with the positions of their members.

    The tar headers, the JSON files and the first 4 kB of each member are read.

    Args:
        path: The shard.

    Raises:
        DataError: The shard isn't a complete tar file, has no images, or has two images, two depth
            maps or two JSON files of the same key.
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
    packed = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
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
    members: dict[str, dict[str, Member]] = {}
    digest = hashlib.blake2b(digest_size=16)
    for entry in archive:
        found = key_of(entry.name)
        if entry.isdir() or found is None:
            continue
        member = Member(entry.name, entry.offset_data, entry.size)
        if not entry.isreg() or entry.issparse():
            raise DataError(
                f"{path}:{entry.name}: a link or a sparse file, which has no content of its own; "
                "write the shard with plain files"
            )
        _add(path, members, *found, member)
        # Index files contain the digest. So that they stay valid, the hashed text has the word
        # Place, which is what the class `Member` was called when they were made.
        line = f"Place(name={member.name!r}, offset={member.offset}, size={member.size})\n"
        digest.update(line.encode(errors="surrogateescape"))
        digest.update(_open_member(file, member).read(_HEAD))
    _check_end(path, file, archive.offset)
    scanned = _frames(path, file, members, digest.hexdigest())
    if not scanned.frames:
        raise DataError(
            f"{path}: no images in it; a shard has members {', '.join(IMAGE_SUFFIXES)}, with "
            "KEY.depth.png and KEY.json beside them; remove the shard, or give others (data.shards)"
        )
    return scanned


def _add(
    path: Path, members: dict[str, dict[str, Member]], key: str, suffix: str, member: Member
) -> None:
    """Adds a member of a shard to a dict of all members.

    Args:
        path: The shard, for the error message.
        members: For each key its members, keyed by "image", "depth" or "camera"; changed in place.
        key: The member's key.
        suffix: The ending of the member's name, which determines if it is an image, a depth map or
            a camera.
        member: The member.

    Raises:
        DataError: The key has another image, depth map or camera already.
    """
    kind = "camera" if suffix == CAMERA_SUFFIX else "image"
    kind = "depth" if suffix in DEPTH_SUFFIXES else kind
    other = members.setdefault(key, {}).setdefault(kind, member)
    if other is not member:
        raise DataError(
            f"{path}: {other.name} and {member.name} have one key; a shard has one {kind} of each "
            "key, so write it again without one of them"
        )


def _check_end(path: Path, file: BinaryIO, end: int) -> None:
    """Raises DataError unless the end mark of a tar file follows its last member.

    `tarfile` itself raises no error if a member's header is damaged, or if the file was cut between
    two members: it takes this for the file's end.

    Args:
        path: The shard's path, for the error message.
        file: The opened shard.
        end: The position of the first byte after the last member that was found.
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
            f"{path}: has data after the end-of-archive mark at byte {end}, like several tar files "
            "in one file; write them as one archive, or as several shards"
        )


def _frames(path: Path, file: BinaryIO, members: dict[str, dict[str, Member]], digest: str) -> Scan:
    frames, unpaired, problems = [], [], []
    for by_kind in members.values():
        if "image" not in by_kind:
            unpaired += [member.name for member in by_kind.values()]
            continue
        height, width, exif_orientation = _header(file, by_kind["image"])
        camera = None
        if "camera" in by_kind:
            try:
                camera = _camera(path, file, by_kind["camera"], (height, width), exif_orientation)
            except DataError as error:
                problems.append(str(error))
        frames.append(ScannedFrame(by_kind["image"], by_kind.get("depth"), camera, height, width))
    return Scan(frames, unpaired, problems, digest)


def _header(file: BinaryIO, member: Member) -> tuple[int, int, int]:
    """Returns (height, width, EXIF orientation) of an image from its header.

    Height and width are those of the upright image in pixels. The result is (0, 0, 1) if the header
    can't be read.

    Args:
        file: The opened shard.
        member: The member with the image.
    """
    try:
        with Image.open(_open_member(file, member)) as image:
            return *orientation.upright_size(image), orientation.orientation_of(image)
    except Exception:  # noqa: BLE001 - decoding the image reports the error
        return 0, 0, orientation.UPRIGHT


def _camera(
    path: Path, file: BinaryIO, member: Member, size: tuple[int, int], exif_orientation: int
) -> Camera | None:
    """Returns a frame's camera, for its upright image, from its JSON file.

    Args:
        path: The shard's path, for error messages.
        file: The opened shard.
        member: The member with the JSON file. The result is None if the file has none of the keys
            fx, fy, cx and cy.
        size: (height, width) of the upright image in pixels; (0, 0) if unknown.
        exif_orientation: The image's EXIF orientation, 1 to 8.

    Raises:
        DataError: The file isn't a JSON object, lacks a number, or is for an image of another
            aspect ratio.
    """
    where = f"{path}:{member.name}"
    try:
        node = json.loads(_open_member(file, member).read())
    except (ValueError, RecursionError):
        node = None
    if not isinstance(node, dict):
        raise DataError(f"{where}: no JSON object; write fx, fy, cx, cy, width and height in it")
    if not any(key in node for key in _CAMERA_KEYS):
        return None
    calibration = files.of_plain(where, node)
    # Use the camera as stated if the image's size is unknown, because its header can't be read;
    # decoding the image reports that error.
    if not math.prod(size):
        return calibration.camera
    return calibration.at_size(*size, exif_orientation, where)


class _MemberFile(io.RawIOBase):
    """A member of a shard as a file object, which reads only the requested bytes from the shard.

    Args:
        file: The opened shard.
        member: The member.
    """

    def __init__(self, file: BinaryIO, member: Member):
        self.file = file
        self.member = member
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.member.size}
        self.position = max(0, starts[whence] + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: bytearray) -> int:
        count = max(0, min(len(buffer), self.member.size - self.position))
        content = os.pread(self.file.fileno(), count, self.member.offset + self.position)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _open_member(file: BinaryIO, member: Member) -> BinaryIO:
    return io.BufferedReader(_MemberFile(file, member), _HEAD)
