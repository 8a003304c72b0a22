"""The index of tar shards: one file with the position of each frame's image and depth map.

The file is an archive of arrays (`numpy.savez`), of some 150 bytes per frame; it is read in a
second for a million frames. Its entry `header` is JSON: the version of the format, and the name,
size, modification time and digest of each shard. The index is made once, from the headers of all
members (tiekd/data/shards/scan.py), and written atomically. If a shard has changed in size or
members since, an error is raised. If only its modification time differs, such as that of a copy,
its members are compared with the digest. Not covered: adding shards to an index, which has to be
made anew; and noticing a change that keeps size and modification time.
"""

import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.console import Progress
from tiekd.data.cameras.calibration import Camera
from tiekd.data.frame_table import Cameras, FrameTable, Texts
from tiekd.data.shards.members import Members
from tiekd.data.shards.scan import Member, Scan, ScannedFrame, key_of, scan
from tiekd.errors import DataError
from tiekd.files import check_readable, replace_bytes

VERSION = 1
# `Shards`: the path of each shard, keyed by its path below data.root. `States`: each shard's (size
# in bytes, modification time in ns), with the same keys.
Shards = Mapping[str, Path]
States = Mapping[str, tuple[int, int]]
_NO_DEPTH = Member("", 0, 0)
_ARRAYS = (
    "shards",
    *(
        f"{kind}_{part}"
        for kind in ("image", "depth")
        for part in ("names", "lengths", "offsets", "sizes")
    ),
    "image_heights",
    "image_widths",
    "camera_codes",
    "cameras",
)


class Index(NamedTuple):
    """The frames of all shards.

    Attributes:
        frames: The frames, those of one shard after another.
        names: The paths of the shards below data.root.
        unpaired: [number of depth maps and JSON files without an image, one of them as
            "shard:member"]; empty if all have an image.
        unpaired_depths: The number of depth maps without an image.
        problems: An error message for each JSON file that can't be read.
    """

    frames: FrameTable
    names: Sequence[str]
    unpaired: Sequence[str]
    unpaired_depths: int
    problems: Sequence[str]


def open_index(shards: Shards, path: Path) -> Index:
    """Returns the content of the shards' index file, which is made first if it doesn't exist.

    Args:
        shards: The path of each shard, keyed by its path below data.root, sorted by key.
        path: The index file.

    Raises:
        DataError: A shard can't be read, or has changed since it was indexed; or the index file
            can't be read or written.
    """
    states = {}
    for name, shard in shards.items():
        try:
            found = os.stat(shard)
        except OSError as error:
            raise DataError(
                f"{shard}: can't be read ({error.strerror}); correct the link or the permissions"
            ) from None
        states[name] = found.st_size, found.st_mtime_ns
    check_readable(path, "index of shards", DataError)
    if not path.exists():
        return _read(make_index(shards, states, path), path, shards, states)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); change its permissions, or give another "
            "place (data.index=FILE)"
        ) from None
    header = _header(content, path)
    touched = _compare(header, shards, states, path)
    if touched:
        _check_digests(touched, path)
    return _read(content, path, shards, states)


def make_index(shards: Shards, states: States, path: Path) -> bytes:
    """Indexes the members of all shards, writes the index file, and returns its bytes.

    The progress is shown on stderr.

    Args:
        shards: The path of each shard, keyed by its path below data.root.
        states: (size in bytes, modification time in ns) of each shard, with the same keys.
        path: The index file.

    Raises:
        DataError: A shard can't be read, two shards have the same key, or the index file can't be
            written.
    """
    # Check first that the index file can be written, because reading all shards may take long.
    probe = path.with_name(f"{path.name}.probe-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(probe, b"", durable=False)
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{path}: the index of the shards can't be written ({error.strerror}); give a place "
            "for it (data.index=FILE)"
        ) from None
    done: list[Scan] = []
    with Progress("shards indexed", len(shards), lambda: len(done), sys.stderr) as progress:
        for shard in shards.values():
            done.append(scan(shard))
            progress.update()
    content = _packed(shards, states, done)
    try:
        replace_bytes(path, content)
    except OSError as error:
        raise DataError(
            f"{path}: the index of the shards can't be written ({error.strerror}); give another "
            "place for it (data.index=FILE)"
        ) from None
    return content


