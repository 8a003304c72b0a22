"""Collates the samples of one micro-batch to a `WorkerBatch`, in the worker that read them.

Each sample is copied once, directly into the shared memory in which the batch is sent. Not covered:
resizing. If the recipe has rotation, images are cropped to one size later, on the device. Until
then they may differ in size, because some are too small for the margin that a rotation needs; they
are padded to one size here.
"""

import torch
from torch import Tensor

from tiekd.data.batch import WorkerBatch
from tiekd.data.loading.transport import stack
from tiekd.data.sample import Sample, in_metres
from tiekd.errors import DataError


def check_sizes(samples: list[Sample]) -> None:
    """Raises DataError if samples of different sizes can't be stacked to a batch.

    Args:
        samples: The samples of one micro-batch, after augmentation.
    """
    # Compare the sizes of images (`sizes`) and depth maps (`own`). A sample whose `size` is set is
    # cropped to that size on the device; other samples are stacked as they are.
    sizes = [sample.size or tuple(sample.image.shape[-2:]) for sample in samples]
    own = [sample.size or tuple(sample.depth.shape[-2:]) for sample in samples]
    if len(set(sizes)) > 1 or len(set(own)) > 1:
        raise DataError(
            "images of different sizes in one batch: "
            f"{', '.join(f'{h}x{w}' for h, w in sorted(set(own)))} (among {samples[0].name}); set "
            "data.resize, data.augment.crop or data.augment.sizes=bucket for training, and "
            "evaluation.batch_size=1"
        )


def collate(
    samples: list[Sample], *, is_padded: bool = False, skipped: tuple[str, ...] = ()
) -> WorkerBatch:
    """Stacks the samples of one micro-batch to a `WorkerBatch`, which is sent to the main process.

    Args:
        samples: Samples whose `table` is set, and whose sizes `check_sizes` accepts. `place` and
            `size` are set in all samples or in none.
        is_padded: True if images include padding by design (`data.resize` with mode `contain`).
        skipped: Error messages of samples that couldn't be read and were replaced by others.

    Returns:
        The batch, on the CPU; in a worker its large tensors are in shared memory.
    """
    # Convert depths to metres if the batch has both uint16 depths (from PNG files) and float32
    # depths (from NPY files), which can't be stacked.
    if len({sample.depth.dtype for sample in samples}) > 1:
        samples = [in_metres(sample) for sample in samples]
    # Give all samples the same number of teacher maps: samples of different data sets may have
    # different teachers.
    is_mixed = samples[0].data_set is not None
    if is_mixed:
        samples = _with_equal_maps(samples)
    # Pad images that will be cropped to one size on the device, but differ in size now.
    samples = _of_one_size(samples)

    # Stack each field. Large tensors are written directly to the shared memory that is sent to the
    # main process.
    first = samples[0]
    teacher_depth = None
    if first.teacher_depth is not None:
        teacher_depth = stack([sample.teacher_depth for sample in samples])
    teacher_units = [sample.teacher_units for sample in samples]
    return WorkerBatch(
        image=stack([sample.image for sample in samples]),
        tables=stack([sample.table for sample in samples]),
        depth=stack([sample.depth for sample in samples]),
        depth_units=torch.tensor([sample.depth_units for sample in samples], dtype=torch.float32),
        teacher_depth=teacher_depth,
        teacher_units=torch.tensor(teacher_units, dtype=torch.float32),
        affine_maps=None if first.place is None else stack([sample.place for sample in samples]),
        size=first.size,
        intrinsics=stack([sample.intrinsics for sample in samples]),
        names=[sample.name for sample in samples],
        is_padded=is_padded,
        skipped=skipped,
        sigma_planes=first.sigma_planes,
        data_sets=tuple(sample.data_set for sample in samples) if is_mixed else None,
        has_target=torch.tensor([sample.has_target for sample in samples]) if is_mixed else None,
    )


def _with_equal_maps(samples: list[Sample]) -> list[Sample]:
    """Returns the samples with the same number of teacher maps, by adding maps of zeros.

    The number is that of the sample with the most maps. In an added depth map 0 means invalid, in
    an added sigma map unknown. If no sample has maps, or all have equally many, the samples are
    returned unchanged.

    Args:
        samples: The samples of one micro-batch, from several data sets.
    """
    # Count the depth maps of each sample. In `teacher_depth` they come first, and are followed by
    # the same number of sigma maps, or by none.
    counts = [
        0 if sample.teacher_depth is None else len(sample.teacher_depth) - sample.sigma_planes
        for sample in samples
    ]
    most, with_sigma = max(counts), any(sample.sigma_planes for sample in samples)
    maps = [sample.teacher_depth for sample in samples if sample.teacher_depth is not None]
    # Convert all maps to metres if a data set from outside the project gives float32 metres, which
    # can't be stacked with the uint16 levels of other maps.
    if len({each.dtype for each in maps}) > 1:
        samples = [in_metres(sample) for sample in samples]
        maps = [sample.teacher_depth for sample in samples if sample.teacher_depth is not None]
    if not most or len(set(zip(counts, (each.sigma_planes for each in samples), strict=True))) == 1:
        return samples
    dtype, planes = maps[0].dtype, most * (1 + with_sigma)
    found = []
    for sample, count in zip(samples, counts, strict=True):
        filled = torch.zeros(planes, *sample.image.shape[-2:], dtype=dtype)
        units = [1.0] * planes
        if count:
            theirs = sample.teacher_units
            theirs = theirs if isinstance(theirs, tuple) else (theirs,) * count
            filled[:count], units[:count] = sample.teacher_depth[:count], theirs[:count]
            sigmas = slice(most, most + sample.sigma_planes)
            filled[sigmas], units[sigmas] = sample.teacher_depth[count:], theirs[count:]
        found.append(
            sample._replace(
                teacher_depth=filled,
                teacher_units=tuple(units),
                sigma_planes=most if with_sigma else 0,
            )
        )
    return found


def _of_one_size(samples: list[Sample]) -> list[Sample]:
    """Returns the samples with images and depth maps padded to the largest height and width.

    The padding is zeros, below and to the right. Masks aren't padded.

    Args:
        samples: The samples of one micro-batch.
    """
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
