"""A teacher that returns depth maps which a teacher network computed before training."""

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.target import Target


class CachedMaps:
    """Returns the teacher's cached depth maps, which the data loader has put into the batch.

    The maps are already 0 in pixels that rotation or padding added from outside the image.

    Attributes:
        place: The place of its maps among those of all teachers with cached maps.

    Args:
        place: The attribute `place`.
    """

    def __init__(self, place: int = 0):
        self.place = place

    def __call__(self, batch: Batch) -> Tensor | Target | None:
        """Returns the cached teacher depth in `batch.teacher_depth`, without a copy.

        It is (B, 1, H, W) float32, in metres, and 0 in pixels that aren't valid; with cached maps
        of sigma, a `Target` of both. None if the batch has no maps, as that of validation frames.
        """
        depth, sigma = batch.teacher_depth, batch.teacher_sigma
        if depth is None:
            return None
        here = slice(self.place, self.place + 1)
        if depth.shape[1] > 1:
            depth = depth[:, here]
        return depth if sigma is None else Target(depth, sigma[:, here])


build = CachedMaps
