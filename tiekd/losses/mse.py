"""Mean squared error of depth in square metres.

It compares the student's depth with the teacher's, whereas the loss `dpm` compares distributions
over depth bins. Its cost is negligible.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.losses import mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class MSE(nn.Module):
    """Mean over each image's valid pixels of (depth - target)^2."""

    def __init__(self):
        # Define a constructor without arguments, so that a recipe that gives this loss an argument
        # is refused. nn.Module's own constructor accepts any arguments.
        super().__init__()

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns each image's mean squared error over its valid pixels.

        Args:
            prediction: the network's output, whose depth is (B, 1, H, W), metres.
            target: (B, 1, H, W), target depth, metres, 0 where not valid.

        Returns:
            (B,) float32, square metres.
        """
        depth = prediction.depth.float()
        valid = valid_pixels(target)
        # Replace invalid targets before squaring: they may be NaN, and backward would compute 0 *
        # NaN = NaN.
        return mean_over_valid((depth - torch.where(valid, target, depth.detach())).square(), valid)


build = MSE
