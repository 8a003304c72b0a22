"""DenseDepth decoder without norms, as in the published students.

After Alhashim and Wonka 2018 (arXiv 1812.11941). The deepest feature passes a 1x1 convolution.
Then, for each finer feature: bilinear upsampling to its size (corners aligned), concatenation with
it, and two 3x3 convolutions with ReLU. `extra_ups` further blocks without an encoder feature can
each double the resolution, at most to that of the image. DepthFormer's decoder is this one with
leaky ReLU and no extra blocks.

Cost: 3x3 convolutions at full resolution are expensive. In the published students, the two
convolutions of the last block have 128 channels and cost 73 of the network's 171 GMAC at 352x704;
one extra block less, i.e. an output at stride 2, saves them. Not covered: norms, other activations.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu

from tiekd.errors import RecipeError
from tiekd.kernels import layouts
from tiekd.kernels.convolution import Conv2d, is_large
from tiekd.models.layers.upsampled import PointwiseConv, UpsampledConv
from tiekd.models.layers.widths import check_widths

ACTIVATIONS = {"relu": relu, "leaky_relu": leaky_relu}


class DenseDepth(nn.Module):
    """Fuses the encoder's features to one feature map (B, channels, h, w).

    Convolutions are initialised Kaiming-normal (fan in, so that the features keep their variance
    without norms), biases with 0.

    Attributes:
        channels: number of channels of the output.
        stride: stride of the output relative to the image.

    Args:
        encoder_channels: number of channels of each feature, fine to coarse.
        encoder_strides: stride of each feature relative to the image.
        widths: number of the decoder's channels at each feature's resolution, fine to coarse; the
            last one is that of the 1x1 convolution's output.
        extra_ups: number of blocks after the finest feature, each of which doubles the resolution.
        extra_width: number of channels of these blocks; None for widths[0].
        activation: "relu" or "leaky_relu" (slope 0.01 below 0), after every 3x3 convolution.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        widths: Sequence[int],
        extra_ups: int = 0,
        extra_width: int | None = None,
        activation: str = "relu",
    ):
        super().__init__()
        check_widths(widths, len(encoder_channels))
        # Check the number of extra blocks: each doubles the resolution, and the output may not be
        # finer than the image.
        possible = encoder_strides[0].bit_length() - 1
        if extra_ups not in range(possible + 1):
            raise RecipeError(
                f"extra_ups: got {extra_ups}; the finest tap is at stride {encoder_strides[0]}: "
                f"0 to {possible}"
            )
        if extra_width is not None and (
            not isinstance(extra_width, int) or extra_width < 1 or not extra_ups
        ):
            raise RecipeError(
                f"extra_width: got {extra_width}; a whole number above 0, with extra_ups above 0"
            )
        if activation not in ACTIVATIONS:
            raise RecipeError(f"activation: got {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        # Build a level for each of the encoder's features, coarse to fine, then the extra blocks.
        deepest = PointwiseConv(encoder_channels[-1], widths[-1])
        levels = [
            TwoConvs(widths[i + 1] + encoder_channels[i], widths[i], activation)
            for i in reversed(range(len(encoder_channels) - 1))
        ]
        self.levels = nn.ModuleList([deepest, *levels])
        channels = widths[0]
        extras = []
        for _ in range(extra_ups):
            extras.append(TwoConvs(channels, extra_width or widths[0], activation))
            channels = extra_width or widths[0]
        self.extras = nn.ModuleList(extras)
        self.channels = channels
        self.stride = encoder_strides[0] >> extra_ups

        # Initialise the weights.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # No ReLU follows the deepest convolution, so its gain is that of a linear layer.
                nonlinearity = "linear" if module is deepest else "relu"
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=nonlinearity)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Returns the fused features, (B, channels, h, w).

        (h, w) is the finest feature's size times 2 ** extra_ups. This is the image's size divided
        by `stride` if the finest feature's stride divides the image's size. Otherwise h or w is
        larger by up to 2 ** extra_ups - 1, because the feature's size is rounded up.

        Args:
            features: the encoder's features, fine to coarse.
            image_size: (H, W) of the image; not used, but other decoders need this argument.
        """
        deepest, *levels = self.levels
        x = features[-1]
        pointwise = deepest if isinstance(deepest, PointwiseConv) else None
        if not levels:
            x = deepest(x)
        for level, skip in zip(levels, reversed(features[:-1]), strict=True):
            # Let only the first level apply the 1x1 convolution. If this saves computation, the
            # level merges it with its own 3x3 convolution.
            x = level(x, tuple(skip.shape[2:]), skip, pointwise)
            pointwise = None
        for extra in self.extras:
            # Double the size in extra blocks, which have no encoder feature whose size the output
            # could take.
            x = extra(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x

    def fold(self) -> None:
        """Merges the decoder's 1x1 convolution into the next 3x3 one, if that saves computation.

        It saves computation if the 1x1 convolution has more output than input channels. The decoder
        and its state dict are changed in place, so call this method for inference only.
        """
        deepest = self.levels[0]
        if len(self.levels) > 1 and isinstance(deepest, PointwiseConv) and deepest.adds_channels:
            self.levels[1].first.merge_pointwise(deepest)
            self.levels[0] = nn.Identity()


class TwoConvs(nn.Module):
    """Two 3x3 convolutions with activation; the first one upsamples its input.

    On a CPU in fp32 the convolutions use the memory layout that tiekd/kernels/layouts.py chooses,
    usually channels_last if there are more feature values than weights. oneDNN would copy
    contiguous (NCHW) features to a layout of its own and back. For the published student this would
    take an eighth of the time of a training iteration and a tenth of its memory.

    Attributes:
        plain: True to keep the input's memory layout instead of choosing one; False by default.

    Args:
        in_channels: number of channels of the upsampled features and the encoder's feature
            together.
        out_channels: number of output channels.
        activation: "relu" or "leaky_relu", a key of ACTIVATIONS.
    """

    plain = False

    def __init__(self, in_channels: int, out_channels: int, activation: str):
        super().__init__()
        self.first = UpsampledConv(in_channels, out_channels)
        self.second = Conv2d(out_channels, out_channels, 3, padding=1)
        self.activate = ACTIVATIONS[activation]

    def forward(
        self,
        x: Tensor,
        size: tuple[int, int],
        skip: Tensor | None = None,
        pointwise: PointwiseConv | None = None,
    ) -> Tensor:
        """Upsamples x, concatenates `skip` and applies the two convolutions.

        Args:
            x: (B, C, h, w), features that are resized to `size` bilinearly with aligned corners.
            size: (H, W) of the output.
            skip: (B, S, H, W), the encoder's feature, concatenated after the upsampled x; None for
                none.
            pointwise: a 1x1 convolution to apply to x before upsampling; None for none.

        Returns:
            (B, out_channels, H, W).
        """
        if self._wants_channels_last(x, size, 0 if skip is None else skip.shape[1]):
            x = x.contiguous(memory_format=torch.channels_last)
            skip = None if skip is None else skip.contiguous(memory_format=torch.channels_last)
        x = self.activate(self.first(x, size, skip, pointwise), inplace=True)
        return self.activate(self.second(x), inplace=True)

    def _wants_channels_last(self, x: Tensor, size: tuple[int, int], skip_channels: int) -> bool:
        """Returns True if the first convolution should run in channels_last memory layout.

        Args:
            x: (B, C, h, w), the convolution's input before upsampling.
            size: (H, W) to which x is upsampled.
            skip_channels: number of channels of the encoder's feature that is concatenated.
        """
        if (
            self.plain
            or torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or x.dtype != torch.float32
        ):
            return False
        pixels = x.shape[0] * size[0] * size[1]
        shape_class = layouts.SMALL
        if is_large(pixels, x.shape[1] + skip_channels, self.first.out_channels):
            shape_class = (
                layouts.LARGE_TRAINING if torch.is_grad_enabled() else layouts.LARGE_FORWARD
            )
        return layouts.setting(shape_class, layouts.FP32) != layouts.KEEP_LAYOUT


build = DenseDepth
