"""Sigmoid head: depth = sigmoid(conv3x3(features)) * max_depth, in metres.

Regression students and BTS use it. Not covered: an offset by min_depth (the published head has
none; `Network` clamps depth in eval mode) and the divergence of a distribution.
"""

from torch import Tensor, nn

from tiekd.models.layers.depth_conv import DepthConv
from tiekd.models.network import Prediction


class Sigmoid(nn.Module):
    """Predicts depth = sigmoid(conv3x3(features)) * max_depth, at the features' resolution.

    The convolution's bias is initialised with 0, so that depth is near max_depth / 2 at first,
    where the sigmoid's slope is largest.

    Args:
        in_channels: number of feature channels.
        max_depth: upper bound of the predicted depth, metres.
    """

    def __init__(self, in_channels: int, max_depth: float):
        super().__init__()
        self.conv = DepthConv(in_channels, bias=0.0)
        self.max_depth = max_depth

    def forward(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """Predicts depth from features.

        Args:
            features: (B, C, h, w), the decoder's output.
            image_size: (H, W) of the image; not used, but the DPM head needs this argument.
            target_depth: (B, 1, H, W), metres; not used, but the DPM head needs this argument.

        Returns:
            A `Prediction` with depth (B, 1, h, w) float32, metres, and no divergence.
        """
        return Prediction(self.conv(features).sigmoid() * self.max_depth)


build = Sigmoid
