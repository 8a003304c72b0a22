"""AdaBins head (Bhat, Alhashim and Wonka 2021, arXiv 2011.14141): a distribution over depth bins that suit the image.

The mini-ViT divides the depth range into bins of this image's own widths and gives maps; a 1x1 convolution and a
softmax over the bins make a distribution per pixel, whose mean is the depth. Costs (B, num_bins, h, w) float32 three
times over while training. Left out: the divergence from a target, bins that move are no fixed distribution.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from tiekd.errors import RecipeError
from tiekd.models.layers.mini_vit import NUM_HEADS, MiniViT
from tiekd.models.network import Prediction


class AdaBins(nn.Module):
    """Depth as the mean over `num_bins` bins between min_depth and max_depth, in metres, whose widths are predicted.

    num_queries, width, patch, num_positions: of the mini-ViT. An image must have more patches than num_queries and at
        most num_positions; a patch is `patch` pixels of the features, which published is 32 pixels of the image, so
        that the least is 129 patches such as 352x384 pixels. Smaller images need a smaller patch or fewer queries.
    dropout: in the mini-ViT, while training.

    The last weight starts at a standard deviation of 0.01 and the bias at 0, so that the distribution starts nearly
    uniform: the maps are products of two activations, and a saturated softmax learns nothing.
    """

    def __init__(
        self,
        in_channels: int,
        min_depth: float,
        max_depth: float,
        num_bins: int = 256,
        num_queries: int = 128,
        width: int = 128,
        patch: int = 16,
        num_positions: int = 500,
        dropout: float = 0.1,
    ):
        super().__init__()
        for name, value, least in (
            ("num_bins", num_bins, 2),
            ("num_queries", num_queries, 1),
            ("patch", patch, 1),
            ("num_positions", num_positions, num_queries + 1),
        ):
            if value < least:
                raise RecipeError(f"{name}: got {value}; it must be at least {least}")
        if width < NUM_HEADS or width % NUM_HEADS:
            raise RecipeError(
                f"width: got {width}; it must be a multiple of {NUM_HEADS}, published is 128"
            )
        if not 0 <= dropout < 1:
            raise RecipeError(
                f"dropout: got {dropout}; it must be from 0 to below 1, published is 0.1"
            )
        self.vit = MiniViT(in_channels, num_bins, num_queries, width, patch, num_positions, dropout)
        # This module's own and not a Conv2d's, as in the DPM head: published files have one name for both.
        self.weight = nn.Parameter(torch.empty(num_bins, num_queries, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_bins))
        nn.init.normal_(self.weight, std=0.01)
        self.min_depth, self.max_depth = min_depth, max_depth

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """features: (B, C, h, w). Returns depth (B, 1, h, w) and bin_centres (B, num_bins), float32, metres.

        The other arguments are not needed. Raises RecipeError for features of too few or too many patches.
        """
        widths, maps = self.vit(features)
        probabilities = conv2d(maps, self.weight, self.bias).float().softmax(1)
        centres = bin_centres(widths, self.min_depth, self.max_depth)
        # A matrix product would be shorter, and in bfloat16 where autocast is on.
        depth = (probabilities * centres[:, :, None, None]).sum(1, keepdim=True)
        return Prediction(depth, bin_centres=centres)


def bin_centres(widths: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Centres of bins that follow one another from min_depth on: (B, K) of metres from (B, K) of shares, sum 1."""
    metres = widths * (max_depth - min_depth)
    return min_depth + metres.cumsum(1) - metres / 2


build = AdaBins
