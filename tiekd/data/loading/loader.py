"""Loads batches from a dataset: micro-batches for training, and batches for validation.

A frame passes three containers: worker processes read a `Sample` and collate a `WorkerBatch`
(tiekd/data/loading/reader.py), which becomes a `Batch` on the device. On a GPU batches are copied
from pinned memory, one batch ahead and on a separate CUDA stream (tiekd/data/loading/prefetch.py).

With `data.on_error: skip` a training sample that can't be read is replaced by the next readable one
of the dataset. The replacement depends on the files alone, so any number of ranks and a resumed run
see the same samples. Evaluation skips no sample, since its metrics would change without notice.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from tiekd.data.augment.augment import Augment
from tiekd.data.batch import Batch, WorkerBatch
from tiekd.data.loading import workers as worker_processes
from tiekd.data.loading.prefetch import on_device
from tiekd.data.loading.reader import BatchReader
from tiekd.data.loading.sampler import ALL_BATCHES, MicroBatches, RankShare
from tiekd.data.loading.workers import TIMEOUT_S
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import RecipeError, UserError

ON_ERROR = ("raise", "skip")


@dataclass(frozen=True)
class Loading:
    """The loading settings in `recipe["data"]`, which apply to any dataset.

    Attributes:
        workers: Worker processes per rank, 0 to 1024; 0 to read in the main process.
        on_error: How a training sample that can't be read is handled: "raise" raises the error,
            "skip" replaces the sample by another one.
        max_errors: Largest number of files that may be skipped in a run.
        timeout_s: Seconds to wait for a batch from a worker.
        decoded: Folder of decoded frames (tiekd/data/decoded_cache.py), below data.root or
            absolute, that is read instead of the files; None reads the files.
    """

    workers: int = 2
    on_error: str = "raise"
    max_errors: int = 100
    timeout_s: float = TIMEOUT_S
    decoded: str | None = None

    def __post_init__(self):
        if not 0 <= self.workers <= 1024:
            raise RecipeError(
                f"data.workers: got {self.workers!r}; it must be a whole number from 0 to 1024"
            )
        if self.on_error not in ON_ERROR:
            raise RecipeError(
                f"data.on_error: got {self.on_error!r}; allowed: {', '.join(ON_ERROR)}"
            )
        if self.max_errors < 1:
            raise RecipeError(
                f"data.max_errors: got {self.max_errors!r}; it must be a whole number from 1 (for "
                "none: data.on_error=raise)"
            )
        if not 0 < self.timeout_s <= 1e6:
            raise RecipeError(
                f"data.timeout_s: got {self.timeout_s!r}; it must be seconds > 0, at most 1e6"
            )


# Settings with which the calling process reads, without workers.
NO_WORKERS = Loading(workers=0)


@dataclass
class Unreadable:
    """Collects the errors of training samples that can't be read and are skipped.

    Attributes:
        max_errors: Largest number of samples that may be skipped in a run.
        messages: This rank's error messages as the keys of a dict, so that each is kept once and in
            order.
    """

    max_errors: int
    messages: dict[str, None] = field(default_factory=dict)


def training_batches(
    dataset: Dataset,
    sampler: MicroBatches,
    augment: Augment,
    device: torch.device,
    *,
    loading: Loading = NO_WORKERS,
    unreadable: Unreadable | None = None,
    resize: Resize = OWN_SIZE,
    needs_focal: bool | Collection[int] = False,
) -> Iterator[Batch]:
    """Yields this rank's augmented, normalised micro-batches on the device, in the sampler's order.

    Args:
        dataset: The training set.
        sampler: Yields the (epoch, index) keys of each micro-batch; its seed is also the
            augmentation's seed.
        augment: The augmentation.
        device: The batches' device.
        loading: How many workers read, and how long to wait for them.
        unreadable: Receives the errors of skipped samples; None raises the first error instead.
        resize: How images are resized before they are augmented.
        needs_focal: True to raise an error for a sample whose focal length isn't known, or whose
            aspect ratio the resizing changes by more than STRETCH (tiekd/data/focal.py). If
            `dataset` is several data sets, the indices of those whose samples are checked so.

    Raises:
        DataError: If a sample can't be read, or a worker hangs or dies.
        LaunchError: If the system lacks room for the workers.
    """
    max_errors = None if unreadable is None else unreadable.max_errors
    reader = BatchReader(
        dataset,
        augment,
        sampler.seed,
        max_errors=max_errors,
        resize=resize,
        needs_focal=needs_focal,
    )
    for batch in _load(reader, sampler, loading, device):
        if unreadable is not None:
            unreadable.messages.update(dict.fromkeys(batch.skipped))
        yield batch


def validation_batches(
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    *,
    share: RankShare = ALL_BATCHES,
    loading: Loading = NO_WORKERS,
    resize: Resize = OWN_SIZE,
    resized_depth: bool = False,
) -> Iterator[tuple[list[int], Batch]]:
    """Yields this rank's validation batches, each with the indices of its frames in the dataset.

    Batches are formed over the whole dataset, and assigned to the ranks in turn (round-robin).

    Args:
        dataset: The validation dataset.
        batch_size: Frames per batch; a batch holds images of one size.
        device: The batches' device.
        share: This rank's share of the batches.
        loading: How many workers read, and how long to wait for them.
        resize: How images are resized. The mask `inside` has the size of the resized image.
        resized_depth: True to resize depths and intrinsics with the image, False to keep those of
            the image's own size.

    Raises:
        DataError: A sample can't be read, or a worker hangs or dies.
        LaunchError: The system lacks memory or processes for the workers.
    """
    # Form all ranks' batches, then select this rank's, so that metrics don't depend on the world
    # size.
    indices = _neighbours_of_one_size(dataset, batch_size)[share.rank :: share.world_size]
    keys = [[(0, index) for index in batch] for batch in indices]
    reader = BatchReader(dataset, None, 0, resize=resize, resized_depth=resized_depth)
    yield from zip(indices, _load(reader, keys, loading, device), strict=True)


def _load(
    reader: BatchReader,
    keys: Iterable[list[tuple[int, int]]],
    loading: Loading,
    device: torch.device,
) -> Iterator[Batch]:
    reads = worker_processes.read(
        reader.read,
        keys,
        loading.workers,
        reader.describe,
        loading.timeout_s,
        pin_memory=device.type == "cuda",
    )
    with closing(on_device(map(_unless_error, reads), device)) as there, closing(reads):
        yield from there


def _unless_error(read: WorkerBatch | UserError) -> WorkerBatch:
    """Returns a batch that a worker read, or raises the error that the worker returned instead.

    Args:
        read: The batch or the error that the worker returned.
    """
    if isinstance(read, UserError):
        raise read
    return read


def _neighbours_of_one_size(dataset: Dataset, batch_size: int) -> list[list[int]]:
    """Returns the frames' indices of each batch, for the batches of all ranks in order.

    A batch holds consecutive images of one size. It has fewer than `batch_size` images if the next
    image has another size.

    Args:
        dataset: The dataset. If it has no `image_sizes`, all images are taken to have one size.
        batch_size: Images per batch.
    """
    one_size = batch_size == 1 or not hasattr(dataset, "image_sizes")
    sizes = [None] * len(dataset) if one_size else dataset.image_sizes()
    batches = []
    for index, size in enumerate(sizes):
        if not batches or len(batches[-1]) == batch_size or sizes[index - 1] != size:
            batches.append([])
        batches[-1].append(index)
    return batches
