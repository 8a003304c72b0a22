"""Mean squared error in square metres, the response-based alternative to the DPM divergence.

Its cost is negligible.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.losses import mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class MSE(nn.Module):
    """Mean over the valid pixels of (depth - target)^2."""

    def __init__(self):
        # Define a signature without arguments, against which a recipe's arguments are checked.
        super().__init__()

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns each image's mean squared error.

        Args:
            prediction: the network's output, whose depth is (B, 1, H, W), metres.
            target: (B, 1, H, W), target depth, metres, 0 where not valid.

        Returns:
            (B,) float32, square metres.
        """
        depth = prediction.depth.float()
        valid = valid_pixels(target)
        # Mask before squaring: invalid targets may be NaN, and backward would compute 0 * NaN =
        # NaN.
        return mean_over_valid((depth - torch.where(valid, target, depth.detach())).square(), valid)


build = MSE
