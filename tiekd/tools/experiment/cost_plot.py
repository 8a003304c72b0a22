"""Plots the accuracy of rows against what their networks cost: multiply-adds and latency.

It is drawn for sets whose rows have different networks; where all rows have the same one, there is
nothing to compare. Needs matplotlib (extra `plot`).
"""

import math
from collections.abc import Mapping

from tiekd.tools.experiment.table import as_number
from tiekd.visualization import figures

_WIDTH = 460  # pixels of one plot
_HEIGHT = 340


def points(table: Mapping, latency: Mapping) -> dict[str, dict[str, list[tuple]]]:
    """Returns the points of the plots.

    Args:
        table: the experiment's table, as `table.compute` returns it.
        latency: the measured latencies, as `networks.read_latency` returns them.

    Returns:
        set -> {"GMAC": points, "latency, ms": points}. A point is (row, cost, value of the set's
        metric, its standard deviation over seeds or NaN). Only sets whose rows have different
        costs are in it, and only costs that are known.
    """
    found: dict[str, dict[str, list[tuple]]] = {}
    for name, each in table["sets"].items():
        measured = latency.get(name, {})
        by_cost: dict[str, list[tuple]] = {"GMAC": [], "latency, ms": []}
        for row, values in each["rows"].items():
            metric = each["metric"]
            value, spread = (as_number(values[key]) for key in (metric, f"{metric}_sd"))
            if not math.isfinite(value):
                continue
            # Leave out the latency of a network that the row had before its recipe was changed.
            timed = measured.get(row.partition(":")[0], {})
            is_its = timed.get("network") == values["network"]
            costs = (values["network"]["gmac"], timed["ms"] if is_its else None)
            for of_cost, cost in zip(by_cost.values(), costs, strict=True):
                if cost is not None:
                    of_cost.append((row, cost, value, spread))
        # Networks of the same multiply-adds are the same but for their head, whose share of the
        # latency is noise beside its own spread.
        if len({f"{point[1]:.3g}" for point in by_cost["GMAC"]}) > 1:
            found[name] = {cost: of_cost for cost, of_cost in by_cost.items() if of_cost}
    return found


def draw(table: Mapping, latency: Mapping) -> bytes | None:
    """Draws one line of plots for each set whose rows have different networks.

    Args:
        table: the experiment's table.
        latency: the measured latencies, as `networks.read_latency` returns them.

    Returns:
        The bytes of a PNG; None if there is no such set.
    """
    found = points(table, latency)
    if not found:
        return None
    columns = max(map(len, found.values()))
    figure = figures.new_figure(_WIDTH * columns, _HEIGHT * len(found))
    grid = figure.subplots(len(found), columns, squeeze=False)
    for line, (name, by_cost) in zip(grid, found.items(), strict=True):
        metric = table["sets"][name]["metric"]
        for axes, (cost, of_cost) in zip(line, by_cost.items(), strict=False):
            axes.set_xscale("log")
            axes.set_xlabel(cost)
            axes.set_ylabel(f"{name}: {metric}")
            for row, x, value, spread in of_cost:
                bar = spread if math.isfinite(spread) else None
                axes.errorbar([x], [value], yerr=bar, fmt="o", markersize=4, capsize=2)
                axes.annotate(row, (x, value), (4, 4), textcoords="offset points", fontsize=7)
        # Hide the plots of a set without latencies beside one that has some.
        for axes in line[len(by_cost) :]:
            axes.set_visible(False)
    return figures.png_of(figure)
