"""Cached teacher maps as tar shards: one shard of maps for each shard of images, read by offsets.

    000000.tar             KEY.depth.png and, if there is a sigma, KEY.sigma.png of each frame
    000000.tar.maps.json   the record of this shard: the maps' positions, and the images' sizes

A shard of maps has the path of its shard of images, in the folder of the maps instead of data.root,
and its members have the keys of the frames. The record is written after its shard, so a shard
without a record is unfinished. Images of other shards may have the same names; their sizes in bytes
tell them apart. A record takes some 40 bytes per map, and is read at the start of a run, in 4 s for
a million maps. Not covered: frames that aren't in tar shards, and shards of maps that were written
again with other tools.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from tiekd import console
from tiekd.data.frame_table import Texts
from tiekd.data.shards.members import Members
from tiekd.data.shards.scan import key_of
from tiekd.data.shards.writing import write_shard
from tiekd.errors import DataError
from tiekd.files import cause_of, check_readable, replace_text

RECORD_SUFFIX = ".maps.json"
# Endings of the maps' members, in the order of a record's columns.
DEPTH_ENDING, SIGMA_ENDING = ".depth.png", ".sigma.png"
# The kind of the DataError for a file that is there but can't be read.
NOT_ACCESSIBLE = "disk"
_PROGRAM = console.command("cache_teacher")


class MapShard(NamedTuple):
    """A shard of maps, and the frames of its shard of images.

    Attributes:
        path: The shard's path.
        rows: (M,) the frames' indices in the data set.
    """

    path: Path
    rows: np.ndarray

    @property
    def record(self) -> Path:
        """The path of the shard's record."""
        return self.path.with_name(self.path.name + RECORD_SUFFIX)


class Record(NamedTuple):
    """The content of a shard of maps.

    Attributes:
        images: For each frame's name the size of its image in bytes, then the offset and the size
            in bytes of its depth map and, if there is one, of its map of sigma.
        state: (size in bytes, modification time in ns) of the shard.
    """

    images: dict[str, list[int]]
    state: tuple[int, int]


def shards_of(images: Members, root: Path, folder: Path) -> list[MapShard]:
    """Returns the shards of maps that belong to the shards of some images, in their order.

    Args:
        images: The images of a data set's frames.
        root: The folder of the shards of images.
        folder: The folder of the maps.

    Raises:
        DataError: A shard of images isn't below `root`, so its maps would be outside of `folder`.
    """
    order = np.argsort(images.shards, kind="stable")
    used, starts = np.unique(images.shards[order], return_index=True)
    places = [Path(os.path.relpath(images.paths[shard], root)) for shard in used.tolist()]
    outside = next((place for place in places if ".." in place.parts), None)
    if outside is not None:
        raise DataError(
            f"data.shards: {outside} isn't below data.root ({root}), so there is no place for its "
            "maps; set data.root to a folder that holds all shards"
        )
    return [
        MapShard(folder / place, rows)
        for place, rows in zip(places, np.split(order, starts[1:]), strict=True)
    ]


