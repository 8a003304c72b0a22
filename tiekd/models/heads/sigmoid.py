"""Sigmoid head: a 3x3 convolution and depth = sigmoid * max_depth. For regression students, and for BTS.

Left out: an offset by min_depth (the published head has none; evaluation clamps) and any divergence.
"""

from torch import Tensor, nn

from tiekd.models.layers.depth_conv import DepthConv
from tiekd.models.network import Prediction


class Sigmoid(nn.Module):
    """Depth between 0 and max_depth metres, at the features' resolution.

    The bias starts at 0, so that every pixel starts near max_depth / 2, where the sigmoid's slope is largest.
    """

    def __init__(self, in_channels: int, max_depth: float):
        super().__init__()
        self.conv = DepthConv(in_channels, bias=0.0)
        self.max_depth = max_depth

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """features: (B, C, h, w). Returns depth (B, 1, h, w) float32 in metres; the other arguments are not needed."""
        return Prediction(self.conv(features).sigmoid() * self.max_depth)


build = Sigmoid
