"""Joint transforms: every geometric change moves picture, ground truth, teacher map and intrinsics together.

A training sample's augmentation is drawn from (seed, epoch, index) alone and applied as at most one resampling: the
crop window is traced back through flip and rotation into the picture, so nothing outside it is computed. What turns in
from outside the picture is black and has depth 0, that is, not valid.

Pictures of different sizes get into one batch by `Augment.sizes`; evaluation and prediction never scale anything.
"""

from dataclasses import dataclass
from math import cos, inf, radians, sin
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tiekd.errors import DataError, RecipeError

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, grey levels 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)
SIZES = ("crop", "keep_aspect", "bucket")


class Sample(NamedTuple):
    """One frame. image: (3, H, W) uint8 or float32 RGB; depths: (1, H, W) float32 metres, 0 where not valid;
    inside: (1, H, W) bool, False where a rotation turned in what no camera saw."""

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    name: str


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
    refused by name, and without a crop all must have one size. `keep_aspect`: each picture is first scaled by one
    factor to just cover the crop, up or down; depth stays in metres, so a scaled picture is one of another focal
    length. `bucket`: nothing is scaled, and a batch holds pictures of one size (tiekd/data/sampler.py).
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
                raise RecipeError(f"data.augment.{name}: got {getattr(self, name)}; a probability is in 0..1")
        if not 0 <= self.rotate_deg <= 180:
            raise RecipeError(f"data.augment.rotate_deg: got {self.rotate_deg}; the largest angle is in 0..180")
        for name in ("gamma", "brightness", "channels"):
            low, high = getattr(self, name)
            if not 0 < low <= high < inf:
                raise RecipeError(f"data.augment.{name}: got {[low, high]}; must be [low, high], 0 < low <= high")
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(f"data.augment.crop: got {self.crop}; it must be [height, width] in pixels")
        if self.sizes not in SIZES:
            raise RecipeError(f"data.augment.sizes: got {self.sizes!r}; allowed: {', '.join(SIZES)}")
        if self.sizes == "keep_aspect" and self.crop is None:
            raise RecipeError("data.augment.sizes: keep_aspect scales pictures to cover data.augment.crop; give a crop")

    def draw(self, seed: int, epoch: int, index: int, height: int, width: int) -> Decisions:
        """The decisions for one sample: a pure function of the arguments. DataError where the crop doesn't fit."""
        rng = np.random.default_rng([seed, epoch, index, 1])
        crop_height, crop_width = self.crop or (height, width)
        if crop_height > height or crop_width > width:
            raise DataError(
                f"data.augment.crop: {crop_height}x{crop_width} is larger than the picture, {height}x{width}; "
                "make the crop smaller, or set data.augment.sizes=keep_aspect",
                "size",
            )
        angle = rng.uniform(-self.rotate_deg, self.rotate_deg) if rng.random() < self.rotate_p else 0.0
        flip = bool(rng.random() < self.flip_p)
        top = int(rng.integers(0, height - crop_height + 1))
        left = int(rng.integers(0, width - crop_width + 1))
        gamma, brightness, channels = None, 1.0, (1.0, 1.0, 1.0)
        if rng.random() < self.colour_p:
            gamma, brightness = rng.uniform(*self.gamma), rng.uniform(*self.brightness)
            channels = tuple(rng.uniform(*self.channels, size=3))
        return Decisions(angle, flip, top, left, crop_height, crop_width, gamma, brightness, channels)


def apply(sample: Sample, decisions: Decisions) -> Sample:
    """The sample as the decisions say, with a float32 image in grey levels."""
    return _colour(_geometry(sample, decisions), decisions)


def normalise(sample: Sample) -> Sample:
    """Grey levels 0..255 to ImageNet's mean 0 and deviation 1 a channel, as the encoders expect."""
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    return sample._replace(image=(sample.image.float() - mean) / std)


