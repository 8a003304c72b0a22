"""Squared errors that are NaN on rank 1 from an iteration on, with a gradient that is finite."""

import math

from torch import nn

from tiekd.distributed.comm import rank


class Failing(nn.Module):
    """The squared error.

    after: the number of good iterations.
    """

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def forward(self, prediction, target, iteration=None):
        loss = (prediction.depth - target).square().mean((1, 2, 3))
        return loss + math.nan if iteration >= self.after and rank() == 1 else loss


build = Failing
