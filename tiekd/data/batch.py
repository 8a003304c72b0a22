"""What the loop gets from the loader, and the form in which it travels to the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.data.transforms import look_up


class Batch(NamedTuple):
    """One micro-batch. Depths are metres, 0 where there is none, so a tensor carries its own validity.

    image: (B, 3, H, W) float32, RGB, ImageNet-normalised.
    depth: (B, 1, H, W) float32, measured ground truth; all 0 for a frame without any.
    inside: (B, 1, H, W) bool, False where a rotation turned in what no camera saw.
    teacher_depth: (B, 1, H, W) float32 from cached maps, or None when the teacher runs online or there is none.
    intrinsics: (B, 3, 3) float32, pixels of this picture (moved with every geometric transform), NaN where unknown.
    names: the B image paths as the split file has them.
    """

    image: Tensor
    depth: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    intrinsics: Tensor
    names: list[str]


class HostBatch(NamedTuple):
    """A micro-batch as workers deliver it, at a third of the bytes.

    image: (B, 3, H, W) uint8, RGB, its geometry done. tables: (B, 3, 256) float32, what each grey level becomes.
    depth, teacher_depth: (B, 1, H, W) uint16 or float32, of which *_units (B,) float32 make a metre. The rest as in
    Batch.
    """

    image: Tensor
    tables: Tensor
    depth: Tensor
    depth_units: Tensor
    inside: Tensor
    teacher_depth: Tensor | None
    teacher_units: Tensor
    intrinsics: Tensor
    names: list[str]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device: copied in its small form (from pinned memory while others compute), finished there."""
        there = HostBatch(*(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self))
        return Batch(
            look_up(there.image, there.tables),
            _metres(there.depth, there.depth_units),
            there.inside,
            None if there.teacher_depth is None else _metres(there.teacher_depth, there.teacher_units),
            there.intrinsics,
            there.names,
        )


def _metres(levels: Tensor, units: Tensor) -> Tensor:
    # By a tensor, for some devices divide by a number as if by its reciprocal, which may be another last digit.
    return levels.float() / units.view(-1, 1, 1, 1)