def crop_window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The window of the picture and of everything that belongs to it."""
    rows, cols = slice(top, top + height), slice(left, left + width)
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 2] -= left
    intrinsics[1, 2] -= top
    teacher_depth = sample.teacher_depth if sample.teacher_depth is None else sample.teacher_depth[:, rows, cols]
    return sample._replace(
        image=sample.image[:, rows, cols],
        depth=sample.depth[:, rows, cols],
        inside=sample.inside[:, rows, cols],
        teacher_depth=teacher_depth,
        intrinsics=intrinsics,
    )


def scale_to_cover(sample: Sample, height: int, width: int) -> Sample:
    """The sample scaled by one factor so that it just covers height x width: float32 image, bilinear and antialiased;
    depths and `inside` take the nearest pixel, for a mean across an edge would be a depth that nothing has."""
    old = sample.image.shape[-2:]
    factor = max(height / old[0], width / old[1])
    new = max(height, round(old[0] * factor)), max(width, round(old[1] * factor))
    if new == old:
        return sample
    image = F.interpolate(sample.image.float()[None], new, mode="bilinear", align_corners=False, antialias=True)[0]

    def nearest(plane):
        return F.interpolate(plane[None], new, mode="nearest-exact")[0]

    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 0] *= scale_x
    intrinsics[1, 1] *= scale_y
    # Pixel i covers i - 0.5 to i + 0.5, so a coordinate is scaled about the picture's corner at -0.5.
    intrinsics[0, 2] = (intrinsics[0, 2] + 0.5) * scale_x - 0.5
    intrinsics[1, 2] = (intrinsics[1, 2] + 0.5) * scale_y - 0.5
    return Sample(
        image,
        nearest(sample.depth),
        nearest(sample.inside.float()) > 0,
        None if sample.teacher_depth is None else nearest(sample.teacher_depth),
        intrinsics,
        sample.name,
    )


def _geometry(sample: Sample, decisions: Decisions) -> Sample:
    d = decisions
    height, width = sample.image.shape[-2:]
    if d.angle == 0:
        if d.flip:
            sample = _flip(sample)
        return crop_window(sample, d.top, d.left, d.height, d.width)
    # Where each pixel of the window comes from: window -> unflipped -> rotated back about the centre.
    y = torch.arange(d.top, d.top + d.height, dtype=torch.float32)[:, None]
    x = torch.arange(d.left, d.left + d.width, dtype=torch.float32)[None]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    dx, dy = (width - 1 - x if d.flip else x) - centre_x, y - centre_y
    cosine, sine = cos(radians(d.angle)), sin(radians(d.angle))
    source_x, source_y = cosine * dx - sine * dy, sine * dx + cosine * dy
    grid = torch.stack([source_x / (width / 2), source_y / (height / 2)], dim=-1)[None]
    image = F.grid_sample(sample.image.float()[None], grid, "bilinear", "zeros", align_corners=False)[0]
    maps = [sample.depth, sample.inside.float()]
    if sample.teacher_depth is not None:
        maps.append(sample.teacher_depth)
    moved = F.grid_sample(torch.cat(maps)[None], grid, "nearest", "zeros", align_corners=False)[0].split(1)
    intrinsics = _move_intrinsics(sample.intrinsics, d, width, height)
    return Sample(image, moved[0], moved[1] > 0, moved[2] if len(moved) > 2 else None, intrinsics, sample.name)


def _move_intrinsics(intrinsics: Tensor, d: Decisions, width: int, height: int) -> Tensor:
    """The principal point after rotation, flip and crop (the roll itself is no part of a camera matrix)."""
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    dx, dy = float(intrinsics[0, 2]) - centre_x, float(intrinsics[1, 2]) - centre_y
    cosine, sine = cos(radians(d.angle)), sin(radians(d.angle))
    x, y = centre_x + cosine * dx + sine * dy, centre_y - sine * dx + cosine * dy
    moved = intrinsics.clone()
    moved[0, 2] = (width - 1 - x if d.flip else x) - d.left
    moved[1, 2] = y - d.top
    return moved


def _flip(sample: Sample) -> Sample:
    intrinsics = sample.intrinsics.clone()
    intrinsics[0, 2] = sample.image.shape[-1] - 1 - intrinsics[0, 2]
    return sample._replace(
        image=sample.image.flip(-1),
        depth=sample.depth.flip(-1),
        inside=sample.inside.flip(-1),
        teacher_depth=None if sample.teacher_depth is None else sample.teacher_depth.flip(-1),
        intrinsics=intrinsics,
    )


def _colour(sample: Sample, decisions: Decisions) -> Sample:
    image = sample.image.float()
    if decisions.gamma is not None:
        factors = decisions.brightness * torch.tensor(decisions.channels, dtype=torch.float32)
        image = (image.pow(decisions.gamma) * factors[:, None, None]).clamp(max=255)
    return sample._replace(image=image)
