"""EXIF orientation: a number that states how an image's pixels as stored are turned upright.

The whole project uses upright images: training, evaluation, checks, caches and prediction. Sizes,
depth maps, teacher maps and intrinsics refer to the upright image. A depth PNG is turned by its own
orientation, not by its image's. The orientation is read from EXIF or XMP, in JPEG, PNG, WebP and
TIFF; a corrupt one counts as upright. Reading it takes some 0.02 ms for an image that is decoded
anyway, and 0.1 ms if only the file's header is read.
"""

import warnings
from typing import BinaryIO

from PIL import ExifTags, Image

from tiekd.data.stored import ShardMember, Source, as_openable
from tiekd.files import instead_of_file

# Suppress Pillow's warning about corrupt EXIF data, which each process would repeat for each image.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)

UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = (5, 6, 7, 8)
_PNG_HEAD = 8
_CHUNK_HEAD = 8
_CHUNK_EXTRA = 12


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of a Pillow image, from 1 to 8.

    1 is upright, and is also returned if the orientation can't be read. With 2 to 8 the image has
    to be rotated or mirrored.

    Args:
        image: The image, whose file may still be open.
    """
    try:
        late = image.format == "PNG" and _has_late_chunks(image)
        # Read the EXIF data. PngImageFile.getexif decodes all pixels, so call it only for a PNG in
        # which EXIF data may follow the pixels (`late`).
        exif = image.getexif() if late else Image.Image.getexif(image)
        exif_orientation = exif.get(ExifTags.Base.Orientation, UPRIGHT)
        return exif_orientation if exif_orientation in _TURNS else UPRIGHT
    except Exception:  # noqa: BLE001 - corrupt EXIF data raises many types of errors
        return UPRIGHT


def orientation_in(path: Source) -> int:
    """Returns the EXIF orientation in an image file's header, from 1 to 8.

    The result is 1 (upright) if the header has none, or if the file isn't an image.

    Args:
        path: Any path, also of a file that doesn't exist.
    """
    # Return the default for a path that isn't a regular file; decoding it later raises the error.
    if not isinstance(path, ShardMember) and instead_of_file(path):
        return UPRIGHT
    try:
        with Image.open(as_openable(path)) as image:
            return orientation_of(image)
    except Exception:  # noqa: BLE001 - decoding a video or a corrupt file later raises the error
        return UPRIGHT


def upright(image: Image.Image) -> Image.Image:
    """Decodes a Pillow image, and returns it turned as its EXIF orientation says.

    Args:
        image: The image. If it is upright already, the result is this object.

    Raises:
        OSError: The image can't be decoded.
    """
    image.load()
    if image.format == "TIFF":  # Pillow turns TIFF images when it loads them
        return image
    exif_orientation = orientation_of(image)
    return image if exif_orientation == UPRIGHT else image.transpose(_TURNS[exif_orientation])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns the (height, width) in pixels that a Pillow image has after it is turned upright.

    Args:
        image: The image, which isn't decoded.
    """
    if image.format == "TIFF":  # Pillow reports the upright size of TIFF images
        return image.height, image.width
    if orientation_of(image) in _SWAP_SIDES:
        return image.width, image.height
    return image.height, image.width


def _has_late_chunks(image: Image.Image) -> bool:
    """Returns True if a PNG file has chunks after its pixels, which may hold the EXIF orientation.

    Pillow reads such chunks only after it has decoded the pixels.

    Args:
        image: A PNG image. The result is False if its file is closed.
    """
    file = getattr(image, "fp", None)
    if file is None:
        return False
    position = file.tell()
    try:
        return _chunks_follow_pixels(file)
    finally:
        file.seek(position)


def _chunks_follow_pixels(file: BinaryIO) -> bool:
    start = _PNG_HEAD
    pixels_came = False
    while True:
        file.seek(start)
        head = file.read(_CHUNK_HEAD)
        if len(head) < _CHUNK_HEAD:
            return False
        kind = head[4:]
        if kind == b"IEND":
            return False
        if pixels_came and kind != b"IDAT":
            return True
        pixels_came = pixels_came or kind == b"IDAT"
        start += _CHUNK_EXTRA + int.from_bytes(head[:4], "big")
