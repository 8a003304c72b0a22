"""Figures frame by frame: in the data set's order, with all digits, and who is better on which."""

import csv
import math

import pytest
import torch
from support.noise_frames import CPU, Frames, Slanted, protocol

from tiekd.evaluation import per_frame
from tiekd.evaluation.evaluate import evaluate
from tiekd.evaluation.metrics import METRIC_NAMES, aggregate
from tiekd.evaluation.per_frame import FrameRows, FrameTable
from tiekd.evaluation.range_errors import NUM_RANGES


def evaluated(batch_size=3):
    rows = FrameRows(1e-3, 80.0, "none")
    network = Slanted()
    figures = evaluate(
        lambda i: network(i).depth,
        Frames(),
        protocol(flip=False, batch_size=batch_size),
        CPU,
        watchers=[rows],
    )
    return figures, rows.gather()


def table(abs_rel, a1=None):
    metrics = torch.full((len(abs_rel), len(METRIC_NAMES)), math.nan, dtype=torch.float64)
    metrics[:, METRIC_NAMES.index("abs_rel")] = torch.tensor(abs_rel, dtype=torch.float64)
    metrics[:, 0] = torch.tensor(a1 or abs_rel, dtype=torch.float64)
    return FrameTable(
        [f"{i}.png" for i in range(len(abs_rel))], metrics, torch.ones(len(abs_rel), NUM_RANGES, 4)
    )


def test_frame_rows_in_order_give_the_means():
    """The rows are in the dataset's order, and their means are the metrics."""
    figures, found = evaluated()
    assert found.names == [str(index) for index in range(7)]
    assert aggregate(found.metrics) == figures
    counted = [int(((Frames()[i].depth > 1e-3) & (Frames()[i].depth < 80)).sum()) for i in range(7)]
    assert found.pixels == counted
    assert counted[3] == 0
    assert torch.equal(evaluated(batch_size=1)[1].sums[..., 0], found.sums[..., 0])


def test_write_csv_all_digits_and_empty_cells(tmp_path):
    """The CSV has full precision, and empty cells for a frame without ground truth."""
    figures, found = evaluated()
    per_frame.write_csv(tmp_path / "x.csv", {"one": found, "two": found})
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert list(rows[0]) == ["name", "pixels", *METRIC_NAMES, "network"]
    assert [row["name"] for row in rows] == 2 * found.names
    assert [row["network"] for row in rows] == 7 * ["one"] + 7 * ["two"]
    assert rows[3]["pixels"] == "0"
    assert {rows[3][name] for name in METRIC_NAMES} == {""}
    for name in METRIC_NAMES:
        values = [float(row[name]) for row in rows[:7] if row[name]]
        assert sum(values) / len(values) == pytest.approx(figures[name], rel=1e-15)
        assert values[0] == found.column(name)[0].item()


def test_worst_frames_have_largest_errors():
    """`worst` gives the three largest errors and skips frames without ground truth."""
    assert per_frame.worst(table([0.1, math.nan, 0.3, math.inf, 0.2])) == [
        ("3.png", math.inf),
        ("2.png", 0.3),
        ("4.png", 0.2),
    ]
    assert per_frame.worst(table([math.nan])) == []


def test_count_better_frames_by_metric_direction_without_ties():
    """`count_better_frames` compares by each metric's direction; a tie counts for nobody."""
    ours, theirs = table([0.1, 0.2, 0.3, math.nan, 0.5]), table([0.2, 0.1, 0.3, 0.1, 0.6])
    won = per_frame.count_better_frames(ours, theirs)
    assert won["abs_rel"] == (2, 1)
    assert won["a1"] == (1, 2)
    assert won["rmse"] == (0, 0)
