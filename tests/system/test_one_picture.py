"""One image, one depth: every door gives the same metres.

That holds for every head, readout, working resolution and image.

The 24 rows take a minute; the whole product is a long test.
"""

import math
from dataclasses import replace

import pytest
from support.one_picture.doors import BIT_FOR_BIT, Case, case, doors, network_of
from support.one_picture.rows import PAIRWISE, Row, missing_pairs, whole_product

from tiekd.inference.export import export, verification

P999_M = 1e-3
TIE = 1e-4  # the two likeliest bins' probabilities: which is chosen rounding decides


@pytest.fixture(scope="module")
def networks():
    made = {}
    return lambda head: made.setdefault(head, network_of(head))


@pytest.fixture(autouse=True)
def quick_exports(monkeypatch):
    """Exports measure nothing, and both formats share a trace.

    Measuring takes a minute for 12 megapixels.
    """
    traced, trace = {}, export._program
    monkeypatch.setattr(verification, "latency_ms", lambda *_: 0.0)

    def trace_once(network, settings):
        key = replace(settings, format="any")
        if key not in traced:
            traced.clear()
            traced[key] = trace(network, settings)
        return traced[key]

    monkeypatch.setattr(export, "_program", trace_once)


def check(of: Case) -> None:
    """Raises AssertionError where a door gives other metres than `load_student`."""
    found = doors(of)
    wanted = found.pop("load_student")
    assert wanted.shape == of.pixels.shape[1:]
    assert wanted.max() > 3 * wanted.min(), "a case that says something"
    counts = wanted > 0
    if of.readout != "mean":
        counts = of.student.margins(of.pixels[None])[0, 0] >= TIE
        assert counts.float().mean() > 0.9, "a case that says something"
        assert len(wanted.unique()) >= 4, "a case that says something"
    assert found.keys() >= {"predict", "onnx", "pt2"}
    for name, depth in found.items():
        assert depth.shape == wanted.shape, name
        assert depth.dtype == wanted.dtype, name
        errors = (depth - wanted).abs()[counts]
        if name in BIT_FOR_BIT:
            assert (depth == wanted).all(), f"{name}: max {errors.max()} m"
        p999 = errors.kthvalue(math.ceil(0.999 * errors.numel())).values.item()
        assert p999 <= P999_M, f"{name}: p99.9 {p999} m, max {errors.max()} m"
        if of.readout == "mode":
            assert errors.max() <= 1e-4, f"{name}: another bin at {(errors > 1e-4).sum()} pixels"


def try_row(row: Row, networks, folder) -> None:
    network = networks(row.head)
    for readout in row.readouts:
        check(case(network, row.head, readout, row.resize, row.size, folder / readout))


def name_of(row: Row) -> str:
    return "-".join((row.head, *row.readouts, row.resize, row.size))


@pytest.mark.parametrize("row", PAIRWISE, ids=name_of)
def test_interfaces_agree_for_pairwise_cases(row, networks, tmp_path):
    """Every inference interface gives load_student's depth in each pairwise-covering case."""
    try_row(row, networks, tmp_path)


def test_pairwise_rows_cover_every_pair():
    """At most 24 rows cover every pair of options, and without the first one a pair is missing."""
    assert len(PAIRWISE) <= 24
    assert missing_pairs(PAIRWISE) == set()
    assert missing_pairs(PAIRWISE[1:]), "no row is there for nothing"


@pytest.mark.long
@pytest.mark.parametrize("row", tuple(whole_product()), ids=name_of)
def test_interfaces_agree_for_whole_product(row, networks, tmp_path):
    """Every inference interface gives load_student's depth for the full product of options."""
    try_row(row, networks, tmp_path)
