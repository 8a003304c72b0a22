"""The approximate focal length in pixels that a photo's EXIF states.

If EXIF has the focal length's 35 mm equivalent f35, the focal length is f35 / 43.27 mm * the
image's diagonal in pixels, as CIPA defines it. Otherwise it is computed from the lens's focal
length and the resolution of the focal plane. Both are rounded by the camera, and wrong if the photo
was cropped. The principal point is taken to be the image's centre. Reading the file's header takes
0.1 ms.
"""

import math

from PIL import Image

from tiekd.data import orientation
from tiekd.data.cameras.calibration import Calibration, Camera, turned_upright
from tiekd.data.stored import ShardMember, Source, as_openable
from tiekd.files import instead_of_file

_DIAGONAL_MM = math.hypot(36, 24)
_EXIF = 0x8769
_FOCAL, _FOCAL_35, _WIDTH, _HEIGHT = 0x920A, 0xA405, 0xA002, 0xA003
_PLANE_X, _PLANE_Y, _PLANE_UNIT = 0xA20E, 0xA20F, 0xA210
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}
# Smallest and largest plausible focal length of a photo, as multiples of the image's diagonal.
_PLAUSIBLE = 0.1, 50.0


def calibration(path: Source) -> Calibration | None:
    """Returns the approximate calibration that a photo's EXIF gives, for the upright photo.

    Only the file's header is read.

    Args:
        path: The image file.

    Returns:
        The calibration for the photo's own size; None if EXIF has no plausible focal length, or if
        the file can't be read, which is reported when the image is decoded.
    """
    if not isinstance(path, ShardMember) and instead_of_file(path):
        return None
    try:
        with Image.open(as_openable(path)) as image:
            size = orientation.upright_size(image)
            exif_orientation = orientation.orientation_of(image)
            tags = image.getexif().get_ifd(_EXIF)
            focals = _focals(tags, size, exif_orientation)
    except Exception:  # noqa: BLE001 - Pillow raises any type on corrupt files
        return None
    if focals is None:
        return None
    low, high = (share * math.hypot(*size) for share in _PLAUSIBLE)
    if not all(low < focal < high for focal in focals):
        return None
    return Calibration(Camera(*focals), size, is_approximate=True)


def _focals(tags: dict, size: tuple[int, int], exif_orientation: int) -> tuple[float, float] | None:
    """Returns (focal_x, focal_y) of the upright image in pixels; None if EXIF has no focal length.

    Args:
        tags: The EXIF tags by their numbers.
        size: (height, width) of the upright image in pixels.
        exif_orientation: The EXIF orientation, 1 to 8.
    """
    equivalent = float(tags.get(_FOCAL_35, 0))
    if equivalent > 0:
        focal = equivalent / _DIAGONAL_MM * math.hypot(*size)
        return focal, focal
    # Compute the focal length from the lens's focal length in millimetres and the focal plane's
    # resolution. That is the resolution of the photo as taken, so if the photo was scaled since,
    # the focal length is scaled, too.
    unit = _MM_PER_UNIT.get(tags.get(_PLANE_UNIT, 2))
    lens, plane_x = float(tags.get(_FOCAL, 0)), float(tags.get(_PLANE_X, 0))
    if unit is None or not lens > 0 or not plane_x > 0:
        return None
    plane_y = float(tags.get(_PLANE_Y, 0)) or plane_x
    stored = Camera(lens * plane_x / unit, lens * plane_y / unit)
    upright = turned_upright(stored, size, exif_orientation)
    width, height = float(tags.get(_WIDTH, 0)), float(tags.get(_HEIGHT, 0))
    if not (width > 0 and height > 0):
        return upright.focal_x, upright.focal_y
    scale = math.hypot(*size) / math.hypot(width, height)
    return upright.focal_x * scale, upright.focal_y * scale
