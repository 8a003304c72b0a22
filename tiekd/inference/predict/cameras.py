"""Looks up an image's camera: from the command line, else the recipe, else the dataset."""

import importlib
import math
from pathlib import Path

from tiekd.config.schema import check_value
from tiekd.data import orientation
from tiekd.data.frames import Camera
from tiekd.errors import DataError, RecipeError


def parse_intrinsics(text: str | None) -> Camera | None:
    """Parses the option --intrinsics FX,FY,CX,CY, in pixels of the uncropped, upright image.

    Args:
        text: The option's text, or None if it isn't given.

    Returns:
        The camera, or None for None.

    Raises:
        RecipeError: If `text` isn't four finite numbers with focal lengths above 0.
    """
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)) or not min(numbers[:2]) > 0:
        raise RecipeError(
            f"--intrinsics: got {text!r}; it must be four numbers FX,FY,CX,CY in pixels, focal "
            "lengths above 0, such as 721.5,721.5,609.6,172.9"
        )
    return Camera(*numbers)


class Cameras:
    """Looks up the camera of each image.

    Args:
        given: One camera for all images, or None for that of the recipe or its dataset.
        data: The recipe's `data` node; {} if the recipe has none.

    Raises:
        RecipeError: If none of the three has a camera, or `data.intrinsics` is invalid.
    """

    def __init__(self, given: Camera | None, data: dict):
        name = data.get("name", "")
        if given is None and data.get("intrinsics") is not None:
            check_value(data["intrinsics"], tuple[float, float, float, float], "data.intrinsics")
            given = Camera(*data["intrinsics"])
            if not all(map(math.isfinite, given[:4])) or not min(given[:2]) > 0:
                raise RecipeError(
                    f"data.intrinsics: got {data['intrinsics']}; focal lengths must be above 0 "
                    "pixels"
                )
        # If no camera is given, use `known_camera` of the modules of KITTI and NYU.
        has_one = given is None and name in ("kitti", "nyu")
        module = importlib.import_module(f"tiekd.data.datasets.{name}") if has_one else None
        if given is None and module is None:
            of = f"the recipe's data ({name})" if name else "the recipe, without data,"
            raise RecipeError(
                f"--points: {of} knows no camera; give --intrinsics FX,FY,CX,CY in pixels"
            )
        self.given = given
        self.known = getattr(module, "known_camera", None)

    def of(self, path: Path, height: int, width: int) -> Camera:
        """Returns the camera of an image, in pixels of the upright image.

        Args:
            path: The image's file.
            height: Height of the upright image in pixels.
            width: Width of the upright image in pixels.

        Raises:
            DataError: If the camera isn't known. Also if it comes from the dataset but the image
                has an EXIF orientation, since the dataset's camera holds for unrotated pixels; a
                camera that the user gives holds for the upright image.
        """
        if self.given is None and orientation.mark_in(path) != orientation.UPRIGHT:
            raise DataError(
                f"{path}: its orientation mark turns it, and the data set's camera is of the "
                "pixels as stored; give --intrinsics FX,FY,CX,CY of the upright image"
            )
        camera = self.given or self.known(path, height, width)
        if camera is None:
            raise DataError(
                f"{path}: the camera of an image of {height}x{width} there isn't known; give "
                "--intrinsics FX,FY,CX,CY"
            )
        return camera
