"""Converts a batch's images to RGB values from 0 to 255, and cameras to those of mirrored images.

Networks from outside the project, such as those of transformers, need both: their preprocessing
takes RGB values, and the teacher may average over mirrored images.
"""

import torch
from torch import Tensor

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD


def rgb_of(image: Tensor) -> Tensor:
    """Converts a batch's images from ImageNet normalisation back to integers from 0 to 255.

    If an image was neither augmented nor resized, the result has exactly the values of its file.

    Args:
        image: (B, 3, H, W) float32, RGB, ImageNet-normalised, as `Batch.image`.

    Returns:
        (B, 3, H, W) uint8, RGB, 0..255.
    """
    mean, std = (torch.tensor(c, device=image.device) for c in (IMAGENET_MEAN, IMAGENET_STD))
    levels = image.float() * std.view(3, 1, 1) + mean.view(3, 1, 1)
    return levels.round().clamp(0, 255).to(torch.uint8)


def mirrored_intrinsics(intrinsics: Tensor, width: int) -> Tensor:
    """Returns the camera matrices of images that are mirrored horizontally.

    Args:
        intrinsics: (B, 3, 3) the matrices before, in pixels.
        width: The width of the images in pixels.

    Returns:
        (B, 3, 3) the matrices for the mirrored images, in a new tensor.
    """
    mirrored = intrinsics.clone()
    mirrored[:, 0, 2] = (width - 1) - mirrored[:, 0, 2]
    return mirrored
