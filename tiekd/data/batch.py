"""The batch that training and evaluation see, and the compact form in which workers send it.

A frame is a `Sample` (tiekd/data/sample.py) until a worker collates it to a `WorkerBatch`, which is
converted to a `Batch` on the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.augment.augment import look_up
from tiekd.data.augment.resample import resample


class Batch(NamedTuple):
    """One micro-batch on the device; a depth of 0 marks an invalid pixel.

    In training all tensors have the image's size. In evaluation only the image and the mask
    `inside` are resized: the depths and the intrinsics are those of the image before resizing.

    Attributes:
        image: (B, 3, H, W) float32, RGB, ImageNet-normalised.
        depth: (B, 1, H, W) float32, the measured ground truth in metres, 0 where invalid; all 0 for
            a frame without ground truth.
        inside: (B, 1, H, W) bool mask, False at pixels that a rotation or padding filled from
            outside the image.
        teacher_depth: (B, 1, H, W) float32, the cached teacher maps in metres, 0 where invalid;
            None without cached maps, i.e. if the teacher runs online or there is no teacher. With
            several cached teachers (B, M, H, W), in the order of the recipe.
        intrinsics: (B, 3, 3) float32 camera matrices in pixels, NaN where unknown. Every geometric
            transform of the depth map updates them.
        names: The B image paths as the split file has them.
        counted: The mask `inside`, if images may be padded to a fixed size (`data.resize` with mode
            `contain`): normalisation layers exclude the padding from their statistics. None without
            padding.
        skipped: Error messages of the training samples that couldn't be read and were replaced by
            others in this batch (`data.on_error: skip`).
        teacher_sigma: (B, M, H, W) float32, metres, the cached sigma of each depth in
            `teacher_depth`, 0 where unknown; None without cached sigmas.
        data_sets: For each image, the index of its data set in the recipe's list of data sets; None
            if the recipe has a single data set.
        has_target: (B, 2) bool. The first column is True for images with ground truth, the second
            for images whose data set has a teacher. None for a single data set.
        target_counts: (images with ground truth, images with a teacher) per micro-batch, as means
            over all micro-batches of the iteration's global batch. None for a single data set.
    """

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    names: list[str]
    counted: Tensor | None = None
    skipped: tuple[str, ...] = ()
    teacher_sigma: Tensor | None = None
    data_sets: tuple[int, ...] | None = None
    has_target: Tensor | None = None
    target_counts: tuple[float, float] | None = None


class WorkerBatch(NamedTuple):
    """A micro-batch as workers send it: on the CPU, in a third of a `Batch`'s bytes.

    Attributes:
        image: (B, 3, H, W) uint8, RGB.
        tables: (B, 3, 256) float32 lookup tables from an image's grey level to its value after
            augmentation and normalisation, one per channel.
        depth: (B, 1, H, W) uint16 or float32, 0 where invalid; divide by `depth_units` for metres.
        depth_units: (B,) float32, units of `depth` per metre.
        teacher_depth: (B, P, H, W), like `depth`, with `teacher_units`; None without cached teacher
            maps. The last `sigma_planes` of the P planes are sigmas.
        teacher_units: (B,) or (B, P) float32, units of `teacher_depth` per metre.
        affine_maps: (B, 8) float64, the affine map from each window (the image after rotation, flip
            and crop) to `image` (see `resample` in tiekd/data/augment/resample.py); None if `image`
            is used as it is.
        size: (height, width) of the windows in pixels; None like `affine_maps`.
        intrinsics: (B, 3, 3) float32, camera matrices in pixels of the window, NaN where unknown.
        names: The B image paths as the split file has them.
        is_padded: True if windows include padding by design (`data.resize` with mode `contain`).
        skipped: Error messages of the training samples that couldn't be read and were replaced by
            others in this batch (`data.on_error: skip`).
        sigma_planes: Number of planes of `teacher_depth` that are sigmas.
        data_sets: For each image, the index of its data set in the recipe's list of data sets; None
            if the recipe has a single data set.
        has_target: (B, 2) bool: whether an image has ground truth, and whether its data set has a
            teacher. None for a single data set.
    """

    image: Tensor
    tables: Tensor
    depth: Tensor
    depth_units: Tensor
    teacher_depth: Tensor | None
    teacher_units: Tensor
    affine_maps: Tensor | None
    size: tuple[int, int] | None
    intrinsics: Tensor
    names: list[str]
    is_padded: bool = False
    skipped: tuple[str, ...] = ()
    sigma_planes: int = 0
    data_sets: tuple[int, ...] | None = None
    has_target: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device in its compact form, and converts it to a `Batch` there.

        From pinned memory, the copy is asynchronous and overlaps with computation. Resampling,
        normalisation and the conversion to metres run on the device.

        Args:
            device: The device on which all tensors of the result are.

        Returns:
            The batch with normalised float32 images and with depths in metres.
        """
        # Copy all tensors to the device.
        there = WorkerBatch(
            *(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self)
        )
        image = there.image
        depth = there.depth
        teacher_depth = there.teacher_depth
        # Rotate, flip and crop the images; if `affine_maps` is None, they are used as they are.
        if there.affine_maps is None:
            inside = torch.ones(len(image), 1, *image.shape[-2:], dtype=torch.bool, device=device)
        else:
            image, depth, teacher_depth, inside = resample(
                image, depth, teacher_depth, there.affine_maps, there.size
            )
        # Convert the teacher's depths, and sigmas if there are any, to metres.
        teacher_sigma = None
        if teacher_depth is not None:
            teacher_depth = _metres(teacher_depth, there.teacher_units)
        if there.sigma_planes:
            teacher_depth, teacher_sigma = teacher_depth.split(there.sigma_planes, dim=1)
        return Batch(
            image=look_up(image, there.tables),
            depth=_metres(depth, there.depth_units),
            inside=inside,
            teacher_depth=teacher_depth,
            intrinsics=there.intrinsics,
            names=there.names,
            counted=inside if there.is_padded else None,
            skipped=there.skipped,
            teacher_sigma=teacher_sigma,
            data_sets=there.data_sets,
            has_target=there.has_target,
        )


def _metres(levels: Tensor, units: Tensor) -> Tensor:
    """Returns depths in metres, (B, P, H, W) float32.

    Args:
        levels: The depths as stored in their files, (B, P, H, W) uint16 or float32.
        units: Stored units per metre: (B,) of each image's depths, or (B, P) of each plane.
    """
    # Divide by a tensor, because some devices replace a division by a Python number with a
    # multiplication by its reciprocal, which may change the last bit.
    return levels.float() / units.view(len(units), -1, 1, 1)
