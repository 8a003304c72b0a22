"""The camera of an image: as the user gives it, as the recipe has it, or the dataset's own."""

import importlib
import math
from pathlib import Path

from tiekd.config.schema import check_value
from tiekd.data import orientation
from tiekd.data.frames import Camera
from tiekd.errors import DataError, RecipeError


def parse_intrinsics(text: str | None) -> Camera | None:
    """Parses the option --intrinsics FX,FY,CX,CY: pixels of the whole, upright image.

    Raises:
        RecipeError: If it isn't four numbers with focal lengths above 0.
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
    """The camera of each image.

    Args:
        given: One camera for all images, or None.
        data: The recipe's `data`, which is used if none is given.

    Raises:
        RecipeError: If neither has a camera.
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
        # KITTI and NYU know their own cameras.
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
        """Returns the camera of an upright image.

        Args:
            path: The image's file.
            height: Pixels.
            width: Pixels.

        Raises:
            DataError: If the camera isn't known; or if it is that of the dataset's recordings,
                which no orientation mark turns, but the image has a mark. A camera that the user
                gives is that of the upright image.
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
