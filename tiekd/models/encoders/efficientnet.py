"""EfficientNet as an encoder that returns outputs of its seven stages and its last convolution.

After Tan and Le 2019 (arXiv 1905.11946), compatible with the released TensorFlow weights: norms
have an eps of 1e-3, and padding is TensorFlow's "SAME", which at stride 2 depends on the image's
size; if the number of padded pixels is odd, the additional one is at the right or the bottom. State
dict names are those of the published PyTorch ports of these weights. B5 with the default outputs
has 28.34 M parameters and 11.6 GMAC at 352x704. Not covered: the norm after the last convolution,
the classifier, and stochastic depth.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.same_conv import SameConv2d

# Variant -> (width, depth): factors by which B0's numbers of channels and of blocks are multiplied.
VARIANTS = {"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4)}
VARIANTS |= {"b4": (1.4, 1.8), "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1)}
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
STAGE_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
STAGE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
STAGE_KERNELS = (3, 3, 5, 3, 5, 5, 3)
STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
EXPANSION, SQUEEZE = 6, 4
CONV_HEAD = 7
NORM_EPS = 1e-3


class EfficientNet(nn.Module):
    """EfficientNet without its classifier.

    A feature's size is the image's size divided by the stride, rounded up. Convolutions are
    initialised Kaiming-normal (fan out), norms with weight 1 and bias 0.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.

    Args:
        variant: "b0" to "b7".
        taps: indices of the returned outputs, in increasing order: 0 to 6 for the stages, 7 for the
            last 1x1 convolution (without norm and activation). The default is that of AdaBins.
        pretrained: a file of weights, which `tiekd.models.weights.pretrained.load` loads; it isn't
            read here. "imagenet" isn't available, because torchvision's weights are for another
            padding.
    """

    def __init__(
        self,
        variant: str = "b5",
        taps: Sequence[int] = (0, 1, 2, 4, 7),
        pretrained: str | None = None,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise RecipeError(f"variant: got {variant!r}; allowed: {', '.join(VARIANTS)}")
        if not taps or list(taps) != sorted(set(taps) & set(range(CONV_HEAD + 1))):
            raise RecipeError(
                f"taps: got {list(taps)}; out of 0 to 6 (stages), 7 (last conv), increasing"
            )
        self.pretrained = pretrained
        self.torchvision_name = None
        self.taps = tuple(taps)

        # Build the stem.
        width, depth = VARIANTS[variant]
        channels = _round_to_8(STEM_CHANNELS * width)
        self.conv_stem = SameConv2d(3, channels, 3, stride=2)
        self.bn_stem = BatchNorm2d(channels, eps=NORM_EPS)
        # Build the stages up to the last one whose output is returned.
        stride, tapped, stages = 2, [], []
        for stage in range(min(self.taps[-1], CONV_HEAD - 1) + 1):
            out_channels = _round_to_8(STAGE_CHANNELS[stage] * width)
            blocks = []
            for block in range(math.ceil(STAGE_BLOCKS[stage] * depth)):
                block_stride = STAGE_STRIDES[stage] if block == 0 else 1
                # Use blocks without the 1x1 expansion in the first stage.
                kind = DepthwiseSeparable if stage == 0 else InvertedResidual
                blocks.append(kind(channels, out_channels, STAGE_KERNELS[stage], block_stride))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
            stride *= STAGE_STRIDES[stage]
            tapped.append((channels, stride))
        self.blocks = nn.ModuleList(stages)
        if self.taps[-1] == CONV_HEAD:
            tapped.append((_round_to_8(HEAD_CHANNELS * width), stride))
            self.conv_head = SameConv2d(channels, tapped[-1][0], 1)
        self.channels = tuple(tapped[tap][0] for tap in self.taps)
        self.strides = tuple(tapped[tap][1] for tap in self.taps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Compute the fan-out as TensorFlow does, from the output channels of one group.
                # nn.init.kaiming_normal_ counts those of all groups, which differs for depthwise
                # convolutions.
                fan_out = module.out_channels * module.kernel_size[0] ** 2 / module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of an image as a list, fine to coarse.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One tensor (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) for each i.
        """
        x = silu(self.bn_stem(self.conv_stem(image)))
        features = []
        for stage, blocks in enumerate(self.blocks):
            x = blocks(x)
            if stage in self.taps:
                features.append(x)
        if self.taps[-1] == CONV_HEAD:
            features.append(self.conv_head(x))
        return features


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507): multiplies each channel by a gate, 0 to 1.

    The gates are computed from the spatial means of all channels.

    Args:
        channels: number of input and output channels.
        squeezed: number of channels between the two layers that compute the gates.
    """

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x, multiplied by one gate per image and channel.

        Args:
            x: (B, channels, H, W).

        Returns:
            (B, channels, H, W).
        """
        gate = self.conv_expand(silu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, squeeze-and-excitation and 1x1 projection without activation.

    A skip connection adds the input if the stride is 1 and the numbers of channels are equal.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the depthwise convolution's kernel.
        stride: stride of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int):
        super().__init__()
        self.conv_dw = SameConv2d(in_channels, in_channels, kernel, stride, groups=in_channels)
        self.bn1 = BatchNorm2d(in_channels, eps=NORM_EPS)
        self.se = SqueezeExcite(in_channels, in_channels // SQUEEZE)
        self.conv_pw = SameConv2d(in_channels, out_channels, 1)
        self.bn2 = BatchNorm2d(out_channels, eps=NORM_EPS)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Applies depthwise convolution, gates, projection and skip connection to x.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        y = self.se(silu(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation and 1x1 projection.

    The expansion multiplies the number of channels by EXPANSION; the projection has no activation.
    A skip connection adds the input if the stride is 1 and the numbers of channels are equal.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the depthwise convolution's kernel.
        stride: stride of the depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int):
        super().__init__()
        hidden = in_channels * EXPANSION
        self.conv_pw = SameConv2d(in_channels, hidden, 1)
        self.bn1 = BatchNorm2d(hidden, eps=NORM_EPS)
        self.conv_dw = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.bn2 = BatchNorm2d(hidden, eps=NORM_EPS)
        self.se = SqueezeExcite(hidden, in_channels // SQUEEZE)
        self.conv_pwl = SameConv2d(hidden, out_channels, 1)
        self.bn3 = BatchNorm2d(out_channels, eps=NORM_EPS)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Applies expansion, depthwise convolution, gates, projection and skip connection to x.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        y = silu(self.bn1(self.conv_pw(x)))
        y = self.se(silu(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


def _round_to_8(channels: float) -> int:
    """Rounds a number of channels to a multiple of 8.

    The result is the multiple nearest to `channels` that is at least 8 and at least 90 % of
    `channels`.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


build = EfficientNet
