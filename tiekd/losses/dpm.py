"""The KL divergence of the target's depth distribution from the student's, averaged over pixels.

A DPM (depth probability map) head predicts a distribution over depth bins for each pixel. The head
computes the divergence itself (`tiekd.kernels`), because the probabilities are never stored. This
loss averages it over each image's valid pixels, at negligible cost.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import check_top_crop, mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction


class DPM(nn.Module):
    """Mean over the valid pixels of KL(target distribution || student distribution).

    Args:
        max_depth: metres; pixels with a larger target depth are excluded from the mean. Set it for
            a head with `beyond: ignore`, whose divergence is 0 at these pixels.
        top_crop: number of rows at the top whose divergence is set to 0. The mean is still divided
            by the number of all valid pixels, as in TIE-KD's training (110 rows at a width of 704).
            Use it only to reproduce published results.

    Attributes:
        needs_divergence: True; the criterion then passes the target depth to the network, whose
            head computes the divergence.
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
        """Returns each image's mean over its valid pixels of the divergence in `prediction`.

        Args:
            prediction: the network's output, whose divergence is (B, 1, H, W), nats.
            target: (B, 1, H, W), target depth, metres, 0 where not valid; it decides which pixels
                are valid.

        Returns:
            (B,) float32, nats.

        Raises:
            RecipeError: the network computes no divergence, or `top_crop` excludes all rows.
        """
        if prediction.divergence is None:
            raise RecipeError("the network gives no divergence; it needs `head: {name: dpm, ...}`")
        divergence = prediction.divergence.float()
        if self.top_crop:
            check_top_crop(self.top_crop, target.shape[2])
            divergence = divergence.clone()
            divergence[:, :, : self.top_crop] = 0
        return mean_over_valid(divergence, valid_pixels(target, self.max_depth))


build = DPM
