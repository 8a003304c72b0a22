"""EXIF orientation ("mark"): how an image's stored pixels must be turned to be upright.

The whole project uses upright images: training, evaluation, checks, caches and prediction. Sizes,
depth maps, teacher maps and intrinsics refer to the upright image. A depth PNG is turned by its own
mark. The mark is read from EXIF or XMP, in JPEG, PNG, WebP and TIFF; a corrupt mark counts as
upright. Costs some 0.02 ms for an image that is decoded anyway, 0.1 ms if only the file's header is
read.
"""

import os
import warnings
from pathlib import Path

from PIL import ExifTags, Image

from tiekd.files import instead_of_file

# Suppress Pillow's warning about a corrupt mark, which it would repeat for each image and process.
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


def mark_of(image: Image.Image) -> int:
    """Returns the mark of a Pillow image: 2 to 8 if it must be turned, else 1.

    The mark is 1 for an upright image, and for an image without a readable mark.
    """
    try:
        late = image.format == "PNG" and _has_late_chunks(image)
        # PngImageFile.getexif decodes all pixels, so call it only if the mark may follow them.
        exif = image.getexif() if late else Image.Image.getexif(image)
        mark = exif.get(ExifTags.Base.Orientation, UPRIGHT)
        return mark if mark in _TURNS else UPRIGHT
    except Exception:  # noqa: BLE001 - a corrupt mark raises many types; it counts as upright
        return UPRIGHT


def mark_in(path: Path) -> int:
    """Returns the mark in a file's header; 1 if the file has no mark or isn't an image."""
    if instead_of_file(path):  # reading the pixels raises the error
        return UPRIGHT
    try:
        with Image.open(path) as image:
            return mark_of(image)
    except Exception:  # noqa: BLE001 - a video or a corrupt file: decoding raises an error
        return UPRIGHT


def upright(image: Image.Image) -> Image.Image:
    """Returns the image turned as its mark says; the image itself if it is upright."""
    image.load()
    if image.format == "TIFF":  # Pillow turns TIFF images when it loads them
        return image
    mark = mark_of(image)
    return image if mark == UPRIGHT else image.transpose(_TURNS[mark])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) of an opened image once it is upright."""
    if image.format == "TIFF":  # Pillow reports the upright size of TIFF images
        return image.height, image.width
    if mark_of(image) in _SWAP_SIDES:
        return image.width, image.height
    return image.height, image.width


def _has_late_chunks(image: Image.Image) -> bool:
    """Returns True if a PNG file has chunks after its pixel data, which may hold the mark.

    Pillow reads such chunks only after the pixels.
    """
    file = getattr(image, "fp", None)
    if file is None:
        return False
    try:
        descriptor = file.fileno()
    except OSError:
        return True  # a file in memory has no descriptor: assume that there are such chunks
    start = _PNG_HEAD
    pixels_came = False
    while len(head := os.pread(descriptor, _CHUNK_HEAD, start)) == _CHUNK_HEAD:
        kind = head[4:]
        if kind == b"IEND":
            return False
        if pixels_came and kind != b"IDAT":
            return True
        pixels_came = pixels_came or kind == b"IDAT"
        start += _CHUNK_EXTRA + int.from_bytes(head[:4], "big")
    return False
