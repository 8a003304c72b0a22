"""A teacher that returns the cached teacher maps of the batch."""

from torch import Tensor

from tiekd.data.batch import Batch


class CachedMaps:
    """Returns the batch's cached maps, in which pixels filled by a rotation are 0 already."""

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the batch's maps, (B, 1, H, W) float32, metres, 0 where not valid."""
        return batch.teacher_depth


build = CachedMaps
