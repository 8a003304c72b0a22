"""The scale-invariant log error (Eigen et al. 2014) in the form sqrt(var(g) + 0.15 mean(g)^2), g = log ratio of depths.

0.15 keeps a little of the scale, as in AdaBins and the published baseline. Costs next to nothing. The value's slope is
infinite at a perfect prediction; here the gradient there is 0.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction

EPS = 1e-3
MEAN_SHARE = 0.15
REDUCE = ("image", "batch")


class SILog(nn.Module):
    """sqrt(var(g) + 0.15 mean(g)^2), g = log(depth + 1e-3) - log(target + 1e-3) over the valid pixels; unbiased var.

    max_depth: metres; deeper targets are not valid. None: all are.
    reduce: "image": one value per image. "batch": one over all pixels of the batch, repeated for each image, as
        published; it depends on how a batch is split over ranks, so it is for parity only.
    warm_up: for the first so many iterations the variance is left out; a run that goes on knows where it stands.
    """

    def __init__(self, max_depth: float | None = None, reduce: str = "image", warm_up: int = 0):
        super().__init__()
        if max_depth is not None and not max_depth > 0:
            raise RecipeError(
                f"max_depth: {max_depth} is not a depth; give metres > 0, or leave it out"
            )
        if reduce not in REDUCE:
            raise RecipeError(f"reduce: {reduce!r} is not known; there are: {', '.join(REDUCE)}")
        if warm_up < 0:
            raise RecipeError(f"warm_up: {warm_up} iterations can't be warmed up; give 0 or more")
        self.max_depth = math.inf if max_depth is None else max_depth
        self.reduce = reduce
        self.warm_up = warm_up

    def forward(
        self, prediction: "Prediction", target: Tensor, iteration: int | None = None
    ) -> Tensor:
        """(B,) float32 from prediction.depth and target, both (B, 1, H, W), metres; target 0 where not valid.

        iteration: finished ones; None: past the warm-up.
        """
        warming_up = iteration is not None and iteration < self.warm_up
        valid = valid_pixels(target) & (target <= self.max_depth)
        depth = torch.where(valid, prediction.depth.float(), 1.0).clamp_min(0)
        g = torch.log(depth + EPS) - torch.log(torch.where(valid, target, 1.0) + EPS)
        if self.reduce == "batch":
            value = _value(g.reshape(1, -1), valid.reshape(1, -1), warming_up)
            return value.expand(len(target))
        return _value(g.flatten(1), valid.flatten(1), warming_up)


def _value(g: Tensor, valid: Tensor, warming_up: bool) -> Tensor:
    """(N,) from log ratios and validity (N, P). With one valid pixel the variance counts as 0."""
    count = valid.sum(1)
    mean = (g * valid).sum(1) / count.clamp_min(1)
    square = MEAN_SHARE * mean.square()
    if not warming_up:
        square = square + ((g - mean[:, None]) * valid).square().sum(1) / (count - 1).clamp_min(1)
    positive = ~(square <= 0)  # a prediction that is not finite must not look like a perfect one
    return torch.where(positive, square, 1.0).sqrt() * positive


build = SILog
