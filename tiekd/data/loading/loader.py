"""Loads batches from a dataset: training micro-batches by key, whole validation batches by rank.

Workers hold no random state: the key (epoch, index) and the seed determine everything. A user's
error in a worker is sent as a value, so that the user sees its one line and not a wrapped
traceback.

Workers decode, resize to the working resolution (tiekd/data/resize.py) and crop. Rotation, flip,
colours, normalisation and the conversion to metres run on the device (tiekd/data/batch.py); on a
GPU batches are copied from pinned memory, one batch ahead and on a stream of their own
(tiekd/data/loading/prefetch.py).

With `data.on_error: skip` a training sample that can't be read is replaced by the next readable one
of the dataset. The choice depends on the files alone: any number of ranks and a resumed run see the
same samples. Evaluation skips nothing, since its figures would change without notice.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data import resize as resizes
from tiekd.data.augment.augment import Augment, Decisions, Sample, colour_table
from tiekd.data.augment.geometry import cut, in_grey_levels
from tiekd.data.batch import Batch
from tiekd.data.loading import workers as worker_processes
from tiekd.data.loading.collate import Cut, Read, collate
from tiekd.data.loading.prefetch import on_device
from tiekd.data.loading.sampler import MicroBatches
from tiekd.data.loading.workers import TIMEOUT_S
from tiekd.data.resize import OWN_SIZE, Placement, Resize
from tiekd.distributed import limits
from tiekd.errors import DataError, LaunchError, RecipeError, UserError

ON_ERROR = ("raise", "skip")


@dataclass(frozen=True)
class Loading:
    """The settings by which `recipe["data"]` is read, for any dataset.

    Attributes:
        workers: Worker processes per rank, 0 to 1024; 0 reads in the main process.
        on_error: "raise" or "skip" a training sample that can't be read.
        max_errors: How many files may be skipped in a run.
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


@dataclass
class Unreadable:
    """Training samples that can't be read.

    Attributes:
        max_errors: How many files may be skipped in a run.
        messages: The errors that this rank met, each once.
    """

    max_errors: int
    messages: dict[str, None] = field(default_factory=dict)


def training_batches(
    dataset: Dataset,
    sampler: MicroBatches,
    augment: Augment,
    seed: int,
    workers: int,
    device: torch.device,
    timeout_s: float = TIMEOUT_S,
    unreadable: Unreadable | None = None,
    resize: Resize = OWN_SIZE,
) -> Iterator[Batch]:
    """Yields this rank's augmented, normalised micro-batches on the device, in the sampler's order.

    Args:
        dataset: The training set.
        sampler: Yields the keys of each micro-batch.
        augment: The augmentation.
        seed: Seed of the augmentation.
        workers: Worker processes of this rank.
        device: The batches' device.
        timeout_s: Seconds to wait for a batch from a worker.
        unreadable: Collects the errors of skipped samples; None raises the first one.
        resize: The working resolution.

    Raises:
        DataError: If a sample can't be read, or a worker hangs or dies.
        LaunchError: If the system lacks room for the workers.
    """
    max_errors = None if unreadable is None else unreadable.max_errors
    for read in _load(
        Keyed(dataset, augment, seed, max_errors, resize), sampler, workers, device, timeout_s
    ):
        if unreadable is not None:
            unreadable.messages.update(dict.fromkeys(read.errors))
        yield read.batch


