"""`data.intrinsics`: the cameras of a data set's frames, and what the log says about them.

The setting is one of: [focal_x, focal_y, centre_x, centre_y] of every image at its own size; the
same with width and height of the image that they are of; a file (tiekd/data/cameras/files.py); or
`exif`. Unless it is four numbers, each image's header is read, which takes 0.1 ms. Left out: lens
distortion, which is ignored with a line in the log.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tiekd.data import image_io, orientation
from tiekd.data.cameras import exif, files
from tiekd.data.cameras.calibration import Calibration, Camera, checked
from tiekd.errors import DataError, RecipeError

EXIF = "exif"
# A recipe's value of `data.intrinsics`.
Intrinsics = Path | Sequence[float] | None
ALLOWED = (
    "[focal_x, focal_y, centre_x, centre_y] in pixels, focal lengths above 0; the same with the "
    "image's width and height; a file of intrinsics; or exif"
)


class Source(NamedTuple):
    """The source of images' cameras: one calibration for all, a file, or, without both, EXIF.

    Attributes:
        of_all: One calibration for all images; None if they have their own.
        file: The file of intrinsics; None if there is none.
    """

    of_all: Calibration | None = None
    file: files.CameraFile | None = None

    @property
    def uses_exif(self) -> bool:
        """True if the cameras are read from each image's EXIF."""
        return self.of_all is None and self.file is None

    def calibration(self, name: str, path: Path) -> Calibration | None:
        """Returns the calibration of an image; None if the source doesn't have it.

        Args:
            name: The image's name in its data set.
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
    """Raises RecipeError if a setting consists of numbers that aren't those of a camera.

    Args:
        intrinsics: The value of `data.intrinsics`; a file, `exif` or None is accepted.
        where: The setting's name, for the message.
    """
    if intrinsics is None or isinstance(intrinsics, str | Path):
        return
    numbers = list(intrinsics)
    is_right = len(numbers) in (4, 6) and all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0
    if not is_right or any(side < 1 or side != int(side) for side in numbers[4:]):
        raise RecipeError(f"{where}: got {numbers}; it must be {ALLOWED}")


def read(intrinsics: Intrinsics, root: Path, where: str = "data.intrinsics") -> Source:
    """Returns the source that a setting such as `data.intrinsics` names.

    Args:
        intrinsics: The setting, not None.
        root: The folder to which a file's relative path refers.
        where: The setting's name, for messages.

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


def camera_of(calibration: Calibration, path: Path, where: str) -> Camera:
    """Returns the camera of an image file, given a calibration for some size.

    Args:
        calibration: The calibration.
        path: The image file. If its header can't be read, the calibration's camera is returned as
            it is; decoding the image reports the error.
        where: Source and image, for the message.

    Raises:
        DataError: The image has another aspect ratio than the calibration.
    """
    if calibration.size is None:
        return calibration.camera
    try:
        size = image_io.read_image_size(path)
    except DataError:
        return calibration.camera
    if size == calibration.size:
        return calibration.camera
    return calibration.at_size(*size, orientation.mark_in(path), where)


def cameras_of(
    frames: Sequence[tuple[str, str, Camera | None]], intrinsics: Intrinsics, root: Path
) -> tuple[list[Camera | None], list[str]]:
    """Returns the camera of each frame (None if unknown), and lines for the log.

    Args:
        frames: (name, image's path, camera that the data set knows itself or None) of each frame.
        intrinsics: `data.intrinsics`, which takes precedence; None for the data set's own cameras.
        root: The data root.

    Raises:
        RecipeError: The setting isn't valid.
        DataError: Its file can't be read, or an image has another aspect ratio than its intrinsics.
    """
    if intrinsics is None:
        cameras = [camera for _, _, camera in frames]
        return cameras, _unknown(frames, cameras)
    source = read(intrinsics, root)
    cameras = []
    count, distortion = 0, 0.0
    for name, path, known in frames:
        calibration = source.calibration(name, Path(path))
        if calibration is None:
            cameras.append(known)
            continue
        count += 1
        distortion = max(distortion, calibration.distortion)
        cameras.append(camera_of(calibration, Path(path), f"data.intrinsics: {path}"))
    notes = [f"Cameras: {source}, for {count} of {len(frames)} frames"]
    if distortion:
        notes.append(
            f"Cameras: lens distortion is ignored (its largest coefficient is {distortion:g}); "
            "undistort the images if it matters"
        )
    return cameras, notes + _unknown(frames, cameras)


def _unknown(frames: Sequence[tuple], cameras: Sequence[Camera | None]) -> list[str]:
    """Returns a log line with the number of frames whose camera isn't known; no line if all are.

    Args:
        frames: Tuples that begin with the frame's name.
        cameras: The frames' cameras, in the same order; None if unknown.
    """
    unknown = [frame[0] for frame, camera in zip(frames, cameras, strict=True) if camera is None]
    if not unknown:
        return []
    return [
        f"Cameras: the intrinsics of {len(unknown)} of {len(frames)} frames aren't known, such as "
        f"of {unknown[0]} (data.intrinsics)"
    ]
