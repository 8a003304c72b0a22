"""Records the training frames in a weights file, so that metrics on these frames can be marked.

The record is a dict under the key `trained_on`:

    {"hashes": (N,) int64, sorted, "zero_bits": 0, "name_bits": 0}

A frame is identified by a hash of its name in the dataset and its image file's size in bytes. So a
dataset that was moved is recognised, and another dataset with the same names isn't mistaken for it.
The record has 8 bytes per frame. A training set of more than 100,000 frames is represented by those
whose names have a CRC-32 with at least `name_bits` trailing zero bits: the other frames' files
aren't looked at. If several sets together have more hashes, only those with at least `zero_bits`
trailing zero bits are kept. In both cases counts are estimates. Making the record costs one stat
per file, half a second for 24,000 and at most two. Not covered: images that were renamed or
re-encoded, datasets without files, and the frames that the teacher was trained on.
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data.file_fingerprints import map_paths, size_and_time
from tiekd.data.frames import Frames
from tiekd.data.mixed import MixedFrames, sets_in
from tiekd.data.stored import ShardMember
from tiekd.files import instead_of_file

KEY = "trained_on"  # the record's key in a weights file
MAX_HASHES = 100_000


class TrainedOn(NamedTuple):
    """The hashes of a training set's frames.

    Attributes:
        hashes: (N,) int64, sorted, without duplicates: the frames' hashes that have at least
            `zero_bits` trailing zero bits.
        zero_bits: Number of trailing zero bits of every kept hash; 0 keeps all hashes.
        name_bits: Number of trailing zero bits by which the recorded frames were selected: a frame
            was recorded if the CRC-32 of its name has at least so many. Of all other frames it
            isn't known whether the network was trained on them. 0 if all frames were recorded.
    """

    hashes: Tensor
    zero_bits: int = 0
    name_bits: int = 0


class Overlap(NamedTuple):
    """The number of a dataset's frames that a network was trained on.

    Attributes:
        seen: Number of the dataset's frames that the network was trained on.
        frames: Number of frames in the dataset.
        estimated: True if the network's record has the hashes of only a part of the frames that it
            was trained on, so that `seen` is an estimate.
    """

    seen: int
    frames: int
    estimated: bool = False

    @property
    def is_whole(self) -> bool:
        """True if the network was trained on all frames of the dataset."""
        return self.seen >= self.frames > 0

    def __str__(self) -> str:
        about = "about " if self.estimated else ""
        return f"{about}{self.seen} of {self.frames} frames were trained on"


def hashes_of(dataset: Dataset, name_bits: int = 0) -> list[int] | None:
    """Returns the int64 hashes that identify a dataset's frames, as a list in order.

    Args:
        dataset: The dataset. The result is None if it isn't a `Frames`, since other datasets don't
            read files. For several data sets (`MixedFrames`), the hashes of all that are a `Frames`
            are joined; the result is None if none is.
        name_bits: Least number of trailing zero bits of the CRC-32 of a frame's name; frames with
            fewer have no hash in the result.
    """
    if isinstance(dataset, MixedFrames):
        of_sets = [hashes_of(each, name_bits) for _, each in sets_in(dataset)]
        known = [each for each in of_sets if each is not None]
        return [value for each in known for value in each] if known else None
    if not isinstance(dataset, Frames):
        return None
    frames = dataset.frames
    if name_bits:
        crcs = np.fromiter(map(zlib.crc32, frames.names.raws()), np.uint32, len(frames))
        frames = frames.take(np.flatnonzero(crcs & ((1 << name_bits) - 1) == 0))
    states = map_paths(_size_of, [frame.image for frame in frames])
    return [_hash(frame.name, size) for frame, size in zip(frames, states, strict=True)]


def trained_on(dataset: Dataset) -> TrainedOn | None:
    """Returns the record (`TrainedOn`) of a training dataset's frames, for its weights file.

    Args:
        dataset: The training dataset. The result is None if neither it nor one of several data sets
            in it is a `Frames`, since other datasets don't read files.
    """
    if not isinstance(dataset, Frames | MixedFrames):
        return None
    name_bits = _name_bits(len(dataset))
    hashes = hashes_of(dataset, name_bits)
    return None if hashes is None else _thinned(hashes, 0, name_bits)


def union(first: TrainedOn | None, second: TrainedOn | None) -> TrainedOn | None:
    """Merges the records of two training datasets, such as before and after fine-tuning.

    Args:
        first: The first record; if it is None (unknown), the result is `second`.
        second: The second record; if it is None (unknown), the result is `first`.
    """
    if first is None or second is None:
        return second if first is None else first
    bits = max(first.zero_bits, second.zero_bits)
    # Keep the larger `name_bits`: only frames that both records would have recorded are looked up.
    # The hashes of other frames stay in the result, but are never looked up.
    name_bits = max(first.name_bits, second.name_bits)
    return _thinned([*first.hashes.tolist(), *second.hashes.tolist()], bits, name_bits)


def overlap_of(record: TrainedOn | None, dataset: Dataset) -> Overlap | None:
    """Counts the frames of a dataset that a network was trained on.

    Args:
        record: The network's record of training frames; None if unknown.
        dataset: The dataset, whose files' sizes are read.

    Returns:
        The counts; None if the record is unknown or the dataset doesn't read files.
    """
    if record is None or not isinstance(dataset, Frames | MixedFrames):
        return None
    name_bits = max(record.name_bits, _name_bits(len(dataset)))
    hashes = hashes_of(dataset, name_bits)
    # Count only the frames of data sets that read files, since only these frames have hashes.
    count = sum(len(each) for _, each in sets_in(dataset) if isinstance(each, Frames))
    return overlap(record, hashes, count)


def overlap(
    record: TrainedOn | None, hashes: Iterable[int] | None, count: int | None = None
) -> Overlap | None:
    """Counts the frames of a dataset that a network was trained on, given the frames' hashes.

    Args:
        record: The network's record of training frames; None if unknown.
        hashes: The hashes of the dataset's frames (see `hashes_of`); None if unknown.
        count: The number of frames of the dataset, if `hashes` has only a part of them; None if it
            has all.

    Returns:
        The counts; None if the record or the hashes are unknown.
    """
    if record is None or hashes is None:
        return None
    hashes = list(hashes)
    known = set(record.hashes.tolist())
    # Look up only hashes with `zero_bits` trailing zero bits if the record is large, since it keeps
    # only these, and extrapolate the number found to all frames.
    asked = [value for value in hashes if _ends_in_zeros(value, record.zero_bits)]
    seen = sum(value in known for value in asked)
    count = len(hashes) if count is None else count
    if len(asked) == count:
        return Overlap(seen, count, estimated=bool(record.zero_bits))
    return Overlap(round(seen * count / max(len(asked), 1)), count, estimated=True)


def as_plain(record: TrainedOn | None) -> dict:
    """Returns {KEY: {"hashes", "zero_bits", "name_bits"}}, a weights file's entry for a record.

    Args:
        record: The record; None makes the result empty.
    """
    if record is None:
        return {}
    plain = {"hashes": record.hashes, "zero_bits": record.zero_bits}
    return {KEY: plain | ({"name_bits": record.name_bits} if record.name_bits else {})}


def from_plain(state: Mapping) -> TrainedOn | None:
    """Returns the record of training frames (`TrainedOn`) in the content of a weights file.

    Args:
        state: The loaded content. The result is None if it has no valid record, for example because
            another program or an old version of tiekd wrote the file.
    """
    node = state.get(KEY)
    if not isinstance(node, Mapping) or not isinstance(node.get("hashes"), Tensor):
        return None
    bits = node.get("zero_bits"), node.get("name_bits", 0)
    if not all(isinstance(each, int) for each in bits):
        return None
    return TrainedOn(node["hashes"].long().flatten().clone(), *bits)


def read(path: Path | None) -> TrainedOn | None:
    """Returns the record of training frames (`TrainedOn`) in a weights file.

    The file is memory-mapped, so the weights themselves aren't read.

    Args:
        path: The file. The result is None if `path` is None, if the file has no record, or if torch
            can't load it.
    """
    if path is None or instead_of_file(path):
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001 - loading the weights reports the error
        return None
    return from_plain(state) if isinstance(state, Mapping) else None


def _size_of(image: str | ShardMember) -> int | None:
    """Returns the size in bytes of an image file, or of a member of a tar shard.

    Args:
        image: The path or the member. The result is None if there is no file at the path.
    """
    if isinstance(image, ShardMember):
        return image.size
    state = size_and_time(image)
    return state and state[0]


def _name_bits(count: int) -> int:
    """Returns the number of trailing zero bits of a CRC-32 by which frames are selected.

    About MAX_HASHES frames, or fewer, have a name whose CRC-32 has at least so many.

    Args:
        count: The number of all frames; up to MAX_HASHES the result is 0, which selects all.
    """
    return max(0, (max(count, 1) - 1) // MAX_HASHES).bit_length()


def _hash(name: str, size: int | None) -> int:
    """Returns the int64 hash that identifies a frame.

    Args:
        name: The frame's name in the dataset.
        size: The size of the frame's image file in bytes; None if there is no such file.
    """
    text = f"{name}\0{size}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def _thinned(hashes: Iterable[int], zero_bits: int, name_bits: int = 0) -> TrainedOn:
    """Returns a record (`TrainedOn`) that keeps at most MAX_HASHES of the given hashes.

    Args:
        hashes: The hashes of frames, which may have duplicates.
        zero_bits: Smallest number of trailing zero bits of the kept hashes. It is increased until
            at most MAX_HASHES are kept.
        name_bits: Least number of trailing zero bits of the CRC-32 of the frames' names, by which
            the frames were selected; stored in the record.
    """
    kept = sorted({value for value in hashes if _ends_in_zeros(value, zero_bits)})
    while len(kept) > MAX_HASHES:
        zero_bits += 1
        kept = [value for value in kept if _ends_in_zeros(value, zero_bits)]
    return TrainedOn(torch.tensor(kept, dtype=torch.int64), zero_bits, name_bits)


def _ends_in_zeros(value: int, bits: int) -> bool:
    """Returns True if an integer ends in at least `bits` zero bits.

    Args:
        value: The integer, such as a frame's hash.
        bits: The minimum number of zero bits at its end.
    """
    return value & ((1 << bits) - 1) == 0
