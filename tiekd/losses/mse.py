"""Mean squared error in square metres, the response-based alternative to the DPM divergence.

Costs next to nothing.
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
        # A recipe's arguments are checked against this signature; nn.Module's accepts any argument.
        super().__init__()

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns each image's mean squared error.

        Args:
            prediction: with depth (B, 1, H, W), metres.
            target: (B, 1, H, W), metres, 0 where not valid.

        Returns:
            (B,) float32, square metres.
        """
        depth = prediction.depth.float()
        valid = valid_pixels(target)
        # Invalid targets may be NaN: mask before squaring, else backward computes 0 * NaN = NaN.
        return mean_over_valid((depth - torch.where(valid, target, depth.detach())).square(), valid)


build = MSE
