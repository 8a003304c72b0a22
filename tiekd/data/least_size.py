"""Refuses a resizing after which images are smaller than the network's largest stride.

With such images a network computes a depth without an error, but each of its coarsest features sees
only padding beside a pixel or two. The check reads three frames. Not covered: images that are
already that small in their files, which a user may want to predict, and single small frames of a
dataset.
"""

from torch import nn
from torch.utils.data import Dataset

from tiekd.data.resize import Resize
from tiekd.errors import DataError, RecipeError

_NUM_SAMPLED = 3


def least_side(network: nn.Module) -> int:
    """Returns the encoder's largest stride in pixels, the smallest useful side of an image.

    Args:
        network: A network with an encoder, or any other module. The result is 1 if it has no
            encoder, or if the encoder doesn't state its strides.
    """
    return max(getattr(getattr(network, "encoder", None), "strides", (1,)))


def fault(resize: Resize, size: tuple[int, int], least: int, name: str) -> str | None:
    """Returns an error message if an image is too small after resizing; None if it is large enough.

    An image whose size isn't changed by the resizing counts as large enough.

    Args:
        resize: How images are resized.
        size: (height, width) of the image in its file, in pixels.
        least: Smallest side in pixels that the network can take.
        name: The image's name in the message.
    """
    canvas = resize.placement_of(*size, name).canvas
    # Accept an image that keeps its own size, however small it is, since the user chose it.
    if min(canvas) >= least or canvas == tuple(size):
        return None
    (height, width), (rows, columns) = size, canvas
    return (
        f"{name}: {height}x{width} would be {rows}x{columns} at the working resolution ({resize}); "
        f"this network needs at least {least} pixels a side"
    )


def check_frames(frames: Dataset, resize: Resize, least: int, key: str = "data.resize") -> None:
    """Raises RecipeError if the first, middle or last frame is too small after resizing.

    Frames that can't be read are skipped. Nothing is checked if images keep their own size, or if
    only their largest size is limited (mode `at_most`).

    Args:
        frames: The dataset, of which three frames are read.
        resize: How images are resized.
        least: Smallest side in pixels that the network can take.
        key: The option that sets the resizing, for the error message.
    """
    if least == 1 or not resize.node() or resize.at_most is not None:
        return
    for index in sorted(
        {round(i * (len(frames) - 1) / (_NUM_SAMPLED - 1)) for i in range(_NUM_SAMPLED)}
    ):
        try:
            sample = frames[index]
        except DataError:  # reading the frame later raises and reports the error
            continue
        found = fault(resize, tuple(sample.image.shape[-2:]), least, sample.name)
        if found is not None:
            raise RecipeError(f"{key}: {found}; set a larger size")


def check_crop(crop: tuple[int, int] | None, least: int) -> None:
    """Raises RecipeError if `data.augment.crop` is smaller than the network can take.

    Args:
        crop: (height, width) in pixels; None for whole images.
        least: Smallest side in pixels that the network can take.
    """
    if crop is not None and min(crop) < least:
        raise RecipeError(
            f"data.augment.crop: got {list(crop)}; this network needs at least {least} pixels a "
            "side; set a larger crop"
        )
