"""The chamfer distance between AdaBins' bin centres and the valid target depths, in square metres.

The loss is equation 4 of Bhat, Alhashim and Wonka 2021 (arXiv 2011.14141). It moves the centres of
an image's predicted depth bins towards the depths that occur in the target. The value is the mean
squared distance of each depth to its nearest centre, plus that of each centre to its nearest depth.
The paper writes sums, but its code uses means; the paper's weight of 0.1 is for means. In one
dimension nearest neighbours are found by sorting, so the cost is one sort of the depths, without a
distance matrix. Not covered: gradients for values other than the bin centres.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class Chamfer(nn.Module):
    """Mean squared distance of target depths to bin centres, plus that of centres to depths.

    Each depth is compared with the nearest centre, and each centre with the nearest depth.

    Args:
        max_depth: metres; larger target depths are masked out. None for no upper bound.
    """

    def __init__(self, max_depth: float | None = None):
        super().__init__()
        if max_depth is not None and not max_depth > 0:
            raise RecipeError(
                f"max_depth: {max_depth} is not a depth; give metres > 0, or leave it out"
            )
        self.max_depth = max_depth

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns the chamfer distance between each image's bin centres and valid target depths.

        Args:
            prediction: the network's output, whose bin_centres are (B, K), metres.
            target: (B, 1, H, W) float32, target depth, metres, 0 where not valid.

        Returns:
            (B,) float32, square metres.

        Raises:
            RecipeError: the network predicts no bins.
        """
        if prediction.bin_centres is None:
            raise RecipeError("the network gives no bins; it needs `head: {name: adabins, ...}`")
        centres = prediction.bin_centres.float().sort(1).values
        valid = valid_pixels(target, self.max_depth).flatten(1)
        depths = torch.where(valid, target.flatten(1), torch.inf)
        count = valid.sum(1, keepdim=True)
        to_centres = self._to_centres(depths, valid, centres)
        return to_centres + self._to_depths(centres, depths, count)

    def _to_centres(self, depths: Tensor, valid: Tensor, centres: Tensor) -> Tensor:
        """Returns the mean squared distance of the valid depths to their nearest centres.

        Args:
            depths: (B, N), metres, of an image's N pixels; inf where not valid.
            valid: (B, N) bool.
            centres: (B, K), bin centres, metres, sorted.

        Returns:
            (B,), square metres.
        """
        # The centre nearest to a depth is found by the midpoints between neighbouring centres.
        middles = (centres[:, 1:] + centres[:, :-1]).detach() / 2
        nearest = centres.gather(1, torch.searchsorted(middles, depths))
        return mean_over_valid((nearest - torch.where(valid, depths, 0)).square(), valid)

    def _to_depths(self, centres: Tensor, depths: Tensor, count: Tensor) -> Tensor:
        """Returns the mean squared distance of the centres to their nearest valid depths.

        Args:
            centres: (B, K), bin centres, metres.
            depths: (B, N), metres, of an image's N pixels; inf where not valid, so that invalid
                ones come last when sorted.
            count: (B, 1), number of valid depths of each image.

        Returns:
            (B,), square metres.
        """
        depths = depths.sort(1).values
        at = centres.detach()
        # The depth nearest to a centre is one of the centre's two neighbours in the sorted depths.
        above = torch.searchsorted(depths, at)
        last = (count - 1).clamp_min(0)
        higher, lower = (depths.gather(1, i.clamp_min(0).minimum(last)) for i in (above, above - 1))
        nearest = torch.where(higher - at < at - lower, higher, lower)
        # For an image without valid depths, compare the centres with themselves: this gives 0 and
        # no gradient.
        return (centres - torch.where(count > 0, nearest, at)).square().mean(1)


build = Chamfer
