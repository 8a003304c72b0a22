"""AdaBins head: a distribution over depth bins that adapt to the image.

After Bhat, Alhashim and Wonka 2021 (arXiv 2011.14141). The mini-ViT, a small transformer, predicts
the widths of the image's depth bins, and feature maps called range-attention maps. A 1x1
convolution of the maps and a softmax over the bins give a distribution per pixel, whose mean is the
depth. Cost: memory for three (B, num_bins, h, w) float32 tensors in training. Not covered: the
divergence from a target distribution, because the bins differ between images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from tiekd.errors import RecipeError
from tiekd.models.layers.mini_vit import NUM_HEADS, MiniViT
from tiekd.models.network import Prediction


@dataclass(frozen=True)
class AdaBinsOptions:
    """The options of a recipe's AdaBins head.

    The mini-ViT is a small transformer whose tokens are square patches of the features.

    Attributes:
        num_bins: number of depth bins, at least 2.
        num_queries: number of the mini-ViT's tokens that become 1x1 convolution kernels. An image
            must have more patches than queries.
        width: number of channels of the mini-ViT, a multiple of its number of attention heads.
        patch: side of a patch in pixels of the features. With the defaults and features at stride
            2, a patch is 32 x 32 pixels of the image, and an image needs at least 129 patches, e.g.
            352x384 pixels. Smaller images need a smaller patch or fewer queries.
        num_positions: maximum number of patches of an image.
        dropout: dropout probability in the mini-ViT in training.
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
    """Predicts depth = sum_k p_k c_k, with bin centres c_k that are predicted per image.

    The probabilities p_k of a pixel's bins are the softmax of a 1x1 convolution of the mini-ViT's
    maps. Its weight is initialised with a standard deviation of 0.01 and its bias with 0, so that
    the distribution is nearly uniform at first. Larger weights would saturate the softmax, because
    the maps are products of two activations, and a saturated softmax has no gradient.

    Args:
        in_channels: number of feature channels.
        min_depth: lower edge of the first bin, metres.
        max_depth: upper edge of the last bin, metres.
        options: the head's options from the recipe.
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
        # Use parameters of this module instead of a Conv2d, as the DPM head does, because published
        # checkpoints have the same tensor names for both heads.
        self.weight = nn.Parameter(torch.empty(options.num_bins, options.num_queries, 1, 1))
        self.bias = nn.Parameter(torch.zeros(options.num_bins))
        nn.init.normal_(self.weight, std=0.01)
        self.min_depth = min_depth
        self.max_depth = max_depth

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """Predicts depth and the centres of each image's depth bins.

        Args:
            features: (B, C, h, w), the decoder's output.
            image_size: (H, W) of the image; not used, but the DPM head needs this argument.
            target_depth: (B, 1, H, W), metres; not used, but the DPM head needs this argument.

        Returns:
            A `Prediction` with depth (B, 1, h, w) and bin_centres (B, num_bins), float32, metres.

        Raises:
            RecipeError: the features have too few or too many patches.
        """
        widths, maps = self.vit(features)
        probabilities = self.bin_probabilities(maps)
        centres = bin_centres(widths, self.min_depth, self.max_depth)
        # Multiply and sum instead of a matmul, which autocast would run in bfloat16.
        depth = (probabilities * centres[:, :, None, None]).sum(1, keepdim=True)
        return Prediction(depth, bin_centres=centres)

    def bins(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the edges of each image's depth bins, and the maps for `bin_probabilities`.

        Args:
            features: (B, C, h, w), the decoder's output.

        Returns:
            (edges, maps): the bins' edges, (B, num_bins + 1) float32, metres, increasing; and the
            mini-ViT's maps, (B, num_queries, h, w).
        """
        widths, maps = self.vit(features)
        metres = widths.float() * (self.max_depth - self.min_depth)
        return self.min_depth + pad(metres.cumsum(1), (1, 0)), maps

    def bin_probabilities(self, maps: Tensor) -> Tensor:
        """Returns each pixel's distribution over its image's depth bins.

        Args:
            maps: (B, num_queries, h, w), the mini-ViT's maps.

        Returns:
            (B, num_bins, h, w) float32, summing to 1 over the bins.
        """
        return conv2d(maps, self.weight, self.bias).float().softmax(1)


def bin_centres(widths: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Returns the centres of K consecutive bins that together cover min_depth to max_depth.

    Args:
        widths: (B, K), each image's bin widths as fractions of the range; they sum to 1.
        min_depth: lower edge of the first bin, metres.
        max_depth: upper edge of the last bin, metres.

    Returns:
        (B, K), metres, increasing.
    """
    metres = widths * (max_depth - min_depth)
    return min_depth + metres.cumsum(1) - metres / 2


build = AdaBins
