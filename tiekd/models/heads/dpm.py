"""DPM head: a distribution over depth bins per pixel, its mean as depth, and its divergence.

The distribution is a 1x1 convolution and a softmax. The divergence from the target's distribution
is computed here, where the probabilities are, because they are never stored at full size
(`tiekd.kernels` has the arithmetic). A head coarser than the image learns from the mean target
distribution of the pixels under each cell.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from tiekd.errors import RecipeError
from tiekd.kernels import dpm
from tiekd.kernels.reference import BEYOND, TARGETS
from tiekd.kernels.target import bin_edges, check_sigma
from tiekd.models.network import Prediction


@dataclass(frozen=True)
class DpmOptions:
    """The options of a recipe's DPM head.

    Attributes:
        num_bins: number of bins.
        target: "gaussian", the Gaussian's mass per bin, or "released", the published softmax of
            density values.
        sigma: of the target, metres; for "gaussian" at least half of the widest bin.
        beyond: what a target depth above max_depth does. "clamp" keeps it ("gaussian": as the last
            bin's centre). "ignore" drops the pixel, and the loss needs `max_depth` to leave it out
            of its mean. Below min_depth nothing is dropped.
        spacing: of the bins, "uniform" (published) or "log".
    """

    num_bins: int = 257
    target: str = "gaussian"
    sigma: float = 0.5
    beyond: str = "clamp"
    spacing: str = "uniform"

    def __post_init__(self):
        if self.target not in TARGETS:
            raise RecipeError(f"target: got {self.target!r}; allowed: {', '.join(TARGETS)}")
        if self.beyond not in BEYOND:
            raise RecipeError(f"beyond: got {self.beyond!r}; allowed: {', '.join(BEYOND)}")
        if not isinstance(self.num_bins, int) or self.num_bins < 2:
            raise RecipeError(
                f"num_bins: got {self.num_bins}; a whole number of at least 2, published are 257 "
                "and 49"
            )
        if not self.sigma > 0:
            raise RecipeError(f"sigma: got {self.sigma}; metres above 0, published is 0.5")


_PUBLISHED = DpmOptions()


class Dpm(nn.Module):
    """Depth as the mean of a distribution over `num_bins` bins between min_depth and max_depth.

    The weight starts at a standard deviation of 0.01 and the bias at 0: the distribution starts
    nearly uniform, which is the least certain, and its depth near the middle of the range.

    Attributes:
        kernel: computes it: `tiekd.kernels.dpm`, or another of its implementations.

    Args:
        in_channels: of the features.
        min_depth: metres.
        max_depth: metres.
        stride: image pixels per side of a cell.
        options: of the recipe.
    """

    def __init__(
        self,
        in_channels: int,
        min_depth: float,
        max_depth: float,
        stride: int = 1,
        options: DpmOptions = _PUBLISHED,
    ):
        super().__init__()
        num_bins = options.num_bins
        with torch.device("cpu"):
            edges = bin_edges(num_bins, min_depth, max_depth, options.spacing)
            if options.target == "gaussian":
                check_sigma(options.sigma, edges)
        # Parameters of this module and not of a Conv2d: ZeRO-3 gathers a module's own weights for
        # its forward.
        self.weight = nn.Parameter(torch.empty(num_bins, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_bins))
        nn.init.normal_(self.weight, std=0.01)
        self.register_buffer("edges", edges.to(self.weight.device), persistent=False)
        self._edges_float32 = edges
        self.stride = stride
        self.target = options.target
        self.sigma = float(options.sigma)
        self.beyond = options.beyond
        self.kernel = dpm

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """Predicts depth and, with a target, the divergence.

        Args:
            features: (B, C, h, w), about the image's size over `stride`.
            image_size: (H, W).
            target_depth: (B, 1, H, W), metres, 0 where not valid; None without a target.

        Returns:
            depth (B, 1, h, w) float32 in metres and the divergence (B, 1, H, W) float32 in nats:
            that of each cell, repeated over its pixels, 0 where the target is not valid.
        """
        if target_depth is None:
            return Prediction(self._dpm(features, None)[0])
        cells = tuple(-(-size // self.stride) for size in image_size)
        if tuple(features.shape[2:]) == cells:
            depth, divergence = self._dpm(features, target_depth)
        else:
            # A decoder can overshoot a size that its strides don't divide. Depth must not depend
            # on the presence of a target, so only the divergence is computed on the image's grid.
            depth, _ = self._dpm(features, None)
            features = interpolate(features, size=cells, mode="bilinear", align_corners=True)
            _, divergence = self._dpm(features, target_depth)
        return Prediction(depth, self._to_pixels(divergence, target_depth))

    def probabilities(self, features: Tensor) -> Tensor:
        """Returns the distribution over the bins of `edges`, (B, num_bins, h, w) float32.

        It is for figures and readouts, not for training, where it would be the largest tensor of
        all.
        """
        return conv2d(features, self.weight, self.bias).float().softmax(1)

    def _dpm(self, features: Tensor, target_depth: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Computes depth and divergence, each (B, 1, h, w), with this head's options."""
        return self.kernel(
            features,
            self.weight,
            self.bias,
            self.edges,
            target_depth,
            self.sigma,
            target=self.target,
            beyond=self.beyond,
            stride=self.stride,
        )

    def _to_pixels(self, divergence: Tensor, target_depth: Tensor) -> Tensor:
        """Repeats each cell's divergence over its pixels, 0 where the target is not valid."""
        if self.stride == 1:
            return divergence
        height, width = target_depth.shape[2:]
        divergence = divergence.repeat_interleave(self.stride, dim=2)
        divergence = divergence.repeat_interleave(self.stride, dim=3)
        valid = target_depth > 0
        if self.beyond == "ignore":
            valid &= target_depth <= self.edges[-1]
        return divergence[:, :, :height, :width].masked_fill(~valid.any(1, keepdim=True), 0)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts as nn.Module does, but keeps the edges in float32.

        In half precision neighbouring edges would become equal.
        """
        super()._apply(fn, recurse)
        self.edges = self._edges_float32.to(self.edges.device)
        return self


build = Dpm
