"""Colours depth maps, and draws panels of images with titles and colour scales.

The colour is a fixed function of depth in metres, so that images of different iterations, frames
and runs are comparable. Near is warm, far is cold, unknown is dark grey. The position on the colour
scale is proportional to the square root of the depth, because most pixels of streets and rooms are
near. Uses numpy and Pillow on the CPU; a panel takes some 50 ms. Not covered: normalising to an
image's own range, which would hide a wrong scale of the depth; and matplotlib.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD

UNKNOWN = (52, 52, 56)
BACKGROUND = (24, 24, 27)
INK = (235, 235, 238)
FAINT_INK = (160, 160, 168)
# Colours (hexadecimal RGB) at equal steps of a colour scale: from far to near for depth (similar to
# Google's Turbo), from small to large for errors (similar to Inferno), and from low to high for
# entropies.
_DEPTH_ANCHORS = "3a2a8c 4669e0 28bbec 31f299 a2fc3c edd03a fb8022 d23105 7a0403"
_ERROR_ANCHORS = "000004 320a5e 781c6d bc3754 ed6925 fbb61a fcffa4"
_ENTROPY_ANCHORS = "081d3a 1d4e89 1f87a8 4dbfa5 b5e48c f9f6c1"
_GAP = 6
_MARGIN = 14
_BAR_WIDTH = 14
_SCALE_WIDTH = 74
_TITLE = 24


def colourise(depth: np.ndarray, max_depth: float) -> np.ndarray:
    """Colours a depth map, from dark red for near 0 to dark blue for `max_depth` and beyond.

    Args:
        depth: (H, W) float, metres; 0, negative or not finite where unknown.
        max_depth: End of the colour scale in metres.

    Returns:
        (H, W, 3) uint8, dark grey where unknown.
    """
    return _paint(
        _DEPTH_TABLE, 1 - np.sqrt(_fraction(depth, max_depth)), np.isfinite(depth) & (depth > 0)
    )


def error_map(
    prediction: np.ndarray, target: np.ndarray, max_error: float, radius: int = 0
) -> np.ndarray:
    """Colours |prediction - target|, from black for 0 to light yellow for `max_error` and beyond.

    A non-finite prediction counts as an error of `max_error`.

    Args:
        prediction: (H, W) float, metres.
        target: (H, W) float, metres; 0, negative or not finite where unknown.
        max_error: End of the error scale in metres.
        radius: Each known pixel is dilated to a square with a side of 2 `radius` + 1 pixels, for
            sparse targets; 0 for none. Where squares overlap, the larger error is shown.

    Returns:
        (H, W, 3) uint8, dark grey where the target is unknown.
    """
    known = np.isfinite(target) & (target > 0)
    error = np.abs(prediction - np.where(known, target, 0))
    error = np.where(known, np.minimum(np.nan_to_num(error, nan=max_error), max_error), -np.inf)
    return paint_error(-_minimum(-error, radius), max_error)


def paint_error(error: np.ndarray, max_error: float) -> np.ndarray:
    """Colours sizes of errors, from black for 0 to light yellow for `max_error` and beyond.

    Args:
        error: (H, W), metres, not negative; not finite where unknown.
        max_error: End of the error scale in metres.

    Returns:
        (H, W, 3) uint8, dark grey where unknown.
    """
    return _paint(_ERROR_TABLE, _fraction(error, max_error), np.isfinite(error))


def entropy_map(entropy: np.ndarray, max_entropy: float) -> np.ndarray:
    """Colours entropies, from dark blue for 0 to light yellow for `max_entropy`.

    Args:
        entropy: (H, W) nats, not finite where unknown.
        max_entropy: End of the entropy scale in nats.

    Returns:
        (H, W, 3) uint8, dark grey where unknown.
    """
    return _paint(_ENTROPY_TABLE, _fraction(entropy, max_entropy), np.isfinite(entropy))


def dilate(sparse: np.ndarray, radius: int = 2) -> np.ndarray:
    """Dilates measured points to squares, so that they are visible.

    Where squares overlap, the smaller depth is kept.

    Args:
        sparse: (H, W) float, metres, 0 where not measured.
        radius: The squares have a side of 2 `radius` + 1 pixels.

    Returns:
        (H, W) of the same dtype, metres, 0 outside the squares.
    """
    filled = _minimum(np.where(np.isfinite(sparse) & (sparse > 0), sparse, np.inf), radius)
    return np.where(np.isfinite(filled), filled, 0).astype(sparse.dtype)


def denormalise(image: np.ndarray) -> np.ndarray:
    """Converts an ImageNet-normalised image to 8-bit RGB.

    Args:
        image: (3, H, W) float, ImageNet-normalised.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    pixels = image.transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    return np.rint(np.clip(np.nan_to_num(pixels), 0, 255)).astype(np.uint8)


