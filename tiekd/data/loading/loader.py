"""From a data set to batches: training micro-batches by key, validation batches dealt whole to ranks.

Workers hold no random state: a key (epoch, index) and the seed say everything. A user's error in a worker travels as a
value, so that the user sees its one line and not a wrapped traceback.

Workers decode, resize to the working resolution (tiekd/data/resize.py) and cut; rotation, flip, colours, normalisation
and metres come on the device (tiekd/data/batch.py), on a GPU from pinned memory, one batch ahead and on a stream of
their own (tiekd/data/loading/prefetch.py).

With `data.on_error: skip` a training sample that can't be read is replaced by the next one of the data set that can,
which depends on the files alone: any number of ranks and a resumed run see the same. Evaluation never skips anything,
for its figures would change without a word.
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
    """How `recipe["data"]` is read, whatever the data set. workers: processes a rank, 0 for none. on_error: what a
    training sample does that can't be read, `raise` or `skip`; max_errors: files that may be skipped in a run.
    timeout_s: how long to wait for a batch from workers. decoded: folder of decoded frames
    (tiekd/data/decoded_cache.py), below data.root or absolute, read in the files' stead; null reads the files."""

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
    """Training samples that can't be read: `messages` has what was wrong with those that this rank met, each once."""

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
    """This rank's augmented, normalised micro-batches on the device, in the sampler's order, then it ends.

    unreadable: collects what is skipped; None raises. resize: the working resolution.
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
    """(indices, batch) pairs of this rank: batches are formed over the whole set, then every world_size-th is ours.

    resize: the working resolution, of the images alone: depths and intrinsics are the picture's own, and `inside` is
    the image's. resized_depth: depths and intrinsics follow the image, too.
    """
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
        dataset, batches, workers, collate, dataset.describe, timeout_s, pin
    )
    with closing(on_device(map(_unless_error, reads), device)) as there, closing(reads):
        yield from there


def _unless_error(read: Read | UserError) -> Read:
    if isinstance(read, UserError):
        raise read
    return read


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


class Keyed(Dataset):
    """Samples by (epoch, index) as they travel, augmented when there is an `augment`, with their colour tables.

    max_errors: how many samples in a row may be skipped; None: a sample that can't be read is an error. resize: the
    working resolution; `augment.sizes: keep_aspect` is one of its own where none is given. resized_depth: whether
    depths follow the image where nothing is augmented.
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
            told = limits.lacking(error)  # then the file may be as it should
            return (
                error
                if told is None
                else LaunchError(f"{error}: {told}, or set a smaller data.workers")
            )

    def describe(self, keys: list[tuple[int, int]]) -> str:
        """The pictures of a batch; numbers for a data set that doesn't say their files."""
        frames = getattr(self.dataset, "frames", None)
        # Of what a batch repeats (data/loading/sampler.py).
        indices = [index % len(self.dataset) for _, index in keys]
        return ", ".join(
            f"sample {index}" if frames is None else frames[index].image for index in indices
        )

    def _readable_sample(self, epoch: int, index: int, errors: list[str]) -> Cut:
        """The sample, or the next one that can be read, augmented as this one would be; adds to `errors`."""
        if self.max_errors is None:
            return self._sample(epoch, index, index % len(self.dataset))
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
        # Depths still as their files have them.
        stored = getattr(self.dataset, "stored", self.dataset.__getitem__)
        sample = stored(read_index)
        _check_sizes(sample)
        image = sample.image
        if self.augment is None and not self.resized_depth:
            seen = resizes.network_input(in_grey_levels(sample).image, self.resize)
            return Cut(sample._replace(image=seen), _table(image), None, tuple(seen.shape[-2:]))
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
        """What is drawn for a sample whose picture lies so; `name` is the picture's, for a DataError."""
        try:
            return self.augment.draw(self.seed, epoch, index, *placement.canvas)
        except DataError as error:
            raise DataError(f"{name}: {error}", error.kind) from None


def _check_sizes(sample: Sample) -> None:
    """DataError where a data set of one's own gives depth of another size than its picture."""
    size = sample.image.shape[-2:]
    for kind, depth in (("depth", sample.depth), ("teacher_depth", sample.teacher_depth)):
        if depth is not None and depth.shape[-2:] != size:
            theirs, ours = "x".join(map(str, depth.shape[-2:])), "x".join(map(str, size))
            message = (
                f"{sample.name}: {kind} of {theirs} for a picture of {ours}; give both one size"
            )
            raise DataError(message, "size")


def whole(canvas: tuple[int, int]) -> Decisions:
    """The decisions that leave a picture as it is."""
    return Decisions(0.0, False, 0, 0, *canvas, None, 1.0, (1.0, 1.0, 1.0))


def on_picture(decisions: Decisions, placement: Placement) -> Decisions:
    """Decisions about a canvas as those about the picture on it, whose window may then reach beyond the picture."""
    left = placement.left
    if decisions.flip:
        left = placement.canvas[1] - placement.scaled[1] - left
    return decisions._replace(top=decisions.top - placement.top, left=decisions.left - left)


def _table(image: Tensor, decisions: Decisions | None = None) -> Tensor:
    """What the grey levels of a picture become. One with a number that isn't finite, which a data set of one's own may
    give, becomes NaN all over, for no grey level can say so and a step on it has to be skipped."""
    table = colour_table(decisions)
    return (
        table
        if image.dtype == torch.uint8 or image.isfinite().all()
        else torch.full_like(table, torch.nan)
    )
