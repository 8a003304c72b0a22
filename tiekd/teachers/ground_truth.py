"""The ground truth as the teacher."""

from torch import Tensor

from tiekd.data.batch import Batch


class GroundTruth:
    """No teacher: the student learns from what was measured."""

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the batch's own depth, (B, 1, H, W) float32, metres, 0 where not measured."""
        return batch.depth


build = GroundTruth
