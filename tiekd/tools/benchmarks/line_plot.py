"""Plots the measurements of the benchmark `growth`: seconds and peak memory of a step against size.

There is one small plot per quantity, such as the batch size. It shows the measurements as dots, and
the straight lines that `growth` fits to them. Needs matplotlib (extra `plot`). Not covered:
logarithmic axes.
"""

from tiekd.visualization import figures

WIDTH = 380
HEIGHT = 280
COLOURS = {"time_s": "#1f77b4", "peak_mb": "#d66814"}
NAMES = {"time_s": "time, s", "peak_mb": "peak memory, MB"}


def draw(curves: dict[str, dict], units: dict[str, str]) -> bytes:
    """Plots the results of the `growth` benchmark, with one small plot for each varied quantity.

    Args:
        curves: for each quantity that was varied: {"sizes": [...], "time_s": [...], "peak_mb":
            [...], "time_by_line": [...], "memory_by_line": [...]}, as `growth.compare_with_line`
            returns them.
        units: for each quantity the label of its x axis.

    Returns:
        The bytes of a PNG.

    Raises:
        LaunchError: matplotlib isn't installed.
    """
    figure = figures.new_figure(WIDTH * len(curves), HEIGHT)
    # Make one plot for each entry of `curves`, with an axis for seconds at the left and one for MB
    # at the right.
    for plot, (name, curve) in zip(
        figure.subplots(1, len(curves), squeeze=False).flat, curves.items(), strict=True
    ):
        sizes = curve["sizes"]
        plot.set_xlabel(units[name])
        plot.set_xlim(0, 1.05 * max(sizes))
        plot.set_xticks(sizes, [_label(size) for size in sizes])
        _draw_line(plot, "time_s", sizes, curve["time_s"], curve["time_by_line"])
        _draw_line(plot.twinx(), "peak_mb", sizes, curve["peak_mb"], curve["memory_by_line"])
    return figures.png_of(figure)


def _draw_line(axes, key: str, sizes: list, values: list, ratios: list) -> None:
    """Plots measured values and the fitted line, on a y axis that starts at 0.

    Args:
        axes: the matplotlib axes.
        key: the key of the values, "time_s" or "peak_mb".
        sizes: the x coordinates.
        values: the measured values.
        ratios: each measured value / the line's value.
    """
    colour = COLOURS[key]
    axes.set_ylabel(NAMES[key], color=colour)
    axes.set_ylim(0, 1.1 * max(values))
    axes.tick_params(axis="y", colors=colour)
    axes.plot(sizes, values, "o", color=colour)
    # Compute the fitted line's values from the ratios (measured value / line's value).
    fitted = [value / ratio for value, ratio in zip(values, ratios, strict=True)]
    axes.plot(sizes, fitted, color=colour, linewidth=1)


def _label(size: int) -> str:
    return f"{size:,}" if size < 10**5 else f"{size / 1e6:.2f} M"
