"""The images or depth maps of frames in tar shards, as columns of arrays: 30 bytes a member."""

from collections.abc import Sequence

import numpy as np

from tiekd.data.frame_table import Texts
from tiekd.data.stored import ShardMember


class Members:
    """The images, or the depth maps, of N frames: each is a member of a tar shard.

    Args:
        paths: The paths of all shards.
        states: (size in bytes, modification time in ns) of each shard when the index was read.
        shards: (N,) int32, the index in `paths` of each member's shard.
        names: The members' names in their shards.
        offsets: (N,) int64, the position in the shard of the first byte of each member's content.
        sizes: (N,) int64, the number of bytes of each member's content.
    """

    def __init__(
        self,
        paths: Sequence[str],
        states: Sequence[tuple[int, int]],
        shards: np.ndarray,
        names: Texts,
        offsets: np.ndarray,
        sizes: np.ndarray,
    ):
        self.paths = paths
        self.states = states
        self.shards = shards
        self.names = names
        self.offsets = offsets
        self.sizes = sizes

    def __getitem__(self, index: int) -> ShardMember:
        shard = int(self.shards[index])
        return ShardMember(
            self.paths[shard],
            self.names[index],
            int(self.offsets[index]),
            int(self.sizes[index]),
            self.states[shard],
        )

    def take(self, rows: np.ndarray) -> "Members":
        """Returns a `Members` with those of some frames.

        Args:
            rows: (M,) indices of the frames, in the order of the result.
        """
        return Members(
            self.paths,
            self.states,
            self.shards[rows],
            self.names.take(rows),
            self.offsets[rows],
            self.sizes[rows],
        )
