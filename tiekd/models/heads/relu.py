"""ReLU head: a 3x3 convolution and depth = relu + min_depth, in metres. DepthFormer's.

Left out: scaling by max_depth and an upper bound (evaluation clamps), and any divergence.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.models.network import Prediction


class Relu(nn.Module):
    """Depth from min_depth metres on, at the features' resolution.

    The weight starts at a standard deviation of 0.01 and the bias at a fifth of max_depth, near the mean depth of
    driving and indoor scenes: a pixel that starts below 0 would get no gradient.
    """

    def __init__(self, in_channels: int, min_depth: float, max_depth: float):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.min_depth = min_depth
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.constant_(self.conv.bias, max_depth / 5)

    def forward(self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None) -> Prediction:
        """features: (B, C, h, w). Returns depth (B, 1, h, w) float32 in metres; the other arguments are not needed."""
        return Prediction(relu(self.conv(features).float()) + self.min_depth)


build = Relu
