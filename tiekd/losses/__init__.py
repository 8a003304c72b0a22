"""Loss terms, one per file, named in the recipe; tiekd/training/criterion.py weighs and adds them.

A loss takes (prediction, target). The target is (B, 1, H, W) float32, metres, 0 where not valid.
It returns one float32 value per image, the mean over that image's valid pixels. An image without
valid pixels gives 0 and no gradient. An image's value depends neither on the batch size nor on how
the batch is split over ranks or micro-batches.
"""

import torch
from torch import Tensor

from tiekd.errors import RecipeError


def valid_pixels(target: Tensor, max_depth: float | None = None) -> Tensor:
    """Returns the mask of valid depths: > 0, finite and, if max_depth is given, <= max_depth.

    Args:
        target: depth of any shape, metres.
        max_depth: largest valid depth, metres; None for no upper bound.

    Returns:
        Bool tensor of the target's shape.
    """
    return (target > 0) & (target < torch.inf if max_depth is None else target <= max_depth)


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Returns the mean of each image's valid values.

    Args:
        values: (B, ...), float.
        valid: (B, ...) bool, True for values that count.

    Returns:
        (B,); 0 for an image without a valid value.
    """
    return torch.where(valid, values, 0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)


def check_top_crop(top_crop: int, height: int) -> None:
    """Checks that a top crop leaves rows of the image to learn from.

    Args:
        top_crop: rows cropped at the top.
        height: rows of the image.

    Raises:
        RecipeError: top_crop >= height.
    """
    if top_crop >= height:
        raise RecipeError(
            f"top_crop: {top_crop} rows of an image of {height} leave none; "
            "make data.augment.crop taller or the top crop smaller"
        )
