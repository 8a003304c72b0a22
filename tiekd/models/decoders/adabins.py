"""Decoder of AdaBins (Bhat, Alhashim and Wonka 2021): DenseDepth's decoder with BatchNorm.

Source: arXiv 2011.14141. The deepest feature passes a 1x1 convolution. Then, for each finer
feature: bilinear upsampling to its size (corners aligned), concatenation with it, and two 3x3
convolutions with BatchNorm and ReLU. The last layer is a 3x3 convolution without norm and
activation. The paper's code uses LeakyReLU; the published teachers were trained with ReLU. Not
covered: upsampling beyond the encoder's finest feature, so the head predicts at the stride of that
feature.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.upsampled import UpsampledConv
from tiekd.models.layers.widths import check_widths


class AdaBins(nn.Module):
    """Fuses the encoder's features to one feature map (B, channels, h, w), the size of the finest.

    Convolutions are initialised Kaiming-normal (fan in), biases with 0, norms with weight 1 and
    bias 0.

    Attributes:
        channels: number of channels of the output.
        stride: stride of the output relative to the image.

    Args:
        encoder_channels: number of channels of each feature, fine to coarse.
        encoder_strides: stride of each feature relative to the image.
        widths: number of the decoder's channels at each feature's resolution, fine to coarse; the
            last one is that of the 1x1 convolution's output.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        widths: Sequence[int] = (128, 256, 512, 1024, 2048),
    ):
        super().__init__()
        check_widths(widths, len(encoder_channels))
        deepest = nn.Conv2d(encoder_channels[-1], widths[-1], 1)
        levels = [
            TwoConvs(widths[i + 1] + encoder_channels[i], widths[i])
            for i in reversed(range(len(encoder_channels) - 1))
        ]
        self.levels = nn.ModuleList([deepest, *levels])
        self.final = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.channels = widths[0]
        self.stride = encoder_strides[0]

        # Initialise the weights. No ReLU follows the first and the last convolution, so their gain
        # is that of a linear layer.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nonlinearity = "linear" if module in (deepest, self.final) else "relu"
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=nonlinearity)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Returns the fused features, (B, channels, h, w), at the finest feature's size (h, w).

        Args:
            features: the encoder's features, fine to coarse.
            image_size: (H, W) of the image; not used, but other decoders need this argument.
        """
        x = self.levels[0](features[-1])
        for level, skip in zip(self.levels[1:], reversed(features[:-1]), strict=True):
            x = level(x, skip)
        return self.final(x)


class TwoConvs(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU, after upsampling and concatenation.

    Args:
        in_channels: number of channels of the upsampled features and the encoder's feature
            together.
        out_channels: number of output channels.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.first = UpsampledConv(in_channels, out_channels, bias=False)
        self.first_norm = BatchNorm2d(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsamples x to the size of `skip`, concatenates both and applies the convolutions.

        Args:
            x: (B, C, h, w).
            skip: (B, in_channels - C, H, W), the encoder's feature.

        Returns:
            (B, out_channels, H, W).
        """
        x = relu(self.first_norm(self.first(x, tuple(skip.shape[2:]), skip)), inplace=True)
        return relu(self.second_norm(self.second(x)), inplace=True)


build = AdaBins
