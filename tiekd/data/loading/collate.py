"""Collates the samples of one micro-batch, in the worker that read them, to the form that is sent.

Costs one copy of each sample, straight into the memory that the worker shares with the program.
Left out: scaling. Cut-outs of images that are too small for their rotated windows are padded.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.augment.augment import Sample, in_metres
from tiekd.data.batch import Batch, HostBatch
from tiekd.data.loading.transport import stack
from tiekd.errors import DataError, UserError


class Cut(NamedTuple):
    """A sample cut to the part that its window needs.

    Attributes:
        sample: The part of the image that its window comes from.
        table: (3, 256) float32, its colour table.
        places: See HostBatch.
        size: See HostBatch.
        is_padded: See HostBatch.
    """

    sample: Sample
    table: Tensor
    places: Tensor | None
    size: tuple[int, int]
    is_padded: bool = False


class Read(NamedTuple):
    """A micro-batch on its way from a worker to the device.

    Attributes:
        batch: The samples, then the collated batch, then the batch on the device.
        errors: Messages about the samples that were replaced by others.
    """

    batch: list[Cut] | HostBatch | Batch
    errors: list[str]

    def to(self, device: torch.device) -> "Read":
        """Returns it with the batch on the device."""
        return self._replace(batch=self.batch.to(device))


def collate(read: Read | UserError) -> Read | UserError:
    """Collates the samples of one micro-batch; passes an error on as a value.

    Args:
        read: The samples, or the user's error that reading them raised.

    Returns:
        The collated batch, or a DataError if the samples differ in size.
    """
    if isinstance(read, UserError):
        return read
    # Images of one batch must have one size.
    samples, tables, places, sizes, padded = zip(*read.batch, strict=True)
    # Without places the tensors themselves must be of one size.
    own = sizes if places[0] is not None else [tuple(sample.depth.shape[-2:]) for sample in samples]
    if len(set(sizes)) > 1 or len(set(own)) > 1:
        return DataError(
            "pictures of different sizes in one batch: "
            f"{', '.join(f'{h}x{w}' for h, w in sorted(set(own)))} (among {samples[0].name}); set "
            "data.resize, data.augment.crop or data.augment.sizes=bucket for training, and "
            "evaluation.batch_size=1"
        )
    # A folder with both PNG and NPY has levels and metres.
    if len({sample.depth.dtype for sample in samples}) > 1:
        samples = [in_metres(sample) for sample in samples]
    # The parts that windows come from may still differ in size.
    samples = _of_one_size(samples)
    batch = HostBatch(
        image=stack([sample.image for sample in samples]),
        tables=stack(tables),
        depth=stack([sample.depth for sample in samples]),
        depth_units=torch.tensor([sample.depth_units for sample in samples], dtype=torch.float32),
        teacher_depth=None
        if samples[0].teacher_depth is None
        else stack([sample.teacher_depth for sample in samples]),
        teacher_units=torch.tensor(
            [sample.teacher_units for sample in samples], dtype=torch.float32
        ),
        places=None if places[0] is None else stack(places),
        size=sizes[0],
        intrinsics=stack([sample.intrinsics for sample in samples]),
        names=[sample.name for sample in samples],
        is_padded=padded[0],
    )
    return Read(batch, read.errors)


def _of_one_size(samples: list[Sample]) -> list[Sample]:
    """Pads the samples below and to the right to one size, if parts of small images are smaller."""
    heights, widths = zip(*(sample.image.shape[-2:] for sample in samples), strict=True)
    if len(set(heights)) == len(set(widths)) == 1:
        return samples

    def filled(plane: Tensor | None) -> Tensor | None:
        if plane is None:
            return None
        full = plane.new_zeros(len(plane), max(heights), max(widths))
        full[:, : plane.shape[1], : plane.shape[2]] = plane
        return full

    return [
        sample._replace(
            image=filled(sample.image),
            depth=filled(sample.depth),
            teacher_depth=filled(sample.teacher_depth),
        )
        for sample in samples
    ]
