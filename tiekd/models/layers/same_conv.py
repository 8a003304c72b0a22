"""Convolution with TensorFlow's SAME padding, for weights that were trained in TensorFlow.

At stride 2 SAME padding depends on the image's size: an even side is padded by one pixel less than
an odd one, and the missing pixel is at the top or the left. A symmetric padding would shift images
of even size by a pixel at each such convolution.
"""

from torch import Tensor, nn
from torch.nn.functional import pad


class SameConv2d(nn.Conv2d):
    """Convolution without bias and with TensorFlow's SAME padding.

    The output's size is the input's size divided by the stride, rounded up. If the number of padded
    pixels is odd, the right and the bottom get one pixel more than the left and the top.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the kernel, at least the stride.
        stride: stride in both directions.
        groups: number of groups of channels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ):
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pads x and applies the convolution.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if kernel == 1:
            return super().forward(x)
        # Compute the padding without a branch on the size, so that a traced graph works for images
        # of any size. From this form the tracer infers that the output has ceil(n / stride) pixels.
        down, across = (((n + stride - 1) // stride - 1) * stride + kernel - n for n in x.shape[2:])
        x = pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)
