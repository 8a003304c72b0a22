"""Charts as SVG: where points are, and what is left out."""

import math
import re

from tiekd.tools.report.line_chart import Curve, chart


def points(svg: str) -> list[list[tuple[float, float]]]:
    paths = re.findall(r'<path d="([^"]*)"', svg)
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", p)] for p in paths
    ]


def test_chart_places_points():
    """Points lie in proportion to their values, larger ones higher."""
    made = chart("t<", [Curve("a", [0, 1, 3], [0.0, 5.0, 10.0])], "x", y_from=0.0)
    ((first, second, third),) = points(made)
    assert "t&lt;" in made
    assert (third[0] - first[0]) / (second[0] - first[0]) == round(3.0, 1)
    assert abs((first[1] + third[1]) / 2 - second[1]) < 0.1
    assert third[1] < first[1]


def test_chart_interrupts_at_what_is_not_finite():
    """A curve begins again after a value that isn't finite, or that has no logarithm."""
    ys = [1.0, math.nan, 2.0, math.inf, 0.0, 4.0]
    made = chart("t", [Curve("a", range(6), ys)], "x", log_y=True)
    assert re.search(r'<path d="([^"]*)"', made)[1].count("M") == 3
    assert "nan" not in made
    assert "inf" not in made
    assert "no finite value" in chart("t", [Curve("a", [1], [math.nan])], "x")


def test_chart_has_round_numbers_on_a_logarithmic_axis():
    """Ticks are 1, 2 and 5 times powers of ten, or powers alone over a wide range."""
    said = re.findall(
        r'text-anchor="end">([^<]*)<', chart("t", [Curve("a", [0, 1], [0.15, 3])], "x", log_y=True)
    )
    assert said == ["0.2", "0.5", "1", "2"]
    wide = chart("t", [Curve("a", [0, 1], [1e-3, 1e3])], "x", log_y=True)
    assert re.findall(r'text-anchor="end">([^<]*)<', wide)[1:3] == ["0.01", "0.1"]


def test_chart_keeps_extremes_of_long_curves():
    """A curve of 10,000 points takes little room, and its one peak is still there."""
    ys = [0.0] * 10_000
    ys[7_777] = 1.0
    made = chart("t", [Curve("a", range(10_000), ys)], "x")
    assert len(made) < 20_000
    (line,) = points(made)
    assert min(y for _, y in line) < 30 < 200 < max(y for _, y in line)


def test_chart_of_one_value_has_a_range():
    """A curve of equal values, or of one point, is drawn."""
    for ys in ([2.0], [2.0, 2.0]):
        ((x, y), *_) = points(chart("t", [Curve("a", range(len(ys)), ys)], "x"))[0]
        assert 0 < x < 480
        assert 0 < y < 260
