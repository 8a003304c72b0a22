"""The focal lengths with which a teacher made its cached maps: `focals.json` beside the maps.

    {"2011_09_26_1.png": 721.54, "2011_09_26_2.png": null, ...}

Focal lengths are (fx + fy) / 2 in pixels of the image at its own size, null where unknown. Only a
teacher whose depth depends on the focal length writes them. A student with another focal length for
the same image would learn metres that contradict its camera, so a run compares the two at its
start. The file takes 40 bytes per frame.
"""

import json
from pathlib import Path

from tiekd import console
from tiekd.data import image_io, teacher_maps
from tiekd.data.frames import Frames
from tiekd.errors import DataError, TeacherError
from tiekd.files import check_readable

FILE = "focals.json"
SOURCE = "intrinsics"  # the manifest's entry that names the source of the focal lengths
_SAME = 1e-3  # largest relative difference between two focal lengths that count as equal
Focals = dict[str, float | None]


def of_frames(frames: object) -> Focals:
    """Returns each frame's focal length, in a dict keyed by the file name of the frame's map.

    Focal lengths are in pixels of the image at its own size, None where unknown.

    Args:
        frames: The dataset. The result is empty if it isn't a `Frames`, because other datasets
            don't list their cameras.
    """
    if not isinstance(frames, Frames):
        return {}
    return {
        frames.map_name(index): None if frame.camera is None else round(frame.camera.focal, 4)
        for index, frame in enumerate(frames.frames)
    }


def read(folder: Path) -> Focals | None:
    """Returns the focal lengths with which a folder's maps were made, from its focals.json.

    Args:
        folder: The folder of maps.

    Returns:
        For the file name of each map the focal length in pixels of the image at its own size, None
        where unknown. The result is None if the folder has no focals.json.

    Raises:
        DataError: The file can't be read, or doesn't hold focal lengths.
    """
    path = folder / FILE
    if not path.exists():
        return None
    check_readable(path, "record of focal lengths", DataError)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    is_focal = isinstance(found, dict) and all(
        value is None or (type(value) in (int, float) and value > 0) for value in found.values()
    )
    if not is_focal:
        raise DataError(
            f"{path}: not a record of focal lengths; make the maps again in another folder"
        )
    return found


def add(folder: Path, focals: Focals, manifest: dict) -> str | None:
    """Adds the focal lengths of a caching job's frames to focals.json in a folder of maps.

    Only rank 0 may call it.

    Args:
        folder: The folder of maps, which this job has locked.
        focals: The focal lengths of the job's frames, keyed by their maps' file names.
        manifest: The manifest in the folder. If it lacks the entry SOURCE, an older version made
            the folder's maps, with unknown focal lengths, and no file is written.

    Returns:
        A message if maps in the folder were made with other focal lengths for the same frames, or
        if a focal length is known for one of the two only; None otherwise.
    """
    map_focals = read(folder)
    if map_focals is None and SOURCE not in manifest:
        return None
    map_focals = map_focals or {}
    _, differing = _compare(map_focals, focals)
    # A teacher uses its own estimate if it gets no focal length, so such a map differs, too.
    differing += [
        name
        for name, focal in focals.items()
        if name in map_focals and (map_focals[name] is None) != (focal is None)
    ]
    if differing:
        return f"{folder}: {_difference_phrase(map_focals, focals, differing)}; give another --out"
    if focals.keys() - map_focals.keys():
        text = json.dumps(map_focals | focals, separators=(",", ":"))
        image_io.write_durably(folder / FILE, f"{text}\n".encode())
    return None


def check(frames: object, *, is_canonical: bool) -> list[str]:
    """Compares the focal lengths of a run's frames with those with which cached maps were made.

    Args:
        frames: The training dataset, which reads the maps.
        is_canonical: True for a student with `network.canonical_focal`, for which a difference is
            an error.

    Returns:
        Warnings for the log.

    Raises:
        TeacherError: A student with `network.canonical_focal` has another focal length than its
            maps.
        DataError: A file focals.json can't be read.
    """
    folders, warnings = _options(frames), []
    frame_focals = of_frames(frames) if folders else {}
    for option, folder in folders:
        warnings += _check(folder, option, frame_focals, is_canonical=is_canonical)
    return warnings


def folders_of(frames: object) -> list[Path]:
    """Returns the folders of a dataset's cached maps, in the order of the recipe's teachers.

    Args:
        frames: The dataset. One from outside the project has a single folder or none.
    """
    return [folder for _, folder in _options(frames)]


def _options(frames: object) -> list[tuple[str, Path]]:
    """Returns a pair (option that names the folder, folder) for each folder of cached maps."""
    if isinstance(frames, Frames):
        return [(folder.option, folder.path) for folder in frames.map_folders]
    maps = getattr(frames, "maps", None)
    return [] if maps is None else [("teacher.maps", maps)]


def _check(folder: Path, option: str, frame_focals: Focals, *, is_canonical: bool) -> list[str]:
    """Compares the focal lengths of a run's frames with those with which a folder's maps were made.

    Args:
        folder: The folder of maps.
        option: The option that names the folder, for messages.
        frame_focals: The focal lengths of the frames, keyed by the file names of their maps.
        is_canonical: True for a student with `network.canonical_focal`.

    Returns:
        Warnings for the log.

    Raises:
        TeacherError: A student with `network.canonical_focal` has another focal length than its
            maps.
        DataError: The folder's focals.json can't be read.
    """
    manifest = teacher_maps.read_manifest(folder)
    if manifest is None:
        return []
    map_focals = read(folder)
    if map_focals is None:
        node = manifest.get("teacher_network") or {}
        if node.get("canonical_focal") is None:
            return []
        return [
            f"Warning: nothing says with which focal lengths the maps in {folder} were made; they "
            "are taken to be this recipe's"
        ]
    both, differing = _compare(map_focals, frame_focals)
    if not differing:
        return []
    phrase = _difference_phrase(map_focals, frame_focals, differing)
    difference = f"{len(differing)} of {len(both)}: {phrase}"
    if is_canonical:
        raise TeacherError(
            f"{option}: {difference}; give the intrinsics that they were made with "
            f"({manifest.get(SOURCE)}), or make the maps again with "
            f"{console.command('cache_teacher')}"
        )
    named = "" if option == "teacher.maps" else f"{option}: "
    return [f"Warning: {named}{difference}; one of the two is wrong"]


def _compare(map_focals: Focals, frame_focals: Focals) -> tuple[list[str], list[str]]:
    """Compares the focal lengths with which maps were made with those of the frames.

    Args:
        map_focals: The focal lengths with which the maps were made, keyed by the maps' file names.
        frame_focals: The focal lengths of the run's frames, keyed in the same way.

    Returns:
        Two lists of file names: all maps for which both focal lengths are known, and those among
        them for which the two differ.
    """
    both = [name for name, focal in frame_focals.items() if focal and map_focals.get(name)]
    return both, [name for name in both if abs(frame_focals[name] / map_focals[name] - 1) > _SAME]


def _difference_phrase(map_focals: Focals, frame_focals: Focals, differing: list[str]) -> str:
    name = differing[0]
    theirs, ours = (
        "none" if focals[name] is None else f"{focals[name]:.1f}"
        for focals in (map_focals, frame_focals)
    )
    pixels = "" if theirs == "none" else " pixels"
    return (
        f"maps were made with another focal length, such as {name} with {theirs}{pixels}, where "
        f"this recipe has {ours}"
    )
