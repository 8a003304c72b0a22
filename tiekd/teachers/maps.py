"""A teacher that returns depth maps which a teacher network computed before training."""

from torch import Tensor

from tiekd.data.batch import Batch


class CachedMaps:
    """Returns the teacher's cached depth maps, which the data loader has put into the batch.

    The maps are already 0 in pixels that rotation or padding added from outside the image.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the batch's teacher depth, (B, 1, H, W) float32, metres, 0 where not valid."""
        return batch.teacher_depth


build = CachedMaps
