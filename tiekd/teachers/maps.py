"""Cached maps as the teacher."""

from torch import Tensor

from tiekd.data.batch import Batch


class CachedMaps:
    """Returns the batch's cached maps; pixels that a rotation filled are 0 in them already."""

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the batch's maps, (B, 1, H, W) float32, metres, 0 where not valid."""
        return batch.teacher_depth


build = CachedMaps
