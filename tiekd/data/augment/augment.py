"""Samples, what is drawn for them, and the colours of their pictures; tiekd/data/augment/geometry.py moves their
pixels.

A training sample's augmentation is drawn from (seed, epoch, index) alone. Colour and normalisation together are one
table of 256 numbers a channel, looked up where the batch is: on the device, in one pass, and with the same result
everywhere.

Left out: scaling, which is the same in training and everywhere else (tiekd/data/resize.py).
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd.errors import DataError, RecipeError

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, grey levels 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)
SIZES = ("crop", "keep_aspect", "bucket")


class Sample(NamedTuple):
    """One frame. image: (3, H, W) uint8 or float32 RGB; depths: (1, H, W) float32 metres, 0 where not valid, or uint16
    as their files have it, of which `*_units` make a metre; inside: (1, H, W) bool, False where a rotation turned in
    what no camera saw."""

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    name: str
    depth_units: float = 1.0
    teacher_units: float = 1.0


class Decisions(NamedTuple):
    """What one augmentation does. angle is degrees counter-clockwise about the picture's centre; the window is in the
    flipped picture; gamma acts on grey levels 0..255, then brightness, then the channels' factors, and what is brighter
    than 255 is 255, as a camera would have it; gamma None: no change."""

    angle: float
    flip: bool
    top: int
    left: int
    height: int
    width: int
    gamma: float | None
    brightness: float
    channels: tuple[float, float, float]


@dataclass(frozen=True)
class Augment:
    """Options of the training augmentation, with the published KITTI values as defaults.

    rotate_deg: largest angle; crop: [height, width] of the random window, None for the whole picture; gamma,
    brightness, channels: ranges of factors, drawn with probability colour_p.

    sizes: what is done about pictures of different sizes. `crop`: nothing but the crop; a picture smaller than it is
    refused by name, and without a crop all must have one size. `keep_aspect`: the working resolution covers the crop
    (tiekd/data/resize.py), at every door; beside `data.resize`, which scales then, the crop is at most the resized
    picture. `bucket`: a batch holds pictures of one size (tiekd/data/loading/sampler.py).
    """

    rotate_p: float = 0.5
    rotate_deg: float = 2.5
    flip_p: float = 0.5
    crop: tuple[int, int] | None = None
    sizes: str = "crop"
    colour_p: float = 0.5
    gamma: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.9, 1.1)
    channels: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self):
        for name in ("rotate_p", "flip_p", "colour_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(
                    f"data.augment.{name}: got {getattr(self, name)}; a probability is in 0..1"
                )
        if not 0 <= self.rotate_deg <= 180:
            raise RecipeError(
                f"data.augment.rotate_deg: got {self.rotate_deg}; the largest angle is in 0..180"
            )
        for name in ("gamma", "brightness", "channels"):
            low, high = getattr(self, name)
            if not 0 < low <= high < inf:
                raise RecipeError(
                    f"data.augment.{name}: got {[low, high]}; must be [low, high], 0 < low <= high"
                )
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(
                f"data.augment.crop: got {self.crop}; it must be [height, width] in pixels"
            )
        if self.sizes not in SIZES:
            raise RecipeError(
                f"data.augment.sizes: got {self.sizes!r}; allowed: {', '.join(SIZES)}"
            )

    def draw(self, seed: int, epoch: int, index: int, height: int, width: int) -> Decisions:
        """The decisions for one sample: a pure function of the arguments. DataError where the crop doesn't fit.

        height, width: of the picture at its working resolution, padding included.
        """
        rng = np.random.default_rng([seed, epoch, index, 1])
        crop_height, crop_width = self.crop or (height, width)
        if self.sizes == "keep_aspect":
            crop_height, crop_width = min(crop_height, height), min(crop_width, width)
        if crop_height > height or crop_width > width:
            raise DataError(
                f"data.augment.crop: {crop_height}x{crop_width} is larger than the picture, {height}x{width}; "
                "make the crop smaller, set data.augment.sizes=keep_aspect, or scale pictures by data.resize",
                "size",
            )
        angle = (
            rng.uniform(-self.rotate_deg, self.rotate_deg) if rng.random() < self.rotate_p else 0.0
        )
        flip = bool(rng.random() < self.flip_p)
        top = int(rng.integers(0, height - crop_height + 1))
        left = int(rng.integers(0, width - crop_width + 1))
        gamma, brightness, channels = None, 1.0, (1.0, 1.0, 1.0)
        if rng.random() < self.colour_p:
            gamma, brightness = rng.uniform(*self.gamma), rng.uniform(*self.brightness)
            channels = tuple(rng.uniform(*self.channels, size=3))
        return Decisions(
            angle, flip, top, left, crop_height, crop_width, gamma, brightness, channels
        )


def in_metres(sample: Sample) -> Sample:
    """The sample with float32 depths in metres."""
    teacher_depth = sample.teacher_depth
    return sample._replace(
        depth=sample.depth.float() / sample.depth_units,
        teacher_depth=None
        if teacher_depth is None
        else teacher_depth.float() / sample.teacher_units,
        depth_units=1.0,
        teacher_units=1.0,
    )


def normalise(sample: Sample) -> Sample:
    """Grey levels 0..255 to ImageNet's mean 0 and deviation 1 a channel, as the encoders expect."""
    return sample._replace(image=_normalised(sample.image))


def colour_table(decisions: Decisions | None = None) -> Tensor:
    """(3, 256) float32: what becomes of each grey level of each channel, drawn colours first, then normalisation."""
    levels = torch.arange(256, dtype=torch.float32).expand(3, 1, 256)
    if decisions is not None and decisions.gamma is not None:
        factors = decisions.brightness * torch.tensor(decisions.channels, dtype=torch.float32)
        levels = (levels.pow(decisions.gamma) * factors[:, None, None]).clamp(max=255)
    return _normalised(levels)[:, 0]


def look_up(image: Tensor, tables: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 and (B, 3, 256) float32 -> (B, 3, H, W) float32: each pixel's entry in its table."""
    first = torch.arange(0, tables.numel(), 256, dtype=torch.int32, device=image.device)
    places = image + first.view(*tables.shape[:2], 1, 1)
    return tables.flatten().index_select(0, places.flatten()).view(places.shape)


def _normalised(image: Tensor) -> Tensor:
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    return (image.float() - mean) / std
