"""Images as other networks take them: RGB grey levels, from the ImageNet-normalised batch."""

import torch
from torch import Tensor

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD


def rgb_of(image: Tensor) -> Tensor:
    """Returns a batch's images as grey levels; exactly those of the files where none was augmented.

    Args:
        image: (B, 3, H, W) float32, RGB, ImageNet-normalised, as `Batch.image`.

    Returns:
        (B, 3, H, W) uint8, RGB, 0..255.
    """
    mean, std = (torch.tensor(c, device=image.device) for c in (IMAGENET_MEAN, IMAGENET_STD))
    levels = image.float() * std.view(3, 1, 1) + mean.view(3, 1, 1)
    return levels.round().clamp(0, 255).to(torch.uint8)


def mirrored_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Returns the (B, 3, 3) intrinsics of images of this width after a horizontal mirroring."""
    mirrored = intrinsics.clone()
    mirrored[:, 0, 2] = (width - 1) - mirrored[:, 0, 2]
    return mirrored
