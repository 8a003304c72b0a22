"""The last convolution of a regression head, 3x3 to one channel, always computed in float32.

In bfloat16 depth would be rounded to eight bits, i.e. to steps of 12 cm at 20 m. Cost: a float32
copy of the features, which is saved for backward, if the network runs in a lower precision.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


class DepthConv(nn.Conv2d):
    """3x3 convolution of features of any float dtype to one channel in float32.

    The weight is initialised with a standard deviation of 0.01.

    Args:
        in_channels: number of feature channels.
        bias: initial value of the bias.
    """

    def __init__(self, in_channels: int, bias: float):
        super().__init__(in_channels, 1, 3, padding=1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.constant_(self.bias, bias)

    def forward(self, features: Tensor) -> Tensor:
        """Applies the convolution in float32.

        Args:
            features: (B, in_channels, h, w), any float dtype.

        Returns:
            (B, 1, h, w) float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            return conv2d(features.float(), self.weight.float(), self.bias.float(), padding=1)
