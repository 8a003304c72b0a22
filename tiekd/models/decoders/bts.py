"""BTS decoder (Lee et al. 2019, arXiv 1907.10326): local planar guidance at strides 8, 4 and 2.

It applies dense atrous spatial pyramid pooling at stride 8. Then, at strides 8, 4 and 2, it
predicts one local plane per feature pixel, which gives a depth to each of the stride x stride image
pixels that the feature pixel covers. The planes' depths are concatenated to the next level's
features, and all of them to the final features at full resolution. Upsampling is nearest-neighbour,
activations are ELU. Plane depths are in units of max_depth, so this decoder doesn't need the depth
range. Not covered: scaling by the focal length, which the original has but published configs don't
use.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, interpolate, relu

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import BatchNorm2d

STRIDES = (2, 4, 8, 16, 32)
WIDTHS = (128, 256, 512, 1024)
DILATIONS = (3, 6, 12, 18, 24)
NORM_EPS, NORM_MOMENTUM = 1.1e-5, 0.01
# Smallest denominator in the formula for a local plane's depth (`spread_planes`). It bounds the
# depth of planes that are almost parallel to a pixel's viewing ray.
STEEPEST = 0.01


class Bts(nn.Module):
    """Maps five features at strides 2 to 32 to a map (B, channels, H, W) of the image's size.

    Convolutions are initialised Kaiming-normal (fan in). Those that predict local planes have a
    standard deviation of 0.01, so that at first all planes are alike: inclined by 30 degrees, at
    half of max_depth.

    Attributes:
        channels: number of channels of the output, width / 16.
        stride: stride of the output relative to the image, which is 1.

    Args:
        encoder_channels: number of channels of each feature, fine to coarse.
        encoder_strides: stride of each feature; must be STRIDES, i.e. 2, 4, 8, 16 and 32.
        width: number of channels at stride 16, halved at each finer level (published: 512).
        norm_momentum: momentum of the norms' running statistics; with the published 0.01 they need
            hundreds of iterations to converge.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        encoder_strides: Sequence[int],
        width: int = 512,
        norm_momentum: float = NORM_MOMENTUM,
    ):
        super().__init__()
        if tuple(encoder_strides) != STRIDES:
            raise RecipeError(
                f"decoder (bts): the encoder's taps are at strides {list(encoder_strides)}; "
                f"allowed: {list(STRIDES)}"
            )
        if width not in WIDTHS:
            raise RecipeError(f"width: got {width}; allowed: {', '.join(map(str, WIDTHS))}")
        if not 0 < norm_momentum <= 1:
            raise RecipeError(
                f"norm_momentum: got {norm_momentum}; it must be above 0 and at most 1"
            )
        # Build the layers, coarse to fine. The number in the names up5 to up1 and merge5 to merge1
        # is the level: 5 has its output at stride 16, 1 at the image's size. The number in plane8
        # to plane1 is the stride of the planes.
        skip2, skip4, skip8, skip16, deepest = encoder_channels
        w16, w8, w4, w2, w1 = (width >> i for i in range(5))
        self.up5 = UpConv(deepest, w16)
        self.merge5 = _conv3x3(w16 + skip16, w16)
        self.up4 = UpConv(w16, w8)
        self.merge4 = _conv3x3(w8 + skip8, w8)
        self.aspp = DenseAspp(w8, skip8, w4)
        self.plane8 = Reduction(w4, w4, 3)
        self.up3 = UpConv(w4, w4)
        self.merge3 = _conv3x3(w4 + skip4 + 1, w4)
        self.plane4 = Reduction(w4, w2, 3)
        self.up2 = UpConv(w4, w2)
        self.merge2 = _conv3x3(w2 + skip2 + 1, w2)
        self.plane2 = Reduction(w2, w1, 3)
        self.up1 = UpConv(w2, w1, norm=False)
        self.plane1 = Reduction(w1, w1 // 2, 1)
        self.merge1 = _conv3x3(w1 + 4, w1)
        self.channels = w1
        self.stride = 1
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, BatchNorm2d):
                module.momentum = norm_momentum
        for reduction in (self.plane8, self.plane4, self.plane2, self.plane1):
            nn.init.normal_(reduction.out.weight, std=0.01)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """Returns the fused features at the image's size, (B, channels, H, W), for any size.

        Args:
            features: the encoder's features at strides 2, 4, 8, 16 and 32.
            image_size: (H, W) of the image.
        """
        skip2, skip4, skip8, skip16, deepest = features
        size2, size4, size8, size16 = (skip.shape[2:] for skip in features[:4])
        # Upsample the coarsest feature to strides 16 and 8, concatenating the encoder's features,
        # and apply dense atrous spatial pyramid pooling.
        x = _elu(self.merge5(torch.cat([self.up5(deepest, size16), skip16], dim=1)))
        up = torch.cat([self.up4(x, size8), skip8], dim=1)
        x = self.aspp(_elu(self.merge4(up)), up)
        # Predict local planes at strides 8, 4 and 2. The depth of a level's planes is concatenated
        # to the features of the next finer level.
        depth8 = spread_planes(to_planes(self.plane8(x)), 8)
        x = torch.cat([self.up3(x, size4), skip4, _subsampled(depth8, 4, size4).to(x.dtype)], dim=1)
        x = _elu(self.merge3(x))
        depth4 = spread_planes(to_planes(self.plane4(x)), 4)
        x = torch.cat([self.up2(x, size2), skip2, _subsampled(depth4, 2, size2).to(x.dtype)], dim=1)
        x = _elu(self.merge2(x))
        depth2 = spread_planes(to_planes(self.plane2(x)), 2)
        # Upsample the features to the image's size, and concatenate the planes' depths of all
        # levels.
        x = self.up1(x, image_size)
        depth1 = self.plane1(x).float().sigmoid()
        depths = [
            _subsampled(depth, 1, image_size).to(x.dtype)
            for depth in (depth1, depth2, depth4, depth8)
        ]
        return _elu(self.merge1(torch.cat([x, *depths], dim=1)))