def validation_batches(
    dataset: Dataset,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    device: torch.device,
    timeout_s: float = TIMEOUT_S,
    resize: Resize = OWN_SIZE,
    resized_depth: bool = False,
) -> Iterator[tuple[list[int], Batch]]:
    """Yields (indices, batch) pairs of this rank.

    Batches are formed over the whole set; every world_size-th of them is this rank's.

    Args:
        dataset: The validation set.
        batch_size: Frames per batch; a batch holds images of one size.
        rank: This rank.
        world_size: Number of ranks.
        workers: Worker processes of this rank.
        device: The batches' device.
        timeout_s: Seconds to wait for a batch from a worker.
        resize: The working resolution of the images alone: depths and intrinsics keep the image's
            own size, and `inside` has the size of the resized image.
        resized_depth: Resize depths and intrinsics with the image, too.

    Raises:
        DataError: If a sample can't be read, or a worker hangs or dies.
        LaunchError: If the system lacks room for the workers.
    """
    # Batches don't depend on the number of ranks, so figures don't either.
    indices = _neighbours_of_one_size(dataset, batch_size)[rank::world_size]
    keys = [[(0, index) for index in batch] for batch in indices]
    data = Keyed(dataset, None, 0, resize=resize, resized_depth=resized_depth)
    loaded = _load(data, keys, workers, device, timeout_s)
    for batch_indices, read in zip(indices, loaded, strict=True):
        yield batch_indices, read.batch


def _load(
    dataset: "Keyed", batches, workers: int, device: torch.device, timeout_s: float
) -> Iterator[Read]:
    pin = device.type == "cuda"
    reads = worker_processes.read(
        lambda keys: collate(dataset.__getitems__(keys)),
        batches,
        workers,
        dataset.describe,
        timeout_s,
        pin,
    )
    with closing(on_device(map(_unless_error, reads), device)) as there, closing(reads):
        yield from there


def _unless_error(read: Read | UserError) -> Read:
    if isinstance(read, UserError):
        raise read
    return read


def _neighbours_of_one_size(dataset: Dataset, batch_size: int) -> list[list[int]]:
    """Returns the indices of all batches in order; a batch holds images of one size.

    It ends early if the next image has another size.
    """
    one_size = batch_size == 1 or not hasattr(dataset, "image_sizes")
    sizes = [None] * len(dataset) if one_size else dataset.image_sizes()
    batches = []
    for index, size in enumerate(sizes):
        if not batches or len(batches[-1]) == batch_size or sizes[index - 1] != size:
            batches.append([])
        batches[-1].append(index)
    return batches