def panel(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    max_depth: float,
    max_error: float | None = None,
    cell_width: int = 480,
) -> np.ndarray:
    """Draws a grid of images with a title over each column, and colour scales at the right.

    Args:
        rows: Rows of (H, W, 3) uint8 images. A row has one image per title, all of one size.
        titles: The columns' titles.
        max_depth: End of the depth scale in metres.
        max_error: End of the error scale in metres; None to leave the scale out.
        cell_width: Width in pixels to which each image is resized.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: A row's number of images differs from the number of titles.
    """
    if any(len(row) != len(titles) for row in rows):
        raise ValueError(
            f"panel: rows of {[len(row) for row in rows]} images need as many titles, got "
            f"{len(titles)}"
        )
    untitled = [()] * (len(rows) - 1)
    return _grid(rows, [titles, *untitled], _scales(max_depth, max_error, None), cell_width)


def sheet(
    cells: Mapping[str, np.ndarray],
    max_depth: float,
    max_error: float | None = None,
    max_entropy: float | None = None,
    cell_width: int = 400,
) -> np.ndarray:
    """Draws the images of one frame with titles, in two columns, or three if they are narrow.

    Args:
        cells: A dict from title to (H, W, 3) uint8 image.
        max_depth: End of the depth scale in metres.
        max_error: End of the error scale in metres; None to leave the scale out.
        max_entropy: End of the entropy scale in nats; None to leave the scale out.
        cell_width: Width in pixels to which each image is resized.

    Returns:
        (height, width, 3) uint8.
    """
    titles = list(cells)
    images = list(cells.values())
    height, width = images[0].shape[:2]
    columns = 2 if width > 1.5 * height else 3
    lines = [slice(i, i + columns) for i in range(0, len(titles), columns)]
    # Resize all images to one size, because some have a lower resolution, such as entropies.
    size = (cell_width, round(height * cell_width / width))
    rows = [[np.asarray(resized(cell, size)) for cell in images[line]] for line in lines]
    return _grid(
        rows,
        [titles[line] for line in lines],
        _scales(max_depth, max_error, max_entropy),
        cell_width,
    )


