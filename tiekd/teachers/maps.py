"""A teacher that returns depth maps which a teacher network computed before training."""

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.target import Target


class CachedMaps:
    """Returns the teacher's cached depth maps, which the data loader has put into the batch.

    The maps are already 0 in pixels that rotation or padding added from outside the image.

    Attributes:
        place: The place of its maps among those of all teachers with cached maps.
        constant: A sigma in metres for all pixels, in place of cached maps of sigma; None for
            these, or none.

    Args:
        place: The attribute `place`.
        sigma: The attribute `constant`.
    """

    def __init__(self, place: int = 0, sigma: float | None = None):
        self.place, self.constant = place, sigma

    def __call__(self, batch: Batch) -> Tensor | Target | None:
        """Returns the cached teacher depth in `batch.teacher_depth`, without a copy.

        It is (B, 1, H, W) float32, in metres, and 0 in pixels that aren't valid; with cached maps
        or a constant of sigma, a `Target` of both. None if the batch has no maps, as that of
        validation frames.
        """
        depth, sigma = batch.teacher_depth, batch.teacher_sigma
        if depth is None:
            return None
        here = slice(self.place, self.place + 1)
        if depth.shape[1] > 1:
            depth = depth[:, here]
        if self.constant is not None:
            return Target(depth, constants=(self.constant,))
        return depth if sigma is None else Target(depth, sigma[:, here])


build = CachedMaps
