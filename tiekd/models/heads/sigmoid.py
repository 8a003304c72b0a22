"""Sigmoid head: a 3x3 convolution and depth = sigmoid * max_depth, in metres.

It is for regression students, and for BTS. Left out: an offset by min_depth (the published head
has none; evaluation clamps) and any divergence.
"""

from torch import Tensor, nn

from tiekd.models.layers.depth_conv import DepthConv
from tiekd.models.network import Prediction


class Sigmoid(nn.Module):
    """Depth between 0 and max_depth, at the features' resolution.

    The bias starts at 0, so that every pixel starts near max_depth / 2, where the sigmoid's slope
    is largest.

    Args:
        in_channels: of the features.
        max_depth: metres.
    """

    def __init__(self, in_channels: int, max_depth: float):
        super().__init__()
        self.conv = DepthConv(in_channels, bias=0.0)
        self.max_depth = max_depth

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """Predicts depth.

        Args:
            features: (B, C, h, w).
            image_size: not used.
            target_depth: not used.

        Returns:
            depth (B, 1, h, w) float32 in metres.
        """
        return Prediction(self.conv(features).sigmoid() * self.max_depth)


build = Sigmoid
