"""The last step of a batch's geometry, on the device: each picture turned, flipped and cut in one resampling.

Workers cut the part of a picture that its window can come from (tiekd/data/augment/geometry.py) and say where each
pixel of the window lies in it; pictures travel in 8 bits and depths in the 16 of their files. Costs a worker nothing
but a copy, a GPU some twenty small kernels a batch without waiting for any, and a core 5 ms for a turned picture of
352x704 with two depth maps, 0.3 ms for a straight one. The results on different devices may differ by the rounding of a
grey level.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Resampled(NamedTuple):
    """image: (B, 3, h, w) uint8; depth, teacher_depth: (B, 1, h, w) as they came in; inside: (B, 1, h, w) bool."""

    image: Tensor
    depth: Tensor
    teacher_depth: Tensor | None
    inside: Tensor


def resample(
    image: Tensor, depth: Tensor, teacher_depth: Tensor | None, places: Tensor, size: tuple
) -> Resampled:
    """The windows of h x w = `size` out of a batch of parts of pictures, (B, 3, H, W) uint8 and (B, 1, H, W).

    places: (B, 8) float64, in pixels of the part: (x, y) of the window's first pixel, the step to its next column, the
    step to its next row, then the part's height and width, beyond which it is only filled up. The image is bilinear and
    rounded to a grey level, depths take the nearest pixel. What comes from outside is black and has depth 0.
    """
    if image.device.type != "cpu":  # asking which ones are straight would wait for the device
        return _turned(image, depth, teacher_depth, places, size)
    maps = [depth] if teacher_depth is None else [depth, teacher_depth]
    parts = []
    for index, place in enumerate(places.tolist()):
        one = [tensor[index : index + 1] for tensor in (image, *maps)]
        if (
            place[3] == place[4] == 0
            and abs(place[2]) == place[5] == 1
            and _lies_within(place, size)
        ):
            parts.append(_straight(one, place, size))
        else:
            parts.append(_turned(*one, *[None] * (3 - len(one)), places[index : index + 1], size))
    columns = zip(*parts, strict=True)
    return Resampled(*(None if column[0] is None else torch.cat(column) for column in columns))


def _lies_within(place: list[float], size: tuple[int, int]) -> bool:
    """True for a window that isn't turned and reaches nowhere beyond its part."""
    first, top, step, *_, height, width = place
    left = first - (size[1] - 1 if step < 0 else 0)
    return left >= 0 and top >= 0 and left + size[1] <= width and top + size[0] <= height


def _straight(planes: list[Tensor], place: list[float], size: tuple[int, int]) -> Resampled:
    """One window that isn't turned: a view, or its mirror image."""
    (height, width), flip = size, place[2] < 0
    left, top = int(place[0]) - (width - 1 if flip else 0), int(place[1])
    image, *maps = (plane[..., top : top + height, left : left + width] for plane in planes)
    image, *maps = (
        _bits(plane).flip(-1).view(plane.dtype) if flip else plane for plane in (image, *maps)
    )
    return Resampled(
        image,
        maps[0],
        maps[1] if len(maps) > 1 else None,
        torch.ones(1, 1, *size, dtype=torch.bool),
    )


def _bits(plane: Tensor) -> Tensor:
    """A plane whose elements can be moved: unsigned 16-bit ones can't on some devices and in some torch."""
    return plane.view(torch.int16) if plane.dtype == torch.uint16 else plane


def _turned(
    image: Tensor, depth: Tensor, teacher_depth: Tensor | None, places: Tensor, size: tuple
) -> Resampled:
    x, y = _coordinates(places, size)
    height, width = image.shape[-2:]
    # -1 and 1 are the outer edges of the part's pixels.
    grid = torch.stack(
        [x.add(0.5).mul_(2 / width).sub_(1), y.add(0.5).mul_(2 / height).sub_(1)], dim=-1
    )
    planes = image.to(torch.float32, memory_format=torch.contiguous_format)
    levels = (
        F.grid_sample(planes, grid, "bilinear", "zeros", align_corners=False)
        .add_(0.5)
        .to(torch.uint8)
    )
    columns, rows = x.add_(0.5).floor_(), y.add_(0.5).floor_()
    heights, widths = places[:, 6:].float()[..., None, None].unbind(1)
    inside = (columns >= 0) & (columns < widths) & (rows >= 0) & (rows < heights)
    index = (rows.long().mul_(width).add_(columns.long())).mul_(inside).flatten(1)
    shape, outside = (len(image), 1, *size), ~inside[:, None]

    def nearest(plane: Tensor | None) -> Tensor | None:
        if plane is None:
            return None
        return (
            _bits(plane)
            .flatten(1)
            .gather(1, index)
            .view(shape)
            .masked_fill_(outside, 0)
            .view(plane.dtype)
        )

    return Resampled(levels, nearest(depth), nearest(teacher_depth), inside[:, None])


def _coordinates(places: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """x and y, (B, h, w) float32, of the windows' pixels: a sum of what its column and what its row says."""
    rows, columns = (
        torch.arange(count, dtype=torch.float64, device=places.device) for count in size
    )
    origin, to_column, to_row = places[:, :6].view(-1, 3, 2, 1).unbind(1)
    of_column, of_row = (origin + to_column * columns).float(), (to_row * rows).float()
    return tuple((of_column[:, :, None, :] + of_row[:, :, :, None]).unbind(1))
