"""The order of an epoch's frames in tar shards: a function of seed and epoch alone.

The shards are permuted, and frames are exchanged within a window of that order. So the frames of a
batch are those of few shards, which are read one after the other. A frame moves by less than the
window. Making the order of a million frames takes 0.2 s and 30 MB.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ShardOrder:
    """The order of frames in shards.

    Attributes:
        shards: (N,) the shard of each frame; the frames of a shard follow each other.
        window: A frame is fewer places than this from where its shard's order has it; 1 for the
            order in the shards.
    """

    shards: np.ndarray
    window: int

    def __call__(self, epoch: int, seed: int) -> np.ndarray:
        """Returns the order of an epoch: a permutation of the frames' indices.

        Args:
            epoch: Number of the epoch, from 0.
            seed: Seed of the order, from 0.

        Returns:
            (N,) int64.
        """
        random = np.random.default_rng([seed, epoch])
        starts = self._starts()
        lengths = np.diff(starts, append=len(self.shards))
        # Join the ranges of indices of the permuted shards.
        permuted = random.permutation(len(starts))
        counts = lengths[permuted]
        before = np.cumsum(counts) - counts
        places = np.arange(len(self.shards))
        order = np.repeat(starts[permuted] - before, counts) + places
        # Sorting by a place plus a random part of the window moves no frame by a whole window.
        moved = places + self.window * random.random(len(places))
        return order[np.argsort(moved, kind="stable")]

    def __str__(self) -> str:
        return (
            f"{len(self._starts())} shards in another order each epoch, their frames moved within "
            f"a window of {self.window} (data.window)"
        )

    def _starts(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self.shards, prepend=self.shards[0] - 1))
