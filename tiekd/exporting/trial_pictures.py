"""Pictures that an exported student is tried on: the recipe's own validation frames, else the built-in scenes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from tiekd.data import scenes
from tiekd.data.section import build_dataset
from tiekd.errors import DataError

_RENDERED = 192, 640


def frames(recipe: dict, count: int = 2) -> tuple[list[Tensor], str]:
    """Up to `count` pictures, (3, H, W) uint8, evenly spaced over the validation set; and what they are, in words."""
    try:
        found = build_dataset({**recipe, "teacher": None}, "val", as_evaluated=True) if "data" in recipe else []
        data = recipe.get("data", {})
        return _spaced(found, count), f"{data.get('root', data.get('name'))} (val)"
    except DataError as error:
        reason = str(error)
    return [
        torch.from_numpy(scenes.render(0, scenes.FIRST_HELD_OUT_INDEX + i, *_RENDERED).image).permute(2, 0, 1)
        for i in range(count)
    ], f"built-in scenes ({reason})"


def batches(pictures: Sequence[Tensor], size: tuple[int, int], dynamic: bool, least: int = 1) -> list[Tensor]:
    """What to try: each picture alone at (height, width), (1, 3, H, W) uint8; with `dynamic` then also all of them at
    once at an odd size of sides from `least`, (B, 3, h, w)."""
    tried = [_resized(picture, size)[None] for picture in pictures]
    if dynamic:
        odd = tuple(max(least, 3 * side // 4) | 1 for side in size)
        tried.append(torch.stack([_resized(picture, odd) for picture in pictures]))
    return tried


def _spaced(found: Dataset, count: int) -> list[Tensor]:
    if len(found) == 0:
        raise DataError("no validation frames")
    count = min(count, len(found))
    return [found[index * len(found) // count].image for index in range(count)]


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[1:]) == size:
        return picture.contiguous()
    resized = interpolate(picture[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).byte()