def resized(cell: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resizes an image to (width, height).

    To enlarge, it repeats the nearest pixel, so that no colours are added; to shrink, it averages.

    Args:
        cell: The image, (H, W, 3) uint8.
        size: (width, height) in pixels.

    Returns:
        A Pillow image.
    """
    shrinks = size[0] < cell.shape[1]
    return Image.fromarray(cell).resize(
        size, Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    )


def _scales(max_depth: float, max_error: float | None, max_entropy: float | None) -> list[tuple]:
    """Returns the colour scales of depth, error and entropy, except for those without an end.

    Args:
        max_depth: End of the depth scale in metres.
        max_error: End of the error scale in metres; None to leave the scale out.
        max_entropy: End of the entropy scale in nats; None to leave the scale out.

    Returns:
        A list of (name, value at the end, table of colours), in this order; a table is (256, 3)
        uint8.
    """
    scales = [
        ("depth, m", max_depth, _DEPTH_TABLE),
        ("error, m", max_error, _ERROR_TABLE),
        ("entropy", max_entropy, _ENTROPY_TABLE),
    ]
    return [scale for scale in scales if scale[1] is not None]


def _grid(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]], scales, cell_width: int
) -> np.ndarray:
    """Draws rows of images with the colour scales at the right.

    Args:
        rows: Rows of (H, W, 3) uint8 images, of one size within a row.
        titles: For each row the titles above its images; empty for a row without titles.
        scales: The colour scales, as `_scales` returns them.
        cell_width: Width in pixels to which each image is resized.

    Returns:
        (height, width, 3) uint8.
    """
    heights = [round(row[0].shape[0] * cell_width / row[0].shape[1]) for row in rows]
    title_font = ImageFont.load_default(15)
    tick_font = ImageFont.load_default(12)
    # Compute the y coordinate, in pixels, at which each row of images begins.
    tops = []
    y = _MARGIN
    for height, row_titles in zip(heights, titles, strict=True):
        tops.append(y + (_TITLE if row_titles else 0))
        y = tops[-1] + height + _GAP
    # Make the panel at least 150 pixels high, because a lower colour scale would be illegible.
    grid_height = max(y - _GAP - tops[0], 150)
    grid_width = max(map(len, rows)) * (cell_width + _GAP) - _GAP
    size = (2 * _MARGIN + grid_width + len(scales) * _SCALE_WIDTH, tops[0] + grid_height + _MARGIN)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    # Draw the images and their titles.
    for top, height, images, row_titles in zip(tops, heights, rows, titles, strict=True):
        for column, cell in enumerate(images):
            left = _MARGIN + column * (cell_width + _GAP)
            canvas.paste(resized(cell, (cell_width, height)), (left, top))
            if row_titles:
                middle = (left + cell_width / 2, top - _TITLE + 8)
                draw.text(middle, row_titles[column], font=title_font, fill=INK, anchor="mm")
    # Draw the colour scales side by side at the right.
    for index, (name, largest, table) in enumerate(scales):
        left = _MARGIN + grid_width + index * _SCALE_WIDTH + 18
        draw.text((left, _MARGIN + 8), name, font=tick_font, fill=FAINT_INK, anchor="lm")
        _draw_scale(canvas, draw, tick_font, (left, tops[0], grid_height), largest, table)
    return np.asarray(canvas)


def _draw_scale(
    canvas, draw, font, place: tuple[int, int, int], largest: float, table: np.ndarray
) -> None:
    """Draws a vertical colour bar from 0 at the bottom to `largest`, with ticks at round numbers.

    Args:
        canvas: The Pillow image to draw on.
        draw: Pillow's drawing object of this image.
        font: Font of the tick labels.
        place: (left, top, height) of the bar in pixels.
        largest: The value at the top.
        table: (256, 3) uint8, the scale's colours.
    """
    left, top, height = place
    is_depth = table is _DEPTH_TABLE
    fractions = np.linspace(1, 0, height)
    # Compute the bar's colours. Depth colours are listed from far to near, the others from small to
    # large. A depth's position on its scale is proportional to its square root.
    colours = table[np.rint((1 - fractions if is_depth else fractions) * 255).astype(int)]
    canvas.paste(Image.fromarray(np.repeat(colours[:, None], _BAR_WIDTH, axis=1)), (left, top))
    taken: list[int] = []
    for tick in (largest, *_round_numbers(largest)):
        fraction = math.sqrt(tick / largest) if is_depth else tick / largest
        y = top + round((1 - fraction) * (height - 1))
        if any(abs(y - other) < 16 for other in taken):
            continue
        taken.append(y)
        draw.line([(left + _BAR_WIDTH, y), (left + _BAR_WIDTH + 4, y)], fill=FAINT_INK)
        text_y = min(max(y, top + 5), top + height - 6)
        draw.text((left + _BAR_WIDTH + 8, text_y), f"{tick:.4g}", font=font, fill=INK, anchor="lm")


def _round_numbers(largest: float) -> list[float]:
    """Returns the values for a colour scale's ticks: 0, then round numbers in descending order.

    The round numbers are 1, 2 and 5 times powers of ten, below `largest`.

    Args:
        largest: The value at the end of the scale, which isn't included.
    """
    lowest = math.floor(math.log10(largest)) - 1
    ticks = [
        round(factor * 10.0**power, 6)
        for power in range(lowest, lowest + 3)
        for factor in (1, 2, 5)
    ]
    return [0.0, *sorted((tick for tick in ticks if tick < largest), reverse=True)]


def _minimum(values: np.ndarray, radius: int) -> np.ndarray:
    """Returns for each pixel the minimum of the values in the square around it.

    Args:
        values: (H, W) of a float dtype.
        radius: The square has a side of 2 `radius` + 1 pixels.

    Returns:
        (H, W), of the same dtype.
    """
    for axis in (0, 1):
        pads = [(radius, radius) if other == axis else (0, 0) for other in (0, 1)]
        padded = np.moveaxis(np.pad(values, pads, constant_values=np.inf), axis, 0)
        size = values.shape[axis]
        least = padded[:size].copy()
        for shift in range(1, 2 * radius + 1):
            np.minimum(least, padded[shift : shift + size], out=least)
        values = np.moveaxis(least, 0, axis)
    return values


def _fraction(values: np.ndarray, largest: float) -> np.ndarray:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=largest, neginf=0.0) / largest, 0, 1)


def _paint(table: np.ndarray, fraction: np.ndarray, known: np.ndarray) -> np.ndarray:
    places = np.where(known, np.rint(fraction * 255).astype(np.int16), len(table))
    return np.concatenate([table, np.uint8([UNKNOWN])]).take(places, axis=0)


def _table(anchors: str) -> np.ndarray:
    colours = np.array([list(bytes.fromhex(code)) for code in anchors.split()], dtype=float)
    places = np.linspace(0, len(colours) - 1, 256)
    channels = [np.interp(places, np.arange(len(colours)), channel) for channel in colours.T]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


_DEPTH_TABLE, _ERROR_TABLE, _ENTROPY_TABLE = map(
    _table, (_DEPTH_ANCHORS, _ERROR_ANCHORS, _ENTROPY_ANCHORS)
)
