"""The focal length of the network's input, from an image's camera and its working resolution.

The working resolution is the size at which the network sees an image. The focal length f is (fx +
fy) / 2 in pixels of the image that the network sees, after every resize and zoom. A working
resolution of mode `stretch` changes fx and fy by different factors: f is then sqrt(fx * fy), and an
image whose aspect ratio would change by more than STRETCH is refused. f is used only with
`network.canonical_focal` (tiekd/models/canonical.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.cameras.calibration import Camera
from tiekd.data.resize import Resize, resized_intrinsics
from tiekd.errors import DataError

STRETCH = 0.05  # largest relative change of an image's aspect ratio that resizing may cause


def of_input(intrinsics: Tensor, resize: Resize) -> Tensor:
    """Returns the focal length of each image of the network's input, (B,) float32, in pixels.

    Args:
        intrinsics: (B, 3, 3) float32, in pixels of the network's input; NaN where unknown, which
            gives a focal length of NaN.
        resize: How images were resized to this input. After mode `stretch` the result is sqrt(fx *
            fy), otherwise (fx + fy) / 2.
    """
    focal_x, focal_y = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
    if resize.mode == "stretch":
        return (focal_x * focal_y).sqrt()
    return (focal_x + focal_y) / 2


def of_own_size(intrinsics: Tensor, size: tuple[int, int], resize: Resize) -> Tensor:
    """Returns the focal length that each image has in the network's input, (B,) float32, pixels.

    Args:
        intrinsics: (B, 3, 3) float32, in pixels of the images before resizing; NaN where unknown.
        size: (height, width) of the images before resizing.
        resize: How images are resized to the network's input.

    Raises:
        DataError: Resizing changes the aspect ratio by more than STRETCH.
    """
    check_aspect(resize, size)
    scaled = resize.placement_of(*size).scaled
    each = [resized_intrinsics(one, size, scaled) for one in intrinsics]
    return of_input(torch.stack(each), resize)


def of_batch(batch: Batch, resize: Resize) -> Tensor:
    """Returns the focal length of each image of a batch, (B,) float32, in pixels of `batch.image`.

    In evaluation and caching only the image is resized, and the batch's intrinsics belong to the
    size of its depth. The result is on the batch's device.

    Args:
        batch: The batch.
        resize: How its images were resized to the network's input.

    Raises:
        DataError: Resizing changes the aspect ratio by more than STRETCH.
    """
    own, seen = tuple(batch.depth.shape[-2:]), tuple(batch.image.shape[-2:])
    if own == seen:
        return of_input(batch.intrinsics, resize)
    return of_own_size(batch.intrinsics, own, resize)


def of_camera(camera: Camera, size: tuple[int, int], resize: Resize) -> float:
    """Returns the focal length that one image has in the network's input, in pixels.

    Args:
        camera: The camera of the image before resizing.
        size: (height, width) of the image before resizing.
        resize: How the image is resized to the network's input.

    Raises:
        DataError: Resizing changes the aspect ratio by more than STRETCH.
    """
    matrix = torch.tensor([[camera.focal_x, 0, 0], [0, camera.focal_y, 0], [0, 0, 1]])
    return float(of_own_size(matrix[None].double(), size, resize))


def check_aspect(resize: Resize, size: tuple[int, int]) -> None:
    """Raises DataError if resizing changes an image's aspect ratio by more than STRETCH.

    Args:
        resize: How the image is resized; only mode `stretch` changes the aspect ratio.
        size: (height, width) of the image before resizing.
    """
    if resize.mode != "stretch":
        return
    change = (resize.width / size[1]) / (resize.height / size[0])
    if not 1 / (1 + STRETCH) <= change <= 1 + STRETCH:
        raise DataError(
            f"data.resize: {resize} changes the aspect ratio of an image of {size[0]}x{size[1]} by "
            f"{abs(change - 1):.0%}, and network.canonical_focal allows {STRETCH:.0%}, for one "
            "focal length can't say more; set mode cover, contain or fit",
            "size",
        )


def check_known(focal: Tensor, names: Sequence[str]) -> None:
    """Raises DataError for the first image whose focal length isn't known. Needs one host sync.

    Args:
        focal: (B,) focal lengths; NaN where unknown.
        names: The B images' names, for the error message.
    """
    for name, value in zip(names, focal.tolist(), strict=True):
        if not value > 0:
            raise DataError(no_focal(name))


def no_focal(name: str) -> str:
    """Returns the error message for an image whose focal length isn't known.

    Args:
        name: The image's name.
    """
    return (
        f"{name}: its focal length isn't known, and network.canonical_focal needs it; give "
        "data.intrinsics (a file, numbers or exif)"
    )
