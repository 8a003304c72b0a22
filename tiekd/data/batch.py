"""What the loop gets from the loader, and the form in which it travels to the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.augment.augment import look_up
from tiekd.data.augment.resample import resample


class Batch(NamedTuple):
    """One micro-batch. Depths are metres, 0 where there is none, so a tensor carries its own validity.

    image: (B, 3, H, W) float32, RGB, ImageNet-normalised.
    depth: (B, 1, H, W) float32, measured ground truth; all 0 for a frame without any.
    inside: (B, 1, H, W) bool, False where a rotation turned in what no camera saw.
    teacher_depth: (B, 1, H, W) float32 from cached maps, or None when the teacher runs online or there is none.
    intrinsics: (B, 3, 3) float32, pixels of this picture (moved with every geometric transform), NaN where unknown.
    names: the B image paths as the split file has them.
    counted: `inside` where pictures may lie on a larger canvas (`data.resize` with `contain`), whose black then counts
        in no norm's statistics; None otherwise.
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

    image: (B, 3, H, W) uint8, RGB. tables: (B, 3, 256) float32, what each grey level becomes. depth, teacher_depth:
    (B, 1, H, W) uint16 or float32, of which *_units (B,) float32 make a metre. places: (B, 8) float64, where in them
    each picture's window of `size` lies (tiekd/data/augment/resample.py); None where they are windows. is_padded:
    whether a window may reach beyond its picture on purpose. The rest as in Batch.
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
        """The batch on a device: copied in its small form (from pinned memory while others compute), finished there."""
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
    # By a tensor, for some devices divide by a number as if by its reciprocal, which may be another last digit.
    return levels.float() / units.view(-1, 1, 1, 1)
