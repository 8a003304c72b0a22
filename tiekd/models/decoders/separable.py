"""A decoder of depthwise separable convolutions, for students with few multiply-adds.

The deepest feature passes a 1x1 convolution. Then, for each finer feature: a 1x1 convolution to
that level's width, bilinear upsampling (corners aligned), addition of the encoder's feature after a
1x1 convolution of its own, and blocks of a 3x3 depthwise and a 1x1 convolution with a skip
connection. All convolutions have BatchNorm. Depthwise separable decoders and sums instead of
concatenations are those of FastDepth (Wofk et al. 2019, arXiv 1903.03273).

Cost with widths of 64, 96, 128 and 128 and two blocks a level on EfficientNet-Lite 0: 0.36 GMAC at
352x704, where DenseDepth of the same widths has 2.9. The output has the finest feature's stride, so
the head's convolutions are cheap, too; a DPM head with `upsampling: convex` then upsamples depth to
the image's resolution. Not covered: blocks beyond the finest feature.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.widths import check_widths


class Separable(nn.Module):
    """Fuses the encoder's features to one feature map (B, channels, h, w), the size of the finest.

    Convolutions are initialised Kaiming-normal (fan out), norms with weight 1 and bias 0.

    Attributes:
        channels: number of channels of the output.
        stride: stride of the output relative to the image.

    Args:
        encoder_channels: number of channels of each feature, fine to coarse.
        encoder_strides: stride of each feature relative to the image.
        widths: number of the decoder's channels at each feature's resolution, fine to coarse.
        blocks: number of separable convolutions at each resolution but the coarsest, at least 1.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        widths: Sequence[int],
        blocks: int = 2,
    ):
        super().__init__()
        check_widths(widths, len(encoder_channels))
        if blocks < 1:
            raise RecipeError(f"blocks: got {blocks}; a whole number of at least 1")
        self.deepest = ConvNorm(encoder_channels[-1], widths[-1])
        # Build the levels in the order in which they run, coarse to fine.
        self.levels = nn.ModuleList(
            Level(widths[i + 1], encoder_channels[i], widths[i], blocks)
            for i in reversed(range(len(widths) - 1))
        )
        self.channels = widths[0]
        self.stride = encoder_strides[0]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Compute the fan-out from the output channels of one group. nn.init.kaiming_normal_
                # counts those of all groups, which differs for depthwise convolutions.
                fan_out = module.out_channels * module.kernel_size[0] ** 2 / module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Returns the fused features, (B, channels, h, w), of the finest feature's size.

        Args:
            features: the encoder's features, fine to coarse.
            image_size: (H, W) of the image; not used, but other decoders need this argument.
        """
        x = relu(self.deepest(features[-1]), inplace=True)
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=True):
            x = level(x, skip)
        return x


class Level(nn.Module):
    """Upsamples features, adds an encoder's feature and applies separable convolutions.

    Args:
        in_channels: number of channels of the coarser features.
        skip_channels: number of channels of the encoder's feature.
        width: number of output channels.
        blocks: number of separable convolutions, applied one after the other.
    """

    def __init__(self, in_channels: int, skip_channels: int, width: int, blocks: int):
        super().__init__()
        self.narrow = ConvNorm(in_channels, width)
        self.lateral = ConvNorm(skip_channels, width)
        self.blocks = nn.ModuleList(SeparableConv(width) for _ in range(blocks))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsamples x, adds `skip` after a 1x1 convolution, and applies the separable convolutions.

        Args:
            x: (B, in_channels, h, w), the coarser features.
            skip: (B, skip_channels, H, W), the encoder's feature.

        Returns:
            (B, width, H, W), with values of at least 0, because a ReLU comes last.
        """
        # Apply the 1x1 convolution before the upsampling, where there are a quarter as many pixels.
        x = interpolate(
            self.narrow(x), size=tuple(skip.shape[2:]), mode="bilinear", align_corners=True
        )
        x = relu(x + self.lateral(skip), inplace=True)
        for block in self.blocks:
            x = block(x)
        return x


class SeparableConv(nn.Module):
    """3x3 depthwise and 1x1 convolution with a skip connection around both.

    Args:
        channels: number of input and output channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 3, groups=channels)
        self.pointwise = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns relu(x + convolutions(x)), (B, channels, H, W).

        Args:
            x: (B, channels, H, W).
        """
        y = self.pointwise(relu(self.depthwise(x), inplace=True))
        return relu(x + y, inplace=True)


class ConvNorm(nn.Sequential):
    """Convolution without bias, padded so that it keeps the size, and BatchNorm.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the kernel, odd.
        groups: number of groups of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False
            ),
            BatchNorm2d(out_channels),
        )


build = Separable
