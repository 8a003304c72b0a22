"""Joins the several data sets of a run to one dataset: the samples of one set after another.

A sample states its data set and its targets: ground truth if its frame has some, and a teacher's
depth if its data set has a teacher. tiekd/data/loading/mixing.py determines the order in which
samples are read. Not covered: evaluation, which uses each data set by itself.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch.utils.data import Dataset

from tiekd.config.data_sets import errors_of_set
from tiekd.data.frames import Frame, Frames
from tiekd.data.sample import Sample, in_metres


class Replacements(NamedTuple):
    """The indices of the samples by which an unreadable sample may be replaced.

    These are the samples that follow it in its data set. After the last sample of the data set
    comes the first.

    Attributes:
        start: The index of the data set's first sample.
        count: The number of the data set's samples.
        index: The index of the unreadable sample.
    """

    start: int
    count: int
    index: int

    def at(self, step: int) -> int:
        """Returns the index of the sample that follows the unreadable one by `step` samples.

        Args:
            step: The number of samples; 0 for the unreadable sample itself.
        """
        return self.start + (self.index - self.start + step) % self.count


class MixedSet(NamedTuple):
    """One of several data sets.

    Attributes:
        name: The data set's name in the recipe, for messages.
        frames: The data set itself.
        weight: The data set's share of the training images, relative to the other data sets'.
        has_teacher: True if the data set has a teacher, whose depth the student learns.
    """

    name: str
    frames: Dataset
    weight: float
    has_teacher: bool


class MixedFrames(Dataset):
    """The samples of several data sets as one dataset: those of one set after another.

    Args:
        sets: The data sets, at least one, in the order of the recipe.
    """

    def __init__(self, sets: Sequence[MixedSet]):
        self.sets = tuple(sets)
        self._ends = list(accumulate(len(each.frames) for each in sets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        return in_metres(self.stored(index))

    @property
    def num_skipped(self) -> int:
        """The number of frames that were left out for lack of ground truth."""
        return sum(getattr(each.frames, "num_skipped", 0) for each in self.sets)

    @property
    def frames(self) -> "_Listed":
        """A sequence with the `Frame` (name and files) of each sample, for error messages."""
        return _Listed(self)

    def stored(self, index: int) -> Sample:
        """Returns a sample with depths as stored in its files, e.g. uint16 levels.

        The sample's `data_set` and `has_target` are set.

        Args:
            index: The sample's index, which counts the samples of one data set after another.
        """
        number, own = self.locate(index)
        chosen = self.sets[number]
        with errors_of_set(chosen.name):
            sample = getattr(chosen.frames, "stored", chosen.frames.__getitem__)(own)
        # Return any other object unchanged. Only a data set from outside the project may return
        # one, and the reader refuses it with a message that names the data set.
        if not isinstance(sample, Sample):
            return sample
        return sample._replace(data_set=number, has_target=self.has_target(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Returns (index of a sample's data set in `sets`, index of the sample in that data set).

        Args:
            index: The sample's index, which counts the samples of one data set after another.
        """
        number = bisect_right(self._ends, index)
        return number, index - self._start(number)

    def has_target(self, index: int) -> tuple[bool, bool]:
        """Returns (True if a sample has ground truth, True if its data set has a teacher).

        A sample of a data set that doesn't list its files is taken to have ground truth.

        Args:
            index: The sample's index, which counts the samples of one data set after another.
        """
        number, own = self.locate(index)
        chosen = self.sets[number]
        has_truth = not isinstance(chosen.frames, Frames) or (
            chosen.frames.frames[own].depth is not None
        )
        return has_truth, chosen.has_teacher

    def replacements(self, index: int) -> Replacements:
        """Returns a `Replacements`, which gives the indices of samples that may replace a sample.

        A sample that can't be read is replaced by the next ones of its own data set.

        Args:
            index: The sample's index, which counts the samples of one data set after another.
        """
        number, _ = self.locate(index)
        return Replacements(self._start(number), len(self.sets[number].frames), index)

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0


class _Listed(Sequence):
    """A sequence with the `Frame` of each sample of several data sets, looked up on access.

    If a data set doesn't list its files, a frame's name and image are a description of the sample.

    Args:
        mixed: The data sets.
    """

    def __init__(self, mixed: MixedFrames):
        self._mixed = mixed

    def __len__(self) -> int:
        return len(self._mixed)

    def __getitem__(self, index: int) -> Frame:
        number, own = self._mixed.locate(index)
        name, frames = self._mixed.sets[number][:2]
        if isinstance(frames, Frames):
            return frames.frames[own]
        return Frame(f"sample {own} of {name}", f"sample {own} of {name}", None, None)


def sets_in(dataset: Dataset | None) -> Iterator[tuple[str, Dataset]]:
    """Yields (name, data set) for each of several data sets.

    Args:
        dataset: A `MixedFrames`; or a single data set, for which the name is empty; or None, for
            which nothing is yielded.
    """
    if isinstance(dataset, MixedFrames):
        yield from ((each.name, each.frames) for each in dataset.sets)
    elif dataset is not None:
        yield "", dataset
