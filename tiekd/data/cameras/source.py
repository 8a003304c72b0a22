"""`data.intrinsics`: the cameras of a data set's frames, and what the log says about them.

The setting is one of: [focal_x, focal_y, centre_x, centre_y] of every image at its own size; the
same with width and height of the image that they are of; a file (tiekd/data/cameras/files.py); or
`exif`. Costs a read of each image's header (0.1 ms) unless it is four numbers. Left out: lens
distortion, which is ignored and said to be.
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
    """Where the cameras of images come from.

    Attributes:
        of_all: One calibration for all images; None if they have their own.
        file: The file of intrinsics; None if there is none.
    """

    of_all: Calibration | None = None
    file: files.CameraFile | None = None

    @property
    def uses_exif(self) -> bool:
        """True if each image's EXIF is read."""
        return self.of_all is None and self.file is None

    def calibration(self, name: str, path: Path) -> Calibration | None:
        """Returns the calibration of an image.

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
    """Raises RecipeError if the setting is numbers, but not those of a camera."""
    if intrinsics is None or isinstance(intrinsics, str | Path):
        return
    numbers = list(intrinsics)
    is_right = len(numbers) in (4, 6) and all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0
    if not is_right or any(side < 1 or side != int(side) for side in numbers[4:]):
        raise RecipeError(f"{where}: got {numbers}; it must be {ALLOWED}")


def read(intrinsics: Intrinsics, root: Path, where: str = "data.intrinsics") -> Source:
    """Returns the source that a setting names.

    Args:
        intrinsics: The setting, not None.
        root: The folder below which a file is.
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

    An image whose header can't be read keeps the calibration as it is: decoding it reports that.

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
    """Returns the camera of each frame, and lines for the log.

    Args:
        frames: (name, image's path, camera that the data set knows itself) of each frame.
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
    """Returns a line with the number of frames whose camera isn't known; none if there are none."""
    unknown = [frame[0] for frame, camera in zip(frames, cameras, strict=True) if camera is None]
    if not unknown:
        return []
    return [
        f"Cameras: the intrinsics of {len(unknown)} of {len(frames)} frames aren't known, such as "
        f"of {unknown[0]} (data.intrinsics)"
    ]
