import numpy as np
import pytest

from tiekd.visualization.charts import Curve, VerticalLine, chart, label, ticks

RED, GREEN = (255, 0, 0), (0, 255, 0)


def places(image, colour):
    """Returns (N, 2) rows and columns of the pixels within 40 levels (sum of RGB) of a colour."""
    return np.argwhere(np.abs(image.astype(int) - colour).sum(-1) < 40)


@pytest.mark.parametrize(
    ("low", "high", "at_most", "expected"),
    [
        (0, 80, 8, [0, 10, 20, 30, 40, 50, 60, 70, 80]),
        (0, 80, 5, [0, 20, 40, 60, 80]),
        (0.031, 0.069, 4, [0.04, 0.05, 0.06]),
        (-3, 2, 5, [-3, -2, -1, 0, 1, 2]),
        (38000, 38400, 2, [38000, 38200, 38400]),
    ],
)
def test_ticks_are_round_and_in_range(low, high, at_most, expected):
    """Ticks are round numbers within the range, about as many as allowed."""
    assert ticks(low, high, at_most) == expected


def test_labels_have_no_trailing_zeros():
    """A tick's label has no trailing zeros, and very small or large numbers have an exponent."""
    assert [label(n) for n in (0.0, 0.05, 38400.0, 1e-5, 2e7)] == [
        "0",
        "0.05",
        "38400",
        "1e-05",
        "2e+07",
    ]


def test_chart_curve_follows_values():
    """A linear curve is drawn as a straight rising line across the chart."""
    image = chart([Curve([0, 10], [0, 10], RED)], (400, 300), x_range=(0, 10), y_range=(0, 10))
    assert image.shape == (300, 400, 3)
    assert image.dtype == np.uint8
    red = places(image, RED)
    columns = np.unique(red[:, 1])
    assert len(columns) > 300
    heights = [red[red[:, 1] == column, 0].mean() for column in columns]
    slope, offset = np.polyfit(columns, heights, 1)
    assert slope < -0.5  # up, and straight
    assert np.abs(np.polyval((slope, offset), columns) - heights).max() < 2


def test_chart_nonfinite_values_leave_gap():
    """Nonfinite values leave a gap in the curve and raise nothing."""
    ys = [1.0] * 40 + [np.nan, np.inf] * 20 + [1.0] * 40
    columns = np.unique(places(chart([Curve(range(120), ys, RED)], (400, 300)), RED)[:, 1])
    assert np.diff(columns).max() > 100  # a third of the width is free
    nothing = [Curve([1, 2], [np.nan, np.nan], RED), Curve([], [], GREEN)]
    assert np.array_equal(
        chart(nothing, lines=[VerticalLine(np.nan, RED)], x_range=(0, 1)), chart([], x_range=(0, 1))
    )


def test_chart_mark_is_vertical_at_value():
    """A mark is a dashed vertical line at its value."""
    image = chart([], (400, 300), lines=[VerticalLine(5.0, RED)], x_range=(0, 10), y_range=(0, 1))
    ends = chart(
        [],
        (400, 300),
        lines=[VerticalLine(2.5, RED), VerticalLine(7.5, GREEN)],
        x_range=(0, 10),
        y_range=(0, 1),
    )
    column = places(image, RED)[:, 1]
    middle = (places(ends, RED)[:, 1].mean() + places(ends, GREEN)[:, 1].mean()) / 2
    assert column.max() - column.min() <= 2
    assert abs(column.mean() - middle) <= 2
    assert 80 < len(np.unique(places(image, RED)[:, 0])) < 220  # dashed
