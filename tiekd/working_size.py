"""At which size a network sees a picture: its own, or one that the network was made for and the memory holds.

A network takes any size (what its strides don't divide is padded inside it), but its memory grows with the pixels, and
a picture much larger than those of training shows things of a size that it never learned. Aspect is always kept. A
picture that is shrunk has another focal length than the camera's, in pixels; depth is not scaled for it, since the
network's training (augmentation by `keep_aspect` among it) decides what it makes of that.
"""

import math
import re

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tiekd.annotations import check_value
from tiekd.errors import RecipeError

SLACK = 1.5  # a picture with up to so many times the pixels of the recipe's keeps its size
DEFAULT = (480, 640)  # where a recipe says none


def recipe_size(data: dict) -> tuple[int, int]:
    """(height, width) that a recipe's data is evaluated or trained on: kb_crop, height and width, NYU's, or a crop.

    Raises RecipeError for what is no size.
    """
    augment = data.get("augment", {})
    check_value(augment, dict, "data.augment")
    size, crop = DEFAULT, augment.get("crop")
    if data.get("kb_crop") is not None:
        size = _checked(data["kb_crop"], "data.kb_crop")
    elif "height" in data and "width" in data:
        size = _checked((data["height"], data["width"]), "data.height, data.width")
    elif data.get("name") != "nyu" and crop is not None:
        size = _checked(crop, "data.augment.crop")
    return size


def _checked(size, where: str) -> tuple[int, int]:
    check_value(size, tuple[int, int], where)
    if min(size) < 1:
        raise RecipeError(f"{where}: got {size}; it must be height and width in pixels, from 1")
    return tuple(size)


def parse(text: str | None, default: tuple[int, int]) -> "tuple[int, int] | float | None":
    """The option --size as `working_size` takes it: HxW -> (H, W), "full" -> None, None -> a number of pixels.

    default: the recipe's size. Raises RecipeError.
    """
    if text is None:
        return float(default[0] * default[1])
    if text == "full":
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 1:
        raise RecipeError(f"--size: got {text!r}; allowed: HEIGHTxWIDTH in pixels, such as 352x1216, or full")
    return int(match[1]), int(match[2])


def working_size(height: int, width: int, limit: tuple[int, int] | float | None) -> tuple[int, int]:
    """The size, near the picture's aspect, at which a network sees a picture of height x width.

    limit: (H, W) scales it by one factor, up or down, to fit in there; a number of pixels shrinks a picture with more
    than SLACK times as many to about that many; None leaves it as it is.
    """
    if limit is None:
        return height, width
    if isinstance(limit, tuple):
        factor = min(limit[0] / height, limit[1] / width)
    elif height * width <= SLACK * limit:
        return height, width
    else:
        factor = math.sqrt(limit / (height * width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized_picture(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, *size) uint8, bilinear; shrinking averages over what a pixel covers."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    return interpolate(pixels, size=size, mode="bilinear", antialias=True)


def resized_map(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """(B, 1, h, w) float32 -> (B, 1, *size), bilinear, or the nearest with `smooth` False, which adds no depth between
    the two sides of an edge."""
    if tuple(values.shape[2:]) == size:
        return values
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=False)
    return interpolate(values, size=size, mode="nearest-exact")


def on_image_grid(values: Tensor, size: tuple[int, int], smooth: bool) -> Tensor:
    """A head's (B, 1, h, w) at the image's size, corners aligned as in `Network`; the nearest with `smooth` False."""
    if tuple(values.shape[2:]) == size:
        return values
    if smooth:
        return interpolate(values, size=size, mode="bilinear", align_corners=True)
    rows, columns = (
        torch.linspace(0, coarse - 1, fine, device=values.device).round().long()
        for coarse, fine in zip(values.shape[2:], size, strict=True)
    )
    return values[:, :, rows][:, :, :, columns]
