"""The batch that the loop receives, and the compact form in which it is copied to the device."""

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
    """

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    names: list[str]
    counted: Tensor | None = None


class HostBatch(NamedTuple):
    """A micro-batch as workers deliver it, at a third of the bytes.

    Attributes:
        image: (B, 3, H, W) uint8, RGB.
        tables: (B, 3, 256) float32, the normalised value of each grey level.
        depth: (B, 1, H, W) uint16 or float32, in units of which `depth_units` make a metre.
        depth_units: (B,) float32.
        teacher_depth: Like `depth`, with `teacher_units`; None if there is no map.
        teacher_units: (B,) float32.
        places: (B, 8) float64, where in each image its window of `size` lies
            (tiekd/data/augment/resample.py); None if the images are the windows.
        size: (height, width) of the windows in pixels.
        intrinsics: As in Batch.
        names: As in Batch.
        is_padded: True if a window may reach beyond its image on purpose.
    """

    image: Tensor
    tables: Tensor
    depth: Tensor
    depth_units: Tensor
    teacher_depth: Tensor | None
    teacher_units: Tensor
    places: Tensor | None
    size: tuple[int, int]
    intrinsics: Tensor
    names: list[str]
    is_padded: bool = False

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device: copied in its compact form, then finished there.

        The copy comes from pinned memory and overlaps with computation. Resampling, normalisation
        and the conversion to metres run on the device.
        """
        # Copy all tensors to the device, then resample, look up colours and convert depths there.
        there = HostBatch(
            *(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self)
        )
        image = there.image
        depth = there.depth
        teacher_depth = there.teacher_depth
        if there.places is None:
            inside = torch.ones(len(image), 1, *image.shape[-2:], dtype=torch.bool, device=device)
        else:
            image, depth, teacher_depth, inside = resample(
                image, depth, teacher_depth, there.places, there.size
            )
        return Batch(
            look_up(image, there.tables),
            _metres(depth, there.depth_units),
            inside,
            None if teacher_depth is None else _metres(teacher_depth, there.teacher_units),
            there.intrinsics,
            there.names,
            inside if there.is_padded else None,
        )


def _metres(levels: Tensor, units: Tensor) -> Tensor:
    # Divides by a tensor: some devices divide by a Python number as if they multiplied by its
    # reciprocal, which may change the last digit.
    return levels.float() / units.view(-1, 1, 1, 1)
