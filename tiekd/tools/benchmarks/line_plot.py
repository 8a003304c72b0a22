"""Draws a row of small plots: seconds of a step and its peak memory, with the lines fitted to them.

Drawn with Pillow. Left out: everything else of a plotting library, logarithmic axes among it.
"""

import io

from PIL import Image, ImageDraw, ImageFont

WIDTH = 380
HEIGHT = 280
LEFT = 56
RIGHT = 56
TOP = 40
BOTTOM = 56
BACKGROUND = (255, 255, 255)
INK = (40, 40, 44)
FAINT = (200, 200, 206)
COLOURS = {"time_s": (31, 119, 180), "peak_mb": (214, 104, 20)}
NAMES = {"time_s": "time, s", "peak_mb": "peak memory, MB"}


def draw(curves: dict[str, dict], units: dict[str, str]) -> bytes:
    """Draws the curves of the `growth` benchmark.

    Args:
        curves: name -> {"sizes": [...], "time_s": [...], "peak_mb": [...], "time_by_line": [...],
            "memory_by_line": [...]}.
        units: name -> the label of its x axis.

    Returns:
        The bytes of a PNG.
    """
    canvas = Image.new("RGB", (WIDTH * len(curves), HEIGHT), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    # One plot per curve, each with an axis for seconds and one for MB.
    for column, (name, curve) in enumerate(curves.items()):
        left = WIDTH * column
        _frame(pen, font, left, units[name], curve["sizes"])
        for side, key in enumerate(COLOURS):
            ratios = curve["time_by_line" if key == "time_s" else "memory_by_line"]
            _line(pen, font, left, side, key, curve["sizes"], curve[key], ratios)
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _frame(pen, font, left: int, title: str, sizes: list[int]) -> None:
    box = (left + LEFT, TOP, left + WIDTH - RIGHT, HEIGHT - BOTTOM)
    pen.rectangle(box, outline=FAINT)
    pen.text((left + WIDTH / 2, HEIGHT - 16), title, font=font, fill=INK, anchor="mm")
    for size in sizes:
        x = _x(left, size, sizes)
        pen.line([(x, box[3]), (x, box[3] + 4)], fill=INK)
        pen.text(
            (x, box[3] + 12),
            f"{size:,}" if size < 10**5 else f"{size / 1e6:.2f} M",
            font=font,
            fill=INK,
            anchor="mm",
        )


def _line(pen, font, left: int, side: int, key: str, sizes, values, ratios) -> None:
    """Draws measured points and the fitted line, on an axis from 0 at the left or the right."""
    colour = COLOURS[key]
    top = 1.1 * max(values)
    edge = left + LEFT - 6 if side == 0 else left + WIDTH - RIGHT + 6
    pen.text((left + LEFT + side * 130, 20), NAMES[key], font=font, fill=colour, anchor="lm")
    for fraction in (0.0, 0.5, 1.0):
        tick = f"{fraction * max(values):.3g}"
        pen.text(
            (edge, _y(fraction * max(values), top)),
            tick,
            font=font,
            fill=colour,
            anchor="lm" if side else "rm",
        )
    points = [
        (_x(left, size, sizes), _y(value, top)) for size, value in zip(sizes, values, strict=True)
    ]
    # A value divided by its ratio to the line is the line's value.
    fit = [(x, _y(value / r, top)) for (x, _), value, r in zip(points, values, ratios, strict=True)]
    pen.line(fit, fill=colour, width=1)
    for x, y in points:
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _x(left: int, size: float, sizes: list[int]) -> float:
    return left + LEFT + (WIDTH - LEFT - RIGHT) * size / (1.05 * max(sizes))


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top
