"""The order of an epoch's frames in tar shards: a function of seed and epoch alone.

The shards are permuted. In the resulting order of frames, each frame is then moved by a random
number of positions, which is less than the window. So the frames of a batch come from few shards,
and the shards are read one after another. Making the order of a million frames takes 0.2 s and
30 MB.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ShardOrder:
    """The random order in which the frames of tar shards are read in an epoch.

    Attributes:
        shards: (N,) int, the index of each frame's shard. The frames of a shard are consecutive.
        window: After the shards are permuted, a frame is moved by fewer positions than this; 1
            keeps the order of the frames in each shard.
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
        # Concatenate the frame indices of all shards, in the permuted order of the shards.
        permuted = random.permutation(len(starts))
        counts = lengths[permuted]
        before = np.cumsum(counts) - counts
        places = np.arange(len(self.shards))
        order = np.repeat(starts[permuted] - before, counts) + places
        # Add a random number below the window to each frame's position, and sort by the sum. So no
        # frame moves by as much as the window.
        moved = places + self.window * random.random(len(places))
        return order[np.argsort(moved, kind="stable")]

    def __str__(self) -> str:
        return (
            f"{len(self._starts())} shards in another order each epoch, their frames moved within "
            f"a window of {self.window} (data.window)"
        )

    def _starts(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self.shards, prepend=self.shards[0] - 1))
