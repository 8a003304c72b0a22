"""ReLU head, DepthFormer's: a 3x3 convolution and depth = relu + min_depth, in metres.

Left out: scaling by max_depth and an upper bound (evaluation clamps), and any divergence.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.models.layers.depth_conv import DepthConv
from tiekd.models.network import Prediction


class Relu(nn.Module):
    """Depth from min_depth on, at the features' resolution.

    The bias starts at a fifth of max_depth, near the mean depth of driving and indoor scenes: a
    pixel that starts below 0 would get no gradient.

    Args:
        in_channels: of the features.
        min_depth: metres.
        max_depth: metres.
    """

    def __init__(self, in_channels: int, min_depth: float, max_depth: float):
        super().__init__()
        self.conv = DepthConv(in_channels, bias=max_depth / 5)
        self.min_depth = min_depth

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
        return Prediction(relu(self.conv(features)) + self.min_depth)


build = Relu
