"""Loss terms, one per file, named in the recipe; tiekd/training/criterion.py weights and adds them.

A loss is called with a network's prediction and the target depth, (B, 1, H, W) float32, metres, 0
where not valid. It returns one float32 value per image, which is computed from that image's valid
pixels. An image without valid pixels gives 0 and no gradient. An image's value depends neither on
the batch size nor on how the batch is split over ranks or micro-batches. The options that reproduce
published losses are exceptions; their docstrings say so.
"""

import torch
from torch import Tensor

from tiekd.errors import RecipeError


def valid_pixels(target: Tensor, max_depth: float | None = None) -> Tensor:
    """Returns the mask of valid target depths: > 0, finite and at most max_depth.

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
        values: (B, ...), float, one value per pixel or window.
        valid: (B, ...) bool, True for values that are included in the mean.

    Returns:
        (B,); 0 for an image without a valid value.
    """
    return torch.where(valid, values, 0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)


def check_top_crop(top_crop: int, height: int) -> None:
    """Checks that at least one row of an image is left if its top rows are excluded from a loss.

    Args:
        top_crop: number of excluded rows at the top.
        height: number of the image's rows.

    Raises:
        RecipeError: no row is left.
    """
    if top_crop >= height:
        raise RecipeError(
            f"top_crop: {top_crop} rows of an image of {height} leave none; "
            "make data.augment.crop taller or the top crop smaller"
        )
