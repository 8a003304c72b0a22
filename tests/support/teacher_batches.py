"""Batches of whole images as caching gives them to a teacher."""

import torch

from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.batch import Batch


def images_of(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    """(B, 3, H, W) uint8 with structure at several scales."""
    torch.manual_seed(5)
    coarse = torch.rand(count, 3, height // 8, width // 8)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    noise = 0.1 * torch.randn(count, 3, height, width)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def batch_of(images: torch.Tensor, focals: list[float | None]) -> Batch:
    """A batch of these images, named image_0.png and so on.

    Args:
        images: (B, 3, H, W) uint8.
        focals: In pixels of these images; None where unknown.
    """
    count, _, height, width = images.shape
    intrinsics = torch.full((count, 3, 3), torch.nan)
    for matrix, focal in zip(intrinsics, focals, strict=True):
        if focal is not None:
            matrix[:] = torch.tensor(
                [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
            )
    return Batch(
        look_up(images, colour_table().expand(count, 3, 256).contiguous()),
        torch.zeros(count, 1, height, width),
        torch.ones(count, 1, height, width, dtype=torch.bool),
        None,
        intrinsics,
        [f"image_{index}.png" for index in range(count)],
    )
