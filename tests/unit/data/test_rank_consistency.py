"""Ranks that see other frames are refused before training, naming the rank and a frame."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiekd.data.frames import DatasetSplit, DepthFormat, Frame, Frames
from tiekd.data.image_io import read_levels
from tiekd.data.mixed import MixedFrames, MixedSet
from tiekd.data.rank_consistency import check_same
from tiekd.distributed import comm
from tiekd.errors import DataError


def frames(*names, depth="{}.png"):
    files = [depth and f"/depth/{depth.format(name)}" for name in names]
    found = [
        Frame(name, f"/data/{name}", file, None) for name, file in zip(names, files, strict=True)
    ]
    split = DatasetSplit(found, Path("/data"), DepthFormat(read_levels, 1000.0))
    return Frames(split, 10.0, needs_ground_truth=False)


def told_on(monkeypatch, ranks):
    """Returns each rank's error; the ranks are threads that meet at each collective."""
    here, meeting, sent = threading.local(), threading.Barrier(len(ranks), timeout=30), {}

    def gather(value):
        sent[here.rank] = value
        meeting.wait()
        values = [sent[rank] for rank in range(len(ranks))]
        meeting.wait()
        return values

    monkeypatch.setattr(comm, "world_size", lambda: len(ranks))
    monkeypatch.setattr(comm, "gather_objects", gather)
    monkeypatch.setattr(comm, "broadcast_object", lambda value: gather(value)[0])

    def run(rank):
        here.rank = rank
        with pytest.raises(DataError) as error:
            check_same({"training": ranks[rank]})
        return str(error.value)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(run, range(len(ranks))))


def test_check_same_names_rank_and_missing_frame(monkeypatch):
    """A rank that misses a frame is named on all ranks with the frame."""
    said = told_on(monkeypatch, [frames("a", "b", "c"), frames("a", "b", "c"), frames("a", "c")])
    assert len(set(said)) == 1
    assert said[0].startswith(
        "rank 2 has other training frames than rank 0: 2 there, 3 on rank 0; b with depth b.png "
        "is on rank 0 only; give"
    )


def test_check_same_finds_order_depth_and_extra(monkeypatch):
    """Another order, another depth file and additional frames are found."""
    assert (
        "2 there, 2 on rank 0, in another order"
        in told_on(monkeypatch, [frames("a", "b"), frames("b", "a")])[0]
    )
    assert (
        "a with depth a.png is on rank 0 only"
        in told_on(monkeypatch, [frames("a"), frames("a", depth=None)])[0]
    )
    assert (
        "b with depth b.png is not on rank 0"
        in told_on(monkeypatch, [frames("a"), frames("a", "b")])[0]
    )
    three = [frames("a"), frames("b"), frames("b")]
    assert (
        "rank 1 has other training frames than rank 0, and so have ranks 2: "
        in told_on(monkeypatch, three)[0]
    )


def test_check_same_accepts_equal_ranks(monkeypatch):
    """Equal ranks and a single rank pass the check."""
    gathered, sent = [], []
    monkeypatch.setattr(comm, "gather_objects", lambda value: gathered.append(value) or [value] * 3)
    monkeypatch.setattr(comm, "broadcast_object", sent.append)
    check_same({"training": frames("a")})
    assert gathered == []
    monkeypatch.setattr(comm, "world_size", lambda: 3)
    check_same({"training": frames("a", "K\udce4fer"), "validation": [1, 2]})
    (digests,) = gathered
    assert digests.keys() == {"training", "validation"}
    assert sent == [], "no names where the digests are equal"


def test_check_same_counts_external_dataset(monkeypatch):
    """For an external dataset with other frame objects the numbers of frames are compared."""
    one, two = ([SimpleNamespace(depth=[0.0, 1.0])] * count for count in (1, 2))
    told = told_on(monkeypatch, [Own(two), Own(one)])
    assert "1 there, 2 on rank 0" in told[0]


class Own(list):
    """A data set that keeps its samples as `frames`."""

    @property
    def frames(self):
        return list(self)


def test_check_same_compares_several_sets(monkeypatch):
    """Of several data sets each one's frames are compared, and the set is named."""
    ranks = [
        MixedFrames([MixedSet(name, each, 1.0, False) for name, each in sets.items()])
        for sets in (
            {"street": frames("a", "b"), "own": frames("c", "d")},
            {"street": frames("a", "b"), "own": frames("c", "e")},
        )
    ]
    said = told_on(monkeypatch, ranks)
    assert "4 there, 4 on rank 0; own: d with depth d.png is on rank 0 only" in said[1]
