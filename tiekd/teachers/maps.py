"""A teacher that returns depth maps which a teacher network computed before training."""

from torch import Tensor

from tiekd.data.batch import Batch


class CachedMaps:
    """Returns the teacher's cached depth maps, which the data loader has put into the batch.

    The maps are already 0 in pixels that rotation or padding added from outside the image.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the cached teacher depth `batch.teacher_depth`.

        It is (B, 1, H, W) float32, in metres, and 0 in pixels that aren't valid.
        """
        return batch.teacher_depth


build = CachedMaps
