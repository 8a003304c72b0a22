"""Focal lengths of the images that a network sees, and networks that take a camera if known."""

from collections.abc import Callable

import torch
from torch import Tensor

from tiekd.teachers.outputs.teacher import Output

FOCAL_NEEDED = "its output is in metres only by the focal length; give data.intrinsics"


def focal_of(intrinsics: Tensor, seen: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Returns the focal lengths of resized images.

    Args:
        intrinsics: (B, 3, 3), pixels of the images before the resize; NaN where unknown.
        seen: (vertical, horizontal) factor by which the network's own resize scales an image.

    Returns:
        (B,) float32, (fx + fy) / 2 in pixels of the resized image; NaN where unknown.
    """
    vertical, horizontal = seen
    focal = (intrinsics[:, 0, 0] * horizontal + intrinsics[:, 1, 1] * vertical) / 2
    # A focal length that isn't above 0 is none.
    return torch.where(focal > 0, focal, torch.nan).float()


def by_camera(
    images: Tensor, intrinsics: Tensor, run: Callable[[Tensor, Tensor | None], Output]
) -> Output:
    """Returns the outputs of images some of which may have no known camera.

    Args:
        images: (B, 3, H, W) uint8.
        intrinsics: (B, 3, 3) float32, NaN where unknown.
        run: From images and their intrinsics, or None, to the output.

    Returns:
        The output of all images; `focal` is left out.
    """
    known = torch.isfinite(focal_of(intrinsics)).tolist()
    if all(known):
        return run(images, intrinsics)
    if not any(known):
        return run(images, None)
    # A network takes cameras of all images of a call or of none.
    outputs = [
        run(images[i : i + 1], intrinsics[i : i + 1] if is_known else None)
        for i, is_known in enumerate(known)
    ]
    masks = [each.valid for each in outputs]
    return Output(
        torch.cat([each.values for each in outputs]),
        None if masks[0] is None else torch.cat(masks),
    )
