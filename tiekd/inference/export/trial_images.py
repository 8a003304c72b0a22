"""Provides images on which an exported file is compared with its network.

They are validation frames of the recipe's dataset, or rendered street scenes if there is no usable
validation data.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.config import data_sets
from tiekd.data.build import build_dataset, settings_of
from tiekd.data.datasets import scenes
from tiekd.data.frame_table import spaced
from tiekd.data.resize import resized_image
from tiekd.errors import DataError, RecipeError
from tiekd.evaluation.agreement import TEACHER

_RENDERED = 192, 640  # (height, width) in pixels of rendered scenes


def frames(recipe: dict, count: int = 2) -> tuple[list[Tensor], str]:
    """Returns images on which an exported file can be compared with its network.

    They are evenly spaced frames of the recipe's validation split, at their own size. If they can't
    be read, scenes of the built-in `scenes` dataset are rendered instead.

    Args:
        recipe: The recipe, whose `data` section may be missing.
        count: The maximum number of images.

    Returns:
        (images, text): the images, each (3, H, W) uint8; and a description of where they come from.
    """
    try:
        # If the recipe has several data sets, take the first one that is validated.
        for data_set in data_sets.sets_of(recipe):
            if data_set.node.get("validate", True):
                recipe = data_sets.single_set_recipe(recipe, data_set)
                break
        data = recipe.get("data", {})
        found = []
        if "data" in recipe:
            settings = settings_of(data, recipe["network"]["max_depth"])
            # If the evaluation compares with the teacher instead of ground truth, `build_dataset`
            # selects other validation frames, which need no ground truth.
            against = recipe.get("evaluation", {}).get("against")
            settings = replace(settings, scores_teacher=against == TEACHER)
            found = build_dataset(settings, "val", as_evaluated=True)
        return _spaced(found, count), f"{data.get('root', data.get('name'))} (val)"
    # Render scenes if there are no usable validation frames, and return the reason.
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
    """Returns the batches on which an exported file is compared with its network.

    Args:
        images: Images of any sizes, each (3, H, W) uint8.
        size: (height, width) in pixels to which each image is resized.
        least: The minimum side in pixels of the images that the file takes, if it takes images of
            any size. A last batch then holds all images at about 3/4 of `size`, with odd sides.
            None for a file that takes images of one size.

    Returns:
        One batch (1, 3, height, width) uint8 per image; then, if `least` is given, one batch
        (B, 3, h, w) uint8 of all B images at about 3/4 of `size`.
    """
    tried = [resized_image(each, size)[None].contiguous() for each in images]
    if least is not None:
        odd = tuple(max(least, 3 * side // 4) | 1 for side in size)
        tried.append(torch.stack([resized_image(each, odd) for each in images]))
    return tried


def _spaced(found: Dataset, count: int) -> list[Tensor]:
    if len(found) == 0:
        raise DataError("no validation frames")
    return [found[index].image for index in spaced(len(found), count).tolist()]
