"""Mean absolute gradient of the error of log depth, added over several resolutions.

Let R be the error, i.e. the difference of log depth between prediction and target. The loss is the
mean of |dR| over pairs of neighbours in a row or a column, added over scales; each scale takes
every second row and column of the scale before. It is the gradient matching term of Li and Snavely
2018 (MegaDepth, arXiv 1804.00607, equation 3) up to its factor of 2. It penalises blurred and
misplaced edges. It is 0 if prediction and target differ by a factor alone, so it is used beside a
loss on depth. The cost is negligible.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction

EPS = 1e-3  # metres; added to depths, so that the logarithm of 0 is finite


class Gradient(nn.Module):
    """Sum over scales of the mean |dR| over pairs of neighbours, where R is the error of log depth.

    R = log(depth + EPS) - log(target + EPS), and dR is the difference between two neighbouring
    pixels. A pair counts if both of its pixels are valid. So sparse ground truth, whose
    neighbouring pixels are rarely both measured, gives almost no loss.

    Args:
        scales: number of scales, from 1; scale k has every 2^k-th row and column, from 0.

    Raises:
        RecipeError: `scales` is below 1.
    """

    def __init__(self, scales: int = 4):
        super().__init__()
        if scales < 1:
            raise RecipeError(f"scales: got {scales}; it must be 1 or more, such as 4")
        self.scales = scales

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns for each image the mean |dR| over pairs of neighbours, summed over the scales.

        R is the error of log depth, and dR its difference between two neighbours.

        Args:
            prediction: the network's output, whose depth is (B, 1, H, W), metres.
            target: (B, 1, H, W), target depth, metres, 0 where not valid.

        Returns:
            (B,) float32, without unit.
        """
        valid = valid_pixels(target)
        # Replace predicted and target depth by 1 m in invalid pixels, so that the gradient isn't
        # NaN there.
        depth = torch.where(valid, prediction.depth.float(), 1.0).clamp_min(0)
        error = torch.log(depth + EPS) - torch.log(torch.where(valid, target, 1.0) + EPS)
        total = torch.zeros(len(target), device=target.device)
        for scale in range(self.scales):
            step = 2**scale
            coarse, known = error[..., ::step, ::step], valid[..., ::step, ::step]
            # Sum both directions before dividing, so that each pair weighs the same.
            across, down = _differences(coarse, known, -1), _differences(coarse, known, -2)
            count = (across[1] + down[1]).clamp_min(1)
            total = total + (across[0] + down[0]) / count
        return total


def _differences(error: Tensor, valid: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns the sum of absolute differences of neighbours along a dimension, and their number.

    Args:
        error: (B, 1, h, w), error of log depth.
        valid: (B, 1, h, w) bool; a difference is included if both of its pixels are valid.
        dim: -1 for neighbours in a row, -2 for those in a column.

    Returns:
        (sum, number), each (B,): the sum over an image's differences, and their number.
    """
    length = error.shape[dim] - 1
    both = valid.narrow(dim, 1, length) & valid.narrow(dim, 0, length)
    change = (error.narrow(dim, 1, length) - error.narrow(dim, 0, length)).abs()
    return torch.where(both, change, 0).flatten(1).sum(1), both.flatten(1).sum(1)


build = Gradient
