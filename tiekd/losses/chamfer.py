"""AdaBins' loss on its bins (Bhat, Alhashim and Wonka 2021, arXiv 2011.14141, equation 4): the bins follow the depths.

The chamfer distance between an image's bin centres and its valid depths, in square metres: each depth to the nearest
centre and each centre to the nearest depth, both as means (the paper writes sums; its code and the published weight of
0.1 mean means). In one dimension the nearest is found by sorting, so this costs one sort of the depths, no distance
matrix. Left out: a gradient for anything but the bins.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class Chamfer(nn.Module):
    """Mean over the valid depths of (depth - nearest centre)^2 plus mean over the centres of (centre - nearest)^2.

    max_depth: metres; deeper targets are not valid. None: all are.
    """

    def __init__(self, max_depth: float | None = None):
        super().__init__()
        if max_depth is not None and not max_depth > 0:
            raise RecipeError(
                f"max_depth: {max_depth} is not a depth; give metres > 0, or leave it out"
            )
        self.max_depth = max_depth

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """(B,) float32, square metres, from bin_centres (B, K) and target (B, 1, H, W), metres, 0 where not valid."""
        if prediction.bin_centres is None:
            raise RecipeError("the network gives no bins; it needs `head: {name: adabins, ...}`")
        centres = prediction.bin_centres.float().sort(1).values
        valid = valid_pixels(target, self.max_depth).flatten(1)
        depths = torch.where(valid, target.flatten(1), torch.inf)
        return self._to_centres(depths, valid, centres) + self._to_depths(
            centres, depths, valid.sum(1, keepdim=True)
        )

    def _to_centres(self, depths: Tensor, valid: Tensor, centres: Tensor) -> Tensor:
        middles = (centres[:, 1:] + centres[:, :-1]).detach() / 2
        nearest = centres.gather(1, torch.searchsorted(middles, depths))
        return mean_over_valid((nearest - torch.where(valid, depths, 0)).square(), valid)

    def _to_depths(self, centres: Tensor, depths: Tensor, count: Tensor) -> Tensor:
        """count: (B, 1), how many depths of an image are valid; the others are infinite, and sort behind them."""
        depths, at = depths.sort(1).values, centres.detach()
        above = torch.searchsorted(depths, at)
        last = (count - 1).clamp_min(0)
        higher, lower = (depths.gather(1, i.clamp_min(0).minimum(last)) for i in (above, above - 1))
        nearest = torch.where(higher - at < at - lower, higher, lower)
        return (centres - torch.where(count > 0, nearest, at)).square().mean(1)


build = Chamfer
