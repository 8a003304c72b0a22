"""The camera of an image: from the command line, the recipe, its dataset, or the image's EXIF."""

import importlib
import math
from pathlib import Path

from tiekd.config.schema import check_value
from tiekd.data import orientation
from tiekd.data.cameras import exif, source
from tiekd.data.cameras.source import EXIF, Source
from tiekd.data.frames import Camera
from tiekd.errors import DataError, RecipeError

_ALLOWED = "FX,FY,CX,CY in pixels, a file of intrinsics, or exif"


def parse_intrinsics(text: str | None, focal: str | None = None) -> Source | None:
    """Parses the options --intrinsics and --focal, in pixels of the uncropped, upright image.

    Args:
        text: Value of --intrinsics: the camera of all images as FX,FY,CX,CY; the path of a file
            with each image's camera (tiekd/data/cameras/files.py); or "exif", for the focal length
            in each image's EXIF data. None if the option isn't given.
        focal: Value of --focal: a focal length for both directions, with the principal point at the
            image's centre; None if the option isn't given.

    Returns:
        A `Source`, from which `Cameras` takes the cameras; None if neither option is given.

    Raises:
        RecipeError: A value isn't one of these, or both options are given.
        DataError: The file can't be read.
    """
    if focal is not None:
        if text is not None:
            raise RecipeError("--focal: got it together with --intrinsics; give one of them")
        return Source(of_all=source.Calibration(_of_focal(focal)))
    if text is None:
        return None
    # Parse the text as numbers. If that fails, the text is the path of a file, or "exif".
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        if text == EXIF or (text and Path(text).exists()):
            return source.read(Path(text), Path(), "--intrinsics")
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)) or not min(numbers[:2]) > 0:
        raise RecipeError(
            f"--intrinsics: got {text!r}; it must be four numbers FX,FY,CX,CY in pixels, focal "
            "lengths above 0, such as 721.5,721.5,609.6,172.9; a file of intrinsics; or exif"
        )
    return Source(of_all=source.Calibration(Camera(*numbers)))


def _of_focal(text: str) -> Camera:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RecipeError(
            f"--focal: got {text!r:.80}; it must be a focal length in pixels of the image, above 0"
        )
    return Camera(value, value)


class Cameras:
    """Looks up the camera of each image.

    Several sources are tried in this order, and the first that has a camera is used: the source
    `given` or, if that is None, the recipe's `data.intrinsics`; the camera that tiekd knows for the
    dataset (KITTI, NYU); the image's EXIF data, if `reads_exif`.

    Attributes:
        approximate: Number of images whose focal length is from EXIF.

    Args:
        given: The source that the command-line options give, as `parse_intrinsics` returns it, or
            None.
        data: The recipe's section `data`; {} if the recipe has none.
        option: The command-line option that needs the cameras, for error messages.
        reads_exif: True to use the focal length in an image's EXIF data, which is approximate, if
            no other source has the camera.

    Raises:
        RecipeError: There is no source of cameras, or `data.intrinsics` is invalid.
        DataError: The file of `data.intrinsics` can't be read.
    """

    def __init__(
        self, given: Source | None, data: dict, option: str = "--points", reads_exif: bool = False
    ):
        name = data.get("name", "")
        if given is None and data.get("intrinsics") is not None:
            intrinsics = data["intrinsics"]
            if not isinstance(intrinsics, str):
                check_value(intrinsics, list[float], "data.intrinsics")
            root = data.get("root", ".")
            given = source.read(intrinsics, Path(root if isinstance(root, str) else "."))
        # Find the module of the dataset if it is KITTI or NYU, whose function `known_camera` is
        # used if no camera is given, and for images that a given file of cameras doesn't list or
        # whose EXIF states no focal length.
        has_one = name in ("kitti", "nyu") and (given is None or given.of_all is None)
        module = importlib.import_module(f"tiekd.data.datasets.{name}") if has_one else None
        if given is None and module is None and not reads_exif:
            of = f"the recipe's data ({name})" if name else "the recipe, without data,"
            raise RecipeError(f"{option}: {of} knows no camera; give --intrinsics {_ALLOWED}")
        self.given = given
        self.known = getattr(module, "known_camera", None)
        self.reads_exif = reads_exif
        self.approximate = 0

    def of(self, path: Path, height: int, width: int) -> Camera:
        """Returns the `Camera` of an image, in pixels of the upright image.

        Args:
            path: The image's file.
            height: Height of the upright image in pixels.
            width: Width of the upright image in pixels.

        Raises:
            DataError: The camera isn't known, or is given for another aspect ratio. Or it comes
                from the dataset but the image has an EXIF orientation: the dataset's camera holds
                for the pixels as stored, while a camera that the user gives holds for the upright
                image.
        """
        exif_orientation = orientation.orientation_in(path)
        calibration = self._given_calibration(path)
        if calibration is not None:
            self.approximate += calibration.is_approximate
            return calibration.at_size(height, width, exif_orientation, str(path))
        if self.known is not None and exif_orientation != orientation.UPRIGHT:
            raise DataError(
                f"{path}: its EXIF orientation turns it, and the data set's camera is of the "
                "pixels as stored; give --intrinsics FX,FY,CX,CY of the upright image"
            )
        camera = None if self.known is None else self.known(path, height, width)
        if camera is None and self.reads_exif:
            calibration = exif.calibration(path)
            if calibration is not None:
                self.approximate += 1
                return calibration.at_size(height, width, exif_orientation, str(path))
        if camera is None:
            raise DataError(
                f"{path}: the camera of an image of {height}x{width} there isn't known; give "
                f"--intrinsics {_ALLOWED}" + (", or --focal F" if self.reads_exif else "")
            )
        return camera

    def _given_calibration(self, path: Path) -> source.Calibration | None:
        if self.given is None:
            return None
        if self.given.file is not None:
            return self.given.file.of_path(path)
        return self.given.calibration(str(path), path)
