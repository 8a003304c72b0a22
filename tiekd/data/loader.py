"""From a data set to batches: training micro-batches by key, validation batches dealt whole to ranks.

Workers hold no random state: a key (epoch, index) and the seed say everything. A user's error in a worker travels as a
value, so that the user sees its one line and not a wrapped traceback.
"""

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from tiekd.data.batch import Batch
from tiekd.data.sampler import MicroBatches
from tiekd.data.transforms import Augment, Sample, apply, normalise, scale_to_cover
from tiekd.errors import DataError, UserError


def training_batches(
    dataset: Dataset, sampler: MicroBatches, augment: Augment, seed: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's augmented, normalised micro-batches on the device, in the sampler's order, then it ends."""
    yield from _load(_Keyed(dataset, augment, seed), sampler, workers, device)


def validation_batches(
    dataset: Dataset, batch_size: int, rank: int, world_size: int, workers: int, device: torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """(indices, batch) pairs of this rank: batches are formed over the whole set, then every world_size-th is ours."""
    indices = _neighbours_of_one_size(dataset, batch_size)[rank::world_size]
    keys = [[(0, index) for index in batch] for batch in indices]
    yield from zip(indices, _load(_Keyed(dataset, None, 0), keys, workers, device), strict=True)


def _load(dataset: "_Keyed", batches, workers: int, device: torch.device) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        # Without a generator of its own the loader draws a seed from the global stream at every start.
        generator=torch.Generator().manual_seed(0),
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch.to(device)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(
            f"a data worker died ({reason}); if the memory or /dev/shm is full, set fewer than data.workers={workers}"
        ) from None


def _neighbours_of_one_size(dataset: Dataset, batch_size: int) -> list[list[int]]:
    """Indices of all batches in order; one ends early where the next picture has another size."""
    one_size = batch_size == 1 or not hasattr(dataset, "image_sizes")
    sizes = [None] * len(dataset) if one_size else dataset.image_sizes()
    batches = []
    for index, size in enumerate(sizes):
        if not batches or len(batches[-1]) == batch_size or sizes[index - 1] != size:
            batches.append([])
        batches[-1].append(index)
    return batches


class _Keyed(Dataset):
    """Samples by (epoch, index): augmented when there is an `augment`, then normalised."""

    def __init__(self, dataset: Dataset, augment: Augment | None, seed: int):
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample] | UserError:
        try:
            return [self._sample(*key) for key in keys]
        except UserError as error:
            return error

    def _sample(self, epoch: int, index: int) -> Sample:
        sample = self.dataset[index]
        if self.augment is not None:
            if self.augment.sizes == "keep_aspect":
                sample = scale_to_cover(sample, *self.augment.crop)
            height, width = sample.image.shape[-2:]
            try:
                decisions = self.augment.draw(self.seed, epoch, index, height, width)
            except DataError as error:
                raise DataError(f"{sample.name}: {error}") from None
            sample = apply(sample, decisions)
        return normalise(sample)


def _collate(samples: list[Sample] | UserError) -> Batch | UserError:
    if isinstance(samples, UserError):
        return samples
    sizes = {tuple(sample.image.shape[-2:]) for sample in samples}
    if len(sizes) > 1:
        return DataError(
            f"pictures of different sizes in one batch: {', '.join(f'{h}x{w}' for h, w in sorted(sizes))} "
            f"(among {samples[0].name}); set data.augment.crop or data.augment.sizes=bucket for training, and "
            "evaluation.batch_size=1"
        )
    image, depth, inside, teacher_depth, intrinsics, names = zip(*samples, strict=True)
    return Batch(
        torch.stack(image),
        torch.stack(depth),
        torch.stack(inside),
        None if teacher_depth[0] is None else torch.stack(teacher_depth),
        torch.stack(intrinsics),
        list(names),
    )


def _start_worker(_worker: int) -> None:
    """One thread; and deaf to the signals that ask a run to stop, for launchers send them to workers as well."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
