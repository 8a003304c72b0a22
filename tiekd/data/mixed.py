"""Several data sets of one run, seen as one: their samples one after another.

A sample says from which set it is, and what there is to learn from it: ground truth if its frame
has some, and a teacher's depth if its set has a teacher. The order in which samples are read is
that of tiekd/data/loading/mixing.py. Left out: evaluation, which takes each set by itself.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch.utils.data import Dataset

from tiekd.config.data_sets import errors_of_set
from tiekd.data.frames import Frame, Frames
from tiekd.data.sample import Sample, in_metres


class Following(NamedTuple):
    """The samples that may take the place of one that can't be read: the later ones of its set.

    Attributes:
        start: The index of the set's first sample.
        count: The number of the set's samples.
        index: The sample's own index.
    """

    start: int
    count: int
    index: int

    def at(self, step: int) -> int:
        """Returns the index of the sample that is some steps further; the first follows the last.

        Args:
            step: The number of steps; 0 for the sample itself.
        """
        return self.start + (self.index - self.start + step) % self.count


class MixedSet(NamedTuple):
    """One of several data sets.

    Attributes:
        name: What the recipe calls it.
        frames: The data set.
        weight: Its share of the training images, relative to the other sets'.
        has_teacher: True if the student learns a teacher's depth from its images.
    """

    name: str
    frames: Dataset
    weight: float
    has_teacher: bool


class MixedFrames(Dataset):
    """The samples of several data sets, one set after another.

    Attributes:
        sets: The sets, in the order of the recipe.

    Args:
        sets: The attribute `sets`, at least one.
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
        """The files of each sample, for messages."""
        return _Listed(self)

    def stored(self, index: int) -> Sample:
        """Returns a sample with depths as stored in the files, as `Frames.stored` does.

        Args:
            index: The index of the sample in all sets.
        """
        number, own = self.place(index)
        chosen = self.sets[number]
        with errors_of_set(chosen.name):
            sample = getattr(chosen.frames, "stored", chosen.frames.__getitem__)(own)
        # What a data set from outside the project returns in place of a sample is refused later.
        if not isinstance(sample, Sample):
            return sample
        return sample._replace(data_set=number, has_target=self.has_target(index))

    def place(self, index: int) -> tuple[int, int]:
        """Returns the place of a sample's set in `sets`, and the sample's index in it.

        Args:
            index: The index of the sample in all sets.
        """
        number = bisect_right(self._ends, index)
        return number, index - self._start(number)

    def has_target(self, index: int) -> tuple[bool, bool]:
        """Returns True if a sample has ground truth, and if its set has a teacher.

        A data set that doesn't list its frames' files is taken to have ground truth.

        Args:
            index: The index of the sample in all sets.
        """
        number, own = self.place(index)
        chosen = self.sets[number]
        has_truth = not isinstance(chosen.frames, Frames) or (
            chosen.frames.frames[own].depth is not None
        )
        return has_truth, chosen.has_teacher

    def following(self, index: int) -> Following:
        """Returns the samples that may take the place of one that can't be read.

        Args:
            index: The index of the sample in all sets.
        """
        number, _ = self.place(index)
        return Following(self._start(number), len(self.sets[number].frames), index)

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0


class _Listed(Sequence):
    """The frames of several data sets, looked up when they are asked for."""

    def __init__(self, mixed: MixedFrames):
        self._mixed = mixed

    def __len__(self) -> int:
        return len(self._mixed)

    def __getitem__(self, index: int) -> Frame:
        number, own = self._mixed.place(index)
        name, frames = self._mixed.sets[number][:2]
        if isinstance(frames, Frames):
            return frames.frames[own]
        return Frame(f"sample {own} of {name}", f"sample {own} of {name}", None, None)


def sets_in(dataset: Dataset | None) -> Iterator[tuple[str, Dataset]]:
    """Yields the name of each data set and the set itself.

    Args:
        dataset: One data set, whose name is empty, or several; None yields nothing.
    """
    if isinstance(dataset, MixedFrames):
        yield from ((each.name, each.frames) for each in dataset.sets)
    elif dataset is not None:
        yield "", dataset