class Keyed(Dataset):
    """Samples by (epoch, index) in the form that is sent, with their colour tables.

    Args:
        dataset: The dataset.
        augment: The augmentation; None for none.
        seed: Seed of the augmentation.
        max_errors: How many samples in a row may be skipped; None raises for a sample that can't be
            read.
        resize: The working resolution; if none is given, `augment.sizes: keep_aspect` sets one.
        resized_depth: Without augmentation, resize depths with the image.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: Augment | None,
        seed: int,
        max_errors: int | None = None,
        resize: Resize = OWN_SIZE,
        resized_depth: bool = False,
    ):
        # Without data.resize, `augment.sizes` may ask for a working resolution.
        if augment is not None and resize == OWN_SIZE:
            resize = resizes.of_augment(augment.sizes, augment.crop)
        if augment is not None and augment.crop is None:
            augment = replace(augment, crop=resize.crop)
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.max_errors = max_errors
        self.resize = resize
        self.resized_depth = resized_depth

    def __getitems__(self, keys: list[tuple[int, int]]) -> Read | UserError:
        errors: list[str] = []
        try:
            return Read([self._readable_sample(*key, errors) for key in keys], errors)
        except UserError as error:
            # If the system lacks memory or descriptors, the file itself may be intact.
            told = limits.lacking(error)
            if told is None:
                return error
            return LaunchError(f"{error}: {told}, or set a smaller data.workers")

    def describe(self, keys: list[tuple[int, int]]) -> str:
        """Lists the images of a batch; sample numbers for a dataset without files."""
        frames = getattr(self.dataset, "frames", None)
        # Repetitions in a batch have indices beyond the dataset (data/loading/sampler.py).
        indices = [index % len(self.dataset) for _, index in keys]
        return ", ".join(
            f"sample {index}" if frames is None else frames[index].image for index in indices
        )

    def _readable_sample(self, epoch: int, index: int, errors: list[str]) -> Cut:
        """Returns the sample, or the next readable one, augmented as this one would be.

        The messages of skipped samples are appended to `errors`.
        """
        if self.max_errors is None:
            return self._sample(epoch, index, index % len(self.dataset))
        # Try the next samples of the dataset in order.
        tries = min(self.max_errors + 1, len(self.dataset))
        for step in range(tries):
            try:
                return self._sample(epoch, index, (index + step) % len(self.dataset))
            except DataError as error:
                if limits.lacking(error):
                    raise
                errors.append(str(error))
        raise DataError(
            f"data.on_error: {tries} training samples in a row can't be read; the last: "
            f"{errors[-1]}"
        )

    def _sample(self, epoch: int, index: int, read_index: int) -> Cut:
        # `stored` leaves depths as their files have them.
        stored = getattr(self.dataset, "stored", self.dataset.__getitem__)
        sample = stored(read_index)
        _check_sizes(sample)
        image = sample.image
        if self.augment is None and not self.resized_depth:
            # Evaluation resizes the image alone.
            seen = resizes.network_input(in_grey_levels(sample).image, self.resize)
            return Cut(sample._replace(image=seen), _table(image), None, tuple(seen.shape[-2:]))
        # Training resizes everything, draws the augmentation and cuts out what its window needs.
        sample, placement = resizes.resized_sample(sample, self.resize)
        decisions = whole(placement.canvas)
        largest_deg = 0.0
        if self.augment is not None:
            decisions = self.decisions(epoch, index, sample.name, placement)
            largest_deg = self.augment.rotate_deg if self.augment.rotate_p > 0 else 0.0
        part, places = cut(sample, on_picture(decisions, placement), largest_deg)
        size = decisions.height, decisions.width
        return Cut(part, _table(image, decisions), places, size, self.resize.is_padded)

    def decisions(self, epoch: int, index: int, name: str, placement: Placement) -> Decisions:
        """Draws the augmentation of a sample.

        Args:
            epoch: Epoch, from 0.
            index: Index of the sample in the sampler's numbering.
            name: The image's name, for errors.
            placement: How the image lies on its canvas.

        Raises:
            DataError: If the image is smaller than the crop.
        """
        try:
            return self.augment.draw(self.seed, epoch, index, *placement.canvas)
        except DataError as error:
            raise DataError(f"{name}: {error}", error.kind) from None


def _check_sizes(sample: Sample) -> None:
    """Raises DataError if an external dataset returns depth of another size than its image."""
    size = sample.image.shape[-2:]
    for kind, depth in (("depth", sample.depth), ("teacher_depth", sample.teacher_depth)):
        if depth is not None and depth.shape[-2:] != size:
            theirs, ours = "x".join(map(str, depth.shape[-2:])), "x".join(map(str, size))
            message = (
                f"{sample.name}: {kind} of {theirs} for a picture of {ours}; give both one size"
            )
            raise DataError(message, "size")


def whole(canvas: tuple[int, int]) -> Decisions:
    """Returns the decisions that leave an image as it is."""
    return Decisions(0.0, False, 0, 0, *canvas, None, 1.0, (1.0, 1.0, 1.0))


def on_picture(decisions: Decisions, placement: Placement) -> Decisions:
    """Converts decisions about a canvas to decisions about the image on it.

    The window may then reach beyond the image.
    """
    # A flip mirrors the canvas, so the image's margin is then the one at its right.
    left = placement.left
    if decisions.flip:
        left = placement.canvas[1] - placement.scaled[1] - left
    return decisions._replace(top=decisions.top - placement.top, left=decisions.left - left)


def _table(image: Tensor, decisions: Decisions | None = None) -> Tensor:
    """Returns the colour table of an image: what each grey level becomes.

    It is all NaN if the image has a number that isn't finite, which an external dataset may return:
    no grey level can express it, and a step on it has to be skipped.
    """
    table = colour_table(decisions)
    return (
        table
        if image.dtype == torch.uint8 or image.isfinite().all()
        else torch.full_like(table, torch.nan)
    )
