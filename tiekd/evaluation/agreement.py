"""Compares a network with its teacher where there is no ground truth.

The metrics then say how well the network imitates the teacher: agreement, not accuracy. A student
that repeats every mistake of its teacher agrees with it perfectly. So every place that shows such
metrics also shows the text LABEL, "agreement with the teacher, not accuracy". The teacher's depth
is that of whole images at the images' own size. It is read from the maps that bin/cache_teacher.py
has cached, or computed in every evaluation.

In addition to the nine metrics of `metrics.METRIC_NAMES` and the errors by depth range, `EdgeRows`
computes the errors near the depth edges of the teacher's map. This needs a dense map
(tiekd/evaluation/edge_metric.py).
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
from tiekd.data.loading.loader import ALL_BATCHES, Loading, validation_batches
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
# The same frames as several batches, which differ in how the images are resized: resize -> batch.
# The batch for None is the one that the student gets; its depth maps have the images' own size.
BatchByResize = Mapping[Resize | None, Batch]


@dataclass(frozen=True)
class Reference:
    """The teacher with which predictions are compared in place of ground truth.

    Attributes:
        depth: function from a batch to the teacher's depth: (B, 1, h, w) in metres, 0 where the
            teacher has none, or a `Target`, whose mean depth is used. If `per_teacher` isn't empty,
            a function from `BatchByResize` to the depth that all teachers give together, at the
            images' own size.
        resize: how images are resized for the teacher; depth then has the resized images' size.
            None if `depth` returns cached maps of the images' own size, which come with the batch.
        name: the teacher's name in reports.
        label: text that is shown with metrics against the teacher, as `label_of` returns it.
        per_teacher: with several teachers, one `Reference` for each, which `depth` calls; empty for
            a single teacher.
    """

    depth: (
        Callable[[Batch], Tensor | Target | None]
        | Callable[[BatchByResize], Tensor | Target | None]
    )
    resize: Resize | None
    name: str
    label: str = LABEL
    per_teacher: tuple["Reference", ...] = ()

    @property
    def is_run(self) -> bool:
        """True if a teacher is run for each batch; False if all maps are cached."""
        return any(each.resize is not None for each in (self.per_teacher or (self,)))

    def targets(
        self,
        batches: Iterator[tuple[list[int], Batch]],
        dataset: Dataset,
        batch_size: int,
        device: torch.device,
        loading: Loading,
        resize: Resize,
        share: RankShare = ALL_BATCHES,
    ) -> Iterator[tuple[list[int], Batch]]:
        """Yields the student's batches with the teacher's depth in the place of ground truth.

        If the teacher needs images of another size than the student, the images are read a second
        time; for several teachers, once for each further size.

        Args:
            batches: batches for the student: (indices of the frames in `dataset`, batch).
            dataset: the evaluation frames.
            batch_size: images per batch.
            device: the device of the batches.
            loading: number and timeout of each rank's data workers.
            resize: how the images in `batches` were resized.
            share: the part of the frames that `batches` have.

        Yields:
            (indices, batch) for each of `batches`; the batch's `depth` is the teacher's depth at
            the images' own size, (B, 1, H, W) metres.

        Raises:
            DataError: the teacher's maps are cached, and a batch has none.
        """
        needed = dict.fromkeys(each.resize for each in self.per_teacher or (self,))
        sizes = [size for size in needed if size not in (None, resize)]
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
                by_resize = {None: batch, resize: batch}
                by_resize |= {size: other for size, (_, other) in zip(sizes, seen, strict=True)}
                yield indices, self._with_target(batch, by_resize)

    def at_own_size(self, by_resize: BatchByResize) -> Tensor | Target | None:
        """Returns a single teacher's depth, resized bilinearly to the images' own size.

        Args:
            by_resize: the batch as the student gets it (key None), and with images resized by
                `self.resize`.

        Returns:
            (B, 1, H, W), metres, 0 where the teacher has none; or a `Target`, if `depth` returns
            one. None if the teacher's maps are cached and the batch has none.
        """
        found = self.depth(by_resize[self.resize])
        if found is None or self.resize is None:
            return found
        own = tuple(by_resize[None].depth.shape[-2:])

        def restored(values: Tensor) -> Tensor:
            return resizes.at_own_size(values, self.resize, own, smooth=True)

        return found.mapped(restored) if isinstance(found, Target) else restored(found)

    def _with_target(self, batch: Batch, by_resize: BatchByResize) -> Batch:
        depth = mean_depth(
            self.depth(by_resize) if self.per_teacher else self.at_own_size(by_resize)
        )
        if depth is None:
            raise DataError(
                f"evaluation.against: {batch.names[0]} has no map of the teacher; the data set has "
                "to return `teacher_depth` for validation frames, too"
            )
        return batch._replace(depth=depth)


class EdgeFigures(NamedTuple):
    """The student's errors over all pixels near depth edges of the teacher's maps.

    `abs_rel` and `mid_air` are NaN if there are no such pixels.

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
        min_depth: metres; pixels where the teacher's depth isn't above it are ignored.
        cap: metres; pixels where the teacher's depth isn't below it are ignored.
        crop: name of the evaluated part of an image, as for `metrics.crop_box`.
    """

    def __init__(self, min_depth: float, cap: float, crop: str):
        self.min_depth, self.cap, self.crop = min_depth, cap, crop
        self._sums: list[Tensor] = []

    def __call__(self, _indices: list[int], batch: Batch, depth: Tensor, _rows: Tensor) -> None:
        """Computes the sums of a batch's errors, and stores them until `gather`.

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
        """Returns the errors near depth edges, over the frames of all ranks, as `EdgeFigures`.

        Collective: all ranks must call it, and all get the same result.
        """
        mine = torch.stack(self._sums).sum(0).tolist() if self._sums else [0.0] * 3
        parts = zip(*comm.gather_objects(mine), strict=True)
        pixels, relative, hanging = (sum(part) for part in parts)
        if not pixels:
            return EdgeFigures(0, float("nan"), float("nan"))
        return EdgeFigures(int(pixels), relative / pixels, hanging / pixels)


