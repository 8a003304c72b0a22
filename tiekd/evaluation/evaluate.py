"""Evaluates a predictor: computes nine depth metrics of each image, and their means.

The results don't depend on the number of ranks: the whole validation set is divided into batches,
each rank evaluates some of these batches, and the metrics of all ranks' images are gathered and
sorted into the dataset's order before the mean is computed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.console import Progress
from tiekd.data import focal as focals
from tiekd.data import resize as resizes
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import NO_WORKERS, Loading, validation_batches
from tiekd.data.loading.sampler import RankShare
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.distributed import comm
from tiekd.errors import DataError, RecipeError
from tiekd.evaluation import metrics
from tiekd.evaluation.agreement import AGAINST, Reference

Watcher = Callable[[list[int], Batch, Tensor, Tensor], None]


@dataclass(frozen=True)
class EvaluationSettings:
    """A recipe's node `evaluation`: when and how to evaluate, and how to find the best checkpoint.

    Attributes:
        interval: epochs or iterations between evaluations, as `by` says.
        by: unit of `interval`, "epoch" or "iteration".
        crop: name of the evaluated part of an image: "garg", "eigen", "nyu_eigen" or "none"
            (`metrics.crop_box`).
        flip: True to average each prediction with that of the mirrored image.
        cap: metres. Only pixels whose ground truth is below it are evaluated. None for the
            network's max_depth.
        batch_size: images per batch.
        save_best: name of the metric by which the best checkpoint of a run is chosen.
        against: "ground_truth", or "teacher" to compare predictions with the teacher's depth, which
            needs no ground truth; the metrics are then agreement, not accuracy
            (tiekd/evaluation/agreement.py).
        set: with several data sets, the name of the one whose metrics decide which checkpoint is
            the best; None for the mean of each metric over the sets.
    """

    interval: int = 1
    by: str = "epoch"
    crop: str = "garg"
    flip: bool = True
    cap: float | None = None
    batch_size: int = 1
    save_best: str = "abs_rel"
    against: str = "ground_truth"
    set: str | None = None

    def __post_init__(self):
        if self.by not in ("epoch", "iteration"):
            raise RecipeError(f"evaluation.by: got {self.by!r}; allowed: epoch, iteration")
        if not isinstance(self.interval, int) or self.interval < 1:
            raise RecipeError(
                f"evaluation.interval: got {self.interval!r}; it must be a whole number from 1"
            )
        if self.batch_size < 1:
            raise RecipeError(
                f"evaluation.batch_size: got {self.batch_size!r}; it must be a whole number from 1"
            )
        if self.cap is not None and not self.cap > 0:
            raise RecipeError(
                f"evaluation.cap: got {self.cap!r}; "
                "it must be metres > 0, or left out for max_depth"
            )
        if self.crop not in metrics.CROPS:
            raise RecipeError(
                f"evaluation.crop: got {self.crop!r}; allowed: {', '.join(metrics.CROPS)}"
            )
        if self.save_best not in metrics.METRIC_NAMES:
            allowed = ", ".join(metrics.METRIC_NAMES)
            raise RecipeError(f"evaluation.save_best: got {self.save_best!r}; allowed: {allowed}")
        if self.against not in AGAINST:
            raise RecipeError(
                f"evaluation.against: got {self.against!r}; allowed: {', '.join(AGAINST)}"
            )


@dataclass(frozen=True)
class EvaluationProtocol:
    """How predictions are scored: the settings of a recipe, and the depth range of its network.

    Attributes:
        settings: the node `evaluation` of a recipe.
        min_depth: exclusive lower bound of the ground truth at evaluated pixels, metres.
        max_depth: the network's largest depth in metres; the default of `cap`.
        split: name of the split that the evaluated frames come from, for reports.
        reference: the teacher with which predictions are compared in place of ground truth; None
            for ground truth.
    """

    settings: EvaluationSettings
    min_depth: float
    max_depth: float
    split: str = "val"
    reference: Reference | None = None

    @property
    def cap(self) -> float:
        """The exclusive upper bound of the ground truth at evaluated pixels, metres."""
        return self.max_depth if self.settings.cap is None else self.settings.cap


def evaluate(
    predictor: Callable[[Tensor], Tensor],
    dataset: Dataset,
    protocol: EvaluationProtocol,
    device: torch.device,
    *,
    loading: Loading = NO_WORKERS,
    resize: Resize = OWN_SIZE,
    watchers: Sequence[Watcher] = (),
    out: TextIO | None = None,
) -> dict[str, float]:
    """Evaluates a predictor on a dataset, and returns the mean of each depth metric.

    If the protocol has a reference, the teacher's depth takes the place of the ground truth, also
    in the batches that watchers get.

    Collective: all ranks must call it, and all get the same result. A pixel is evaluated if it is
    inside the crop and min_depth < ground truth < cap. An image without such pixels is left out of
    the means. Memory: besides the network at the working resolution, two float32 maps per image at
    its own size, the ground truth and the prediction.

    Args:
        predictor: function from images (B, 3, H, W) to depth (B, 1, H, W) in metres. If its
            `needs_focal` is True, the second argument is the focal length of each image, (B,) in
            pixels of the resized images.
        dataset: the evaluation frames.
        protocol: depth range, crop, batch size, and the reference, if any.
        device: the predictor's device.
        loading: number and timeout of each rank's data workers; by default there are none.
        resize: how images are resized for the predictor (working resolution). Predicted depth is
            resized bilinearly to the ground truth's own size, and compared with it there.
        watchers: called after each of this rank's batches with the frames' indices, the batch, the
            predicted depth (B, 1, H, W) and the metrics (B, 9), all tensors on the device.
        out: text stream that receives the progress if it is a terminal; None for no progress.

    Returns:
        name -> mean over the images, for each of METRIC_NAMES.
    """
    settings = protocol.settings
    # Compute the metrics of this rank's batches, at the ground truth's own size.
    indices, rows = [], []
    share = RankShare(comm.rank(), comm.world_size())
    batches = validation_batches(
        dataset,
        settings.batch_size,
        device,
        share=share,
        loading=loading,
        resize=resize,
    )
    if protocol.reference is not None:
        batches = protocol.reference.targets(
            batches, dataset, settings.batch_size, device, loading, resize, share
        )
    for batch_indices, batch in _with_progress(
        batches, "frames", len(dataset), comm.world_size(), out
    ):
        given = ()
        if getattr(predictor, "needs_focal", False):
            given = (focals.of_batch(batch, resize),)
            focals.check_known(*given, batch.names)
        depth = resizes.at_own_size(
            predictor(batch.image, *given), resize, tuple(batch.depth.shape[-2:]), smooth=True
        )
        indices += batch_indices
        rows.append(
            metrics.depth_metrics(
                depth, batch.depth, protocol.min_depth, protocol.cap, settings.crop
            )
        )
        for watcher in watchers:
            watcher(batch_indices, batch, depth, rows[-1])
    # Gather the metrics of all ranks' frames, sorted into the dataset's order. A frame that two
    # ranks evaluated is included once.
    mine = torch.cat(rows).cpu().tolist() if rows else []
    by_index = dict(
        pair for part in comm.gather_objects(list(zip(indices, mine, strict=True))) for pair in part
    )
    return metrics.aggregate(
        torch.tensor([by_index[i] for i in sorted(by_index)], dtype=torch.float64)
    )


def _with_progress(
    pairs: Iterable[tuple[list[int], Any]], noun: str, total: int, ranks: int, out: TextIO | None
) -> Iterator:
    """Yields the elements of `pairs` unchanged, and prints the progress on rank 0.

    The number of finished samples is estimated as rank 0's number times `ranks`.

    Args:
        pairs: pairs whose first element is the list of indices of one or several samples in the
            dataset. The second element, e.g. their batch, isn't used here.
        noun: what the samples are called in the progress line.
        total: number of samples on all ranks together.
        ranks: number of ranks.
        out: text stream that receives the progress; None for no progress.
    """
    if out is None or not comm.is_main():
        yield from pairs
        return
    seen = 0
    with Progress(noun, total, lambda: min(seen, total), out, in_files=False) as progress:
        for pair in pairs:
            yield pair
            seen += len(pair[0]) * ranks
            progress.update()


def mean_depth_map(dataset: Dataset, out: TextIO | None = None) -> Tensor:
    """Returns the per-pixel mean of a dataset's measured depths: (1, 1, H, W) float32, metres.

    The map is a baseline that any useful network beats. A pixel without any measurement gets the
    mean of its row. A row without any measurement gets the mean over all pixels.

    Args:
        dataset: the frames, whose `depth` is (1, H, W) metres, 0 where not measured.
        out: text stream that receives the progress; None for no progress.

    Raises:
        DataError: the frames differ in size.
    """
    # Sum the measured depths and the number of measurements at each pixel over all frames.
    total, count = 0.0, 0.0
    samples = (([index], dataset[index]) for index in range(len(dataset)))
    for (index,), sample in _with_progress(samples, "training frames", len(dataset), 1, out):
        depth = sample.depth.double()
        if index and depth.shape != total.shape:
            sizes = " and ".join("x".join(map(str, d.shape[-2:])) for d in (total, depth))
            raise DataError(
                f"{sample.name}: a mean map needs frames of one size, there are {sizes}; "
                "leave it out"
            )
        total = total + depth
        count = count + (depth > 0)
    # Fill pixels without a measurement with the mean of their row, or of the whole map.
    rows = total.sum(-1, keepdim=True)
    row_counts = count.sum(-1, keepdim=True)
    everywhere = rows.sum() / row_counts.sum()
    row_means = torch.where(row_counts > 0, rows / row_counts.clamp(min=1), everywhere)
    row_means = row_means.expand_as(total)
    return torch.where(count > 0, total / count.clamp(min=1), row_means).float()[None]
