"""Selects the samples of each batch from several data sets: a pure function of (seed, iteration).

Two orders are kept apart. `Deal` says from which set each place of the run's stream of samples
comes; it holds the stated ratio over any stretch of the stream, within a batch, too. Each set has
an order of its own: it passes through its own epochs, each a permutation of all of its samples, so
that none is repeated before all were seen. A set with a weight above its share begins its next
epoch earlier than the others. Place p of the stream is image p % batch_size of batch p //
batch_size, so batches aren't filled up, and neither ranks nor a resume change what an iteration
sees.

A sample's key is (own epoch, index in all sets one after another). No key occurs twice, so each
occurrence of a sample has its own augmentation. Costs: one division of whole numbers for each set
and image. Left out: batches of one image size (`data.augment.sizes: bucket`).
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from tiekd.data.loading.sampler import ALL_BATCHES, Order, RankShare, check_seed, stated_order


class Part(NamedTuple):
    """One of several data sets, as the sampler sees it.

    Attributes:
        num_samples: The number of its samples.
        weight: Its share of the images, relative to the weights of the others, above 0.
        order: Its own order, from the number of its own epoch and the seed; None for a permutation
            that is drawn from the seed.
    """

    num_samples: int
    weight: float
    order: Order | None = None


class Deal:
    """Says from which of several sets each place of an endless stream comes.

    The first set gets every n-th place, as its share says, rounded to the nearest whole number; the
    next one its share of the places that are left, and so on. The largest share comes first. So
    among the first n places a set has its share of n, within one place for up to four sets, and
    within two for up to eight. Numbers are exact, however long the stream is.

    Args:
        weights: The weight of each set, above 0.
    """

    def __init__(self, weights: Sequence[float]):
        exact = [Fraction(str(weight)) for weight in weights]
        scale = lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        self._order = sorted(range(len(whole)), key=lambda place: -whole[place])
        # For each set but the last: its weight, and the sum of its own and all later weights.
        sorted_weights = [whole[place] for place in self._order]
        rest = [sum(sorted_weights[place:]) for place in range(len(whole))]
        self._shares = list(zip(self._order, sorted_weights, rest, strict=True))[:-1]

    def counts(self, length: int) -> list[int]:
        """Returns how many of the stream's first places each set has.

        Args:
            length: The number of places.
        """
        counts, left = [0] * len(self._order), length
        for place, weight, rest in self._shares:
            counts[place] = _taken(left, weight, rest)
            left -= counts[place]
        counts[self._order[-1]] = left
        return counts

    def places(self, start: int, length: int) -> list[tuple[int, int]]:
        """Returns for each place of a stretch its set, and how many places before it the set has.

        Args:
            start: The first place.
            length: The number of places.
        """
        counts, found = self.counts(start), []
        for place in range(start + 1, start + length + 1):
            left, chosen = place, self._order[-1]
            # One place more is one more for one set: the first whose number grows.
            for number, weight, rest in self._shares:
                taken = _taken(left, weight, rest)
                if taken > counts[number]:
                    chosen = number
                    break
                left -= taken
            found.append((chosen, counts[chosen]))
            counts[chosen] += 1
        return found


def _taken(places: int, weight: int, rest: int) -> int:
    """Returns the rounded share weight / rest of a number of places."""
    return (2 * places * weight + rest) // (2 * rest)


class MixedBatches(Sampler):
    """Iterator over one rank's micro-batches of several sets, each a list of (epoch, index) keys.

    An index is that in all sets one after another, and an epoch is that of the index's own set.

    Args:
        parts: The sets.
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
        parts: Sequence[Part],
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
        self._deal = Deal([part.weight for part in parts])
        sizes = [part.num_samples for part in parts]
        self._starts = [0, *accumulate(sizes)][:-1]
        # The newest two orders of each set. A stretch of the stream may be in two own epochs.
        self._orders: list[dict[int, Sequence[int]]] = [{} for _ in parts]

    def __len__(self) -> int:
        return len(self.iterations) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in self.iterations:
            yield from self.share.micro_batches(self.global_batch(iteration), self.accumulation)

    def global_batch(self, iteration: int) -> list[tuple[int, int]]:
        """Returns the keys of an iteration's global batch, i.e. that of all ranks together.

        Args:
            iteration: The iteration, from 0.
        """
        keys = []
        for number, count in self._deal.places(iteration * self.batch_size, self.batch_size):
            epoch, position = divmod(count, self.parts[number].num_samples)
            keys.append((epoch, self._starts[number] + int(self._order(number, epoch)[position])))
        return keys

    def _order(self, number: int, epoch: int) -> Sequence[int]:
        """Returns the order of a set's samples in one of its own epochs.

        Args:
            number: The set's place in `parts`.
            epoch: Its own epoch, from 0.
        """
        known = self._orders[number]
        order = known.get(epoch)
        if order is None:
            part = self.parts[number]
            if part.order is not None:
                order = stated_order(part.order, epoch, self.seed, part.num_samples)
            else:
                # The first set has the permutations that it has in a run by itself.
                draw = np.random.default_rng([self.seed, epoch, number])
                order = draw.permutation(part.num_samples)
            # A thread may read ahead while another one counts targets, so what one of them may
            # hold isn't changed.
            kept = {max(known): known[max(known)]} if known else {}
            self._orders[number] = {**kept, epoch: order}
        return order


def iterations_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of global batches in an epoch of a mixture.

    It only divides a run for its schedule, evaluations and log; the sets' own epochs are others.

    Args:
        num_images: The images of an epoch: `train.epoch_images`, by default those of all sets.
        batch_size: Samples per global batch.
    """
    return -(-num_images // batch_size)
