"""AdaBins head: a distribution over depth bins that adapt to the image.

After Bhat, Alhashim and Wonka 2021 (arXiv 2011.14141). The mini-ViT divides the depth range into
bins of this image's own widths and returns maps. A 1x1 convolution and a softmax over the bins
make a distribution per pixel, whose mean is the depth. Costs (B, num_bins, h, w) float32 three
times over in training. Left out: the divergence from a target, because bins that move are no fixed
distribution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from tiekd.errors import RecipeError
from tiekd.models.layers.mini_vit import NUM_HEADS, MiniViT
from tiekd.models.network import Prediction


@dataclass(frozen=True)
class AdaBinsOptions:
    """The options of a recipe's AdaBins head.

    Attributes:
        num_bins: number of bins.
        num_queries: of the mini-ViT. An image must have more patches than that.
        width: of the mini-ViT.
        patch: pixels of the features along a patch's side; published is 32 pixels of the image, so
            that the least is 129 patches such as 352x384 pixels. Smaller images need a smaller
            patch or fewer queries.
        num_positions: the most patches that an image may have.
        dropout: in the mini-ViT, in training.
    """

    num_bins: int = 256
    num_queries: int = 128
    width: int = 128
    patch: int = 16
    num_positions: int = 500
    dropout: float = 0.1

    def __post_init__(self):
        for name, least in (
            ("num_bins", 2),
            ("num_queries", 1),
            ("patch", 1),
            ("num_positions", self.num_queries + 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise RecipeError(f"{name}: got {value}; it must be at least {least}")
        if self.width < NUM_HEADS or self.width % NUM_HEADS:
            raise RecipeError(
                f"width: got {self.width}; it must be a multiple of {NUM_HEADS}, published is 128"
            )
        if not 0 <= self.dropout < 1:
            raise RecipeError(
                f"dropout: got {self.dropout}; it must be from 0 to below 1, published is 0.1"
            )


_PUBLISHED = AdaBinsOptions()


class AdaBins(nn.Module):
    """Depth as the mean over bins between min_depth and max_depth, whose widths are predicted.

    The last weight starts at a standard deviation of 0.01 and the bias at 0, so that the
    distribution starts nearly uniform: the maps are products of two activations, and a saturated
    softmax learns nothing.

    Args:
        in_channels: of the features.
        min_depth: metres.
        max_depth: metres.
        options: of the recipe.
    """

    def __init__(
        self,
        in_channels: int,
        min_depth: float,
        max_depth: float,
        options: AdaBinsOptions = _PUBLISHED,
    ):
        super().__init__()
        self.vit = MiniViT(
            in_channels,
            options.num_bins,
            options.num_queries,
            options.width,
            options.patch,
            options.num_positions,
            options.dropout,
        )
        # Parameters of this module and not of a Conv2d, as in the DPM head: published files have
        # one name for both.
        self.weight = nn.Parameter(torch.empty(options.num_bins, options.num_queries, 1, 1))
        self.bias = nn.Parameter(torch.zeros(options.num_bins))
        nn.init.normal_(self.weight, std=0.01)
        self.min_depth = min_depth
        self.max_depth = max_depth

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """Predicts depth and bins.

        Args:
            features: (B, C, h, w).
            image_size: not used.
            target_depth: not used.

        Returns:
            depth (B, 1, h, w) and bin_centres (B, num_bins), float32, metres.

        Raises:
            RecipeError: the features have too few or too many patches.
        """
        widths, maps = self.vit(features)
        probabilities = conv2d(maps, self.weight, self.bias).float().softmax(1)
        centres = bin_centres(widths, self.min_depth, self.max_depth)
        # Not a matrix product: under autocast that would be in bfloat16.
        depth = (probabilities * centres[:, :, None, None]).sum(1, keepdim=True)
        return Prediction(depth, bin_centres=centres)


def bin_centres(widths: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Returns the centres of bins that follow one another from min_depth on.

    Args:
        widths: (B, K), shares of the range, summing to 1.
        min_depth: metres.
        max_depth: metres.

    Returns:
        (B, K), metres.
    """
    metres = widths * (max_depth - min_depth)
    return min_depth + metres.cumsum(1) - metres / 2


build = AdaBins
