"""MobileNetV2 (Sandler et al. 2018) as an encoder that returns outputs of its seven stages.

Source: arXiv 1801.04381. Stride and dilation of each stage are options, so the same weights can be
used at any output stride. The defaults are those of the published students (dilated, with a final
stride of 8). The original network for classification has `strides: [1, 2, 2, 2, 1, 2, 1]` and
`dilations: [1, 1, 1, 1, 1, 1, 1]` (final stride 32, four times cheaper). As published, a dilation
applies only to the first block of its stage. Not covered: stages after the last returned one, the
1280-channel convolution before the classifier, dropout.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu6

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.relu6 import relu6_in_place

STEM_CHANNELS = 32
STAGE_CHANNELS = (16, 24, 32, 64, 96, 160, 320)
STAGE_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
STAGE_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier.

    A feature's size is the image's size divided by the stride, rounded up. Convolutions are
    initialised Kaiming-normal (fan out), norms with weight 1 and bias 0.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.

    Args:
        strides: stride of each of the seven stages, 1 or 2; the stem before them has stride 2.
        dilations: dilation of each of the seven stages, at least 1.
        taps: indices of the stages whose outputs are returned, 0 to 6, in increasing order.
        width: factor by which all numbers of channels are multiplied before they are rounded to
            multiples of 8.
        pretrained: "imagenet" or a file of weights; it isn't read here, but by
            `tiekd.models.weights.pretrained.load`.
    """

    def __init__(
        self,
        strides: Sequence[int] = (1, 2, 2, 1, 1, 1, 1),
        dilations: Sequence[int] = (1, 1, 1, 2, 2, 4, 4),
        taps: Sequence[int] = (1, 2, 4, 6),
        width: float = 1.0,
        pretrained: str | None = None,
    ):
        super().__init__()
        self.pretrained = pretrained
        self.torchvision_name = "mobilenet_v2" if width == 1.0 else None
        self.taps = _checked(strides, dilations, taps, width)
        channels = stem = _round_to_8(STEM_CHANNELS * width)
        self.conv1 = ConvNorm(3, stem, 3, stride=2)
        # Build the stages up to the last one whose output is returned.
        stride, tapped = 2, []
        for stage in range(self.taps[-1] + 1):
            out_channels = _round_to_8(STAGE_CHANNELS[stage] * width)
            blocks = []
            for block in range(STAGE_BLOCKS[stage]):
                # Give only the first block of a stage the stage's stride and dilation.
                block_stride, dilation = (
                    (strides[stage], dilations[stage]) if block == 0 else (1, 1)
                )
                blocks.append(
                    InvertedResidual(
                        channels, out_channels, STAGE_EXPANSIONS[stage], block_stride, dilation
                    )
                )
                channels = out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            stride *= strides[stage]
            tapped.append((channels, stride))
        # State the channels and strides of the returned outputs, from which necks and decoders are
        # built.
        self.channels = tuple(tapped[tap][0] for tap in self.taps)
        self.strides = tuple(tapped[tap][1] for tap in self.taps)
        # Use He's initialisation for ReLU; weights loaded later replace these values.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of an image as a list, fine to coarse.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One tensor (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) for each i.
        """
        x = self.conv1(image)
        features = []
        for stage in range(self.taps[-1] + 1):
            x = getattr(self, f"layer{stage + 1}")(x)
            if stage in self.taps:
                features.append(x)
        return features


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm and ReLU6.

    The padding keeps the size at stride 1.

    Attributes:
        plain: True to use torch's own ReLU6, which saves a copy of its input for backward; by
            default `ReLU6` of tiekd/models/layers/relu6.py is used, which doesn't.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the kernel, odd.
        stride: stride of the convolution.
        dilation: dilation of the convolution.
        groups: number of groups of channels.
        linear: True to leave out the ReLU6.
    """

    plain = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        linear: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = BatchNorm2d(out_channels)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Applies convolution, BatchNorm and, unless `linear`, ReLU6 to x.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        x = self.bn(self.conv(x))
        if self.linear:
            return x
        return relu6(x, inplace=True) if self.plain else relu6_in_place(x)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution and 1x1 projection without activation.

    A skip connection adds the input if the stride is 1 and the numbers of channels are equal.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        expansion: factor on the number of channels; 1 leaves out the 1x1 expansion.
        stride: stride of the depthwise convolution.
        dilation: dilation of the depthwise convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, stride: int, dilation: int
    ):
        super().__init__()
        hidden = in_channels * expansion
        expand = [] if expansion == 1 else [ConvNorm(in_channels, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            ConvNorm(hidden, hidden, 3, stride, dilation, groups=hidden),
            ConvNorm(hidden, out_channels, 1, linear=True),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Applies expansion, depthwise convolution, projection and skip connection to x.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        return x + self.conv(x) if self.residual else self.conv(x)


def _checked(
    strides: Sequence[int], dilations: Sequence[int], taps: Sequence[int], width: float
) -> tuple[int, ...]:
    """Checks arguments of the class `MobileNetV2`, and returns `taps` as a tuple.

    The docstring of that class describes each argument.

    Raises:
        RecipeError: an argument is out of range, or not one of the allowed values.
    """
    if len(strides) != 7 or any(stride not in (1, 2) for stride in strides):
        raise RecipeError(f"strides: got {list(strides)}; 7 values, one per stage, each 1 or 2")
    if len(dilations) != 7 or any(not isinstance(d, int) or d < 1 for d in dilations):
        raise RecipeError(
            f"dilations: got {list(dilations)}; 7 whole numbers, one per stage, each at least 1"
        )
    if not taps or list(taps) != sorted(set(taps) & set(range(7))):
        raise RecipeError(f"taps: got {list(taps)}; stages out of 0, 1, 2, 3, 4, 5, 6, increasing")
    if not width > 0:
        raise RecipeError(f"width: got {width}; a factor above 0, 1.0 is the published width")
    return tuple(taps)


def _round_to_8(channels: float) -> int:
    """Rounds a number of channels to a multiple of 8.

    The result is the multiple nearest to `channels` that is at least 8 and at least 90 % of
    `channels`.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


build = MobileNetV2