class Agreement(NamedTuple):
    """Results of an evaluation against the teacher, in addition to the metrics of METRIC_NAMES.

    Attributes:
        label: text that says what the results mean, as `label_of` returns it.
        figures: name -> value of the errors by depth range and near depth edges, as
            `errors_by_name` returns them.
        text: `figures` as lines of text.
    """

    label: str
    figures: dict[str, float]
    text: str


def errors_by_name(ranges: Sequence[RangeFigures], edges: EdgeFigures) -> dict[str, float]:
    """Returns the errors by depth range and near depth edges as a dict from name to value.

    The names are e.g. `abs_rel_0-20m` and `rmse_0-20m` (metres) for the range from 0 to 20 m, and
    `abs_rel_at_edges` and `mid_air_at_edges` near edges. Ranges without a pixel, and edges if no
    pixel is near one, are left out.

    Args:
        ranges: the errors in each depth range.
        edges: the errors near depth edges.
    """
    found = {}
    for each in ranges:
        if each.pixels:
            range_name = f"{each.from_m:g}-{each.to_m:g}m"
            found |= {f"abs_rel_{range_name}": each.abs_rel, f"rmse_{range_name}": each.rmse_m}
    if edges.pixels:
        found |= {"abs_rel_at_edges": edges.abs_rel, "mid_air_at_edges": edges.mid_air}
    return found


def label_of(dataset: Dataset) -> str:
    """Returns the text that is shown with metrics of agreement with a teacher.

    It is LABEL, followed by the dataset's attribute `remark`, if there is one, which says how the
    frames were chosen.

    Args:
        dataset: the evaluation frames.
    """
    remark = getattr(dataset, "remark", "")
    return f"{LABEL}; {remark}" if remark else LABEL
