"""Samples the random parameters of an augmentation (`Decisions`), and applies the colour changes.

tiekd/data/augment/geometry.py applies rotation, flip and crop.

A training sample's augmentation depends on (seed, epoch, index) alone. The colour change and the
normalisation are combined in one lookup table of 256 values per channel. It is applied on the
batch's device in one pass, with the same result on every device.

Not covered: resizing, which isn't random but the same in training, evaluation and prediction
(tiekd/data/resize.py).
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError

# Mean and standard deviation of the red, green and blue channel, in grey levels 0..255.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
SIZES = ("crop", "keep_aspect", "bucket")


class Decisions(NamedTuple):
    """The random parameters of one sample's augmentation.

    The window is the rectangle to which the rotated and flipped image is cropped.

    Attributes:
        angle: Degrees counter-clockwise about the image's centre.
        flip: True mirrors the image horizontally.
        top: First row of the window, in the rotated and flipped image.
        left: First column of the window, in the rotated and flipped image.
        height: Rows of the window.
        width: Columns of the window.
        gamma: Exponent that is applied first, to grey levels 0..255; None for no colour change,
            whatever `brightness` and `channels` are.
        brightness: Factor by which grey levels are multiplied after gamma.
        channels: Factors of the red, green and blue grey levels, applied last. Values above 255 are
            clipped to 255, as in a camera.
    """

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

    Attributes:
        rotate_p: Probability of a rotation.
        rotate_deg: Largest rotation angle in either direction, in degrees.
        flip_p: Probability of a horizontal flip.
        crop: [height, width] of the window in pixels, which is at a random position; None keeps the
            whole image.
        sizes: How images of different sizes are handled. `crop`: they are cropped, not resized; an
            image smaller than the crop raises an error that names it, and without a crop all images
            must have one size. `keep_aspect`: they are resized by one factor to cover the crop
            (tiekd/data/resize.py), in training and everywhere else; if `data.resize` sets the size
            instead, the crop is clipped to the resized image. `bucket`: a batch holds images of one
            size (tiekd/data/loading/sampler.py).
        colour_p: Probability of a colour change (gamma, brightness and channels together).
        gamma: [low, high] of the random exponent that is applied to grey levels.
        brightness: [low, high] of the random factor by which grey levels are multiplied.
        channels: [low, high] of further random factors, one for each of red, green and blue.
        zoom: [low, high] of the random factor by which the image is scaled before it is cropped;
            its logarithm has a uniform distribution. If the image is then smaller than the crop, it
            is padded. None doesn't zoom. The focal length changes with the image.
        zoom_depth: "divide" for a network without `canonical_focal`: the focal length stays as
            without zoom, and depth is divided by the zoom, as if the scene were nearer. None for a
            network with `canonical_focal`, which uses the changed focal length.
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
    zoom: tuple[float, float] | None = None
    zoom_depth: str | None = None

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
        if self.zoom is not None and not 0.1 <= self.zoom[0] <= self.zoom[1] <= 10:
            raise RecipeError(
                f"data.augment.zoom: got {list(self.zoom)}; it must be [low, high], 0.1 <= low <= "
                "high <= 10, such as [0.7, 1.4], or null"
            )
        if self.zoom_depth not in (None, "divide"):
            raise RecipeError(
                f"data.augment.zoom_depth: got {self.zoom_depth!r}; allowed: divide, null"
            )
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(
                f"data.augment.crop: got {self.crop}; it must be [height, width] in pixels"
            )
        if self.sizes not in SIZES:
            raise RecipeError(
                f"data.augment.sizes: got {self.sizes!r}; allowed: {', '.join(SIZES)}"
            )

    @property
    def zoom_range(self) -> tuple[float, float]:
        """The smallest and the largest zoom factor of the recipe; (1, 1) without zoom."""
        return (1.0, 1.0) if self.zoom is None else tuple(self.zoom)

    def draw_zoom(self, seed: int, epoch: int, index: int) -> float:
        """Returns the random zoom factor of one sample; 1 if the recipe has no zoom.

        The factor has a random stream of its own, so that `draw` returns the same with and without
        zoom.

        Args:
            seed: The run's seed.
            epoch: Epoch, from 0.
            index: The sample's index in the sampler's numbering, in which each repetition of a
                sample has an index of its own.
        """
        if self.zoom is None:
            return 1.0
        low, high = np.log(self.zoom)
        return float(np.exp(np.random.default_rng([seed, epoch, index, 2]).uniform(low, high)))

    def draw(
        self,
        seed: int,
        epoch: int,
        index: int,
        height: int,
        width: int,
        window: tuple[int, int] | None = None,
    ) -> Decisions:
        """Returns the random parameters for one sample, which depend on the arguments alone.

        Args:
            seed: The run's seed.
            epoch: Epoch, from 0.
            index: The sample's index in the sampler's numbering, in which each repetition of a
                sample has an index of its own.
            height: Rows of the image after resizing and zoom, including padding.
            width: Columns of the image after resizing and zoom, including padding.
            window: (height, width) to which the image is cropped if the recipe has no crop; None
                for the whole image.

        Raises:
            DataError: The crop is larger than the image.
        """
        rng = np.random.default_rng([seed, epoch, index, 1])

        # Compute the size of the crop window.
        crop_height, crop_width = self.crop or window or (height, width)
        if self.sizes == "keep_aspect":
            crop_height = min(crop_height, height)
            crop_width = min(crop_width, width)
        if crop_height > height or crop_width > width:
            raise DataError(
                f"data.augment.crop: {crop_height}x{crop_width} is larger than the image, "
                f"{height}x{width}; make the crop smaller, set data.augment.sizes=keep_aspect, or "
                "scale images by data.resize",
                "size",
            )
        # Don't change the order of these random numbers: another order would give other
        # augmentations for the same seed.
        angle = 0.0
        if rng.random() < self.rotate_p:
            angle = rng.uniform(-self.rotate_deg, self.rotate_deg)
        flip = bool(rng.random() < self.flip_p)
        top = int(rng.integers(0, height - crop_height + 1))
        left = int(rng.integers(0, width - crop_width + 1))
        gamma = None
        brightness = 1.0
        channels = (1.0, 1.0, 1.0)
        if rng.random() < self.colour_p:
            gamma = rng.uniform(*self.gamma)
            brightness = rng.uniform(*self.brightness)
            channels = tuple(rng.uniform(*self.channels, size=3))
        return Decisions(
            angle, flip, top, left, crop_height, crop_width, gamma, brightness, channels
        )


def normalise(sample: Sample) -> Sample:
    """Returns a copy of a sample with its image normalised to float32.

    Each channel is normalised by ImageNet's mean and standard deviation, as encoders that were
    pretrained on ImageNet expect. The other fields of the sample stay as they are.

    Args:
        sample: The sample, whose image has grey levels 0..255, uint8 or float32.
    """
    return sample._replace(image=_normalised(sample.image))


def colour_table(decisions: Decisions | None = None) -> Tensor:
    """Returns each channel's lookup table from grey level to normalised value, (3, 256) float32.

    A table combines the augmentation's colour change, which is applied first, with the
    normalisation by ImageNet's mean and standard deviation.

    Args:
        decisions: The random parameters of an image's augmentation, of which gamma, brightness and
            channels are used; None leaves the colours unchanged before the normalisation.
    """
    levels = torch.arange(256, dtype=torch.float32).expand(3, 1, 256)
    if decisions is not None and decisions.gamma is not None:
        factors = decisions.brightness * torch.tensor(decisions.channels, dtype=torch.float32)
        levels = (levels.pow(decisions.gamma) * factors[:, None, None]).clamp(max=255)
    return _normalised(levels)[:, 0]


def look_up(image: Tensor, tables: Tensor) -> Tensor:
    """Replaces each grey level of a batch's images by its entry in the image's lookup table.

    Args:
        image: (B, 3, H, W) uint8.
        tables: (B, 3, 256) float32, as `colour_table` returns them.

    Returns:
        (B, 3, H, W) float32.
    """
    # Look up all colours by one gather from the flattened tables, in which each (image, channel)
    # pair has 256 consecutive entries.
    first = torch.arange(0, tables.numel(), 256, dtype=torch.int32, device=image.device)
    places = image + first.view(*tables.shape[:2], 1, 1)
    return tables.flatten().index_select(0, places.flatten()).view(places.shape)


def _normalised(image: Tensor) -> Tensor:
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    return (image.float() - mean) / std
