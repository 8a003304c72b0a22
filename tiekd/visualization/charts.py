"""Line charts, drawn with Pillow in the style of `visualization.pictures`.

They are for images that are written during training, for which matplotlib must not be needed;
programs that plot use `visualization.figures`. For antialiasing, curves are drawn at three times
the size and downsampled; text and axes are drawn at their final size. A chart of 600x400 takes some
20 ms. Not covered: logarithmic axes, axes of dates or categories, and interaction.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tiekd.visualization.pictures import BACKGROUND, FAINT_INK, INK

Colour = tuple[int, int, int]
_PLOT = (32, 32, 36)
_GRID = (56, 56, 62)
_AXIS = (110, 110, 118)
_SMOOTH = 3  # factor by which curves are drawn larger before they are downsampled
_DOTS_UP_TO = 40  # largest number of points of a curve that are all shown as dots


class Curve(NamedTuple):
    """One curve of a chart.

    Attributes:
        xs: The x values.
        ys: The y values, as many as `xs`. Non-finite values interrupt the curve.
        colour: RGB, 0 to 255.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    colour: Colour


class VerticalLine(NamedTuple):
    """A dashed vertical line in a chart.

    Attributes:
        x: The line's position on the x axis.
        colour: RGB, 0 to 255.
    """

    x: float
    colour: Colour


