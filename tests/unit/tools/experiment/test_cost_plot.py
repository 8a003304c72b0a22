"""The plot of accuracy against cost, with planted numbers."""

import io
import math

import numpy as np
from PIL import Image

from tiekd.tools.experiment import cost_plot


def network(gmac) -> dict:
    return {"parameters": 10, "gmac": gmac, "input": [8, 8]}


def latencies(**rows) -> dict:
    """Latencies of rows on the set, each (milliseconds, GMAC)."""
    return {
        "streets": {row: {"ms": ms, "network": network(gmac)} for row, (ms, gmac) in rows.items()}
    }


def table(*gmacs) -> dict:
    rows = {
        f"r{place}": {
            "abs_rel": 0.1 + place / 100,
            "abs_rel_sd": None if place else 0.004,
            "network": network(gmac),
        }
        for place, gmac in enumerate(gmacs)
    }
    return {"sets": {"streets": {"metric": "abs_rel", "rows": rows}}}


def test_points_are_rows_by_cost_and_metric():
    """A point has the row's multiply-adds, its figure and the spread over seeds."""
    found = cost_plot.points(table(2.0, 40.0), {})["streets"]
    assert [*found] == ["GMAC"]
    first, second = found["GMAC"]
    assert first == ("r0", 2.0, 0.1, 0.004)
    assert second[:3] == ("r1", 40.0, 0.11)
    assert math.isnan(second[3])


def test_points_take_latency_of_the_rows_network():
    """A row of another readout has the latency of its network; an unknown one is left out."""
    planted = table(2.0, 40.0)
    rows = planted["sets"]["streets"]["rows"]
    rows["r0:mode"] = rows["r0"]
    found = cost_plot.points(planted, latencies(r0=(7.5, 2.0)))["streets"]
    assert [point[:2] for point in found["latency, ms"]] == [("r0", 7.5), ("r0:mode", 7.5)]
    assert len(found["GMAC"]) == 3


def test_points_leave_out_the_latency_of_an_earlier_network():
    """After a row's network has changed, its old latency isn't that of its new errors."""
    measured = latencies(r0=(7.5, 2.0), r1=(30.0, 39.0))
    found = cost_plot.points(table(2.0, 40.0), measured)["streets"]
    assert [point[:2] for point in found["latency, ms"]] == [("r0", 7.5)]


def test_rows_of_one_network_are_not_drawn():
    """Where all rows have the same multiply-adds, or none is known, there is no plot."""
    assert cost_plot.draw(table(2.0, 2.0), latencies(r0=(1.0, 2.0), r1=(2.0, 2.0))) is None
    assert cost_plot.draw(table(None, None), {}) is None
    assert cost_plot.draw({"sets": {}}, {}) is None


def test_draw_has_a_plot_for_each_cost():
    """The plot with latencies is wider by a second one."""
    planted = table(2.0, 40.0)
    images = [
        np.asarray(Image.open(io.BytesIO(cost_plot.draw(planted, latency))))
        for latency in ({}, latencies(r0=(7.5, 2.0), r1=(30.0, 40.0)))
    ]
    assert images[1].shape[1] == 2 * images[0].shape[1]
    assert all(image.std() > 10 for image in images)