class UpConv(nn.Module):
    """Nearest-neighbour upsampling to a given size, 3x3 convolution, ELU and BatchNorm.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        norm: False to leave out the BatchNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: bool = True):
        super().__init__()
        self.conv = _conv3x3(in_channels, out_channels)
        self.norm = BatchNorm2d(out_channels, eps=NORM_EPS) if norm else None

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Upsamples x and applies convolution, ELU and BatchNorm.

        Args:
            x: (B, in_channels, h, w).
            size: (height, width) to which x is upsampled.

        Returns:
            (B, out_channels, height, width).
        """
        x = _elu(self.conv(interpolate(x, size=tuple(size), mode="nearest")))
        return x if self.norm is None else self.norm(x)


class DenseAspp(nn.Module):
    """Densely connected atrous (dilated) convolutions, whose outputs a 3x3 convolution fuses.

    There is one atrous convolution for each dilation in DILATIONS. It gets the features, the
    encoder's feature and the outputs of all earlier atrous convolutions; the first one gets the
    features only.

    Args:
        channels: number of channels of the features.
        skip_channels: number of channels of the encoder's feature at the same stride.
        out_channels: number of output channels, also of each atrous convolution.
    """

    def __init__(self, channels: int, skip_channels: int, out_channels: int):
        super().__init__()
        self.norm = BatchNorm2d(channels, eps=NORM_EPS)
        self.branches = nn.ModuleDict()
        seen = channels
        for i, dilation in enumerate(DILATIONS):
            self.branches[str(dilation)] = AtrousConv(seen, out_channels, dilation, norm_in=i > 0)
            # The first branch gets the features alone. Later branches also get the encoder's
            # feature and the outputs of all earlier branches.
            seen += out_channels + (skip_channels if i == 0 else 0)
        self.fuse = _conv3x3(channels + len(DILATIONS) * out_channels, out_channels)

    def forward(self, x: Tensor, merged: Tensor) -> Tensor:
        """Returns the fused outputs of the atrous convolutions, (B, out_channels, h, w).

        Args:
            x: (B, channels, h, w).
            merged: (B, channels + skip_channels, h, w), the concatenation of the upsampled features
                and the encoder's feature, from which x was computed.
        """
        x = self.norm(x)
        outputs = []
        for branch in self.branches.values():
            outputs.append(branch(torch.cat([merged, *outputs], dim=1) if outputs else x))
        return _elu(self.fuse(torch.cat([x, *outputs], dim=1)))


