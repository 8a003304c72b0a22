"""Lines for bin/check_data.py about the cameras of a split's frames.

They say how many frames have intrinsics and from what source, the range of their focal lengths, and
how many contradict the EXIF of their own images. Costs a read of the header of each image with a
known camera, 0.1 ms each. Not covered: distortion and principal points.
"""

from collections.abc import Sequence

from tiekd.data.cameras import exif
from tiekd.data.cameras.calibration import Camera
from tiekd.data.cameras.source import EXIF, Intrinsics, camera_of
from tiekd.data.file_fingerprints import map_paths
from tiekd.data.stored import ShardMember, source_of

# Largest factor by which a focal length may differ from EXIF's, which is rounded.
_AGREES = 1.2


def summary(
    frames: Sequence[tuple[str, str | ShardMember, Camera | None]], intrinsics: Intrinsics
) -> list[str]:
    """Returns a list of lines for the user about the cameras of a split's frames.

    The first line says how many cameras are known, their source and their focal lengths. A second
    one compares the focal lengths with those in EXIF, unless they come from EXIF.

    Args:
        frames: For each frame its name, the path of its image, and its camera, or None if unknown.
        intrinsics: The setting `data.intrinsics` that the cameras come from; None if they are the
            dataset's own.
    """
    known = [(name, path, camera) for name, path, camera in frames if camera is not None]
    if not known:
        return [f"Cameras: no intrinsics for any of {len(frames)} frames (data.intrinsics)"]
    source = "the data set's own files" if intrinsics is None else f"data.intrinsics={intrinsics}"
    focals = [camera.focal for _, _, camera in known]
    span = f"{min(focals):.1f}"
    if max(focals) > min(focals):
        span = f"{span} to {max(focals):.1f}"
    lines = [
        f"Cameras: intrinsics for {len(known)} of {len(frames)} frames, from {source}; focal "
        f"length {span} pixels of images at their own size"
    ]
    return lines if str(intrinsics) == EXIF else lines + _against_exif(known)


def _against_exif(known: Sequence[tuple[str, str | ShardMember, Camera]]) -> list[str]:
    """Returns a list with one line that compares the cameras' focal lengths with those in EXIF.

    The list is empty if no image has a focal length in its EXIF.

    Args:
        known: For each frame with a known camera its name, the path of its image, and the camera.
    """
    stated = map_paths(
        lambda path: exif.calibration(source_of(path)), [path for _, path, _ in known]
    )
    compared, other = 0, []
    for (name, path, camera), calibration in zip(known, stated, strict=True):
        if calibration is None:
            continue
        compared += 1
        focal = camera_of(calibration, source_of(path), str(path)).focal
        if not 1 / _AGREES <= camera.focal / focal <= _AGREES:
            other.append((name, camera.focal, focal))
    if not compared:
        return []
    if not other:
        return [f"Cameras: EXIF agrees with the focal length of all {compared} images that have it"]
    name, listed, focal = other[0]
    return [
        f"Cameras: EXIF contradicts the focal length of {len(other)} of {compared} images that "
        f"have it, such as of {name}: {listed:.1f} pixels, {focal:.1f} by EXIF; one of them is "
        "wrong, or the photos were cropped"
    ]
