"""A loss term that becomes NaN on rank 1 at a given iteration, while its gradient stays finite."""

import math

from torch import nn

from tiekd.distributed.comm import rank


class Failing(nn.Module):
    """The mean squared error of each image; NaN on rank 1 after some iterations.

    Args:
        after: number of iterations before the loss becomes NaN.
    """

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def forward(self, prediction, target, iteration=None):
        loss = (prediction.depth - target).square().mean((1, 2, 3))
        return loss + math.nan if iteration >= self.after and rank() == 1 else loss


build = Failing
