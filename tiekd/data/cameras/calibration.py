"""A pinhole camera (`Camera`), and the camera that a source states (`Calibration`).

A camera always belongs to the upright image at the image's own size. A calibration for another size
is scaled if the aspect ratio is the same, and refused otherwise. If its size fits only the image as
stored, i.e. before its EXIF orientation is applied, the camera is turned as the image is. (0, 0) is
the centre of the first pixel. Not covered: lens distortion, of which only the largest coefficient
is kept, for the log.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from tiekd.errors import DataError

# Two image sizes count as having the same aspect ratio if the ratios of their heights and of their
# widths agree to this fraction, or if rounding a side to whole pixels explains the difference.
_SAME_ASPECT = 0.01
# The EXIF orientations in which x is mirrored, those in which y is mirrored, and those in which
# rows and columns are swapped.
_MIRRORED_X, _MIRRORED_Y, _SWAPPED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)


class Camera(NamedTuple):
    """Intrinsics of a pinhole camera, in pixels of the whole, upright image.

    Attributes:
        focal_x: Horizontal focal length.
        focal_y: Vertical focal length.
        centre_x: Column of the principal point; None for the image's centre.
        centre_y: Row of the principal point; None for the image's centre.
    """

    focal_x: float
    focal_y: float
    centre_x: float | None = None
    centre_y: float | None = None

    @property
    def focal(self) -> float:
        """The focal length in pixels: the mean of the horizontal and the vertical one."""
        return (self.focal_x + self.focal_y) / 2


@dataclass(frozen=True)
class Calibration:
    """A camera as its source (a file, a setting or EXIF) states it, for an image of some size.

    Attributes:
        camera: The intrinsics.
        size: (height, width) of the image that the intrinsics belong to; None if they hold for each
            image at its own size.
        distortion: The largest absolute coefficient of the lens distortion, which is ignored.
        is_approximate: True for a focal length from EXIF.
    """

    camera: Camera
    size: tuple[int, int] | None = None
    distortion: float = 0.0
    is_approximate: bool = False

    def at_size(self, height: int, width: int, exif_orientation: int, where: str) -> Camera:
        """Returns the camera of an upright image: this camera, scaled and turned if necessary.

        Args:
            height: Rows of the upright image.
            width: Columns of the upright image.
            exif_orientation: The image's EXIF orientation, 1 to 8; 1 is upright.
            where: Names of source and image, for the error message.

        Raises:
            DataError: The image has another aspect ratio than the calibration.
        """
        if self.size is None:
            return self.camera
        if _same_aspect(self.size, (height, width)):
            return _scaled(self.camera, self.size, (height, width))
        if exif_orientation in _SWAPPED and _same_aspect(self.size[::-1], (height, width)):
            turned = turned_upright(self.camera, self.size, exif_orientation)
            return _scaled(turned, self.size[::-1], (height, width))
        raise DataError(
            f"{where}: intrinsics for {self.size[0]}x{self.size[1]} (height x width), but the "
            f"image is {height}x{width}, of another aspect ratio, so how it was cropped isn't "
            "known; give intrinsics of the image itself, with its width and height",
            "size",
        )


def checked(
    numbers: list[float], size: tuple[int, int] | None, where: str, distortion: list[float] = ()
) -> Calibration:
    """Checks the numbers of a camera, and returns them as a calibration.

    Args:
        numbers: focal_x, focal_y, centre_x and centre_y in pixels.
        size: (height, width) of the image that the numbers belong to; None if they hold for each
            image at its own size.
        where: Name of the source, for the error message.
        distortion: The coefficients of the lens distortion.

    Raises:
        DataError: A number isn't finite, a focal length isn't above 0, or a size isn't above 0.
    """
    if not all(map(math.isfinite, [*numbers, *distortion])) or not min(numbers[:2]) > 0:
        raise DataError(
            f"{where}: got {', '.join(f'{n:g}' for n in numbers)}; a camera is focal_x, focal_y, "
            "centre_x, centre_y in pixels, all finite, focal lengths above 0"
        )
    if size is not None and not min(size) > 0:
        raise DataError(
            f"{where}: got {size[1]}x{size[0]} pixels; width and height must be above 0"
        )
    return Calibration(Camera(*numbers), size, max(map(abs, distortion), default=0.0))


def turned_upright(camera: Camera, size: tuple[int, int], exif_orientation: int) -> Camera:
    """Returns the camera of the upright image, given the camera of the image as stored.

    Args:
        camera: The camera of the image as stored, i.e. before its EXIF orientation is applied.
        size: (height, width) of the image as stored.
        exif_orientation: The EXIF orientation, 1 to 8.
    """
    focal_x, focal_y, x, y = camera
    height, width = size
    if exif_orientation in _SWAPPED:
        focal_x, focal_y, x, y = focal_y, focal_x, y, x
        height, width = width, height
    if exif_orientation in _MIRRORED_X and x is not None:
        x = width - 1 - x
    if exif_orientation in _MIRRORED_Y and y is not None:
        y = height - 1 - y
    return Camera(focal_x, focal_y, x, y)


def _scaled(camera: Camera, old: tuple[int, int], new: tuple[int, int]) -> Camera:
    """Returns the camera of an image after resizing.

    The origin of the scaling is the outer corner of the first pixel, (-0.5, -0.5).

    Args:
        camera: The camera before resizing.
        old: (height, width) before resizing.
        new: (height, width) after resizing.
    """
    if old == new:
        return camera
    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    x = None if camera.centre_x is None else (camera.centre_x + 0.5) * scale_x - 0.5
    y = None if camera.centre_y is None else (camera.centre_y + 0.5) * scale_y - 0.5
    return Camera(camera.focal_x * scale_x, camera.focal_y * scale_y, x, y)


def _same_aspect(old: tuple[int, int], new: tuple[int, int]) -> bool:
    scale_y, scale_x = new[0] / old[0], new[1] / old[1]
    return (
        abs(scale_x / scale_y - 1) <= _SAME_ASPECT
        or abs(old[1] * scale_y - new[1]) <= 1
        or abs(old[0] * scale_x - new[0]) <= 1
    )
