"""A teacher that returns the batch's ground truth, for training without a teacher network."""

from torch import Tensor

from tiekd.data.batch import Batch


class GroundTruth:
    """Returns the ground truth as the target, for training without a teacher network."""

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the batch's ground truth, (B, 1, H, W) float32, metres, 0 where not measured."""
        return batch.depth


build = GroundTruth
