"""Resamples a batch on the device: each image is rotated, flipped and cropped in one step.

The resulting image is called the window. Workers crop each image to the region that contains the
window's pixels (tiekd/data/augment/geometry.py), and send the affine map from the window to the
region. Images are sent as uint8 and depths as the uint16 of their files. Resampling costs a copy in
the worker, and on a GPU some twenty small kernels per batch without a host sync. On one CPU core a
rotated image of 352x704 with two depth maps takes 5 ms, an unrotated one 0.3 ms. Results on
different devices may differ by one grey level, due to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The results of `resample`: image, depth, teacher depth (or None), and the mask `inside`, which is
# False at output pixels from outside the input image.
Windows = tuple[Tensor, Tensor, Tensor | None, Tensor]


def resample(
    image: Tensor,
    depth: Tensor,
    teacher_depth: Tensor | None,
    affine_maps: Tensor,
    size: tuple[int, int],
) -> Windows:
    """Rotates, flips and crops a batch of images and depth maps by one affine map per image.

    The image is sampled bilinearly and rounded to an integer; depths take the nearest pixel. Output
    pixels that lie outside the input are black and have depth 0.

    Args:
        image: (B, 3, H, W) uint8.
        depth: (B, 1, H, W) of any dtype and unit, 0 where invalid.
        teacher_depth: Like `depth`, but with any number of planes; None without teacher maps.
        affine_maps: (B, 8) float64, the affine map from each output image (the window) to its
            input, in pixels of the input: (x, y) of the window's first pixel, the (x, y) step to
            its next column, the (x, y) step to its next row, then the input's height and width.
            Input pixels beyond that height and width are padding.
        size: (h, w) of the output in pixels.

    Returns:
        image (B, 3, h, w) uint8; depth (B, 1, h, w) in the input's dtype and unit; teacher_depth
        like depth, or None; and inside (B, 1, h, w) bool, a mask that is False at pixels outside
        the input.
    """
    # Treat unrotated images separately, which is faster, on the CPU only: on a GPU, checking which
    # images are unrotated would force a host sync.
    if image.device.type != "cpu":
        return _rotated(image, depth, teacher_depth, affine_maps, size)
    maps = [depth] if teacher_depth is None else [depth, teacher_depth]
    parts = []
    for index, affine_map in enumerate(affine_maps.tolist()):
        one = [tensor[index : index + 1] for tensor in (image, *maps)]
        # The steps in the image to the window's next column and next row. Without rotation they are
        # one pixel along the axes; a flip makes the column's step -1.
        column_x, column_y, row_x, row_y = affine_map[2:6]
        is_upright = column_y == row_x == 0 and abs(column_x) == row_y == 1
        if is_upright and _lies_within(affine_map, size):
            parts.append(_upright(one, affine_map, size))
        else:
            planes = *one, *[None] * (3 - len(one))
            parts.append(_rotated(*planes, affine_maps[index : index + 1], size))
    columns = zip(*parts, strict=True)
    return tuple(None if column[0] is None else torch.cat(column) for column in columns)


def _lies_within(affine_map: list[float], size: tuple[int, int]) -> bool:
    """Returns True if an unrotated window is entirely within its input image.

    Args:
        affine_map: The affine map from the window to the input image, 8 numbers as in a row of
            `resample`'s argument `affine_maps`.
        size: (height, width) of the window in pixels.
    """
    first, top, step, *_, height, width = affine_map
    left = first - (size[1] - 1 if step < 0 else 0)
    return left >= 0 and top >= 0 and left + size[1] <= width and top + size[0] <= height


def _upright(planes: list[Tensor], affine_map: list[float], size: tuple[int, int]) -> Windows:
    """Crops one unrotated window from its input image, and mirrors it if `affine_map` has a flip.

    Args:
        planes: The image, the depth map and, if there is one, the teacher map, each with a batch
            dimension of 1.
        affine_map: The affine map from the window to the input image, 8 numbers as in a row of
            `resample`'s argument `affine_maps`.
        size: (height, width) of the window in pixels.

    Returns:
        The results of `resample` for a batch of 1, as views of the input, or as copies if mirrored.
    """
    height, width = size
    flip = affine_map[2] < 0
    left = int(affine_map[0]) - (width - 1 if flip else 0)
    top = int(affine_map[1])
    image, *maps = (plane[..., top : top + height, left : left + width] for plane in planes)
    image, *maps = (
        _as_int16(plane).flip(-1).view(plane.dtype) if flip else plane for plane in (image, *maps)
    )
    inside = torch.ones(1, 1, *size, dtype=torch.bool)
    return image, maps[0], maps[1] if len(maps) > 1 else None, inside


def _as_int16(plane: Tensor) -> Tensor:
    """Returns a uint16 tensor viewed as int16, any other tensor unchanged.

    Some devices and versions of torch can't flip or gather uint16.

    Args:
        plane: A tensor of any shape, such as a depth map.
    """
    return plane.view(torch.int16) if plane.dtype == torch.uint16 else plane


def _rotated(
    image: Tensor,
    depth: Tensor,
    teacher_depth: Tensor | None,
    affine_maps: Tensor,
    size: tuple[int, int],
) -> Windows:
    """Resamples a batch as `resample` does, for images that may be rotated, on any device.

    Args:
        image: (B, 3, H, W) uint8.
        depth: (B, 1, H, W) of any dtype and unit, 0 where invalid.
        teacher_depth: Like `depth`, but with any number of planes; None without teacher maps.
        affine_maps: (B, 8) float64, the affine map from each output image to its input, as in
            `resample`.
        size: (h, w) of the output in pixels.

    Returns:
        image (B, 3, h, w) uint8; depth (B, 1, h, w) in the input's dtype; teacher_depth like depth,
        or None; and a bool mask (B, 1, h, w), False at output pixels from outside the input.
    """
    # Sample the image bilinearly. `grid_sample` takes coordinates from -1 to 1, which are the outer
    # edges of the image's first and last pixels.
    x, y = _coordinates(affine_maps, size)
    height, width = image.shape[-2:]
    grid = torch.stack(
        [x.add(0.5).mul_(2 / width).sub_(1), y.add(0.5).mul_(2 / height).sub_(1)], dim=-1
    )
    planes = image.to(torch.float32, memory_format=torch.contiguous_format)
    levels = (
        F.grid_sample(planes, grid, "bilinear", "zeros", align_corners=False)
        .add_(0.5)
        .to(torch.uint8)
    )
    # Take each depth from the nearest pixel, since a mean of two depths may be on no surface.
    columns, rows = x.add_(0.5).floor_(), y.add_(0.5).floor_()
    heights, widths = affine_maps[:, 6:].float()[..., None, None].unbind(1)
    inside = (columns >= 0) & (columns < widths) & (rows >= 0) & (rows < heights)
    index = (rows.long().mul_(width).add_(columns.long())).mul_(inside).flatten(1)[:, None]
    outside = ~inside[:, None]

    def nearest(plane: Tensor | None) -> Tensor | None:
        if plane is None:
            return None
        return (
            _as_int16(plane)
            .flatten(2)
            .gather(2, index.expand(-1, plane.shape[1], -1))
            .unflatten(2, size)
            .masked_fill_(outside, 0)
            .view(plane.dtype)
        )

    return levels, nearest(depth), nearest(teacher_depth), inside[:, None]


def _coordinates(affine_maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the input coordinates of each output pixel: x and y, (B, h, w) float32 each.

    The map is affine, so each coordinate is the sum of a term that depends on the pixel's column
    and a term that depends on its row.

    Args:
        affine_maps: (B, 8) float64, the affine maps from output to input pixels, as in `resample`.
        size: (h, w) of the output in pixels.
    """
    rows, columns = (
        torch.arange(count, dtype=torch.float64, device=affine_maps.device) for count in size
    )
    origin, to_column, to_row = affine_maps[:, :6].view(-1, 3, 2, 1).unbind(1)
    of_column = (origin + to_column * columns).float()
    of_row = (to_row * rows).float()
    return tuple((of_column[:, :, None, :] + of_row[:, :, :, None]).unbind(1))
