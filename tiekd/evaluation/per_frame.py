"""Collects an evaluation's results per frame, writes them as CSV, and lists the worst frames.

A frame is an image with its ground truth. `FrameRows` is passed to `evaluate.evaluate` as a
watcher, which is called with the results of each batch. The results stay on the device until
`FrameRows.gather`, which sends some 200 bytes per frame to every rank. Not covered: errors per
pixel, which tiekd/visualization/frame_pictures.py draws as images.
"""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.distributed import comm
from tiekd.evaluation import metrics
from tiekd.evaluation.range_errors import NUM_RANGES, PIXELS, range_sums
from tiekd.files import replace_text


class FrameTable(NamedTuple):
    """The results of a network on all evaluated frames, in the dataset's order.

    Attributes:
        names: names of the N frames.
        metrics: (N, 9) float64 in the order of METRIC_NAMES; NaN for a frame without valid ground
            truth.
        sums: (N, NUM_RANGES, 4) float64, sums of the errors in each depth range, as
            `range_errors.range_sums` returns them.
    """

    names: list[str]
    metrics: Tensor
    sums: Tensor

    @property
    def pixels(self) -> list[int]:
        """The number of pixels with valid ground truth in each frame, in the order of `names`."""
        return self.sums[:, :, PIXELS].sum(1).long().tolist()

    def column(self, metric: str) -> Tensor:
        """Returns the values of a metric for all frames, (N,); `metric` is one of METRIC_NAMES."""
        return self.metrics[:, metrics.METRIC_NAMES.index(metric)]


class FrameRows:
    """Collects the results of this rank's frames during an evaluation.

    An instance is passed to `evaluate.evaluate` as a watcher, i.e. it is called after each batch.

    Args:
        min_depth: exclusive lower bound of valid ground truth, metres.
        cap: exclusive upper bound of valid ground truth, metres.
        crop: name of the evaluated part of an image, as for `metrics.crop_box`.
    """

    def __init__(self, min_depth: float, cap: float, crop: str):
        self.min_depth = min_depth
        self.cap = cap
        self.crop = crop
        self._indices: list[int] = []
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._sums: list[Tensor] = []

    def __call__(self, indices: list[int], batch: Batch, depth: Tensor, rows: Tensor) -> None:
        """Stores the results of a batch of B frames until `gather` is called.

        Args:
            indices: the frames' indices in the dataset.
            batch: the batch, with the frames' names and ground truth.
            depth: (B, 1, H, W), predicted depth, metres.
            rows: (B, 9), metrics as `depth_metrics` returns them.
        """
        self._indices += indices
        self._names += batch.names
        self._rows.append(rows)
        self._sums.append(range_sums(depth, batch.depth, self.min_depth, self.cap, self.crop))

    def gather(self) -> FrameTable:
        """Returns the results of all ranks' frames as a table in the dataset's order, on the CPU.

        Collective: all ranks must call it, and all get the same result.
        """
        rows = (
            torch.cat(self._rows).cpu() if self._rows else torch.zeros(0, len(metrics.METRIC_NAMES))
        )
        sums = torch.cat(self._sums).cpu() if self._sums else torch.zeros(0, NUM_RANGES, 4)
        # Sort by index, the first element, which restores the dataset's order.
        mine = list(zip(self._indices, self._names, rows.tolist(), sums.tolist(), strict=True))
        of_all_ranks = sorted(frame for part in comm.gather_objects(mine) for frame in part)
        _, names, rows, sums = zip(*of_all_ranks, strict=True)
        return FrameTable(
            list(names), *(torch.tensor(values, dtype=torch.float64) for values in (rows, sums))
        )


def write_csv(path: Path, tables: Mapping[str, FrameTable], metrics_label: str = "") -> None:
    """Writes the results per frame of one or several networks to a CSV file.

    There is one row per network and frame: the first network's rows in the dataset's order of
    frames, then those of the next. The columns are the frame's name, its number of valid pixels,
    the metrics of METRIC_NAMES in full precision (empty for a frame without valid pixels) and the
    network's name.

    Args:
        path: the file; replaced atomically.
        tables: network's name -> its results.
        metrics_label: text that says what the metrics mean if they don't measure accuracy, e.g.
            agreement with a teacher. It is written to one more column in every row; empty for no
            such column.
    """
    # Build the whole text first, so that the file is replaced in one step.
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["name", "pixels", *metrics.METRIC_NAMES, "network"]
    last = [metrics_label] if metrics_label else []
    writer.writerow(head + ["figures_are"] * len(last))
    for network, table in tables.items():
        for name, pixels, row in zip(
            table.names, table.pixels, table.metrics.tolist(), strict=True
        ):
            cells = ["" if math.isnan(value) else repr(value) for value in row]
            writer.writerow([name, pixels, *cells, network, *last])
    replace_text(path, file.getvalue())


def worst(table: FrameTable, metric: str = "abs_rel", count: int = 3) -> list[tuple[str, float]]:
    """Returns the frames with the largest values of a metric, the largest first.

    Frames without valid ground truth are left out.

    Args:
        table: a network's results.
        metric: name of a metric that is better if smaller, e.g. "abs_rel".
        count: maximum number of returned frames.

    Returns:
        (name of the frame, value of the metric) for each.
    """
    column = table.column(metric)
    # Leave out frames whose metric is NaN, i.e. frames without valid ground truth.
    known = (~column.isnan()).nonzero()[:, 0].tolist()
    known.sort(key=lambda index: -column[index].item())
    return [(table.names[index], column[index].item()) for index in known[:count]]


def count_better_frames(ours: FrameTable, theirs: FrameTable) -> dict[str, tuple[int, int]]:
    """Counts for each metric on how many frames either of two networks is better.

    Args:
        ours: the results of the first network.
        theirs: the results of the second network on the same frames.

    Returns:
        metric -> (frames on which `ours` is better, frames on which `theirs` is better). Frames
        with equal values, or without valid ground truth, count for neither.
    """
    counts = {}
    for name in metrics.METRIC_NAMES:
        first, second = ours.column(name), theirs.column(name)
        less = (first < second).sum().item()
        more = (first > second).sum().item()
        counts[name] = (less, more) if name in metrics.LESS_IS_BETTER else (more, less)
    return counts
