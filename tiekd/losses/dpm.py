"""The divergence of the student's depth distribution from the target's, averaged over valid pixels.

The divergence itself comes from the network's DPM head (`tiekd.kernels`), where the probabilities are: they are never
stored. Costs next to nothing here.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import check_top_crop, mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class DPM(nn.Module):
    """Mean over the valid pixels of KL(target distribution || student distribution).

    max_depth: metres; deeper targets are left out of the mean. Give it with a head that has `beyond: ignore`, whose
        divergence is 0 there.
    top_crop: this many top rows count as 0 and are still divided by, as in the published training (110 rows at a
        width of 704). For parity only.
    """

    needs_divergence = True

    def __init__(self, max_depth: float | None = None, top_crop: int = 0):
        super().__init__()
        if max_depth is not None and not max_depth > 0:
            raise RecipeError(
                f"max_depth: {max_depth} is not a depth; give metres > 0, or leave it out"
            )
        if top_crop < 0:
            raise RecipeError(f"top_crop: {top_crop} rows can't be cropped; give 0 or more")
        self.max_depth = max_depth
        self.top_crop = top_crop

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """(B,) float32, nats, from prediction.divergence and target, both (B, 1, H, W); target 0 where not valid."""
        if prediction.divergence is None:
            raise RecipeError("the network gives no divergence; it needs `head: {name: dpm, ...}`")
        divergence = prediction.divergence.float()
        if self.top_crop:
            check_top_crop(self.top_crop, target.shape[2])
            divergence = divergence.clone()
            divergence[:, :, : self.top_crop] = 0
        return mean_over_valid(divergence, valid_pixels(target, self.max_depth))


build = DPM
