"""The cases of test_one_picture.py: a set that covers all pairs of values, and the product."""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import NamedTuple

from support.one_picture.doors import NODES, RESIZES, SIZES

READOUTS = ("mean", "local", "mode")
# Only two rows have images of twelve megapixels, since each takes ten seconds. So this size isn't
# paired with every other value.
NOT_PAIRED = ("turned_12mp",)


class Row(NamedTuple):
    """One combination of values; one or two readouts are tested with it."""

    head: str
    readouts: tuple[str, ...]
    resize: str
    size: str


PAIRWISE = (
    Row("sigmoid", ("mean",), "none", "odd"),
    Row("dpm_1", ("local",), "none", "tiny"),
    Row("bts", ("mean",), "none", "portrait"),
    Row("dpm_2", ("mode",), "none", "turned"),
    Row("dpm_1", ("local",), "stretch", "odd"),
    Row("bts", ("mean",), "stretch", "tiny"),
    Row("dpm_2", ("mean", "mode"), "stretch", "portrait"),
    Row("sigmoid", ("mean",), "stretch", "turned_12mp"),
    Row("dpm_2", ("mode",), "cover", "odd"),
    Row("bts", ("mean",), "cover", "tiny"),
    Row("sigmoid", ("mean",), "cover", "portrait"),
    Row("dpm_1", ("local",), "cover", "turned"),
    Row("sigmoid", ("mean",), "contain", "odd"),
    Row("dpm_2", ("local",), "contain", "tiny"),
    Row("bts", ("mean",), "contain", "portrait"),
    Row("dpm_1", ("mode",), "contain", "turned_12mp"),
    Row("bts", ("mean",), "short_side", "odd"),
    Row("dpm_1", ("mean", "mode"), "short_side", "tiny"),
    Row("dpm_2", ("local",), "short_side", "portrait"),
    Row("sigmoid", ("mean",), "short_side", "turned"),
    Row("dpm_2", ("mode",), "scale", "odd"),
    Row("sigmoid", ("mean",), "scale", "tiny"),
    Row("dpm_1", ("local",), "scale", "portrait"),
    Row("bts", ("mean",), "scale", "turned"),
)


def whole_product() -> Iterator[Row]:
    """Yields every possible combination."""
    for head, resize, size in product(NODES, RESIZES, SIZES):
        # Skip twelve megapixels without resizing, for which a network needs gigabytes.
        if size != "turned_12mp" or resize in ("stretch", "cover", "contain", "short_side"):
            yield Row(head, readouts_of(head), resize, size)


def readouts_of(head: str) -> tuple[str, ...]:
    return READOUTS if head.startswith("dpm") else ("mean",)


def missing_pairs(rows: Sequence[Row]) -> set[tuple]:
    """Returns the possible pairs of values of two columns that no row contains."""
    there = {pair for row in rows for pair in _pairs(row)}
    wanted = {pair for row in whole_product() if row.size not in NOT_PAIRED for pair in _pairs(row)}
    return wanted - there


def _pairs(row: Row) -> Iterator[tuple]:
    sizes = (row.size, "turned") if row.size == "turned_12mp" else (row.size,)
    factors = ([row.head], row.readouts, [row.resize], sizes)
    for (i, first), (j, second) in combinations(enumerate(factors), 2):
        yield from (((i, a), (j, b)) for a, b in product(first, second))