def read_record(shard: MapShard) -> Record | None:
    """Returns the record of a shard of maps; None if the shard is unfinished.

    Args:
        shard: The shard.

    Raises:
        DataError: The record can't be read, or the shard is missing or has another size than in its
            record.
    """
    again = f"make it again with {_PROGRAM}"
    check_readable(shard.record, "record of teacher maps", DataError)
    try:
        text = shard.record.read_bytes()
        found = os.stat(shard.path)
    except (FileNotFoundError, NotADirectoryError):
        if not shard.record.exists():
            return None
        raise DataError(f"{shard.path}: no such shard of teacher maps; {again}") from None
    except OSError as error:
        raise DataError(
            f"{error.filename}: can't be read ({error.strerror}); check its permissions and the "
            "disk",
            NOT_ACCESSIBLE,
        ) from None
    try:
        node = json.loads(text)
        images, size = dict(node["images"]), node["bytes"]
        is_valid = all(map(_is_row, images.values()))
    except (ValueError, KeyError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise DataError(f"{shard.record}: no record of teacher maps, or a damaged one; {again}")
    if found.st_size != size:
        raise DataError(
            f"{shard.path}: truncated or damaged, {found.st_size} bytes in place of {size}; {again}"
        )
    return Record(images, (found.st_size, found.st_mtime_ns))


def read(
    images: Members, names: Texts, root: Path, folder: Path, with_sigma: bool, option: str
) -> list[Members]:
    """Returns the positions of the frames' maps: those of depth and, if asked for, of sigma.

    Args:
        images: The images of the data set's frames.
        names: The frames' names.
        root: The folder of the shards of images.
        folder: The folder of the maps.
        with_sigma: True if there are maps of sigma.
        option: The recipe's option that names the folder, for error messages.

    Raises:
        DataError: A frame has no map, the maps were made of other images, or a shard or its record
            is damaged.
    """
    shards = shards_of(images, root, folder)
    states, missing = [], []
    numbers = np.zeros(len(names), np.int32)
    places = np.zeros((len(names), 5 if with_sigma else 3), np.int64)
    for number, shard in enumerate(shards):
        record = read_record(shard)
        # An unfinished shard has no maps of any frame.
        known = {} if record is None else record.images
        states.append((0, 0) if record is None else record.state)
        numbers[shard.rows] = number
        for row in shard.rows.tolist():
            place = known.get(names[row])
            if place is None:
                missing.append(row)
            elif len(place) != places.shape[1]:
                raise DataError(
                    f"{shard.record}: has {'no ' if with_sigma else ''}maps of sigma, unlike the "
                    "folder's manifest; put the right files back, or make the maps again"
                )
            else:
                places[row] = place
    if missing:
        first = shards[numbers[missing[0]]].path
        raise DataError(
            f"{option}: {len(missing)} of {len(names)} frames have no map in {folder}, such as "
            f"{names[missing[0]]} in {first.name}; make the missing maps with {_PROGRAM}, or give "
            "the maps of these shards"
        )
    differing = np.flatnonzero(places[:, 0] != images.sizes)
    if len(differing):
        row = int(differing[0])
        raise DataError(
            f"{option}: {other_images(folder, names[row], places[row, 0], images, row)}"
        )
    paths = [str(shard.path) for shard in shards]
    return [
        Members(
            paths,
            states,
            numbers,
            Texts.of(_member_name(name, ending) for name in names),
            places[:, column],
            places[:, column + 1],
        )
        for column, ending in ((1, DEPTH_ENDING), (3, SIGMA_ENDING))[: 2 if with_sigma else 1]
    ]


def contents(shard: MapShard, record: Record, names: Iterable[str]) -> Iterator[list[bytes]]:
    """Yields the contents of some frames' maps: depth and, if there is one, sigma.

    The shard is opened here, because the cache of open shards (tiekd/data/stored.py) would still
    have the old one after the shard is written again.

    Args:
        shard: The shard.
        record: Its record.
        names: The frames' names.
    """
    with shard.path.open("rb") as file:
        for name in names:
            _, *places = record.images[name]
            yield [
                os.pread(file.fileno(), size, offset)
                for offset, size in zip(places[::2], places[1::2], strict=True)
            ]


def other_images(folder: Path, name: str, size: int, images: Members, row: int) -> str:
    """Returns an error message for maps that were made of other images of the same names.

    Args:
        folder: The folder of the maps.
        name: The name of a frame whose image differs.
        size: The size in bytes of the image of which its map was made.
        images: The images of the data set's frames.
        row: The index of the frame.
    """
    return (
        f"the maps in {folder} were made of other shards: {name} had {size} bytes there, and has "
        f"{images.sizes[row]} in {images[row].shard}; give the maps of these shards"
    )


def mixed_forms(folder: Path, shards: Sequence[MapShard], is_sharded: bool) -> str | None:
    """Returns an error message if a folder has maps both as shards and as files of their own.

    Args:
        folder: The folder of the maps.
        shards: The shards of maps that belong to the data set's frames.
        is_sharded: True if the folder's manifest says that the maps are in shards.

    Returns:
        The message; None for a folder with maps of one form.
    """
    if is_sharded:
        # The folder's listing is short, because it has no file for each frame.
        name = next((path.name for path in folder.glob("*.png")), None)
        forms = f"maps in files, such as {name}, beside shards of maps"
    else:
        name = next((shard.path.name for shard in shards if shard.record.exists()), None)
        forms = f"shards of maps, such as {name}, beside a manifest of maps in files, or none"
    return None if name is None else f"{folder}: has {forms}; keep one form in a folder"


def are_read_as_images(shards: Sequence[MapShard], root: Path, pattern: str) -> bool:
    """Returns True if a data set would read shards of maps as shards of images.

    Args:
        shards: The shards of maps, which needn't exist.
        root: The folder of the shards of images.
        pattern: The pattern of their paths below `root`.
    """
    wanted = PurePosixPath(pattern).parts
    real_root = os.path.realpath(root)
    for shard in shards:
        parts = PurePosixPath(os.path.relpath(os.path.realpath(shard.path), real_root)).parts
        if parts[0] == "..":
            continue
        patterns = wanted
        if "**" in wanted:
            # Compare the folders before `**`, and the file.
            count = wanted.index("**")
            if len(parts) <= count:
                continue
            parts, patterns = (*parts[:count], parts[-1]), (*wanted[:count], wanted[-1])
        if len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns)):
            return True
    return False


def write(
    shard: MapShard, images: Sequence[tuple[str, int]], maps: Iterable[Sequence[bytes]]
) -> None:
    """Writes a shard of maps and its record, each atomically.

    Args:
        shard: The shard, which is replaced if it exists.
        images: (name, size of the image in bytes) of each frame.
        maps: The contents of each frame's maps, in the same order: depth and, if there is one,
            sigma.

    Raises:
        DataError: A file can't be written.
    """
    rows: dict[str, list[int]] = {}

    def members() -> Iterable[tuple[str, bytes]]:
        for (name, size), contents in zip(images, maps, strict=True):
            rows[name] = [size]
            for ending, content in zip((DEPTH_ENDING, SIGMA_ENDING), contents, strict=False):
                yield _member_name(name, ending), content
        # Remove the record of an older shard before that is replaced, so that it never stands
        # beside a new one. Up to here an interrupted job leaves both as they were.
        shard.record.unlink(missing_ok=True)

    try:
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        offsets = write_shard(shard.path, members())
        for name, row in rows.items():
            for ending in (DEPTH_ENDING, SIGMA_ENDING):
                row.extend(offsets.get(_member_name(name, ending), ()))
        node = {"bytes": shard.path.stat().st_size, "images": rows}
        replace_text(shard.record, json.dumps(node, separators=(",", ":")) + "\n")
    except OSError as error:
        raise DataError(
            f"{error.filename or shard.path}: can't be written ({cause_of(error)}); check the disk "
            "and its permissions",
            "disk",
        ) from None


def _member_name(name: str, ending: str) -> str:
    """Returns the name of the member with a frame's map.

    Args:
        name: The frame's name, i.e. that of its image's member.
        ending: The ending of this kind of map.
    """
    key, _ = key_of(name)
    return key + ending


def _is_row(row: object) -> bool:
    """Returns True if a value has the form of a frame's entry in a record."""
    return isinstance(row, list) and len(row) in (3, 5) and all(type(n) is int for n in row)
