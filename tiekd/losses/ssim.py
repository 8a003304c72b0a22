"""Structural dissimilarity of two depth maps, 1 - SSIM (Wang et al. 2004): 11 x 11 Gaussian window, sigma 1.5.

A window counts only where it lies wholly on valid target pixels, so neither the border nor a hole is a structure. For
the same reason it is of no use on sparse ground truth. Cost: five maps, filtered along rows and then along columns.

On metres (the published choice) the constant C2 = 9e-4 makes anything flatter than 3 cm a matter of noise; `normalised`
and `log` look at shapes instead.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiekd.errors import RecipeError
from tiekd.losses import check_top_crop, mean_over_valid, valid_pixels

if TYPE_CHECKING:
    from tiekd.models.network import Prediction

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
SPACES = ("metres", "normalised", "log")
NEAREST_M = 1e-3  # The log space measures from here, so that it is never negative.


class SSIM(nn.Module):
    """Mean over the valid windows of 1 - SSIM, between 0 (equal) and 2 (inverted).

    space: what is compared. "metres": depths as they are. "normalised": divided by max_depth, or by the image's largest
        valid target. "log": the natural log of the depth over 1 mm.
    signed: an inverted relief counts as one. False is published: abs() on both variances and on the covariance.
        None: True, unless `released`.
    released: as published: metres, abs(), zero padding of 5, every pixel counts whether valid or not.
    max_depth: metres, for the normalised space only.
    top_crop: this many top rows are moved out and as many rows of zeros in at the bottom. For parity only, with
        `released` (110 rows at a width of 704).
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
            raise RecipeError(f"losses.ssim.space: {space!r} is not known; there are: {', '.join(SPACES)}")
        if released and (space != "metres" or signed):
            raise RecipeError("losses.ssim: released means space metres and signed false; leave these two out")
        if max_depth is not None and (space != "normalised" or not max_depth > 0):
            raise RecipeError(f"losses.ssim.max_depth: {max_depth} is only used, > 0, with `space: normalised`")
        if top_crop < 0 or (top_crop and not released):
            raise RecipeError(f"losses.ssim.top_crop: {top_crop} is only allowed, >= 0, with `released: true`")
        self.space = space
        self.signed = not released if signed is None else signed
        self.released = released
        self.max_depth = max_depth
        self.top_crop = top_crop
        taps = torch.exp(-((torch.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
        self.register_buffer("window", taps / taps.sum(), persistent=False)

    def forward(self, prediction: "Prediction", target: Tensor) -> Tensor:
        """(B,) float32 from prediction.depth and target, both (B, 1, H, W), metres; target 0 where not valid."""
        depth = prediction.depth.float()
        if self.released:
            check_top_crop(self.top_crop, target.shape[2], "losses.ssim")
            shift = (0, 0, -self.top_crop, self.top_crop)
            dissimilarity = 1 - self._similarity(F.pad(depth, shift), F.pad(target, shift), WINDOW // 2)
            return dissimilarity.flatten(1).mean(1)
        valid = valid_pixels(target)
        if min(target.shape[2:]) < WINDOW:
            return mean_over_valid(depth, torch.zeros_like(valid))
        # Depths that are not valid on either side take part in windows that don't count; they must only be finite.
        depth, target = torch.where(valid, depth, 1.0), torch.where(valid, target, 1.0)
        depth, target = self._into_space(depth, target, valid)
        # Variances don't depend on a common offset, but their float32 rounding does: it grows with the squared depth.
        offset = mean_over_valid(target, valid).view(-1, 1, 1, 1)
        dissimilarity = 1 - self._similarity(depth - offset, target - offset, 0, offset)
        whole = F.max_pool2d((~valid).float(), WINDOW, stride=1) == 0
        return mean_over_valid(dissimilarity, whole)

    def _into_space(self, depth: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if self.space == "log":
            return tuple(torch.log(d.clamp_min(NEAREST_M) / NEAREST_M) for d in (depth, target))
        if self.space == "normalised":
            scale = torch.where(valid, target, NEAREST_M).amax((1, 2, 3), keepdim=True)
            scale = scale if self.max_depth is None else self.max_depth
            return depth / scale, target / scale
        return depth, target

    def _similarity(self, x: Tensor, y: Tensor, padding: int, offset: Tensor | float = 0.0) -> Tensor:
        """SSIM per window of x + offset and y + offset: (B, 1, H - 10 + 2 padding, W - 10 + 2 padding)."""
        maps = torch.cat((x, y, x * x, y * y, x * y))
        maps = F.conv2d(maps, self.window.view(1, 1, -1, 1), padding=(padding, 0))
        maps = F.conv2d(maps, self.window.view(1, 1, 1, -1), padding=(0, padding))
        mean_x, mean_y, xx, yy, xy = maps.chunk(5)
        var_x, var_y, cov = xx - mean_x * mean_x, yy - mean_y * mean_y, xy - mean_x * mean_y
        if self.signed:
            var_x, var_y = var_x.clamp_min(0), var_y.clamp_min(0)
        else:
            var_x, var_y, cov = var_x.abs(), var_y.abs(), cov.abs()
        mean_x, mean_y = mean_x + offset, mean_y + offset
        luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
        return luminance * (2 * cov + C2) / (var_x + var_y + C2)


build = SSIM
