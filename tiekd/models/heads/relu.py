"""ReLU head of DepthFormer: depth = relu(conv3x3(features)) + min_depth, in metres.

Not covered: scaling by max_depth, an upper bound (`Network` clamps depth in eval mode), and the
divergence of a distribution.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.models.layers.depth_conv import DepthConv
from tiekd.models.network import Prediction


class Relu(nn.Module):
    """Predicts depth = relu(conv3x3(features)) + min_depth, at the features' resolution.

    The convolution's bias is initialised with max_depth / 5, near the mean depth of driving and
    indoor scenes, because pixels with a negative convolution result would get no gradient.

    Args:
        in_channels: number of feature channels.
        min_depth: smallest predicted depth, metres.
        max_depth: metres; used for the bias's initial value only.
    """

    def __init__(self, in_channels: int, min_depth: float, max_depth: float):
        super().__init__()
        self.conv = DepthConv(in_channels, bias=max_depth / 5)
        self.min_depth = min_depth

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
        return Prediction(relu(self.conv(features)) + self.min_depth)


build = Relu
