"""Mean squared error in square metres, a response-based rival of the DPM divergence. Costs next to nothing."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.losses import mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class MSE(nn.Module):
    """Mean over the valid pixels of (depth - target)^2."""

    def __init__(self):
        # A recipe's arguments are checked against this signature; nn.Module's own takes anything.
        super().__init__()

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """(B,) float32 from prediction.depth and target, both (B, 1, H, W), metres; target 0 where not valid."""
        depth = prediction.depth.float()
        valid = valid_pixels(target)
        # Not valid targets may be NaN, and 0 times NaN in the backward pass would reach the network.
        return mean_over_valid((depth - torch.where(valid, target, depth.detach())).square(), valid)


build = MSE
