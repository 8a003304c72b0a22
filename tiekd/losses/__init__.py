"""One loss term a file, named in the recipe; tiekd/training/criterion.py weighs and adds them.

A loss takes (prediction, target (B, 1, H, W) float32, metres, 0 where not valid) and returns one float32 value per
image, the mean over that image's valid pixels. An image without any gives 0 and no gradient. Neither the batch's size
nor its split over ranks or micro-batches changes what an image contributes.
"""

import torch
from torch import Tensor

from tiekd.errors import RecipeError


def valid_pixels(target: Tensor, max_depth: float | None = None) -> Tensor:
    """Where target (metres) is a depth: > 0, finite and, if given, <= max_depth. Same shape, bool."""
    return (target > 0) & (target < torch.inf if max_depth is None else target <= max_depth)


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Per image mean of values (B, ...) where valid (B, ...): (B,), 0 for an image without a valid value."""
    return torch.where(valid, values, 0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)


def check_top_crop(top_crop: int, height: int) -> None:
    """Refuses to crop all rows of a picture away: nothing would be learned."""
    if top_crop >= height:
        raise RecipeError(
            f"top_crop: {top_crop} rows of a picture of {height} leave none; make data.augment.crop taller or "
            "the top crop smaller"
        )
