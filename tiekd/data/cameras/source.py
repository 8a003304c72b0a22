"""`data.intrinsics`: the cameras of a dataset's frames, and lines about them for the log.

The setting is one of: [focal_x, focal_y, centre_x, centre_y] of every image at its own size;
[focal_x, focal_y, centre_x, centre_y, width, height], where width and height are those of the image
that the intrinsics belong to; a file (tiekd/data/cameras/files.py); or `exif`. Unless the setting
is four numbers, each image's header is read, which takes 0.1 ms. Not covered: lens distortion,
which is ignored with a line in the log.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd.data import image_io, orientation
from tiekd.data.cameras import exif, files
from tiekd.data.cameras.calibration import Calibration, Camera, checked
from tiekd.data.frame_table import Cameras, FrameTable
from tiekd.data.stored import Source as ImageSource
from tiekd.data.stored import source_of
from tiekd.errors import DataError, RecipeError

EXIF = "exif"
# Type of the recipe's setting `data.intrinsics`: a file or `exif`, numbers, or None.
Intrinsics = Path | Sequence[float] | None
ALLOWED = (
    "[focal_x, focal_y, centre_x, centre_y] in pixels, focal lengths above 0; the same with the "
    "image's width and height; a file of intrinsics; or exif"
)


class Source(NamedTuple):
    """The source of the cameras of images: one calibration for all, a file, or EXIF.

    The source is the EXIF of each image if both attributes are None.

    Attributes:
        of_all: The one calibration of all images; None if they have their own.
        file: The file of intrinsics; None if there is none.
    """

    of_all: Calibration | None = None
    file: files.CameraFile | None = None

    @property
    def uses_exif(self) -> bool:
        """True if the cameras are read from each image's EXIF."""
        return self.of_all is None and self.file is None

    def calibration(self, name: str, path: ImageSource) -> Calibration | None:
        """Returns the calibration of an image; None if the source doesn't have it.

        Args:
            name: The image's name in its dataset.
            path: The image's file.
        """
        if self.uses_exif:
            return exif.calibration(path)
        return self.of_all if self.file is None else self.file.of(name)

    def __str__(self) -> str:
        if self.file is not None:
            return f"{self.file.path} ({self.file.kind})"
        return "EXIF, approximate" if self.uses_exif else "one camera for all"


def check_numbers(intrinsics: Intrinsics, where: str = "data.intrinsics") -> None:
    """Checks the numbers of the setting `data.intrinsics`, if it consists of numbers.

    Args:
        intrinsics: The value of `data.intrinsics`; a file, `exif` or None is accepted.
        where: The setting's name, for the error message.

    Raises:
        RecipeError: There aren't four or six numbers, one isn't finite, a focal length isn't above
            0, or a width or height isn't a whole number above 0.
    """
    if intrinsics is None or isinstance(intrinsics, str | Path):
        return
    numbers = list(intrinsics)
    is_right = len(numbers) in (4, 6) and all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0
    if not is_right or any(side < 1 or side != int(side) for side in numbers[4:]):
        raise RecipeError(f"{where}: got {numbers}; it must be {ALLOWED}")


def read(intrinsics: Intrinsics, root: Path, where: str = "data.intrinsics") -> Source:
    """Returns the source of cameras that a setting such as `data.intrinsics` gives.

    Args:
        intrinsics: The setting, not None.
        root: The folder to which a file's relative path refers.
        where: The setting's name, for error messages.

    Raises:
        RecipeError: The numbers aren't those of a camera, or there is no such file.
        DataError: The file can't be read.
    """
    check_numbers(intrinsics, where)
    if isinstance(intrinsics, str | Path):
        if str(intrinsics) == EXIF:
            return Source()
        path = root / Path(intrinsics).expanduser()
        if not path.exists():
            raise RecipeError(
                f"{where}: got {str(intrinsics)!r:.80}, but there is no file at {path}; it must be "
                f"{ALLOWED}"
            )
        try:
            return Source(file=files.read(path))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
    numbers = [float(number) for number in intrinsics]
    size = (int(numbers[5]), int(numbers[4])) if len(numbers) == 6 else None
    return Source(of_all=checked(numbers[:4], size, where))


