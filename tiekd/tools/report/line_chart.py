"""Draws line charts as inline SVG, whose colours follow the page's light or dark style.

A chart scales with the page and stays sharp. A curve of many points is divided into _COLUMNS parts,
and only the smallest and the largest value of each part are kept. So a chart takes some 10 kB
however long a run was. Not covered: interaction, and images of charts for TensorBoard
(`visualization.charts`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tiekd.tools.report.markup import Markup, joined, tag
from tiekd.visualization.charts import ticks

_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 12, 30
_COLUMNS = 240
_NUM_COLOURS = 6
_DOTS_UP_TO = 30


class Curve(NamedTuple):
    """One curve of a chart.

    Attributes:
        name: The curve's name in the legend.
        xs: The x values, increasing.
        ys: The y values. A value that isn't finite interrupts the curve.
        dashed: True for a dashed line, for example for the ideal result.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dashed: bool = False


def chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    y_label: str = "",
    log_y: bool = False,
    y_from: float | None = None,
) -> Markup:
    """Draws a line chart as an HTML element `figure`: a title, an SVG of the curves, and a legend.

    Args:
        title: The title.
        curves: The curves.
        x_label: Label of the x axis.
        y_label: Label of the y axis, which is put into the title.
        log_y: True for a logarithmic y axis; values of 0 or below interrupt a curve.
        y_from: The lower end of the y axis; None for the smallest value.

    Returns:
        The element. If no curve has a finite point, it has a text that says so instead of the SVG.
    """
    points = [_points(curve, log_y) for curve in curves]
    known = [(x, y) for line in points for x, y in line if math.isfinite(y)]
    if not known:
        return tag("figure", tag("h3", title), tag("p", "no finite value", class_="faint"))
    xs, ys = zip(*known, strict=True)
    x_range = _widen(min(xs), max(xs), 0.0)
    low = min(ys) if y_from is None else min(y_from, *ys, 0.0 if y_from == 0 else y_from)
    y_range = _widen(low, max(ys), 0.04 if y_from is None else 0.0)
    drawn = [*_x_axis(x_range), *_y_axis(y_range, log_y)]
    for number, (curve, line) in enumerate(zip(curves, points, strict=True)):
        drawn += _draw_curve(line, x_range, y_range, number % _NUM_COLOURS, curve.dashed)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    drawn.append(tag("text", x_label, x=f"{middle:g}", y=_HEIGHT - 4, text_anchor="middle"))
    said = f"{title}: {', '.join(curve.name for curve in curves)} over {x_label}"
    svg = tag("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=said)
    unit = f", {y_label}" if y_label else ""
    axis = " (logarithmic)" if log_y else ""
    return tag("figure", tag("h3", f"{title}{unit}{axis}"), svg, _legend(curves))


def _points(curve: Curve, log_y: bool) -> list[tuple[float, float]]:
    """Returns the points of a curve to draw, (x, y) each; at most 2 * _COLUMNS.

    A longer curve is divided into _COLUMNS parts, and only the points with the smallest and the
    largest y of each part are kept.

    Args:
        curve: The curve.
        log_y: True to return the logarithm to the base of 10 of each y; NaN for y of 0 or below.
    """
    found = []
    for x, y in zip(curve.xs, curve.ys, strict=True):
        if log_y:
            y = math.log10(y) if y > 0 and math.isfinite(y) else math.nan
        found.append((float(x), float(y)))
    if len(found) <= 2 * _COLUMNS:
        return found
    thinned = []
    for column in range(_COLUMNS):
        part = found[column * len(found) // _COLUMNS : (column + 1) * len(found) // _COLUMNS]
        finite = [point for point in part if math.isfinite(point[1])]
        ends = {min(finite, key=_height), max(finite, key=_height)} if finite else {part[0]}
        thinned += sorted(ends)
    return thinned


def _height(point: tuple[float, float]) -> float:
    return point[1]


def _widen(low: float, high: float, margin: float) -> tuple[float, float]:
    """Returns (low, high) with a margin on both sides, so that the range of an axis isn't empty.

    Args:
        low: Lower end of the range.
        high: Upper end of the range.
        margin: Size of each margin as a fraction of the range. If both ends are equal, a tenth of
            their value is used instead.
    """
    if low == high:
        return low - max(abs(low) * 0.1, 1e-6), high + max(abs(high) * 0.1, 1e-6)
    return low - margin * (high - low), high + margin * (high - low)


def _x_place(x: float, x_range: tuple[float, float]) -> float:
    share = (x - x_range[0]) / (x_range[1] - x_range[0])
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y_place(y: float, y_range: tuple[float, float]) -> float:
    share = (y - y_range[0]) / (y_range[1] - y_range[0])
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _x_axis(x_range: tuple[float, float]) -> list[Markup]:
    drawn = []
    for tick in ticks(*x_range, 5):
        x = f"{_x_place(tick, x_range):.1f}"
        drawn.append(tag("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid"))
        place = {"x": x, "y": _HEIGHT - _BOTTOM + 13, "text_anchor": "middle"}
        drawn.append(tag("text", _number(tick), **place))
    return drawn


def _y_axis(y_range: tuple[float, float], log_y: bool) -> list[Markup]:
    drawn = []
    for tick in _powers(*y_range) if log_y else ticks(*y_range, 5):
        y = _y_place(tick, y_range)
        drawn.append(
            tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
        )
        value = _number(10**tick if log_y else tick)
        drawn.append(tag("text", value, x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    return drawn


def _powers(low: float, high: float) -> list[float]:
    """Returns the positions of the ticks of a logarithmic axis, as logarithms to the base of 10.

    The ticks are at powers of ten. If the axis has few of them, 2 and 5 times the powers are added.

    Args:
        low: Logarithm of the start of the axis, to the base of 10.
        high: Logarithm of the end of the axis.

    Returns:
        Logarithms from `low` to `high`, in increasing order.
    """
    factors = (1, 2, 5) if high - low < 2 else (1,)
    step = max(1, math.ceil((high - low) / 8))
    powers = range(math.floor(low), math.ceil(high) + 1, step)
    found = [power + math.log10(factor) for power in powers for factor in factors]
    return [value for value in found if low <= value <= high]


def _draw_curve(
    line: Sequence[tuple[float, float]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    colour: int,
    dashed: bool,
) -> list[Markup]:
    """Returns the SVG elements of a curve: a path, and circles at its points if they are few.

    Args:
        line: The points, (x, y) each; a point whose y isn't finite interrupts the curve.
        x_range: The ends of the x axis.
        y_range: The ends of the y axis.
        colour: Number of the curve's colour in the style sheet.
        dashed: True for a dashed line without circles.
    """
    steps, begins, dots = [], True, []
    for x, y in line:
        if not math.isfinite(y):
            begins = True
            continue
        place = _x_place(x, x_range), _y_place(y, y_range)
        steps.append(f"{'M' if begins else 'L'}{place[0]:.1f} {place[1]:.1f}")
        begins = False
        dots.append(place)
    style = f"curve s{colour}{' dashed' if dashed else ''}"
    drawn = [tag("path", d="".join(steps), class_=style)]
    if len(line) <= _DOTS_UP_TO and not dashed:
        circle = {"r": 2.5, "class_": f"s{colour}", "fill": "none", "stroke_width": 2}
        drawn += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", **circle) for x, y in dots]
    return drawn


def _legend(curves: Sequence[Curve]) -> Markup:
    if len(curves) == 1:
        return Markup("")
    keys = []
    for number, curve in enumerate(curves):
        mark = "┄┄" if curve.dashed else "━━"
        colour = tag("span", mark, class_=f"k{number % _NUM_COLOURS}", aria_hidden="true")
        keys.append(tag("li", joined([colour, " ", curve.name])))
    return tag("ul", *keys, class_="keys")


def _number(value: float) -> str:
    """Returns the text of a tick's label, with up to four digits, such as "0.25".

    Args:
        value: The tick's value.
    """
    return f"{value:.4g}" if value else "0"
