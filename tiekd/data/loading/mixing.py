"""Selects the samples of each batch from several data sets: a pure function of (seed, iteration).

The images of all batches form one endless sequence: position p is image p % batch_size of global
batch p // batch_size. `SetAssignment` assigns each position to a data set, such that any part of
the sequence, even within a batch, has the data sets in the ratio of their weights. So no batch is
filled up, and neither the number of ranks nor a resume changes the samples of an iteration.

Each data set passes through its samples at its own pace. One pass is an epoch of the data set, in
which each sample is seen once, in the order of a permutation. A data set with a large weight for
its number of samples passes through them more often than the others.

A sample is identified by a key (epoch, index): the epoch of its data set, and an index that counts
the samples of all data sets, one set after another. No key occurs twice, so each occurrence of a
sample has its own augmentation. Costs: one division of integers for each data set and image. Not
covered: batches of one image size (`data.augment.sizes: bucket`).
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from tiekd.data.loading.sampler import ALL_BATCHES, Order, RankShare, check_seed, checked_order


class SetShare(NamedTuple):
    """The properties of one of several data sets that determine the order of samples.

    Attributes:
        num_samples: The number of the data set's samples.
        weight: The data set's share of the images, above 0; only the ratio to the other data sets'
            weights matters.
        order: Function (epoch of the data set, seed) that returns the order of its samples in that
            epoch; None for a random permutation.
    """

    num_samples: int
    weight: float
    order: Order | None = None


class SetAssignment:
    """Assigns each position of an endless sequence of images to one of several data sets.

    Of the first n positions, for any n, the data set with the largest weight gets its share,
    rounded to the nearest integer. Of the other positions the data set with the next largest weight
    gets its share, rounded in the same way, and so on. So the number of a data set's positions
    differs from its exact share by at most one for up to four data sets, and by at most two for up
    to eight. All calculations use integers, so they are exact for any n.

    Args:
        weights: The weight of each data set, above 0.
    """

    def __init__(self, weights: Sequence[float]):
        exact = [Fraction(str(weight)) for weight in weights]
        scale = lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        self._order = sorted(range(len(whole)), key=lambda number: -whole[number])
        # Store for each data set but the last, by descending weight: its index, its weight as an
        # integer, and the sum of its weight and all smaller ones.
        sorted_weights = [whole[number] for number in self._order]
        rest = [sum(sorted_weights[first:]) for first in range(len(whole))]
        self._shares = list(zip(self._order, sorted_weights, rest, strict=True))[:-1]

    def counts(self, length: int) -> list[int]:
        """Returns how many of the first positions of the sequence each data set has.

        Args:
            length: The number of positions.

        Returns:
            One number per data set, in the order of the argument `weights` of the class.
        """
        counts, left = [0] * len(self._order), length
        for number, weight, rest in self._shares:
            counts[number] = _rounded_share(left, weight, rest)
            left -= counts[number]
        counts[self._order[-1]] = left
        return counts

    def sets_at(self, start: int, length: int) -> list[tuple[int, int]]:
        """Returns the data sets of consecutive positions of the sequence.

        Args:
            start: The first position, from 0.
            length: The number of positions.

        Returns:
            For each position a pair: the index of its data set in `weights`, and the number of
            earlier positions, from position 0 on, that belong to the same data set.
        """
        counts, found = self.counts(start), []
        for position in range(start + 1, start + length + 1):
            left, chosen = position, self._order[-1]
            # Find the data set of this position: the first one whose number of positions increases
            # if this position is counted, too.
            for number, weight, rest in self._shares:
                taken = _rounded_share(left, weight, rest)
                if taken > counts[number]:
                    chosen = number
                    break
                left -= taken
            found.append((chosen, counts[chosen]))
            counts[chosen] += 1
        return found


def _rounded_share(num_positions: int, weight: int, rest: int) -> int:
    """Returns num_positions * weight / rest, rounded to the nearest integer (a half is rounded up).

    Args:
        num_positions: Number of positions to distribute.
        weight: The integer weight of one data set.
        rest: The sum of the integer weights of all data sets that share the positions.
    """
    return (2 * num_positions * weight + rest) // (2 * rest)


class MixedBatches(Sampler):
    """Iterator over one rank's micro-batches from several data sets.

    A micro-batch is a list of keys (epoch, index), one per sample. The index counts the samples of
    all data sets, one set after another. The epoch is the number of times that the sample's data
    set has been passed through before.

    Args:
        parts: The data sets.
        batch_size: Samples per global batch, divisible by `accumulation` times the world size.
        iterations: The range of iterations to yield, counted from 0 at the start of training.
        seed: Seed of the permutations and of the augmentation, from 0.
        accumulation: Micro-batches per iteration and rank.
        share: The rank and the world size, which determine the rank's part of each global batch.

    Raises:
        RecipeError: If the seed is negative.
    """

    def __init__(
        self,
        parts: Sequence[SetShare],
        batch_size: int,
        iterations: range,
        *,
        seed: int,
        accumulation: int = 1,
        share: RankShare = ALL_BATCHES,
    ):
        check_seed(seed)
        self.parts, self.batch_size, self.iterations = tuple(parts), batch_size, iterations
        self.seed, self.accumulation, self.share = seed, accumulation, share
        self._assignment = SetAssignment([part.weight for part in parts])
        sizes = [part.num_samples for part in parts]
        self._starts = [0, *accumulate(sizes)][:-1]
        # Cache of each data set's two newest permutations, keyed by epoch: a batch may begin in one
        # epoch of the data set and end in the next.
        self._orders: list[dict[int, Sequence[int]]] = [{} for _ in parts]

    def __len__(self) -> int:
        return len(self.iterations) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in self.iterations:
            yield from self.share.micro_batches(self.global_batch(iteration), self.accumulation)

    def global_batch(self, iteration: int) -> list[tuple[int, int]]:
        """Returns the (epoch, index) key of each sample of an iteration's batch, for all ranks.

        Args:
            iteration: The iteration, from 0.
        """
        keys = []
        for number, count in self._assignment.sets_at(iteration * self.batch_size, self.batch_size):
            epoch, position = divmod(count, self.parts[number].num_samples)
            keys.append((epoch, self._starts[number] + int(self._order(number, epoch)[position])))
        return keys

    def _order(self, number: int, epoch: int) -> Sequence[int]:
        """Returns the order of a data set's samples in one of its epochs, as a permutation.

        Args:
            number: The data set's index in `parts`.
            epoch: Number of the data set's epoch, from 0.

        Returns:
            (num_samples,) int64 indices of the data set's own samples.
        """
        known = self._orders[number]
        order = known.get(epoch)
        if order is None:
            part = self.parts[number]
            if part.order is not None:
                order = checked_order(part.order, epoch, self.seed, part.num_samples)
            else:
                # NumPy's generators ignore a 0 at the end of a seed. So the first data set (number
                # 0) has the same permutations as in a run with this data set alone.
                draw = np.random.default_rng([self.seed, epoch, number])
                order = draw.permutation(part.num_samples)
            # Replace the cached dict instead of changing it, because another thread may be reading
            # it: one thread loads batches ahead while another one counts targets.
            kept = {max(known): known[max(known)]} if known else {}
            self._orders[number] = {**kept, epoch: order}
        return order


def iterations_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of global batches in an epoch of a run with several data sets.

    This epoch is only a unit for the run's schedule, evaluations and log. Each data set passes
    through its samples at its own pace.

    Args:
        num_images: Number of images in an epoch: `train.epoch_images`, by default the number of
            samples of all data sets.
        batch_size: Samples per global batch, i.e. the batch of all ranks together.
    """
    return -(-num_images // batch_size)
