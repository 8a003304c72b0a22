"""Structural dissimilarity of two depth maps, 1 - SSIM (Wang et al. 2004).

SSIM (structural similarity) compares mean, variance and covariance of two maps in windows of 11 x
11 pixels with Gaussian weights (sigma 1.5). Only windows whose target pixels are all valid are
included, so that neither the border nor a hole appears as a structure. Therefore the loss is
useless on sparse ground truth.

Cost: five maps in float64, filtered along rows and then along columns by shifted additions, which
are memory-bound. On a CPU this takes a quarter of the time of float32 convolutions (0.25 s with
backward at 352 x 704 on one core) and 31 MB per image for backward.

With depths in metres, as in TIE-KD, SSIM's constant C2 = 9e-4 suppresses structures of less than 3
cm. The options `space: normalised` and `space: log` compare shapes independently of the scale.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tiekd.errors import RecipeError
from tiekd.losses import check_top_crop, mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction

WINDOW, SIGMA = 11, 1.5
GAUSSIAN = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
TAPS = [value / sum(GAUSSIAN) for value in GAUSSIAN]
C1, C2 = 0.01**2, 0.03**2
SPACES = ("metres", "normalised", "log")
# The smallest depth, in metres, for `space: log`, which compares log(depth / NEAREST_M). Smaller
# depths are clamped to it, so that the logarithm isn't negative.
NEAREST_M = 1e-3


class SSIM(nn.Module):
    """Mean of 1 - SSIM over the windows with valid targets only, from 0 (equal) to 2 (inverted).

    Args:
        space: the values that are compared. "metres": depths as they are. "normalised": depths
            divided by max_depth, or, if that is None, by the image's largest valid target. "log":
            the natural logarithm of depth / 1 mm.
        signed: True to keep the sign of the covariance, so that an inverted relief has a larger
            loss. False to apply abs() to both variances and the covariance, as in TIE-KD's code.
            None for False if `released`, else True.
        released: True for the loss of TIE-KD's released code: metres, abs(), depths padded with 5
            zeros at each border, and all windows included, also those with invalid pixels.
        max_depth: divisor for `space: normalised`, metres; not allowed for the other spaces.
        top_crop: number of rows that are cropped at the top; as many rows of zeros are added at the
            bottom. Use it only to reproduce published results, with `released` (110 rows at a width
            of 704).
    """

    def __init__(
        self,
        space: str = "metres",
        signed: bool | None = None,
        released: bool = False,
        max_depth: float | None = None,
        top_crop: int = 0,
    ):
        super().__init__()
        if space not in SPACES:
            raise RecipeError(f"space: {space!r} is not known; there are: {', '.join(SPACES)}")
        if released and (space != "metres" or signed):
            raise RecipeError(
                "released: true means space metres and signed false; leave these two out"
            )
        if max_depth is not None and (space != "normalised" or not max_depth > 0):
            raise RecipeError(f"max_depth: {max_depth} is only used, > 0, with `space: normalised`")
        if top_crop < 0 or (top_crop and not released):
            raise RecipeError(f"top_crop: {top_crop} is only allowed, >= 0, with `released: true`")
        self.space = space
        self.signed = not released if signed is None else signed
        self.released = released
        self.max_depth = max_depth
        self.top_crop = top_crop

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """Returns each image's mean structural dissimilarity.

        Args:
            prediction: the network's output, whose depth is (B, 1, H, W), metres.
            target: (B, 1, H, W), target depth, metres, 0 where not valid.

        Returns:
            (B,) float32, 0 to 2; 0 for an image smaller than the window.

        Raises:
            RecipeError: `top_crop` excludes all rows.
        """
        depth = prediction.depth.float()
        if self.released:
            check_top_crop(self.top_crop, target.shape[2])
            border = WINDOW // 2
            zeros = (border, border, border, border + self.top_crop)
            depth, target = (F.pad(d[:, :, self.top_crop :], zeros) for d in (depth, target))
            dissimilarity = 1 - self._similarity(depth, target)
            return dissimilarity.flatten(1).mean(1).float()
        valid = valid_pixels(target)
        if min(target.shape[2:]) < WINDOW:
            return mean_over_valid(depth, torch.zeros_like(valid))
        # Replace invalid pixels, which may be NaN, to keep the gradient finite. All windows that
        # contain them are excluded below.
        depth = torch.where(valid, depth, 1.0)
        target = torch.where(valid, target, 1.0)
        depth, target = self._into_space(depth, target, valid)
        dissimilarity = 1 - self._similarity(depth, target)
        whole = F.max_pool2d((~valid).float(), WINDOW, stride=1) == 0
        return mean_over_valid(dissimilarity, whole).float()

    def _into_space(self, depth: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if self.space == "log":
            return tuple(torch.log(d.clamp_min(NEAREST_M) / NEAREST_M) for d in (depth, target))
        if self.space == "normalised":
            scale = torch.where(valid, target, NEAREST_M).amax((1, 2, 3), keepdim=True)
            scale = scale if self.max_depth is None else self.max_depth
            return depth / scale, target / scale
        return depth, target

    def _similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the structural similarity (SSIM) of two maps in every window of 11 x 11 pixels.

        Args:
            x: (B, 1, H, W), predicted values.
            y: (B, 1, H, W), target values.

        Returns:
            (B, 1, H - 10, W - 10) float64, at most 1.
        """
        # Use float64, since a variance is the small difference of two squared depths: in float32
        # its error would be as large as SSIM's constant C2.
        x, y = x.double(), y.double()
        maps = torch.cat((x, y, x * x, y * y, x * y))
        mean_x, mean_y, xx, yy, xy = _WindowMeans.apply(maps).chunk(5)
        var_x = xx - mean_x * mean_x
        var_y = yy - mean_y * mean_y
        cov = xy - mean_x * mean_y
        if self.signed:
            var_x, var_y = var_x.clamp_min(0), var_y.clamp_min(0)
        else:
            var_x = var_x.abs()
            var_y = var_y.abs()
            cov = cov.abs()
        luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
        return luminance * (2 * cov + C2) / (var_x + var_y + C2)


class _WindowMeans(torch.autograd.Function):
    """Autograd function for the Gaussian-weighted mean of each window of 11 x 11 pixels.

    It maps (N, 1, H, W) to (N, 1, H - 10, W - 10), and saves no tensor for backward.
    """

    @staticmethod
    def forward(ctx, maps: Tensor) -> Tensor:
        return _slide(_slide(maps, 2), 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        # The window's weights are symmetric, so the gradient is the padded incoming gradient
        # filtered with the same weights.
        return _slide(_slide(F.pad(grad, [WINDOW - 1] * 4), 2), 3)


def _slide(maps: Tensor, dim: int) -> Tensor:
    """Returns the Gaussian-weighted means of 11 neighbours along one dimension.

    The means are computed by shifted additions instead of a convolution, whose inputs a GPU may
    round to ten bits (TF32).

    Args:
        maps: (N, 1, H, W).
        dim: the dimension, 2 or 3.

    Returns:
        (N, 1, H - 10, W) or (N, 1, H, W - 10).
    """
    size = maps.shape[dim] - WINDOW + 1
    means = TAPS[0] * maps.narrow(dim, 0, size)
    for place in range(1, WINDOW):
        means.add_(maps.narrow(dim, place, size), alpha=TAPS[place])
    return means


build = SSIM
