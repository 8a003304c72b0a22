"""Images to try an exported student on: the recipe's validation frames, or built-in scenes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data.build import build_dataset, settings_of
from tiekd.data.datasets import scenes
from tiekd.data.resize import resized_image
from tiekd.errors import DataError, RecipeError

_RENDERED = 192, 640


def frames(recipe: dict, count: int = 2) -> tuple[list[Tensor], str]:
    """Returns images at their own size, evenly spaced over the validation set.

    Args:
        recipe: The recipe.
        count: The largest number of images.

    Returns:
        (3, H, W) uint8 images, and their description.
    """
    try:
        data = recipe.get("data", {})
        found = []
        if "data" in recipe:
            settings = settings_of(data, recipe["network"]["max_depth"])
            found = build_dataset(settings, "val", as_evaluated=True)
        return _spaced(found, count), f"{data.get('root', data.get('name'))} (val)"
    # Without usable validation data the built-in scenes stand in.
    except (DataError, RecipeError) as error:
        reason = str(error)
    return [
        torch.from_numpy(
            scenes.render(0, scenes.FIRST_HELD_OUT_INDEX + i, *_RENDERED).image
        ).permute(2, 0, 1)
        for i in range(count)
    ], f"built-in scenes ({reason})"


def batches(
    images: Sequence[Tensor], size: tuple[int, int], least: int | None = None
) -> list[Tensor]:
    """Returns the batches to try.

    Args:
        images: (3, H, W) uint8 images.
        size: (height, width) that each image is tried at, alone.
        least: The least side of a file that takes any size, which is then also tried with all
            images at once at an odd size; None for a file of one size.

    Returns:
        (1, 3, H, W) uint8 batches, then perhaps (B, 3, h, w).
    """
    tried = [resized_image(each, size)[None].contiguous() for each in images]
    if least is not None:
        odd = tuple(max(least, 3 * side // 4) | 1 for side in size)
        tried.append(torch.stack([resized_image(each, odd) for each in images]))
    return tried


def _spaced(found: Dataset, count: int) -> list[Tensor]:
    if len(found) == 0:
        raise DataError("no validation frames")
    count = min(count, len(found))
    return [found[index * len(found) // count].image for index in range(count)]
