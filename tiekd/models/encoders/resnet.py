"""ResNet (He et al. 2016, arXiv 1512.03385) as an encoder that returns outputs of its stages.

A bottleneck's stride is in its 3x3 convolution (the "pytorch" or v1.5 variant). The state dict has
torchvision's names. Not covered: stages after the last returned one, the classifier, other strides,
dilations.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d

STEM_CHANNELS = 64
STAGE_CHANNELS = (64, 128, 256, 512)
BASIC_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (2, 4, 8, 16, 32)


class ResNet(nn.Module):
    """ResNet without its classifier.

    A feature's size is the image's size divided by the stride, rounded up. Convolutions are
    initialised Kaiming-normal (fan out), norms with weight 1 and bias 0.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.

    Args:
        depth: 18, 34 (basic blocks), 50 or 101 (bottlenecks).
        taps: indices of the returned outputs, in increasing order: 0 for the stem before its
            pooling (stride 2), 1 to 4 for the stages (strides 4, 8, 16 and 32).
        pretrained: "imagenet" or a file of weights; it isn't read here, but by
            `tiekd.models.weights.pretrained.load`.
    """

    def __init__(
        self, depth: int, taps: Sequence[int] = (0, 1, 2, 3, 4), pretrained: str | None = None
    ):
        super().__init__()
        if depth not in BASIC_BLOCKS | BOTTLENECK_BLOCKS:
            allowed = ", ".join(map(str, BASIC_BLOCKS | BOTTLENECK_BLOCKS))
            raise RecipeError(f"depth: got {depth}; allowed: {allowed}")
        if not taps or list(taps) != sorted(set(taps) & set(range(5))):
            raise RecipeError(
                f"taps: got {list(taps)}; out of 0 (stem), 1, 2, 3, 4 (stages), increasing"
            )
        self.pretrained = pretrained
        self.torchvision_name = f"resnet{depth}"
        self.taps = tuple(taps)
        block = BasicBlock if depth in BASIC_BLOCKS else Bottleneck
        num_blocks = (BASIC_BLOCKS | BOTTLENECK_BLOCKS)[depth]
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm2d(STEM_CHANNELS)
        # Build the stages up to the last one whose output is returned.
        channels = [STEM_CHANNELS]
        for stage in range(1, self.taps[-1] + 1):
            width = STAGE_CHANNELS[stage - 1]
            out_channels = width * block.expansion
            # Halve the resolution in the first block of a stage. Stage 1 is an exception, since the
            # pooling before it halves the resolution.
            first = block(channels[-1], width, 1 if stage == 1 else 2)
            rest = [block(out_channels, width, 1) for _ in range(num_blocks[stage - 1] - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            channels.append(out_channels)
        self.channels = tuple(channels[tap] for tap in self.taps)
        self.strides = tuple(STRIDES[tap] for tap in self.taps)
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
        x = relu(self.bn1(self.conv1(image)), inplace=True)
        features = [x] if 0 in self.taps else []
        # Apply the pooling after the stem's output only if a stage needs it. The stem's output
        # itself is returned before the pooling.
        if self.taps[-1] > 0:
            x = max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.taps[-1] + 1):
            x = getattr(self, f"layer{stage}")(x)
            if stage in self.taps:
                features.append(x)
        return features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a skip connection (identity or 1x1 projection).

    Attributes:
        expansion: number of output channels divided by `width`, which is 1.

    Args:
        in_channels: number of input channels.
        width: number of output channels.
        stride: stride of the first convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies both convolutions to x, and adds the skip connection.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, width, ceil(H / stride), ceil(W / stride)).
        """
        y = relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with BatchNorm, and a skip connection.

    The skip connection is the identity or a 1x1 projection.

    Attributes:
        expansion: number of output channels divided by `width`, which is 4.

    Args:
        in_channels: number of input channels.
        width: number of channels of the 3x3 convolution; the output has four times as many.
        stride: stride of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the three convolutions to x, and adds the skip connection.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, 4 * width, ceil(H / stride), ceil(W / stride)).
        """
        y = relu(self.bn1(self.conv1(x)), inplace=True)
        y = relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Returns the 1x1 projection in a block's skip connection; None if it is the identity.

    It is the identity if the block keeps the resolution and the number of channels.

    Args:
        in_channels: number of the block's input channels.
        out_channels: number of the block's output channels.
        stride: the block's stride.
    """
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels)
    )


build = ResNet
