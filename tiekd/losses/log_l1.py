"""The mean absolute difference of the logarithms of predicted and target depth.

A relative error of 10 % has the same loss at 2 m as at 40 m, while in the loss `mse` far pixels
dominate. Unlike `silog`, which reduces the loss of a wrong overall scale, it penalises such an
error fully. Unlike squared errors, it isn't dominated by a few wrong pixels of a teacher. The cost
is negligible.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.losses import mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction

EPS = 1e-3  # metres; added to depths, so that the logarithm of 0 is finite


class LogL1(nn.Module):
    """Mean over each image's valid pixels of |log(depth + 1e-3) - log(target + 1e-3)|."""

    def __init__(self):
        # Define a constructor without arguments, so that a recipe that gives this loss an argument
        # is refused. nn.Module's own constructor accepts any arguments.
        super().__init__()

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns each image's mean absolute log error over its valid pixels.

        Args:
            prediction: the network's output, whose depth is (B, 1, H, W), metres.
            target: (B, 1, H, W), target depth, metres, 0 where not valid.

        Returns:
            (B,) float32, without unit.
        """
        valid = valid_pixels(target)
        # Replace both depths by 1 m in invalid pixels. So the error is 0 there and has no gradient.
        depth = torch.where(valid, prediction.depth.float(), 1.0).clamp_min(0)
        goal = torch.where(valid, target, 1.0)
        return mean_over_valid((torch.log(depth + EPS) - torch.log(goal + EPS)).abs(), valid)


build = LogL1
