"""Samples of one micro-batch put together, in the worker that read them and in the form in which they travel.

Costs a copy of each sample, straight into the memory that the worker shares with the program. Left out: scaling; parts
of pictures that are too small for their windows' turns are filled up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.augment.augment import Sample, in_metres
from tiekd.data.batch import Batch, HostBatch
from tiekd.data.loading.transport import stack
from tiekd.errors import DataError, UserError


class Cut(NamedTuple):
    """sample: the part of a picture that its window comes from. table: of its colours. places, size, is_padded: see
    HostBatch."""

    sample: Sample
    table: Tensor
    places: Tensor | None
    size: tuple[int, int]
    is_padded: bool = False


class Read(NamedTuple):
    """samples with their colour tables and places, collated to a batch, which then comes to the device; errors: what
    was wrong with the samples that they replace."""

    batch: list[Cut] | HostBatch | Batch
    errors: list[str]

    def to(self, device: torch.device) -> "Read":
        return self._replace(batch=self.batch.to(device))


def collate(read: Read | UserError) -> Read | UserError:
    if isinstance(read, UserError):
        return read
    samples, tables, places, sizes, padded = zip(*read.batch, strict=True)
    own = sizes if places[0] is not None else [tuple(sample.depth.shape[-2:]) for sample in samples]
    if len(set(sizes)) > 1 or len(set(own)) > 1:
        return DataError(
            "pictures of different sizes in one batch: "
            f"{', '.join(f'{h}x{w}' for h, w in sorted(set(own)))} (among {samples[0].name}); set "
            "data.resize, data.augment.crop or data.augment.sizes=bucket for training, and "
            "evaluation.batch_size=1"
        )
    # Levels and metres, in a folder with PNG and NPY.
    if len({sample.depth.dtype for sample in samples}) > 1:
        samples = [in_metres(sample) for sample in samples]
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
    """The samples, filled up below and to the right where parts of smaller pictures are smaller."""
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