def _packed(shards: Shards, states: States, scans: Sequence[Scan]) -> bytes:
    """Returns the bytes of an index file.

    Args:
        shards: The path of each shard, keyed by its path below data.root.
        states: (size in bytes, modification time in ns) of each shard, with the same keys.
        scans: The content of each shard, in the order of `shards`.

    Raises:
        DataError: Two frames have the same name, or their teacher maps would have.
    """
    frames = [frame for each in scans for frame in each.frames]
    counts = [len(each.frames) for each in scans]
    numbers = np.repeat(np.arange(len(scans), dtype=np.int32), counts)
    stems = map(_stem, frames)
    if len(np.unique(np.fromiter(map(hash, stems), np.int64, len(frames)))) < len(frames):
        _refuse_duplicates(frames, numbers, list(shards.values()))
    cameras = Cameras.of(frame.camera for frame in frames)
    unpaired = [
        f"{shard}:{name}"
        for shard, each in zip(shards, scans, strict=True)
        for name in each.unpaired
    ]
    header = {
        "version": VERSION,
        "shards": [
            {"name": shard, "state": states[shard], "digest": each.digest}
            for shard, each in zip(shards, scans, strict=True)
        ],
        "alone": [len(unpaired), unpaired[0]] if unpaired else [],
        "alone_depths": sum(not name.endswith(".json") for name in unpaired),
        "problems": [line for each in scans for line in each.problems],
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "shards": numbers,
        "image_heights": np.array([frame.height for frame in frames], np.int32),
        "image_widths": np.array([frame.width for frame in frames], np.int32),
        "camera_codes": cameras.codes,
        "cameras": np.array([_numbers(camera) for camera in cameras.distinct], np.float64),
    }
    for kind, members in (
        ("image", [frame.image for frame in frames]),
        ("depth", [frame.depth or _NO_DEPTH for frame in frames]),
    ):
        names = Texts.of(member.name for member in members)
        arrays[f"{kind}_names"] = np.frombuffer(names.data, np.uint8)
        arrays[f"{kind}_lengths"] = names.lengths
        arrays[f"{kind}_offsets"] = np.array([member.offset for member in members], np.int64)
        arrays[f"{kind}_sizes"] = np.array([member.size for member in members], np.int64)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _stem(frame: ScannedFrame) -> str:
    """Returns the file name of a frame's teacher map without its suffix: the key with _ for /."""
    key, _ = key_of(frame.image.name)
    return key.replace("/", "_")


def _refuse_duplicates(
    frames: Sequence[ScannedFrame], numbers: np.ndarray, paths: Sequence[Path]
) -> None:
    """Raises DataError if two frames have the same name, or their teacher maps would have.

    Args:
        frames: The N frames of all shards.
        numbers: (N,) int32, the index in `paths` of each frame's shard.
        paths: The paths of the shards, for the error message.
    """
    first: dict[str, tuple[int, str]] = {}
    for frame, shard in zip(frames, numbers.tolist(), strict=True):
        name, stem = frame.image.name, _stem(frame)
        other, of = first.setdefault(stem, (shard, name))
        if (other, of) == (shard, name):
            continue
        told = f"{paths[other]}:{of} and {paths[shard]}:{name} would share the teacher map "
        told += f"{stem}.png; keys must differ in all shards, also with _ for /"
        if of == name:
            told = f"{paths[other]} and {paths[shard]} both have {name}; keys must differ in all "
            told += "shards"
        raise DataError(f"{told}, so write the shards again with other keys")