class _Axes(NamedTuple):
    """The position of a chart's plot in the image, and the value ranges of its axes.

    Attributes:
        box: (left, top, right, bottom) of the plot in pixels.
        x_range: The values at the left and right border.
        y_range: The values at the bottom and top border.
    """

    box: tuple[int, int, int, int]  # left, top, right and bottom in pixels
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def to_pixels(self, xs, ys) -> np.ndarray:
        """Converts N points from axis values to pixel coordinates within the plot.

        Args:
            xs: N values on the x axis.
            ys: N values on the y axis.

        Returns:
            (N, 2) float, x and y in pixels from the plot's top left corner, y downwards. A
            coordinate is NaN if its value is NaN.
        """
        left, top, right, bottom = self.box
        xs, ys = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
        x_share = (xs - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        y_share = (ys - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        # Limit coordinates, because Pillow overflows if they are too large. The limit is far
        # outside the plot, so nothing visible changes.
        return np.clip(
            np.stack([x_share * (right - left), (1 - y_share) * (bottom - top)], axis=1), -1e4, 1e4
        )


def chart(
    curves: Sequence[Curve],
    size: tuple[int, int] = (600, 400),
    title: str = "",
    x_label: str = "",
    lines: Sequence[VerticalLine] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Draws a chart of curves and vertical lines, without a legend.

    Args:
        curves: The curves.
        size: (width, height) in pixels.
        title: The title; empty for none.
        x_label: Label of the x axis; empty for none.
        lines: Vertical lines.
        x_range: The values at the left and right end of the x axis; None to include all curves.
        y_range: The values at the bottom and top of the y axis; None to include all curves.

    Returns:
        (height, width, 3) uint8.
    """
    fonts = ImageFont.load_default(14), ImageFont.load_default(12)
    # Draw the title, below which the plot begins.
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((10, 6), title, font=fonts[0], fill=INK)
    top = 30 if title else 12
    # Compute the axes' ranges and ticks, and the plot's size from the space that the tick labels
    # need.
    x_range = x_range or _extent([curve.xs for curve in curves])
    y_range = y_range or _extent([curve.ys for curve in curves])
    y_ticks = ticks(*y_range, max((size[1] - top) // 45, 3))
    left = 18 + max((draw.textlength(label(tick), font=fonts[1]) for tick in y_ticks), default=0)
    axes = _Axes(
        (round(left), top, size[0] - 14, size[1] - (40 if x_label else 24)), x_range, y_range
    )
    # Draw the axes, then the curves over them.
    _draw_axes(draw, axes, fonts[1], y_ticks, x_label)
    canvas.paste(_plot(canvas, axes, curves, lines), axes.box[:2])
    draw.rectangle(axes.box, outline=_AXIS)
    return np.asarray(canvas)


def ticks(low: float, high: float, at_most: int) -> list[float]:
    """Returns round numbers for the ticks of an axis, in ascending order.

    They are the multiples, from `low` to `high`, of a step that is 1, 2 or 5 times a power of ten.

    Args:
        low: Start of the axis.
        high: End of the axis.
        at_most: Approximate maximum number of ticks.
    """
    least = (high - low) / max(at_most, 1)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(number: float) -> str:
    """Formats the value of an axis tick, without trailing zeros.

    Args:
        number: The value.

    Returns:
        The text, such as "0.5".
    """
    return f"{number:.0e}" if number and not 1e-4 <= abs(number) < 1e7 else f"{number:.10g}"


def legend(
    draw, position: tuple[float, float], font, colour: Colour, name: str, dashed: bool = False
) -> float:
    """Draws one legend entry, and returns the x coordinate in pixels at which the next one begins.

    Args:
        draw: Pillow's drawing object of the image.
        position: (left, vertical centre) of the entry in pixels.
        font: Font of the name.
        colour: RGB of the curve.
        name: Name of the curve.
        dashed: True for a vertical line (`VerticalLine`), which charts draw dashed.
    """
    left, middle = position
    for x in range(0, 18, 6 if dashed else 18):
        draw.line(
            [(left + x, middle), (left + x + (3 if dashed else 18), middle)], fill=colour, width=2
        )
    draw.text((left + 24, middle), name, font=font, fill=INK, anchor="lm")
    return left + 24 + draw.textlength(name, font=font) + 18


def _draw_axes(draw, axes: _Axes, font, y_ticks: list[float], x_label: str) -> None:
    left, top, right, bottom = axes.box
    draw.rectangle(axes.box, fill=_PLOT)
    x_ticks = ticks(*axes.x_range, max((right - left) // 70, 2))
    for tick, (x, _) in zip(x_ticks, axes.to_pixels(x_ticks, [1.0] * len(x_ticks)), strict=True):
        draw.line([(left + x, top), (left + x, bottom)], fill=_GRID)
        half = draw.textlength(label(tick), font=font) / 2
        draw.text(
            (min(left + x, right + 12 - half), bottom + 5),
            label(tick),
            font=font,
            fill=FAINT_INK,
            anchor="mt",
        )
    for tick, (_, y) in zip(y_ticks, axes.to_pixels([0.0] * len(y_ticks), y_ticks), strict=True):
        draw.line([(left, top + y), (right, top + y)], fill=_GRID)
        draw.text((left - 6, top + y), label(tick), font=font, fill=FAINT_INK, anchor="rm")
    draw.text(((left + right) / 2, bottom + 22), x_label, font=font, fill=FAINT_INK, anchor="mt")


def _plot(
    canvas: Image.Image, axes: _Axes, curves: Sequence[Curve], lines: Sequence[VerticalLine]
) -> Image.Image:
    """Draws the antialiased curves and lines of a chart.

    Args:
        canvas: The chart's image, with the axes; it isn't changed.
        axes: The position of the plot in the image, and the value ranges.
        curves: The curves.
        lines: The vertical lines.

    Returns:
        An image of the plot alone, i.e. of the rectangle `axes.box`, with curves and lines.
    """
    left, top, right, bottom = axes.box
    plot = canvas.crop(axes.box)
    large = plot.resize((plot.width * _SMOOTH, plot.height * _SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    for curve in curves:
        points = axes.to_pixels(curve.xs, curve.ys) * _SMOOTH
        for part in _finite_parts(points):
            draw.line(
                [tuple(point) for point in part],
                fill=curve.colour,
                width=2 * _SMOOTH,
                joint="curve",
            )
            # Draw dots at the points of a short curve, and at a single point, which no line shows.
            if len(points) <= _DOTS_UP_TO or len(part) == 1:
                for x, y in part:
                    draw.ellipse([x - 8, y - 8, x + 8, y + 8], fill=curve.colour)
    for line in filter(lambda line: math.isfinite(line.x), lines):
        ((x, _),) = axes.to_pixels([line.x], [1.0]) * _SMOOTH
        for y in range(0, large.height, 10 * _SMOOTH):
            draw.line([(x, y), (x, y + 6 * _SMOOTH)], fill=line.colour, width=2 * _SMOOTH)
    return large.reduce(_SMOOTH)


def _finite_parts(points: np.ndarray) -> list[np.ndarray]:
    finite = np.isfinite(points).all(axis=1)
    breaks = np.flatnonzero(np.diff(finite.astype(int))) + 1
    return [part for part in np.split(points, breaks) if len(part) and np.isfinite(part[0]).all()]


def _extent(numbers: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns the range (low, high) of an axis, which includes all finite values and a margin.

    low < high always holds. Without a finite value, the range is (0, 1).

    Args:
        numbers: The values of each curve on this axis.
    """
    values = np.concatenate([np.asarray(some, dtype=float) for some in numbers] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = (high - low) * 0.04 or abs(low) * 0.1 or 0.5
    return low - room, high + room
