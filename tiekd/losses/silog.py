"""The scale-invariant log error sqrt(var(g) + 0.15 mean(g)^2).

g is the logarithm of the ratio of predicted and target depth at a pixel. The loss is after Eigen et
al. 2014. With the factor 0.15, as in AdaBins and the baseline of TIE-KD, a wrong overall scale is
penalised a little. The cost is negligible. The derivative of the root is infinite at a perfect
prediction, so the gradient is set to 0 there.
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
    """sqrt(var(g) + 0.15 mean(g)^2) over an image's valid pixels, with the unbiased variance.

    At each pixel g = log(depth + 1e-3) - log(target + 1e-3), with depth and target in metres.

    Args:
        max_depth: metres; larger target depths are masked out. None for no upper bound.
        reduce: "image" for one value per image; "batch" for one value over all pixels of the batch,
            repeated for each image, as in the code of AdaBins and TIE-KD. The latter depends on how
            a batch is split over ranks, so use it only to reproduce published results.
        warm_up: number of iterations at the start in which the variance is left out. They are
            counted from the start of training, also in a resumed run.
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
        """Returns each image's scale-invariant log error, sqrt(var(g) + 0.15 mean(g)^2).

        Args:
            prediction: the network's output, whose depth is (B, 1, H, W), metres.
            target: (B, 1, H, W), target depth, metres, 0 where not valid; g is the log ratio of
                predicted and target depth.
            iteration: number of finished iterations; None to compute the error without warm-up.

        Returns:
            (B,) float32, without unit; with `reduce: batch` all values are the same.
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
    """Returns the scale-invariant log error of each of N sets of P pixels.

    Args:
        g: (N, P), log ratios of predicted and target depth.
        valid: (N, P) bool, True for pixels that are included.
        warming_up: True to leave out the variance.

    Returns:
        (N,). The variance of a single valid pixel is 0, and so is the error without valid pixels.
    """
    count = valid.sum(1)
    mean = (g * valid).sum(1) / count.clamp_min(1)
    square = MEAN_SHARE * mean.square()
    if not warming_up:
        square = square + ((g - mean[:, None]) * valid).square().sum(1) / (count - 1).clamp_min(1)
    # Don't use `square > 0`, which is False for NaN: a non-finite prediction would have an error of
    # 0.
    positive = ~(square <= 0)
    return torch.where(positive, square, 1.0).sqrt() * positive


build = SILog
