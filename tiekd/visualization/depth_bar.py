"""Draws a colour bar in metres beside a coloured depth map, as high as the image.

The bar is coloured by the function that colours the depth map, `pictures.colourise`, so that equal
depths have equal colours. The bar costs a few milliseconds and is cached per image height. Not
covered: titles, and a bar for several images (`pictures.panel`).
"""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tiekd.visualization.pictures import colourise

_BACKGROUND = (24, 24, 27)
_INK = (235, 235, 238)
_SMALLEST_FONT = 11


def with_bar(colour: np.ndarray, max_depth: float) -> np.ndarray:
    """Appends a colour bar from 0 to `max_depth` metres at the right of an image.

    Args:
        colour: (H, W, 3) uint8, a depth map coloured by `colourise`.
        max_depth: End of the colour scale in metres, as given to `colourise`.

    Returns:
        (H, W + the bar's width, 3) uint8 RGB.
    """
    return np.concatenate([colour, bar(len(colour), max_depth)], axis=1)


@lru_cache(maxsize=8)
def bar(height: int, max_depth: float) -> np.ndarray:
    """Draws the colour bar alone, with `max_depth` at the top and ticks at round numbers.

    Args:
        height: Height of the bar in pixels.
        max_depth: End of the colour scale in metres.

    Returns:
        (height, width, 3) uint8, read-only. The width depends on the labels.
    """
    font_size = max(_SMALLEST_FONT, height // 40)
    font = ImageFont.load_default(font_size)
    gap = font_size // 2
    bar_width = max(10, font_size)
    ticks = _ticks(max_depth)
    labels = [f"{tick:g}" for tick in ticks[1:]] + [f"{max_depth:g} m"]
    text_width = math.ceil(max(font.getlength(label) for label in labels))
    canvas = Image.new("RGB", (3 * gap + bar_width + gap // 2 + text_width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = min(gap, height // 4)
    length = height - 2 * min(gap, height // 4)
    # Colour the bar. As in `colourise`, the position on the bar is proportional to the square root
    # of the depth. Depths are kept above 0, which would be coloured as unknown.
    places = np.linspace(1, 0, max(length, 1))
    colours = colourise(np.maximum(max_depth * places**2, max_depth * 1e-6)[:, None], max_depth)
    canvas.paste(Image.fromarray(np.repeat(colours, bar_width, axis=1)), (gap, top))
    # Draw the ticks, the most important first. Leave out a tick whose label would overlap one that
    # has been drawn.
    taken: list[float] = []
    for tick in ticks:
        y = top + (1 - math.sqrt(tick / max_depth)) * (length - 1)
        text_y = min(max(y, font_size / 2), height - font_size / 2)
        if any(abs(text_y - other) < 1.3 * font_size for other in taken):
            continue
        taken.append(text_y)
        left = gap + bar_width
        draw.line(
            [(left, round(y)), (left + gap // 2, round(y))],
            fill=_INK,
            width=max(1, font_size // 12),
        )
        label = f"{tick:g} m" if tick == max_depth else f"{tick:g}"
        draw.text((left + gap, text_y), label, font=font, fill=_INK, anchor="lm")
    pixels = np.asarray(canvas)
    pixels.flags.writeable = False  # the cache returns the same array to all callers
    return pixels


def _ticks(largest: float) -> list[float]:
    """Returns the depths in metres at which the bar may have ticks, the most important first.

    They are `largest` and 0, then 1, 2 and 5 times powers of ten below `largest`, in descending
    order.

    Args:
        largest: End of the colour scale in metres.
    """
    power = math.floor(math.log10(largest))
    round_numbers = [factor * 10.0**p for p in range(power - 2, power + 1) for factor in (1, 2, 5)]
    return [
        largest,
        0.0,
        *sorted((round(n, 9) for n in round_numbers if n < largest), reverse=True),
    ]
