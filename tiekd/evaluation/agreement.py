"""Compares a network with its teacher where there is no ground truth.

The metrics then say how well the network imitates the teacher: agreement, not accuracy. A student
that repeats every mistake of its teacher agrees with it perfectly. So every place that shows such
metrics also shows LABEL, which says this. The teacher's depth is that of whole images, as
bin/cache_teacher.py makes it, at the images' own size; it is read from cached maps, or computed
anew in every evaluation.

In addition to the nine metrics and the errors by range, `EdgeRows` computes the errors near the
depth edges of the teacher's map, which is dense (tiekd/evaluation/edge_metric.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
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
from tiekd.data.target import Target, mean_depth
from tiekd.distributed import comm
from tiekd.errors import DataError
from tiekd.evaluation import edge_metric, metrics
from tiekd.evaluation.range_errors import RangeFigures

TEACHER = "teacher"
AGAINST = ("ground_truth", TEACHER)  # the values of `evaluation.against`
LABEL = "agreement with the teacher, not accuracy"
# Maps one batch of frames, loaded at several sizes, from the resize of its images to the batch. The
# key None is the batch that the student gets; its depth maps have the images' own size.
Views = Mapping[Resize | None, Batch]


@dataclass(frozen=True)
class Reference:
    """The teacher with which predictions are compared in place of ground truth.

    Attributes:
        depth: function from a batch to the teacher's depth, (B, 1, h, w) in metres, 0 where it has
            none, or to a `Target`, whose mean depth is used. With `parts`, function from `Views` to
            the depth that all teachers give together, at the images' own size.
        resize: the resize of the images that `depth` needs; its result has the resized images'
            size. None if `depth` returns cached maps of the images' own size, which come with the
            batch.
        name: the teacher's name in reports.
        label: what metrics against the teacher mean: LABEL, and perhaps a remark on how the frames
            were chosen.
        parts: the references of several teachers, which `depth` calls; empty for one teacher.
    """

    depth: Callable[[Batch], Tensor | Target | None] | Callable[[Views], Tensor | Target | None]
    resize: Resize | None
    name: str
    label: str = LABEL
    parts: tuple["Reference", ...] = ()

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

        If the teacher sees images at another size than the student, they are read a second time;
        for several teachers once for each further size.

        Args:
            batches: this rank's batches for the student, with the frames' indices.
            dataset: the evaluation frames.
            batch_size: images per batch.
            device: the device of the batches.
            loading: number and timeout of each rank's data workers.
            resize: the resize of the images in `batches`.
        """
        needed = dict.fromkeys(part.resize for part in self.parts or (self,))
        sizes = [size for size in needed if size not in (None, resize)]
        share = RankShare(comm.rank(), comm.world_size())
        with ExitStack() as stack:
            others = [
                stack.enter_context(
                    closing(
                        validation_batches(
                            dataset, batch_size, device, share=share, loading=loading, resize=size
                        )
                    )
                )
                for size in sizes
            ]
            for (indices, batch), *seen in zip(batches, *others, strict=True):
                views = {None: batch, resize: batch}
                views |= {size: other for size, (_, other) in zip(sizes, seen, strict=True)}
                yield indices, self._with_target(batch, views)

    def at_own_size(self, views: Views) -> Tensor | Target | None:
        """Returns the depth of a single teacher (without `parts`), resized to the images' own size.

        Args:
            views: a batch at the student's size (key None) and at `resize`.

        Returns:
            (B, 1, H, W), metres, 0 where the teacher has none; or a `Target`. None if the teacher's
            maps are cached and the batch has none.
        """
        found = self.depth(views[self.resize])
        if found is None or self.resize is None:
            return found
        own = tuple(views[None].depth.shape[-2:])

        def restored(values: Tensor) -> Tensor:
            return resizes.restored(values, self.resize, own, smooth=True)

        return found.mapped(restored) if isinstance(found, Target) else restored(found)

    def _with_target(self, batch: Batch, views: Views) -> Batch:
        depth = mean_depth(self.depth(views) if self.parts else self.at_own_size(views))
        if depth is None:
            raise DataError(
                f"evaluation.against: {batch.names[0]} has no map of the teacher; the data set has "
                "to return `teacher_depth` for validation frames, too"
            )
        return batch._replace(depth=depth)


class EdgeFigures(NamedTuple):
    """The errors of the student over all pixels near depth edges of the teacher's maps.

    Both errors are NaN if there are no such pixels.

    Attributes:
        pixels: number of pixels near depth edges.
        abs_rel: mean of |prediction - teacher| / teacher over these pixels.
        mid_air: fraction of these pixels whose predicted depth is between the two sides of the
            edge.
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
    """Sums a student's errors near the depth edges of its teacher during an evaluation.

    An instance is passed to `evaluate.evaluate` as a watcher, i.e. it is called after each batch.

    Args:
        min_depth: exclusive lower bound of the teacher's depth at counted pixels, metres.
        cap: exclusive upper bound of the teacher's depth at counted pixels, metres.
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
            depth: (B, 1, H, W), the student's predicted depth, metres.
            _rows: the metrics of each frame; not used.
        """
        box = (..., *metrics.crop_box(self.crop, *depth.shape[-2:]))
        truth = batch.depth[box]
        counts = (truth > self.min_depth) & (truth < self.cap)
        self._sums.append(edge_metric.edge_sums(depth[box], torch.where(counts, truth, 0)))

    def gather(self) -> EdgeFigures:
        """Returns the errors near depth edges over the frames of all ranks.

        Collective: all ranks must call it, and all get the same result.
        """
        mine = torch.stack(self._sums).sum(0).tolist() if self._sums else [0.0] * 3
        parts = zip(*comm.gather_objects(mine), strict=True)
        pixels, relative, hanging = (sum(part) for part in parts)
        if not pixels:
            return EdgeFigures(0, float("nan"), float("nan"))
        return EdgeFigures(int(pixels), relative / pixels, hanging / pixels)


class Agreement(NamedTuple):
    """The results of an evaluation against the teacher beyond the nine metrics.

    Attributes:
        label: what these results mean: LABEL, and perhaps a remark on how the frames were chosen.
        figures: name (such as `abs_rel_0-20m`) -> error in a depth range or near depth edges.
        text: `figures` as lines of text.
    """

    label: str
    figures: dict[str, float]
    text: str


def figures_of(ranges: Sequence[RangeFigures], edges: EdgeFigures) -> dict[str, float]:
    """Returns the errors by depth range and near depth edges as a dict from name to value.

    Ranges without a pixel are left out.

    Args:
        ranges: the errors in each depth range.
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
    """Returns LABEL and, if the dataset has one, its remark on how its frames were chosen.

    Args:
        dataset: the evaluation frames.
    """
    remark = getattr(dataset, "remark", "")
    return f"{LABEL}; {remark}" if remark else LABEL
