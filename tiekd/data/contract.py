"""Checks that a dataset from outside the project returns samples as `Sample` specifies them.

Most mistakes would otherwise cause an unrelated error later. An image with values 0..1 instead of
0..255 would cause no error at all, and the network would be trained on black images. A check costs
two passes over the image, so the reader (loading/reader.py) checks only the first sample that each
worker reads. Not covered: depths in another unit than metres, which one sample can't show.
"""

from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data.sample import Sample
from tiekd.errors import DataError, RecipeError

KIND = "contract"  # the attribute `kind` of these DataErrors, which the reader never skips
_LARGEST_OF_ONES = 1.0  # a float image whose maximum is at most this is taken to have values 0..1
_LARGEST_NORMALISED = 2.64  # the largest value, that of blue 255, after ImageNet's normalisation
_BRIGHTEST = 510.0  # twice 255: a dataset's bicubic resizing may exceed 255


def check_dataset(dataset, where: str) -> None:
    """Checks that a dataset isn't empty and has the methods that the loader calls.

    Args:
        dataset: The object that the `build` function of the dataset's module returned.
        where: The option that selects the dataset, and the dataset's name, such as "data (kitti)";
            begins the error message.

    Raises:
        RecipeError: The object has no `__len__` or no `__getitem__`.
        DataError: The dataset is empty.
    """
    if missing := [name for name in ("__len__", "__getitem__") if not hasattr(dataset, name)]:
        raise RecipeError(
            f"{where}: build made a {type(dataset).__name__} without {' and '.join(missing)}; it "
            "must be a torch.utils.data.Dataset that returns tiekd.Sample"
        )
    if len(dataset) == 0:
        raise DataError(f"{where}: the dataset is empty; give it a sample or more")


def check_sample(sample: Sample, dataset: Dataset, index: int) -> None:
    """Checks that a dataset's sample is as `Sample` specifies.

    Args:
        sample: The object that the dataset returned for `index`.
        dataset: The dataset, whose class the error message names.
        index: The sample's index in the dataset, for the error message.

    Raises:
        DataError: A field has another type, dtype or shape, or the image's values aren't in 0..255.
            The error's `kind` is KIND.
    """
    where = f"data ({type(dataset).__module__}.{type(dataset).__name__}): sample {index}"
    if not isinstance(sample, Sample):
        _refuse(where, f"is a {type(sample).__name__}; it must be a tiekd.Sample")
    if not isinstance(sample.name, str):
        _refuse(where, f"name is a {type(sample.name).__name__}; it must be a string")
    where = f"{where} ({sample.name})"
    # Check the image first: the depth maps and the mask must have its height and width.
    _check(where, "image", sample.image, (3, None, None), (torch.uint8, torch.float32))
    _check_levels(where, sample.image)
    height, width = sample.image.shape[1:]
    plane = (1, height, width)
    depths = (torch.float32, torch.uint16)
    _check(where, "depth", sample.depth, plane, depths)
    _check(where, "inside", sample.inside, plane, (torch.bool,))
    if sample.teacher_depth is not None:
        # Check the teacher's depth: with cached maps of several teachers it has one plane for each
        # of them.
        units = sample.teacher_units
        planes = (len(units), height, width) if isinstance(units, tuple) else plane
        _check(where, "teacher_depth", sample.teacher_depth, planes, depths)
    hint = "; fill it with NaN where the camera isn't known"
    _check(where, "intrinsics", sample.intrinsics, (3, 3), (torch.float32,), hint)


def _check(
    where: str,
    field: str,
    value,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    hint: str = "",
) -> None:
    """Raises DataError unless a sample's field is a CPU tensor of the given shape and dtype.

    Args:
        where: The dataset and the sample's name, which begin the error message.
        field: The field's name.
        value: The field's value, of any type.
        shape: The required shape; None as a dimension allows any size above 0.
        dtypes: The allowed dtypes.
        hint: Advice for the user, added to the error message.
    """
    wanted = ", ".join("HW"[axis - 1] if n is None else str(n) for axis, n in enumerate(shape))
    wanted = f"a torch tensor ({wanted}) {' or '.join(map(_name_of, dtypes))}"
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__name__}"
        got = "None" if value is None else f"a {kind.removeprefix('builtins.')}"
        _refuse(where, f"{field} is {got}; it must be {wanted}{hint}")
    fits = len(value.shape) == len(shape) and all(
        size == n or (n is None and size > 0) for size, n in zip(value.shape, shape, strict=True)
    )
    if not fits or value.dtype not in dtypes or value.device.type != "cpu":
        got = f"{tuple(value.shape)} {_name_of(value.dtype)} on {value.device}"
        _refuse(where, f"{field} is {got}; it must be {wanted} on cpu{hint}")


def _check_levels(where: str, image: Tensor) -> None:
    """Raises DataError if an image's values can't be grey levels 0..255.

    Any uint8 image is accepted. An image with NaN or infinity is accepted here, too, because the
    reader rejects such images itself.

    Args:
        where: The dataset and the sample's name, which begin the error message.
        image: (3, H, W) uint8 or float32.
    """
    if image.dtype == torch.uint8 or not image.isfinite().all():
        return
    least, largest = image.min().item(), image.max().item()
    is_of_ones = 0 < largest <= _LARGEST_OF_ONES
    is_normalised = least < 0 and largest <= _LARGEST_NORMALISED
    if is_of_ones or is_normalised or largest > _BRIGHTEST:
        _refuse(
            where,
            f"image has levels {least:.4g} to {largest:.4g}; they must be 0 to 255, not "
            "normalised (multiply by 255, or return the uint8 image as it was read)",
        )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse(where: str, what: str) -> NoReturn:
    raise DataError(f"{where}: {what}", KIND)