def camera_of(
    calibration: Calibration, path: ImageSource, where: str, size: tuple[int, int] | None = None
) -> Camera:
    """Returns the camera of an image at its own size, scaled and turned from its calibration.

    Args:
        calibration: The calibration, which may be for another size or for the image as stored.
        path: The image file. If its header can't be read, the calibration's camera is returned as
            it is; decoding the image reports the error.
        where: Names of source and image, for the error message.
        size: (height, width) of the upright image; None to read it from the file's header.

    Raises:
        DataError: The image has another aspect ratio than the calibration.
    """
    if calibration.size is None:
        return calibration.camera
    try:
        size = size or image_io.read_image_size(path)
    except DataError:
        return calibration.camera
    if size == calibration.size:
        return calibration.camera
    return calibration.at_size(*size, orientation.orientation_in(path), where)


def cameras_of(frames: FrameTable, intrinsics: Intrinsics, root: Path) -> tuple[Cameras, list[str]]:
    """Returns the cameras of a data set's frames by `data.intrinsics`, and lines for the log.

    Args:
        frames: The frames, each with the camera that the data set knows itself.
        intrinsics: `data.intrinsics`, which takes precedence; None for the data set's own cameras.
        root: The folder to which the relative path of a file of intrinsics refers (data.root).

    Returns:
        The camera of each frame, in order; and a list of lines, which say where the cameras come
        from, whether lens distortion is ignored, and how many cameras aren't known.

    Raises:
        RecipeError: `intrinsics` isn't valid.
        DataError: The file of intrinsics can't be read, or an image has another aspect ratio than
            its intrinsics.
    """
    if intrinsics is None:
        return frames.cameras, _unknown(frames, frames.cameras)
    source = read(intrinsics, root)
    if source.of_all is not None and source.of_all.size is None:
        # Use the one camera as it is: since it holds for each image at its own size, no image's
        # header has to be read.
        count, distortion = len(frames), source.of_all.distortion
        cameras = Cameras.same(source.of_all.camera, len(frames))
    else:
        cameras, count, distortion = _of_each(frames, source)
    notes = [f"Cameras: {source}, for {count} of {len(frames)} frames"]
    if distortion:
        notes.append(
            f"Cameras: lens distortion is ignored (its largest coefficient is {distortion:g}); "
            "undistort the images if it matters"
        )
    return cameras, notes + _unknown(frames, cameras)


def _of_each(frames: FrameTable, source: Source) -> tuple[Cameras, int, float]:
    """Returns the cameras of frames, each from its own calibration and its own image's size.

    Args:
        frames: The frames. One that the source doesn't know keeps the camera that it has here.
        source: The source of the calibrations.

    Returns:
        The cameras of all frames, in order; the number of frames that the source knows; and the
        largest coefficient of the lens distortion.

    Raises:
        DataError: An image has another aspect ratio than its intrinsics.
    """
    cameras = []
    count, distortion = 0, 0.0
    for index, frame in enumerate(frames):
        image = source_of(frame.image)
        calibration = source.calibration(frame.name, image)
        if calibration is None:
            cameras.append(frame.camera)
            continue
        count += 1
        distortion = max(distortion, calibration.distortion)
        size = None if frames.sizes is None else tuple(frames.sizes[index].tolist())
        if size == (0, 0):
            # The shards' index has no size of an image whose header can't be read.
            size = None
        where = f"data.intrinsics: {frame.image}"
        cameras.append(camera_of(calibration, image, where, size))
    return Cameras.of(cameras), count, distortion


def _unknown(frames: FrameTable, cameras: Cameras) -> list[str]:
    """Returns a list with one log line, the number of frames whose camera isn't known.

    Args:
        frames: The frames.
        cameras: The cameras of the frames. If all are known, the result is an empty list.
    """
    unknown = np.flatnonzero(~cameras.are_known)
    if not len(unknown):
        return []
    return [
        f"Cameras: the intrinsics of {len(unknown)} of {len(frames)} frames aren't known, such as "
        f"of {frames.names[unknown[0]]} (data.intrinsics)"
    ]
