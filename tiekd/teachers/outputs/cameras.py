"""Focal lengths of resized images, and calls of networks that use a camera only if it is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from tiekd.teachers.outputs.teacher import Output

FOCAL_NEEDED = "its output is in metres only by the focal length; give data.intrinsics"


def focal_of(intrinsics: Tensor, seen: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Returns the focal lengths of images that a network's own preprocessing has resized.

    Args:
        intrinsics: (B, 3, 3) camera matrices, in pixels of the images before the resize; NaN for
            an unknown camera.
        seen: The factors (vertical, horizontal) by which the resize scales an image.

    Returns:
        (B,) float32, (fx + fy) / 2 in pixels of the resized image; NaN for an unknown camera.
    """
    vertical, horizontal = seen
    focal = (intrinsics[:, 0, 0] * horizontal + intrinsics[:, 1, 1] * vertical) / 2
    # Treat a focal length of 0 or less as unknown.
    return torch.where(focal > 0, focal, torch.nan).float()


def by_camera(
    images: Tensor, intrinsics: Tensor, run: Callable[[Tensor, Tensor | None], Output]
) -> Output:
    """Runs a network on images whose cameras may be known or not.

    If all cameras are known or none is, the network is called once, else once for each image.

    Args:
        images: (B, 3, H, W) uint8, RGB.
        intrinsics: (B, 3, 3) float32 camera matrices, in pixels; NaN for an unknown camera.
        run: Function that calls the network. Its arguments are some of the images, and their
            intrinsics (None if the cameras aren't known).

    Returns:
        The output for all images. Its `focal` is None unless `run` is called once and sets it.
    """
    known = torch.isfinite(focal_of(intrinsics)).tolist()
    if all(known):
        return run(images, intrinsics)
    if not any(known):
        return run(images, None)
    # Some cameras are known and some aren't, but one call takes the cameras of all images or of
    # none. So call the network once per image.
    outputs = [
        run(images[i : i + 1], intrinsics[i : i + 1] if is_known else None)
        for i, is_known in enumerate(known)
    ]
    masks = [each.valid for each in outputs]
    return Output(
        torch.cat([each.values for each in outputs]),
        None if masks[0] is None else torch.cat(masks),
    )
