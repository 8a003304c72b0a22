"""Which camera took a picture: what the user says, what the recipe says, or what the data set is known for."""

import importlib
import math
from pathlib import Path

from tiekd.config.schema import check_value
from tiekd.data import orientation
from tiekd.data.frames import Camera
from tiekd.errors import DataError, RecipeError


def parse_intrinsics(text: str | None) -> Camera | None:
    """The option --intrinsics FX,FY,CX,CY: pixels of the whole, upright picture, focal lengths above 0."""
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
    """The camera of each picture. given: one for all of them; data: the recipe's `data`, asked where there is none.

    Raises RecipeError where neither can know any camera.
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
        """The camera of an upright picture of this size. Raises DataError where it isn't known, or is that of the data
        set's own recordings, which no orientation mark turns, and the picture has one. What a user gives is of the
        upright picture."""
        if self.given is None and orientation.mark_in(path) != orientation.UPRIGHT:
            raise DataError(
                f"{path}: its orientation mark turns it, and the data set's camera is of the "
                "pixels as stored; give --intrinsics FX,FY,CX,CY of the upright picture"
            )
        camera = self.given or self.known(path, height, width)
        if camera is None:
            raise DataError(
                f"{path}: the camera of a picture of {height}x{width} there isn't known; give "
                "--intrinsics FX,FY,CX,CY"
            )
        return camera
