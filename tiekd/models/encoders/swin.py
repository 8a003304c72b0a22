"""Swin transformer (Liu et al. 2021, arXiv 2103.14030) as an encoder, with strides of 4 to 32.

The defaults are Swin-T; Swin-L is `width: 192, depths: [2, 2, 18, 2], heads: [6, 12, 24, 48]`. Any
image size works. Cost of a block with C channels and windows of S x S tokens, per token: 12 C^2
multiply-adds, and 2 S^2 C for the attention. Not covered: absolute positions, dropout of
activations, and returning fewer than all four stages' outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from tiekd.errors import RecipeError
from tiekd.models.layers.window_attention import WindowAttention

PATCH = 4
EXPANSION = 4
TINY = (96, [2, 2, 6, 2], [3, 6, 12, 24], 7)


class Swin(nn.Module):
    """Swin without its classifier; each returned feature passes a LayerNorm of its own.

    A feature's size is the image's size divided by the stride, rounded up. Linear layers are
    initialised with a standard deviation of 0.02, biases with 0, norms with weight 1 and bias 0.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.

    Args:
        width: number of channels of the first stage, doubled in each following stage.
        depths: number of blocks of each of the four stages.
        heads: number of attention heads of each stage; they must divide the stage's channels.
        window: side of an attention window, tokens.
        drop_path: in training, the probability that an image skips the last block (stochastic
            depth, Huang et al. 2016, arXiv 1603.09382). It rises linearly from 0 at the first
            block. Random numbers come from the device's generator, whose state is saved in
            checkpoints.
        pretrained: "imagenet" (Swin-T only) or a file of weights; it isn't read here, but by
            `tiekd.models.weights.pretrained.load`.
    """

    # Prefixes of the names of tensors that pretrained weights of a classifier don't contain: the
    # norms of the returned features.
    not_pretrained = ("norms.",)

    def __init__(
        self,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.0,
        pretrained: str | None = None,
    ):
        super().__init__()
        _check(width, depths, heads, window, drop_path)
        self.pretrained = pretrained
        is_tiny = (width, list(depths), list(heads), window) == TINY
        self.torchvision_name = "swin_t" if is_tiny else None
        self.channels = tuple(width << i for i in range(4))
        self.strides = (4, 8, 16, 32)
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.patch_norm = nn.LayerNorm(width)
        # Build the stages. The probability of skipping a block rises linearly from block to block.
        last = max(1, sum(depths) - 1)
        rates = iter([drop_path * i / last for i in range(sum(depths))])
        self.stages = nn.ModuleList()
        self.norms = nn.ModuleList()
        for channels, depth, stage_heads in zip(self.channels, depths, heads, strict=True):
            # Every second block shifts its windows by half a window, so that tokens of adjacent
            # windows can attend to each other.
            blocks = [
                Block(channels, stage_heads, window, i % 2 * (window // 2), next(rates))
                for i in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
            self.norms.append(nn.LayerNorm(channels))
        self.merges = nn.ModuleList(PatchMerging(channels) for channels in self.channels[:-1])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the features of an image as a list, fine to coarse.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One tensor (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) for each i.
        """
        # Pad the image with zeros at the right and the bottom, so that it divides into whole
        # patches.
        image = pad(image, (0, -image.shape[3] % PATCH, 0, -image.shape[2] % PATCH))
        x = self.patch_norm(self.patches(image).permute(0, 2, 3, 1))
        features = []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x)
            # The norm is applied to the returned feature only; the next stage gets the feature
            # before the norm.
            features.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if i < len(self.merges):
                x = self.merges[i](x)
        return features


class Block(nn.Module):
    """Transformer block: window attention, then a two-layer MLP.

    Attention and MLP each have a LayerNorm before them and a skip connection around them.

    Args:
        channels: number of channels of the tokens.
        heads: number of attention heads.
        window: side of an attention window, tokens.
        shift: number of tokens by which the windows are shifted; 0 for none.
        drop_path: in training, the probability that an image skips the attention, and that it skips
            the MLP.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, EXPANSION * channels)
        self.project = nn.Linear(EXPANSION * channels, channels)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Applies attention and MLP to the H x W tokens of each image.

        Args:
            x: (B, H, W, channels).

        Returns:
            (B, H, W, channels).
        """
        x = x + self._drop_path(self.attention(self.norm1(x)))
        return x + self._drop_path(self.project(gelu(self.expand(self.norm2(x)))))

    def _drop_path(self, x: Tensor) -> Tensor:
        """Applies stochastic depth to x, (B, H, W, channels): in training, sets random images to 0.

        Each image is set to 0 with the probability drop_path. The other images are divided by (1 -
        drop_path), so that the expected value stays the same. In eval mode, or with a drop_path of
        0, x itself is returned.

        Args:
            x: (B, H, W, channels).
        """
        if not self.training or self.drop_path == 0:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop_path
        return x * (kept / (1 - self.drop_path)).to(x.dtype)


class PatchMerging(nn.Module):
    """Merges each 2 x 2 square of tokens to one token with twice as many channels.

    A grid with an odd number of rows or columns is padded with zeros.

    Args:
        channels: number of channels of the input.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merges each 2 x 2 square of the H x W tokens of each image.

        Args:
            x: (B, H, W, channels).

        Returns:
            (B, ceil(H / 2), ceil(W / 2), 2 * channels).
        """
        x = pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Concatenate each 2x2 square's channels in the published order: (channel, row, column).
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.reduction(self.norm(x))


def _check(
    width: int, depths: Sequence[int], heads: Sequence[int], window: int, drop_path: float
) -> None:
    """Checks arguments of the class `Swin`. The docstring of that class describes each.

    Raises:
        RecipeError: an argument is out of range.
    """
    for name, values in (("depths", depths), ("heads", heads)):
        if len(values) != 4 or any(not isinstance(value, int) or value < 1 for value in values):
            raise RecipeError(f"{name}: got {list(values)}; 4 whole numbers above 0, one per stage")
    channels = [width << i for i in range(4)]
    if width < 1 or any(c % count for c, count in zip(channels, heads, strict=True)):
        raise RecipeError(
            f"heads: got {list(heads)} for stages of {channels} channels (width {width}); the "
            "heads of a stage must divide its channels"
        )
    if window < 2:
        raise RecipeError(f"window: got {window}; a whole number from 2, published is 7")
    if not 0 <= drop_path < 1:
        raise RecipeError(f"drop_path: got {drop_path}; a probability below 1, published is 0.3")


build = Swin
