"""What the loop gets from the loader."""

from typing import NamedTuple

import torch
from torch import Tensor


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

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; copies from pinned memory overlap with computation."""
        return Batch(*(v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in self))

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader when it pins."""
        return Batch(*(v.pin_memory() if isinstance(v, Tensor) else v for v in self))