def _header(content: bytes, path: Path) -> dict:
    """Returns the header of an index file, a dict.

    It has the version of the format, and the name, state and digest of each shard.

    Args:
        content: The bytes of the index file.
        path: The index file, for the error message.

    Raises:
        DataError: The file is damaged, isn't an index, or has another version of the format.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            version = header["version"]
            if version == VERSION and not set(_ARRAYS) <= set(arrays.files):
                raise ValueError
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise DataError(
            f"{path}: no index of shards, or a damaged one; delete it, and start again to make it"
        ) from None
    if version != VERSION:
        raise DataError(
            f"{path}: an index of version {version}, and this tiekd reads version {VERSION}; "
            "delete it, and start again to make it anew"
        )
    return header


def _compare(header: dict, shards: Shards, states: States, path: Path) -> list[tuple[Path, str]]:
    """Compares the shards' names, sizes and modification times with those in their index.

    Args:
        header: The header of the index file.
        shards: The path of each shard, keyed by its path below data.root.
        states: The present (size in bytes, modification time in ns) of each shard, with the same
            keys.
        path: The index file, for error messages.

    Returns:
        (path, digest in the index) of each shard of which only the modification time differs.

    Raises:
        DataError: A shard was removed or added, or has another size.
    """
    indexed = {shard["name"]: shard for shard in header["shards"]}
    anew = f"delete {path}, and start again to index them anew"
    gone = [name for name in indexed if name not in states]
    if gone:
        raise DataError(
            f"{path}: {len(gone)} of {len(indexed)} shards have been removed since they were "
            f"indexed, such as {gone[0]}; put them back, or {anew}"
        )
    added = [name for name in states if name not in indexed]
    if added:
        raise DataError(
            f"{path}: {len(added)} of {len(states)} shards aren't in it, such as {added[0]}; {anew}"
        )
    touched = []
    for name, shard in shards.items():
        size, time = indexed[name]["state"]
        if size != states[name][0]:
            raise DataError(_changed(shard, path))
        if time != states[name][1]:
            touched.append((shard, indexed[name]["digest"]))
    return touched


def _check_digests(touched: Sequence[tuple[Path, str]], path: Path) -> None:
    """Reads the members of some shards again, and raises DataError if they have changed.

    Args:
        touched: (path, digest in the index) of each shard whose modification time has changed.
        path: The index file, for error messages.
    """
    done = []
    noun = "shards looked at, which have another modification time"
    with Progress(noun, len(touched), lambda: len(done), sys.stderr) as progress:
        for shard, digest in touched:
            if scan(shard).digest != digest:
                raise DataError(_changed(shard, path))
            done.append(shard)
            progress.update()


def _changed(shard: Path, path: Path) -> str:
    return (
        f"{shard}: has changed since it was indexed; put the old one back, or delete {path}, and "
        "start again to index all shards anew"
    )


def _read(content: bytes, path: Path, shards: Shards, states: States) -> Index:
    """Converts the bytes of an index file to an `Index`.

    Args:
        content: The bytes of the index file.
        path: The index file, for error messages.
        shards: The path of each shard, keyed by its path below data.root. They must be the shards
            that were indexed, which `_compare` checks.
        states: The present (size in bytes, modification time in ns) of each shard, with the same
            keys.

    Raises:
        DataError: The index file is damaged.
    """
    header = _header(content, path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        raise DataError(f"{path}: damaged; delete it, and start again to make it") from None
    names = [shard["name"] for shard in header["shards"]]
    columns = {}
    for kind in ("image", "depth"):
        lengths = arrays[f"{kind}_lengths"]
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        columns[kind] = Members(
            [str(shards[name]) for name in names],
            [states[name] for name in names],
            arrays["shards"],
            Texts(arrays[f"{kind}_names"].tobytes(), starts, lengths),
            arrays[f"{kind}_offsets"],
            arrays[f"{kind}_sizes"],
        )
    cameras = [None if np.isnan(row[0]) else _of_numbers(row) for row in arrays["cameras"]]
    table = FrameTable(
        columns["image"].names,
        columns["image"],
        columns["depth"],
        columns["depth"].names.lengths > 0,
        Cameras(arrays["camera_codes"], cameras),
        np.stack([arrays["image_heights"], arrays["image_widths"]], 1),
    )
    return Index(table, names, header["alone"], header["alone_depths"], header["problems"])


def _numbers(camera: Camera | None) -> list[float]:
    return [np.nan] * 4 if camera is None else [np.nan if n is None else n for n in camera]


def _of_numbers(row: np.ndarray) -> Camera:
    return Camera(*(None if np.isnan(number) else float(number) for number in row))
