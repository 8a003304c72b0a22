"""The frames of a data set as columns of arrays: a million frames take some 50 MB, not a gigabyte.

A `FrameTable` is a sequence of `Frame`s that are made when they are asked for, in 3 us each. Names
and paths are bytes in one array (`Texts`), cameras are numbers in a list of the distinct ones
(`Cameras`). Worker processes share the arrays with the main process: unlike Python objects, they
have no reference counts that reading would change. Left out: changing a table in place.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from tiekd.data.cameras.calibration import Camera
from tiekd.data.stored import Stored

# With more frames than this a run looks at a sample of their files when it starts, not at all.
MANY = 100_000


class Frame(NamedTuple):
    """The files of one frame.

    Attributes:
        name: The frame's name, in messages and in the file name of its teacher map.
        image: Path of the image, as text, or where it is in a tar shard.
        depth: Path of the depth map, likewise; None without ground truth.
        camera: The intrinsics of the whole image; None if unknown.
    """

    name: str
    image: str | Stored
    depth: str | Stored | None
    camera: Camera | None


class Texts(Sequence[str]):
    """Many texts in one array of bytes.

    Args:
        data: The bytes of all texts, UTF-8 with surrogate escapes for names that aren't UTF-8.
        starts: (N,) the first byte of each text.
        lengths: (N,) its number of bytes.
        prefix: A text that stands before each of them, such as the folder of all paths.
    """

    def __init__(self, data: bytes, starts: np.ndarray, lengths: np.ndarray, prefix: str = ""):
        self.data = data
        self.starts = starts
        self.lengths = lengths
        self.prefix = prefix

    @classmethod
    def of(cls, texts: Iterable[str], prefix: str = "") -> "Texts":
        """Packs texts.

        Args:
            texts: The texts, without the prefix.
            prefix: As for the class.
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
        """Returns the bytes of a text, without the prefix.

        Args:
            index: Index of the text.
        """
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])]

    def raws(self) -> Iterator[bytes]:
        """Yields the bytes of all texts, without the prefix."""
        data = self.data
        ends = self.starts + self.lengths
        # Python's numbers are made in parts: those of a million texts at once would take 64 MB.
        for first in range(0, len(self), MANY):
            part = slice(first, first + MANY)
            for start, end in zip(self.starts[part].tolist(), ends[part].tolist(), strict=True):
                yield data[start:end]

    def take(self, rows: np.ndarray) -> "Texts":
        """Returns some of the texts; their bytes aren't copied.

        Args:
            rows: Their indices.
        """
        return Texts(self.data, self.starts[rows], self.lengths[rows], self.prefix)

    def below(self, prefix: str) -> "Texts":
        """Returns the same texts with another prefix; their bytes aren't copied.

        Args:
            prefix: The prefix.
        """
        return Texts(self.data, self.starts, self.lengths, prefix)

    def begin_with(self, beginning: str) -> np.ndarray:
        """Returns for each text whether it, without the prefix, begins with another text.

        Args:
            beginning: The other text.

        Returns:
            (N,) bool.
        """
        return self._have(beginning, self.starts)

    def end_with(self, ending: str) -> np.ndarray:
        """Returns for each text whether it, without the prefix, ends with another text.

        Args:
            ending: The other text.

        Returns:
            (N,) bool.
        """
        length = len(ending.encode(errors="surrogateescape"))
        return self._have(ending, self.starts + self.lengths - length)

    def _have(self, part: str, starts: np.ndarray) -> np.ndarray:
        wanted = part.encode(errors="surrogateescape")
        data = np.frombuffer(self.data, np.uint8)
        found = self.lengths >= len(wanted)
        # One byte of all texts at a time, and only of those that fit so far.
        for place, byte in enumerate(wanted):
            rows = np.flatnonzero(found)
            found[rows] = data[starts[rows] + place] == byte
        return found


class Column(Protocol):
    """The images or depth maps of all frames: a `Texts` of paths, or places in tar shards."""

    def __getitem__(self, index: int) -> str | Stored: ...

    def take(self, rows: np.ndarray) -> "Column":
        """Returns the entries of some frames."""


class Cameras(NamedTuple):
    """The cameras of all frames.

    Attributes:
        codes: (N,) int32, for each frame the index of its camera in `distinct`.
        distinct: The distinct cameras; None for frames whose camera isn't known.
    """

    codes: np.ndarray
    distinct: Sequence[Camera | None]

    @classmethod
    def of(cls, cameras: Iterable[Camera | None]) -> "Cameras":
        """Packs cameras.

        Args:
            cameras: The camera of each frame.
        """
        places: dict[Camera | None, int] = {}
        codes = [places.setdefault(camera, len(places)) for camera in cameras]
        return cls(np.array(codes, np.int32), list(places))

    @classmethod
    def same(cls, camera: Camera | None, count: int) -> "Cameras":
        """Returns one camera for all frames.

        Args:
            camera: The camera.
            count: The number of frames.
        """
        return cls(np.zeros(count, np.int32), [camera])

    @property
    def are_known(self) -> np.ndarray:
        """(N,) bool, True for frames whose camera is known."""
        return np.array([camera is not None for camera in self.distinct], bool)[self.codes]


class FrameTable(Sequence[Frame]):
    """The frames of a data set.

    Args:
        names: The frames' names.
        images: Their images.
        depths: Their depth maps; an entry without meaning where `has_depth` is False.
        has_depth: (N,) bool, True for frames with ground truth.
        cameras: Their cameras.
        sizes: (N, 2) height and width of the upright images; None if only their files know it.
    """

    def __init__(
        self,
        names: Texts,
        images: Column,
        depths: Column,
        has_depth: np.ndarray,
        cameras: Cameras,
        sizes: np.ndarray | None = None,
    ):
        self.names = names
        self.images = images
        self.depths = depths
        self.has_depth = has_depth
        self.cameras = cameras
        self.sizes = sizes

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> "FrameTable":
        """Returns frames as a table, which they may be already.

        Args:
            frames: The frames; their images and depth maps are files.
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
        """Returns the table of some frames.

        Args:
            rows: Their indices, in the order of the result.
        """
        return FrameTable(
            self.names.take(rows),
            self.images.take(rows),
            self.depths.take(rows),
            self.has_depth[rows],
            Cameras(self.cameras.codes[rows], self.cameras.distinct),
            None if self.sizes is None else self.sizes[rows],
        )

    def with_cameras(self, cameras: Cameras) -> "FrameTable":
        """Returns the table with other cameras.

        Args:
            cameras: The cameras.
        """
        return FrameTable(self.names, self.images, self.depths, self.has_depth, cameras, self.sizes)


def spaced(count: int, wanted: int) -> np.ndarray:
    """Returns evenly spaced indices of a sequence, with the first and the last.

    Args:
        count: The sequence's length, above 0.
        wanted: The number of indices; fewer if the sequence is shorter.
    """
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))
