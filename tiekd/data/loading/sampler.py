"""Selects the samples of each batch: a pure function of (seed, iteration) for any number of ranks.

Each epoch is one random permutation of the samples; its last batch is filled up from the
permutation's start (as DistributedSampler does). A data set may state another permutation itself
(`epoch_order`). The global batch of an iteration is split into contiguous slices, first by
accumulation step, then by rank. So 1 rank x 4 samples, 2 ranks x 2 samples and accumulation see the
same images per iteration, and the number of consumed iterations alone determines the position in
the data.

A batch larger than the number of samples (of its group) repeats samples. Each repetition has its
own key, so that it is augmented differently: the n-th repetition's index is the sample's index plus
n times the number of samples.

With groups (`data.augment.sizes: bucket`, one group per image size) a global batch holds samples of
one group. Each group keeps the permutation's order and has its own last batch, filled up from the
group's start: every sample is seen at least once an epoch, those of a small group more often.
Batches come in the order in which their first samples appear in the permutation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import RecipeError

# Function (epoch, seed) of an epoch's order: a permutation of the samples, (N,) int64.
Order = Callable[[int, int], np.ndarray]


def size_groups(dataset: Dataset, resize: Resize = OWN_SIZE) -> list[int]:
    """Returns a group number for each sample; samples with images of the same size share one.

    The sizes are those after resizing. The header of every image file is read, 0.1 ms each.

    Args:
        dataset: The training dataset.
        resize: How images are resized before they are grouped.

    Returns:
        One number per sample, in order; groups are numbered from 0 in ascending order of size.

    Raises:
        RecipeError: The dataset has no method `image_sizes`.
    """
    if not hasattr(dataset, "image_sizes"):
        kind = type(dataset).__name__
        raise RecipeError(
            f"data.augment.sizes: bucket needs a data set with image_sizes(), {kind} has none; use "
            "crop"
        )
    frames = getattr(dataset, "frames", None)
    sizes = []
    for index, size in enumerate(dataset.image_sizes()):
        name = f"sample {index}" if frames is None else frames[index].name
        sizes.append(resize.placement_of(*size, name).canvas)
    numbers = {size: number for number, size in enumerate(sorted(set(sizes)))}
    return [numbers[size] for size in sizes]


def iterations_per_epoch(
    num_samples: int, batch_size: int, groups: Sequence[int] | None = None
) -> int:
    """Returns the number of global batches in an epoch, which cover every sample at least once.

    A global batch holds the samples of all ranks. The last batch (of each group) is filled up with
    repeated samples.

    Args:
        num_samples: Number of samples in the training dataset.
        batch_size: Samples per global batch.
        groups: A group number for each sample, so that a batch holds samples of one group; None
            for one group.
    """
    counts = [num_samples] if groups is None else np.bincount(groups).tolist()
    return sum(-(-count // batch_size) for count in counts)


def epoch_batches(
    epoch: int,
    num_samples: int,
    batch_size: int,
    seed: int,
    groups: Sequence[int] | None = None,
    order_of: Order | None = None,
) -> np.ndarray:
    """Returns the sample indices of an epoch's global batches in their order.

    A global batch is that of all ranks together.

    Args:
        epoch: Number of the epoch, from 0.
        num_samples: Size of the training set.
        batch_size: Samples per global batch.
        seed: Seed of the permutation.
        groups: A group number for each sample, so that a batch holds samples of one group; None
            for one group.
        order_of: Function (epoch, seed) that gives the data set's own order of an epoch's samples;
            None for a random permutation.

    Returns:
        (batches, batch_size) int64.

    Raises:
        RecipeError: `order_of` returns no permutation of the samples.
    """
    # Permute the samples, and look up the group of each.
    if order_of is None:
        order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    else:
        order = checked_order(order_of, epoch, seed, num_samples)
    group_of = np.zeros(num_samples, int) if groups is None else np.asarray(groups)[order]
    batches = []
    # For each group, form batches of positions in the permutation.
    for group in np.unique(group_of):
        places = np.flatnonzero(group_of == group)
        # To fill up the last batch, np.resize repeats the group from its start.
        batches.append(np.resize(places, (-(-len(places) // batch_size), batch_size)))
    # Order the batches by the position of their first sample.
    places = np.concatenate(batches)
    return order[places[places[:, 0].argsort()]]


def checked_order(order_of: Order, epoch: int, seed: int, num_samples: int) -> np.ndarray:
    """Returns the order of an epoch's samples that a data set itself gives, after checking it.

    Args:
        order_of: The function, which takes the epoch and the seed.
        epoch: Number of the epoch, from 0.
        seed: Seed of the run, from 0.
        num_samples: Number of the data set's samples.

    Returns:
        (num_samples,) int64, a permutation.

    Raises:
        RecipeError: The function's result isn't a permutation of the samples.
    """
    order = np.asarray(order_of(epoch, seed))
    if not np.array_equal(np.sort(order), np.arange(num_samples)):
        raise RecipeError(
            f"data: the data set's epoch_order({epoch}, {seed}) must have each index from 0 to "
            f"{num_samples - 1} once"
        )
    return order


def repeats(num_samples: int, batch_size: int, groups: Sequence[int] | None = None) -> list[str]:
    """Returns a warning for the log if a batch holds a sample several times, else an empty list.

    Args:
        num_samples: Number of samples in the training dataset.
        batch_size: Samples per global batch, i.e. the batch of all ranks together.
        groups: A group number for each sample, so that a batch holds samples of one group; None
            for one group.
    """
    fewest = num_samples if groups is None else min(np.bincount(groups).tolist())
    if batch_size <= fewest:
        return []
    of_a_size = "" if groups is None else " of one size"
    return [
        f"Warning: train.batch_size {batch_size} is more than there are training "
        f"frames{of_a_size}, {fewest}: a batch repeats frames, each time with another augmentation"
    ]


@dataclass(frozen=True)
class RankShare:
    """The part of each global batch that one rank reads.

    Attributes:
        rank: The rank, from 0.
        world_size: The number of ranks.
    """

    rank: int = 0
    world_size: int = 1

    def micro_batches(self, keys: Sequence, accumulation: int) -> Iterator[Sequence]:
        """Yields this rank's micro-batches of a global batch, one for each accumulation step.

        The global batch is sliced by accumulation step first, then by rank.

        Args:
            keys: The samples of the global batch, a multiple of all ranks' micro-batches.
            accumulation: Micro-batches per iteration and rank.
        """
        num_slices = accumulation * self.world_size
        assert len(keys) % num_slices == 0
        size = len(keys) // num_slices
        for step in range(accumulation):
            first = (step * self.world_size + self.rank) * size
            yield keys[first : first + size]


# The share of a single rank, which reads all of every global batch.
ALL_BATCHES = RankShare()


def check_seed(seed: int) -> None:
    """Raises RecipeError if a run's seed is negative.

    Args:
        seed: The seed.
    """
    if seed < 0:
        raise RecipeError(f"train.seed: got {seed}; it must be a whole number from 0")


class MicroBatches(Sampler):
    """Iterator over one rank's micro-batches, each a list of (epoch, index) keys.

    An index from num_samples on is a repetition, within a batch, of sample `index % num_samples`.

    Args:
        num_samples: Size of the training set.
        batch_size: Samples per global batch, divisible by `accumulation` times the world size.
        iterations: The range of iterations to yield, counted from 0 at the start of training.
        seed: Seed of the permutations and of the augmentation, from 0.
        accumulation: Micro-batches per iteration and rank.
        share: The rank and the world size, which determine the rank's part of each global batch.
        groups: A group number for each sample, so that a batch holds samples of one group; None
            for one group.
        order_of: Function (epoch, seed) that gives the data set's own order of an epoch's samples;
            None for a random permutation.

    Raises:
        RecipeError: If there are no samples, or the seed is negative.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        iterations: range,
        *,
        seed: int,
        accumulation: int = 1,
        share: RankShare = ALL_BATCHES,
        groups: Sequence[int] | None = None,
        order_of: Order | None = None,
    ):
        if num_samples < 1:
            raise RecipeError("data: no training samples are left; check the split file")
        check_seed(seed)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.iterations = iterations
        self.seed = seed
        self.accumulation = accumulation
        self.share = share
        self.groups = groups
        self.order_of = order_of

    def __len__(self) -> int:
        return len(self.iterations) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = iterations_per_epoch(self.num_samples, self.batch_size, self.groups)
        drawn = None
        batches = None
        for iteration in self.iterations:
            epoch, position = divmod(iteration, per_epoch)
            # Compute an epoch's batches once, when its first batch is needed.
            if epoch != drawn:
                drawn = epoch
                batches = epoch_batches(
                    epoch,
                    self.num_samples,
                    self.batch_size,
                    self.seed,
                    self.groups,
                    self.order_of,
                )
            keys = [(epoch, index) for index in self._with_own_indices(batches[position]).tolist()]
            yield from self.share.micro_batches(keys, self.accumulation)

    def _with_own_indices(self, batch: np.ndarray) -> np.ndarray:
        """Returns a global batch in which each repetition of a sample has an index of its own.

        The n-th repetition's index is the sample's index plus n * num_samples.

        Args:
            batch: (batch_size,) indices of samples of one group, i.e. of samples whose images have
                the same size, or of all samples. If the group is smaller than the batch, its
                samples are repeated in the same order.

        Returns:
            (batch_size,) indices. The first occurrence of each sample keeps its index. If no sample
            is repeated, the result is `batch` itself.
        """
        _, first_places, counts = np.unique(batch, return_index=True, return_counts=True)
        if len(counts) == len(batch):
            return batch
        period = len(counts)  # number of distinct samples, which the batch repeats in order
        assert sorted(first_places) == list(range(period))
        return batch + self.num_samples * (np.arange(len(batch)) // period)
