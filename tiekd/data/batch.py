"""The batch that training and evaluation see, and the compact form in which workers send it.

A frame is a `Sample` (tiekd/data/sample.py) until it is collated to a `WorkerBatch`, which
becomes a `Batch` on the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.augment.augment import look_up
from tiekd.data.augment.resample import resample


class Batch(NamedTuple):
    """One micro-batch, in which each depth tensor carries its own validity.

    Attributes:
        image: (B, 3, H, W) float32, RGB, ImageNet-normalised.
        depth: (B, 1, H, W) float32, metres, 0 where invalid, measured ground truth; all 0 for a
            frame without any.
        inside: (B, 1, H, W) bool, False where a rotation moved in pixels from outside the image.
        teacher_depth: (B, 1, H, W) float32, metres, 0 where invalid, from cached maps; None if the
            teacher runs online or there is none.
        intrinsics: (B, 3, 3) float32, pixels of this image (every geometric transform updates
            them), NaN where unknown.
        names: The B image paths as the split file has them.
        counted: Equal to `inside` if images may lie on a larger canvas (`data.resize` with
            `contain`), whose black pixels then count in no norm's statistics; None otherwise.
        skipped: Messages about training samples that can't be read, which others of this batch
            replace (`data.on_error: skip`).
    """

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    names: list[str]
    counted: Tensor | None = None
    skipped: tuple[str, ...] = ()


class WorkerBatch(NamedTuple):
    """A micro-batch as workers send it, on the CPU, at a third of a Batch's bytes.

    Attributes:
        image: (B, 3, H, W) uint8, RGB.
        tables: (B, 3, 256) float32, the normalised value of each grey level.
        depth: (B, 1, H, W) uint16 or float32, in units of which `depth_units` make a metre.
        depth_units: (B,) float32.
        teacher_depth: Like `depth`, with `teacher_units`; None if there is no map.
        teacher_units: (B,) float32.
        places: (B, 8) float64, where in each image its window of `size` lies
            (tiekd/data/augment/resample.py); None if the images are the windows.
        size: (height, width) of the windows in pixels; None if the images are the windows.
        intrinsics: As in Batch.
        names: As in Batch.
        is_padded: True if a window may reach beyond its image on purpose.
        skipped: As in Batch.
    """

    image: Tensor
    tables: Tensor
    depth: Tensor
    depth_units: Tensor
    teacher_depth: Tensor | None
    teacher_units: Tensor
    places: Tensor | None
    size: tuple[int, int] | None
    intrinsics: Tensor
    names: list[str]
    is_padded: bool = False
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device: copied in its compact form, then finished there.

        The copy comes from pinned memory and overlaps with computation. Resampling, normalisation
        and the conversion to metres run on the device.
        """
        # Copy all tensors to the device.
        there = WorkerBatch(
            *(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self)
        )
        image = there.image
        depth = there.depth
        teacher_depth = there.teacher_depth
        # Resample the windows: rotation, flip and crop.
        if there.places is None:
            inside = torch.ones(len(image), 1, *image.shape[-2:], dtype=torch.bool, device=device)
        else:
            image, depth, teacher_depth, inside = resample(
                image, depth, teacher_depth, there.places, there.size
            )
        # Look up the colours, and convert depths to metres.
        if teacher_depth is not None:
            teacher_depth = _metres(teacher_depth, there.teacher_units)
        return Batch(
            image=look_up(image, there.tables),
            depth=_metres(depth, there.depth_units),
            inside=inside,
            teacher_depth=teacher_depth,
            intrinsics=there.intrinsics,
            names=there.names,
            counted=inside if there.is_padded else None,
            skipped=there.skipped,
        )


def _metres(levels: Tensor, units: Tensor) -> Tensor:
    # Divides by a tensor: some devices divide by a Python number as if they multiplied by its
    # reciprocal, which may change the last digit.
    return levels.float() / units.view(-1, 1, 1, 1)
