"""Compares a network with its teacher where there is no ground truth.

The figures say how well the network imitates the teacher: agreement, not accuracy. A student that
repeats every mistake of its teacher agrees with it perfectly. So every place that shows such
figures shows LABEL, too. The teacher's depth is that of whole images, as bin/cache_teacher.py makes
it, at the images' own size; it is read from cached maps, or computed anew in every evaluation.

In addition to the nine metrics and the errors by range, `EdgeRows` computes the errors near the
depth edges of the teacher's map, which is dense (tiekd/evaluation/edge_metric.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data import resize as resizes
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import Loading, validation_batches
from tiekd.data.loading.sampler import RankShare
from tiekd.data.resize import Resize
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.evaluation import edge_metric, metrics
from tiekd.evaluation.range_errors import RangeFigures

TEACHER = "teacher"
AGAINST = ("ground_truth", TEACHER)  # the values of `evaluation.against`
LABEL = "agreement with the teacher, not accuracy"


@dataclass(frozen=True)
class Reference:
    """The teacher with which predictions are compared in place of ground truth.

    Attributes:
        depth: function from a batch to the teacher's depth, (B, 1, h, w) in metres, 0 where it has
            none.
        resize: the resize of the images that `depth` needs, and of whose size its result is; None
            if it returns maps of the images' own size, which come with the batch.
        name: what it is, for reports.
        label: what figures against it are, LABEL and perhaps a remark on the frames.
    """

    depth: Callable[[Batch], Tensor | None]
    resize: Resize | None
    name: str
    label: str = LABEL

    def targets(
        self,
        batches: Iterator[tuple[list[int], Batch]],
        dataset: Dataset,
        batch_size: int,
        device: torch.device,
        loading: Loading,
        resize: Resize,
    ) -> Iterator[tuple[list[int], Batch]]:
        """Yields batches in which the teacher's depth takes the place of ground truth.

        If the teacher sees images at another size than the student, they are read a second time.

        Args:
            batches: this rank's batches for the student, with the frames' indices.
            dataset: the evaluation frames.
            batch_size: images per batch.
            device: the device of the batches.
            loading: number and timeout of each rank's data workers.
            resize: the resize of the images in `batches`.
        """
        if self.resize in (None, resize):
            for indices, batch in batches:
                yield indices, self._with_target(batch, batch)
            return
        share = RankShare(comm.rank(), comm.world_size())
        others = validation_batches(
            dataset, batch_size, device, share=share, loading=loading, resize=self.resize
        )
        with closing(others):
            for (indices, batch), (_, seen) in zip(batches, others, strict=True):
                yield indices, self._with_target(batch, seen)

    def _with_target(self, batch: Batch, seen: Batch) -> Batch:
        depth = self.depth(seen)
        if depth is None:
            raise DataError(
                f"evaluation.against: {batch.names[0]} has no map of the teacher; the data set has "
                "to return `teacher_depth` for validation frames, too"
            )
        if self.resize is not None:
            own = tuple(batch.depth.shape[-2:])
            depth = resizes.restored(depth, self.resize, own, smooth=True)
        return batch._replace(depth=depth)


class EdgeFigures(NamedTuple):
    """The errors of all pixels near depth edges of the teacher's maps; NaN without such pixels.

    Attributes:
        pixels: number of these pixels.
        abs_rel: mean of |prediction - teacher| / teacher.
        mid_air: fraction of them that is predicted in mid-air between the two sides of the edge.
    """

    pixels: int
    abs_rel: float
    mid_air: float

    def __str__(self) -> str:
        if not self.pixels:
            return "no pixel is near an edge of the teacher's depth"
        return (
            f"{self.pixels} pixels near edges of the teacher's depth: abs_rel {self.abs_rel:.4f}, "
            f"{self.mid_air:.1%} in mid-air between the two sides"
        )


class EdgeRows:
    """Sums the errors near depth edges during an evaluation, to which it is passed as a watcher.

    Args:
        min_depth: exclusive lower bound of the teacher's depth that counts, metres.
        cap: exclusive upper bound of the teacher's depth that counts, metres.
        crop: name of the evaluated part of an image, as for `metrics.crop_box`.
    """

    def __init__(self, min_depth: float, cap: float, crop: str):
        self.min_depth, self.cap, self.crop = min_depth, cap, crop
        self._sums: list[Tensor] = []

    def __call__(self, _indices: list[int], batch: Batch, depth: Tensor, _rows: Tensor) -> None:
        """Adds the errors of a batch.

        Args:
            _indices: the frames' indices in the dataset; not used.
            batch: the batch, whose `depth` is the teacher's.
            depth: (B, 1, H, W), predicted depth, metres.
            _rows: the metrics of each frame; not used.
        """
        box = (..., *metrics.crop_box(self.crop, *depth.shape[-2:]))
        truth = batch.depth[box]
        counts = (truth > self.min_depth) & (truth < self.cap)
        self._sums.append(edge_metric.edge_sums(depth[box], torch.where(counts, truth, 0)))

    def gather(self) -> EdgeFigures:
        """Returns the errors of all ranks' frames, on every rank. Collective."""
        mine = torch.stack(self._sums).sum(0).tolist() if self._sums else [0.0] * 3
        parts = zip(*comm.gather_objects(mine), strict=True)
        pixels, relative, hanging = (sum(part) for part in parts)
        if not pixels:
            return EdgeFigures(0, float("nan"), float("nan"))
        return EdgeFigures(int(pixels), relative / pixels, hanging / pixels)


class Agreement(NamedTuple):
    """What an evaluation against the teacher shows in addition to the nine metrics.

    Attributes:
        label: what the metrics are, LABEL and perhaps a remark.
        figures: the errors by range and near edges, by names such as `abs_rel_0-20m`.
        text: the same as lines of text.
    """

    label: str
    figures: dict[str, float]
    text: str


def figures_of(ranges: Sequence[RangeFigures], edges: EdgeFigures) -> dict[str, float]:
    """Returns the errors by range and near edges by name; ranges without a pixel are left out.

    Args:
        ranges: the errors of each depth range.
        edges: the errors near depth edges.
    """
    found = {}
    for each in ranges:
        if each.pixels:
            place = f"{each.from_m:g}-{each.to_m:g}m"
            found |= {f"abs_rel_{place}": each.abs_rel, f"rmse_{place}": each.rmse_m}
    if edges.pixels:
        found |= {"abs_rel_at_edges": edges.abs_rel, "mid_air_at_edges": edges.mid_air}
    return found


def label_of(dataset: Dataset) -> str:
    """Returns LABEL, with the remark on how the validation frames were chosen, if there is one.

    Args:
        dataset: the evaluation frames.
    """
    remark = getattr(dataset, "remark", "")
    return f"{LABEL}; {remark}" if remark else LABEL
