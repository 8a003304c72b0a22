"""A teacher that returns depth maps which a teacher network computed before training."""

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.target import Target


class CachedMaps:
    """Returns the teacher's cached depth maps, which the data loader has put into the batch.

    In pixels that rotation or padding added from outside the image the maps are already 0.

    Attributes:
        map_index: This teacher's index among all teachers with cached maps, from 0.
        constant: The sigma of all pixels in metres; None to use cached maps of sigma if there are
            any.

    Args:
        map_index: As the attribute.
        sigma: The value of the attribute `constant`.
    """

    def __init__(self, map_index: int = 0, sigma: float | None = None):
        self.map_index, self.constant = map_index, sigma

    def __call__(self, batch: Batch) -> Tensor | Target | None:
        """Returns the cached teacher depth in `batch.teacher_depth`, without a copy.

        It is (B, 1, H, W) float32, in metres, and 0 in pixels that aren't valid; with a sigma,
        cached or constant, a `Target` of depth and sigma. None if the batch has no maps, as a batch
        of validation frames.
        """
        depth, sigma = batch.teacher_depth, batch.teacher_sigma
        if depth is None:
            return None
        here = slice(self.map_index, self.map_index + 1)
        if depth.shape[1] > 1:
            depth = depth[:, here]
        if self.constant is not None:
            return Target(depth, constants=(self.constant,))
        return depth if sigma is None else Target(depth, sigma[:, here])


build = CachedMaps
