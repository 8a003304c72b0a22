"""What an evaluation found frame by frame: the rows behind the means, as a table, a file, and the worst of them.

`FrameRows` is one of `evaluate.evaluate`'s watchers. Nothing leaves the device before `gather`; then some 200 bytes a
frame go to every rank. Left out: per-pixel results (tiekd/visualization/frame_pictures.py draws them).
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
    """Frames in the data set's order. metrics: (N, 9) float64, NaN for a frame without ground truth that counts; sums:
    (N, NUM_RANGES, 4) float64 of `range_errors.range_sums`."""

    names: list[str]
    metrics: Tensor
    sums: Tensor

    @property
    def pixels(self) -> list[int]:
        """How many pixels of each frame counted."""
        return self.sums[:, :, PIXELS].sum(1).long().tolist()

    def column(self, metric: str) -> Tensor:
        """(N,) of one metric."""
        return self.metrics[:, metrics.METRIC_NAMES.index(metric)]


class FrameRows:
    """Keeps the rows of this rank's frames as they are evaluated."""

    def __init__(self, min_depth: float, cap: float, crop: str):
        self.min_depth, self.cap, self.crop = min_depth, cap, crop
        self._indices: list[int] = []
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._sums: list[Tensor] = []

    def __call__(self, indices: list[int], batch: Batch, depth: Tensor, rows: Tensor) -> None:
        self._indices += indices
        self._names += batch.names
        self._rows.append(rows)
        self._sums.append(range_sums(depth, batch.depth, self.min_depth, self.cap, self.crop))

    def gather(self) -> FrameTable:
        """All ranks' frames, on every rank. Collective."""
        rows = (
            torch.cat(self._rows).cpu() if self._rows else torch.zeros(0, len(metrics.METRIC_NAMES))
        )
        sums = torch.cat(self._sums).cpu() if self._sums else torch.zeros(0, NUM_RANGES, 4)
        mine = list(zip(self._indices, self._names, rows.tolist(), sums.tolist(), strict=True))
        everything = sorted(frame for part in comm.gather_objects(mine) for frame in part)
        _, names, rows, sums = zip(*everything, strict=True)
        return FrameTable(
            list(names), *(torch.tensor(values, dtype=torch.float64) for values in (rows, sums))
        )


def write_csv(path: Path, tables: Mapping[str, FrameTable]) -> None:
    """One row a frame in the data set's order: name, pixels, the nine metrics with all their digits (nothing where no
    pixel counts) and the network; one network after the other."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", "pixels", *metrics.METRIC_NAMES, "network"])
    for network, table in tables.items():
        for name, pixels, row in zip(
            table.names, table.pixels, table.metrics.tolist(), strict=True
        ):
            cells = ["" if math.isnan(value) else repr(value) for value in row]
            writer.writerow([name, pixels, *cells, network])
    replace_text(path, file.getvalue())


def worst(table: FrameTable, metric: str = "abs_rel", count: int = 3) -> list[tuple[str, float]]:
    """The frames with the largest error, (name, error), the worst first; those without ground truth are none."""
    column = table.column(metric)
    known = (~column.isnan()).nonzero()[:, 0].tolist()
    known.sort(key=lambda index: -column[index].item())
    return [(table.names[index], column[index].item()) for index in known[:count]]


def wins(ours: FrameTable, theirs: FrameTable) -> dict[str, tuple[int, int]]:
    """By metric: on how many frames we are better, and on how many they are. Equal frames are nobody's."""
    counts = {}
    for name in metrics.METRIC_NAMES:
        first, second = ours.column(name), theirs.column(name)
        less, more = (first < second).sum().item(), (first > second).sum().item()
        counts[name] = (less, more) if name in metrics.LESS_IS_BETTER else (more, less)
    return counts
