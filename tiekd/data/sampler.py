"""Which samples are in which batch: a pure function of (seed, iteration), the same for every number of ranks.

The stream is one permutation an epoch, the last batch filled up from the permutation's start (as DistributedSampler
does). Global batch i is dealt in contiguous slices: first by accumulation step, then by rank; so 1 x 4, 2 x 2 and
accumulation see the same images, and a position in the data is the count of consumed iterations and nothing else.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from tiekd.errors import RecipeError


def iterations_per_epoch(num_samples: int, batch_size: int) -> int:
    """Global batches that cover every sample once, the last one filled up."""
    return -(-num_samples // batch_size)


def global_batch(iteration: int, num_samples: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """The (epoch, sample index) keys of one iteration, `batch_size` of them, epochs counted from 0."""
    per_epoch = iterations_per_epoch(num_samples, batch_size)
    epoch, position = divmod(iteration, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_samples)
    places = np.arange(position * batch_size, (position + 1) * batch_size) % num_samples
    return [(epoch, int(index)) for index in order[places]]


class MicroBatches(Sampler):
    """This rank's micro-batches from `start_iteration` to `total_iterations`, as lists of (epoch, index) keys."""

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        accumulation: int,
        rank: int,
        world_size: int,
        seed: int,
        start_iteration: int,
        total_iterations: int,
    ):
        if num_samples < 1:
            raise RecipeError("data: no training samples are left; check the split file")
        if seed < 0:
            raise RecipeError(f"train.seed: got {seed}; it must be a whole number from 0")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size
        self.iterations = range(start_iteration, total_iterations)
        self.micro_batch_size = batch_size // (accumulation * world_size)
        assert self.micro_batch_size * accumulation * world_size == batch_size

    def __len__(self) -> int:
        return len(self.iterations) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in self.iterations:
            keys = global_batch(iteration, self.num_samples, self.batch_size, self.seed)
            for step in range(self.accumulation):
                first = (step * self.world_size + self.rank) * self.micro_batch_size
                yield keys[first : first + self.micro_batch_size]
