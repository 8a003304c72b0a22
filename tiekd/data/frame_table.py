"""The frames of a data set as columns of arrays: a million frames take some 50 MB, not a gigabyte.

A `FrameTable` is a sequence of `Frame`s, each of which is made on access, in 3 us. Names and paths
are bytes in one array (`Texts`). A camera is an index into the list of the distinct cameras
(`Cameras`). Worker processes share the arrays with the main process: unlike Python objects, arrays
have no reference counts for each frame, so reading a frame doesn't copy memory pages. Not covered:
changing a table in place.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from tiekd.data.cameras.calibration import Camera
from tiekd.data.stored import ShardMember

# Number of frames from which a data set counts as large: with more, a run checks only a sample of
# the frames' files when it starts.
LARGE_DATA_SET = 100_000
# Number of texts that are converted or hashed at once, so that few Python objects exist at a time.
TEXTS_AT_ONCE = 100_000


class Frame(NamedTuple):
    """The files of one frame.

    Attributes:
        name: The frame's name, in messages and in the file name of its teacher map.
        image: The image: the path of its file as text, or a member of a tar shard.
        depth: The depth map: the path of its file as text, or a member of a tar shard; None without
            ground truth.
        camera: The intrinsics of the whole image; None if unknown.
    """

    name: str
    image: str | ShardMember
    depth: str | ShardMember | None
    camera: Camera | None


class Texts(Sequence[str]):
    """A sequence of N texts that are stored in one bytes object.

    Args:
        data: The bytes of all texts, UTF-8 with surrogate escapes for names that aren't UTF-8.
        starts: (N,) int64, the index in `data` of each text's first byte.
        lengths: (N,) int32, the number of bytes of each text.
        prefix: A text that is prepended to each text on access, such as the folder of all paths.
    """

    def __init__(self, data: bytes, starts: np.ndarray, lengths: np.ndarray, prefix: str = ""):
        self.data = data
        self.starts = starts
        self.lengths = lengths
        self.prefix = prefix

    @classmethod
    def of(cls, texts: Iterable[str], prefix: str = "") -> "Texts":
        """Returns a `Texts` that holds the given strings.

        Args:
            texts: The strings, without the prefix.
            prefix: A text that is prepended to each of them on access.
        """
        parts = [text.encode(errors="surrogateescape") for text in texts]
        lengths = np.fromiter(map(len, parts), np.int32, len(parts))
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        return cls(b"".join(parts), starts, lengths, prefix)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        return self.prefix + self.raw(index).decode(errors="surrogateescape")

    def raw(self, index: int) -> bytes:
        """Returns the UTF-8 bytes of a text, without the prefix.

        Args:
            index: Index of the text.
        """
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])]

    def raws(self) -> Iterator[bytes]:
        """Yields the UTF-8 bytes of each text in order, without the prefix."""
        data = self.data
        ends = self.starts + self.lengths
        # Convert the arrays to Python integers in parts, because all integers of a million texts
        # would take 64 MB.
        for first in range(0, len(self), TEXTS_AT_ONCE):
            part = slice(first, first + TEXTS_AT_ONCE)
            for start, end in zip(self.starts[part].tolist(), ends[part].tolist(), strict=True):
                yield data[start:end]

    def take(self, rows: np.ndarray) -> "Texts":
        """Returns a `Texts` of some of the texts; the bytes aren't copied.

        Args:
            rows: (M,) indices of the texts, in the order of the result.
        """
        return Texts(self.data, self.starts[rows], self.lengths[rows], self.prefix)

    def below(self, prefix: str) -> "Texts":
        """Returns a `Texts` of the same texts with another prefix; the bytes aren't copied.

        Args:
            prefix: The prefix, in place of the present one.
        """
        return Texts(self.data, self.starts, self.lengths, prefix)

    def begins_with(self, beginning: str) -> np.ndarray:
        """Returns a mask of the texts that, without the prefix, begin with a given string.

        Args:
            beginning: The string.

        Returns:
            (N,) bool for the N texts.
        """
        return self._match_at(beginning, self.starts)

    def ends_with(self, ending: str) -> np.ndarray:
        """Returns a mask of the texts that, without the prefix, end with a given string.

        Args:
            ending: The string.

        Returns:
            (N,) bool for the N texts.
        """
        length = len(ending.encode(errors="surrogateescape"))
        return self._match_at(ending, self.starts + self.lengths - length)

    def _match_at(self, part: str, starts: np.ndarray) -> np.ndarray:
        wanted = part.encode(errors="surrogateescape")
        data = np.frombuffer(self.data, np.uint8)
        found = self.lengths >= len(wanted)
        # Compare the wanted bytes one after another, each with the byte at its position in all
        # texts that have matched so far.
        for position, byte in enumerate(wanted):
            rows = np.flatnonzero(found)
            found[rows] = data[starts[rows] + position] == byte
        return found


class Column(Protocol):
    """The images, or the depth maps, of all frames: file paths, or members of tar shards."""

    def __getitem__(self, index: int) -> str | ShardMember: ...

    def take(self, rows: np.ndarray) -> "Column":
        """Returns a column with the entries of some frames.

        Args:
            rows: (M,) indices of the frames, in the order of the result.
        """


class Cameras(NamedTuple):
    """The cameras of N frames.

    Attributes:
        codes: (N,) int32, for each frame the index of its camera in `distinct`.
        distinct: The distinct cameras. An entry None is that of frames with an unknown camera.
    """

    codes: np.ndarray
    distinct: Sequence[Camera | None]

    @classmethod
    def of(cls, cameras: Iterable[Camera | None]) -> "Cameras":
        """Returns a `Cameras` of frames, in which equal cameras are stored once.

        Args:
            cameras: The camera of each frame, in order; None if unknown.
        """
        distinct: dict[Camera | None, int] = {}
        codes = [distinct.setdefault(camera, len(distinct)) for camera in cameras]
        return cls(np.array(codes, np.int32), list(distinct))

    @classmethod
    def same(cls, camera: Camera | None, count: int) -> "Cameras":
        """Returns a `Cameras` in which all frames have the same camera.

        Args:
            camera: The camera; None if unknown.
            count: The number of frames.
        """
        return cls(np.zeros(count, np.int32), [camera])

    @property
    def are_known(self) -> np.ndarray:
        """(N,) bool, True for frames whose camera is known."""
        return np.array([camera is not None for camera in self.distinct], bool)[self.codes]


class FrameTable(Sequence[Frame]):
    """The N frames of a data set, as a sequence of `Frame`s that are made on access.

    Args:
        names: The frames' names.
        images: The frames' images.
        depths: The frames' depth maps; an entry has no meaning where `has_depth` is False.
        has_depth: (N,) bool, True for frames with ground truth.
        cameras: The frames' cameras.
        sizes: (N, 2) int32, height and width of the upright images in pixels, 0 where an image's
            header can't be read; None if the sizes have to be read from the images' files.
        maps: The frames' cached teacher maps that are members of tar shards, by kind, such as
            `teacher_depth`; None if there are none.
    """

    def __init__(
        self,
        names: Texts,
        images: Column,
        depths: Column,
        has_depth: np.ndarray,
        cameras: Cameras,
        sizes: np.ndarray | None = None,
        maps: Mapping[str, Column] | None = None,
    ):
        self.names = names
        self.images = images
        self.depths = depths
        self.has_depth = has_depth
        self.cameras = cameras
        self.sizes = sizes
        self.maps = maps or {}

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> "FrameTable":
        """Converts a sequence of frames to a table; a table is returned unchanged.

        Args:
            frames: The frames, whose images and depth maps are files.
        """
        if isinstance(frames, FrameTable):
            return frames
        depths = Texts.of(frame.depth or "" for frame in frames)
        return cls(
            Texts.of(frame.name for frame in frames),
            Texts.of(frame.image for frame in frames),
            depths,
            np.array([frame.depth is not None for frame in frames], bool),
            Cameras.of(frame.camera for frame in frames),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | slice) -> "Frame | FrameTable":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return Frame(
            self.names[index],
            self.images[index],
            self.depths[index] if self.has_depth[index] else None,
            self.cameras.distinct[self.cameras.codes[index]],
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def take(self, rows: np.ndarray) -> "FrameTable":
        """Returns a table with some of the frames.

        Args:
            rows: (M,) indices of the frames, in the order of the result.
        """
        return FrameTable(
            self.names.take(rows),
            self.images.take(rows),
            self.depths.take(rows),
            self.has_depth[rows],
            Cameras(self.cameras.codes[rows], self.cameras.distinct),
            None if self.sizes is None else self.sizes[rows],
            {kind: column.take(rows) for kind, column in self.maps.items()},
        )

    def with_cameras(self, cameras: Cameras) -> "FrameTable":
        """Returns a copy of the table in which the frames have other cameras.

        Args:
            cameras: The camera of each frame, in order.
        """
        return self._with(cameras=cameras)

    def with_maps(self, maps: Mapping[str, Column]) -> "FrameTable":
        """Returns a copy of the table in which the frames have other teacher maps in tar shards.

        Args:
            maps: The maps by kind, such as `teacher_depth`.
        """
        return self._with(maps=maps)

    def _with(self, **changed: Cameras | Mapping[str, Column]) -> "FrameTable":
        columns = {
            key: getattr(self, key)
            for key in ("names", "images", "depths", "has_depth", "cameras", "sizes", "maps")
        }
        return FrameTable(**(columns | changed))


def spaced(count: int, wanted: int) -> np.ndarray:
    """Returns evenly spaced indices of a sequence, ascending, (M,) int64.

    The first and the last index are included if M is above 1.

    Args:
        count: The sequence's length.
        wanted: The number M of indices; if the sequence is shorter, M is its length.
    """
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))