class AtrousConv(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU and dilated 3x3 convolution.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels; the 1x1 convolution has twice as many.
        dilation: dilation of the 3x3 convolution.
        norm_in: False to leave out the first BatchNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int, norm_in: bool):
        super().__init__()
        self.norm_in = BatchNorm2d(in_channels, eps=NORM_EPS) if norm_in else None
        self.reduce = nn.Conv2d(in_channels, 2 * out_channels, 1, bias=False)
        self.norm = BatchNorm2d(2 * out_channels)
        self.dilated = nn.Conv2d(
            2 * out_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies norms, activations, 1x1 and dilated convolution to x.

        Args:
            x: (B, in_channels, h, w).

        Returns:
            (B, out_channels, h, w).
        """
        x = relu(x) if self.norm_in is None else relu(self.norm_in(x), inplace=True)
        return self.dilated(relu(self.norm(self.reduce(x)), inplace=True))


class Reduction(nn.Module):
    """1x1 convolutions with ELU that halve the channels down to 8, and a last one without ELU.

    Args:
        in_channels: number of input channels.
        first_width: number of output channels of the first convolution; if it is below 8, there is
            only the last convolution.
        out_channels: number of output channels of the last convolution.
    """

    def __init__(self, in_channels: int, first_width: int, out_channels: int):
        super().__init__()
        self.layers = nn.ModuleDict()
        width = first_width
        while width >= 8:
            self.layers[f"{in_channels}_{width}"] = nn.Conv2d(in_channels, width, 1, bias=False)
            in_channels = width
            width = width // 2
        self.out = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the 1x1 convolutions to x, one after the other.

        Args:
            x: (B, in_channels, h, w).

        Returns:
            (B, out_channels, h, w).
        """
        for layer in self.layers.values():
            x = _elu(layer(x))
        return self.out(x)


def _elu(x: Tensor) -> Tensor:
    """Applies the activation ELU to x in place, and returns x.

    In place, autograd computes the gradient from ELU's result instead of its input. In bf16 the
    gradient is therefore 0 for inputs below -6, where the exact gradient is 0.0025 or less.

    Args:
        x: output of a convolution, of any shape, which no other operation uses.
    """
    return elu(x, inplace=True)


def to_planes(x: Tensor) -> Tensor:
    """Converts a network's raw output to local planes, each with a unit normal and a distance.

    The normal is inclined by 0 to 60 degrees to the viewing axis, in any direction. The distance is
    in units of max_depth, 0 to 1.

    Args:
        x: (B, 3, h, w), logits of inclination, direction and distance.

    Returns:
        (B, 4, h, w) float32: unit normal and distance.
    """
    lean, side, distance = x.float().sigmoid().split(1, dim=1)
    lean = lean * (math.pi / 3)
    side = side * (2 * math.pi)
    return torch.cat(
        [lean.sin() * side.cos(), lean.sin() * side.sin(), lean.cos(), distance], dim=1
    )


def spread_planes(planes: Tensor, stride: int) -> Tensor:
    """Returns the depth of each local plane at the stride x stride pixels that it covers.

    The depth is distance / (n1 u + n2 v + n3) with the unit normal n = (n1, n2, n3). (u, v) is the
    pixel's position within the square that the plane covers, u to the right and v downwards, both
    from -0.5 to 0.5 (equation 1 of Lee et al. 2019). The denominator is clamped to at least
    STEEPEST.

    Args:
        planes: (B, 4, h, w) float32, unit normal and distance of each plane.
        stride: number of pixels along the side of the square that a plane covers.

    Returns:
        (B, 1, stride * h, stride * w) float32, in the unit of the distance.
    """
    batch, _, height, width = planes.shape
    pixels = torch.arange(stride, device=planes.device, dtype=planes.dtype)
    offsets = (pixels - (stride - 1) / 2) / stride
    normal = planes[:, :3, :, :, None, None]
    distance = planes[:, 3, :, :, None, None]
    across = normal[:, 0] * offsets + normal[:, 1] * offsets[:, None] + normal[:, 2]
    depth = distance / across.clamp(min=STEEPEST)
    return depth.permute(0, 1, 3, 2, 4).reshape(batch, 1, height * stride, width * stride)


def _subsampled(depth: Tensor, step: int, size: Sequence[int]) -> Tensor:
    """Subsamples the local planes' depth by `step` in rows and columns, and crops it to a size.

    A local plane at the right or bottom border may cover pixels beyond the image, which are
    cropped.

    Args:
        depth: (B, 1, h, w), as `spread_planes` returns it.
        step: distance between the kept pixels along each axis.
        size: (height, width) of the result.

    Returns:
        (B, 1, height, width), in the unit of `depth`.
    """
    return depth[:, :, ::step, ::step][:, :, : size[0], : size[1]]


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


build = Bts
