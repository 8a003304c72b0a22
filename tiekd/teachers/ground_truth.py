"""A teacher that returns the batch's ground truth, for training without a teacher network."""

from torch import Tensor

from tiekd.data.batch import Batch


class GroundTruth:
    """Returns the ground truth as the target, for training without a teacher network."""

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the ground truth of a batch, `batch.depth`.

        It is (B, 1, H, W) float32, in metres, and 0 in pixels without a measurement.
        """
        return batch.depth


build = GroundTruth
