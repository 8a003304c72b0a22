"""Dataset from a folder of the user's own images, with or without measured depth.

Images are all JPEG and PNG files in or below `images`. A folder that several links lead to is read
once. Images are turned upright as their EXIF orientation says. Depth maps are 16-bit PNG or NPY
files below `depths` with the image's path but another suffix (a/1.png for a/1.jpg); they must have
the upright image's size. An image without a depth map is used for training if there is a teacher;
otherwise it is skipped and counted. Cached teacher maps are PNG files named by the image's path
joined by `_`. Not covered: other ways to pair images and depth maps; link or rename the files
instead.
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiekd.data import held_out as held_out_frames
from tiekd.data.cameras.source import check_numbers
from tiekd.data.frame_table import Cameras, FrameTable, Texts
from tiekd.data.frames import (
    DatasetSplit,
    DepthFormat,
    Frames,
    check_depth_units,
    check_val_fraction,
    data_root,
    joined_name,
    with_cameras,
)
from tiekd.data.listing import list_files, once, unlistable
from tiekd.data.pairing import check_pairs
from tiekd.data.splits import below_root, read_lines
from tiekd.errors import DataError, RecipeError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_DEPTHS = (".png", ".npy")
# Option that names a folder -> (default folder, suffixes of the files that are read).
READS = {"images": (None, _IMAGE_SUFFIXES), "depths": (None, _DEPTHS)}

# Name of each image -> its depth map's path below the folder of depth maps, or None.
Depths = dict[str, str | None]


@dataclass(frozen=True)
class FolderOptions:
    """The options of a recipe's `data` section for a folder of images.

    Attributes:
        images: Folder of the images, below `root` or absolute.
        root: The data root.
        depths: Folder of the depth maps, below `root` or absolute; None for no ground truth at all.
        depth_unit: Stored units per metre of PNG files and of NPY files with whole numbers, e.g.
            1000 for millimetres; needed if there are such files.
        float_depth_unit: Units per metre of floating-point NPY files; None means metres, regardless
            of `depth_unit`.
        invalid: Stored values that mean "not measured", in addition to 0, non-finite values and, in
            16-bit files, 65535.
        unmatched: "refuse" raises an error if more than half of the images have no depth map, or if
            an image has no depth map while more than half of the depth maps have no image; "allow"
            accepts both.
        train_split: Text file of training images, one path below `images` a line. If only one of
            the two split files is given, all other images form the other split.
        val_split: Text file of validation images, in the same format.
        val_fraction: Without split files, the share of the frames with ground truth that is held
            out for validation, chosen by a hash of their names. Images of one video look alike, so
            list whole videos in val_split to get unbiased metrics. If evaluations compare with the
            teacher, it is the share of all frames, which are held out by folder
            (tiekd/data/held_out.py).
        intrinsics: The cameras of the upright images (tiekd/data/cameras/source.py): [focal_x,
            focal_y, centre_x, centre_y] in pixels of every image; the same followed by the width
            and height of the image that they belong to; a file below `root` or absolute; or `exif`.
            None if unknown.
    """

    images: str
    root: str = "."
    depths: str | None = None
    depth_unit: float | None = None
    float_depth_unit: float | None = None
    invalid: Sequence[float] = ()
    unmatched: str = "refuse"
    train_split: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.1
    intrinsics: Path | Sequence[float] | None = None

    def __post_init__(self):
        check_depth_units(self.depth_unit, self.float_depth_unit)
        check_val_fraction(self.val_fraction)
        check_numbers(self.intrinsics)


def build(
    options: FolderOptions,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    maps: str | None = None,
    on_error: str = "raise",
    held_out: Collection[str] | None = None,
    by_sequence: bool = False,
) -> Frames:
    """Builds the frames of a split of a folder of images.

    Args:
        options: The files, their units and the choice of the split.
        split: "train" or "val".
        max_depth: The largest depth that the network predicts, in metres.
        needs_ground_truth: True to skip images without a depth map.
        maps: Folder of cached teacher maps, below `options.root` or absolute; read for training
            frames only.
        on_error: "skip" leaves out folders that can't be listed, and counts them.
        held_out: Names of the validation frames: empty if the run doesn't validate, and in a
            resumed run the names that it began with. None chooses them, by a hash of their names or
            as `by_sequence` says.
        by_sequence: True to choose the validation frames among all frames instead of those with
            ground truth, as whole folders, or as the last part of a single folder
            (tiekd/data/held_out.py).

    Returns:
        The dataset of the split's frames, which reads their files on access.

    Raises:
        RecipeError: Ground truth is needed and there is none.
        DataError: Files are missing, images and depth maps don't match, or a split is empty.
    """
    folder = data_root(options.root, "the images")
    if options.depths is None and needs_ground_truth:
        remedy = "a teacher"
        if split == "val":
            remedy = "--set train.validate=false (with a teacher also evaluation.against=teacher)"
        raise RecipeError(
            f"data.depths: none given, but {_PURPOSE[split]} ground truth; give data.depths or "
            f"{remedy}"
        )
    # List the image and depth files, pair them, and keep the frames of the split.
    source = folder / Path(options.images).expanduser()
    key = (folder, options, on_error)
    frames, notes = once(("frames", *key), lambda: _frames(folder, options, on_error == "skip"))
    notes = list(notes)
    chosen, remark = _names_of(split, folder, frames, options, held_out, by_sequence)
    if remark and split == "val":
        notes.append(
            f"data.val_fraction: validation is the end of the training images' sequence, {remark}; "
            "images in several folders, or data.val_split, tell more of new places"
        )
    kept, camera_notes = with_cameras(
        _table(folder, options, frames, chosen), options.intrinsics, folder
    )
    files = DatasetSplit(
        kept,
        source,
        DepthFormat.of_files(options.depth_unit, options.float_depth_unit, options.invalid),
        notes=notes,
        camera_notes=camera_notes,
        remark=remark,
    )
    training_maps = folder / maps if maps and split == "train" else None
    return Frames(files, max_depth, needs_ground_truth, maps=training_maps)


_PURPOSE = {"train": "training without a teacher needs", "val": "evaluation needs"}


def _table(
    folder: Path, options: FolderOptions, frames: Depths, chosen: Collection[str]
) -> FrameTable:
    """Returns the names and file paths of a split's frames, without cameras, as a table.

    Args:
        folder: The data root.
        options: The folders of the images and of the depth maps below the data root.
        frames: The depth map's path of each frame of both splits, or None, keyed by the frame's
            name.
        chosen: The names of the split's frames, which keep their order in `frames`.
    """
    kept = [name for name in frames if name in chosen]
    names = Texts.of(kept)
    depths = [frames[name] for name in kept]
    below = "" if options.depths is None else f"{folder / Path(options.depths).expanduser()}/"
    return FrameTable(
        names,
        names.below(f"{folder / Path(options.images).expanduser()}/"),
        Texts.of((depth or "" for depth in depths), below),
        np.array([depth is not None for depth in depths], bool),
        Cameras.same(None, len(kept)),
    )


def _names_of(
    split: str,
    folder: Path,
    frames: Depths,
    options: FolderOptions,
    held_out: Collection[str] | None,
    by_sequence: bool,
) -> tuple[Collection[str], str]:
    """Returns the names of a split's frames, and a remark if both splits come from one sequence.

    Args:
        split: "train" or "val".
        folder: The data root.
        frames: The depth map's path of each frame of both splits, or None, keyed by the frame's
            name.
        options: The split files, and the fraction that is held out without them.
        held_out: Names of the validation frames if there are no split files; None chooses them by a
            hash.
        by_sequence: True to choose the validation frames by folder (tiekd/data/held_out.py).

    Returns:
        The names; and the remark, which is empty unless training and validation frames were chosen
        from one sequence.

    Raises:
        DataError: A split file is malformed, or the split is empty.
    """
    remark, gap = "", set()
    source = folder / Path(options.images).expanduser()
    train_split, val_split = options.train_split, options.val_split
    if train_split is None and val_split is None:
        validation, gap, remark = once(
            ("held out", id(frames), options.val_fraction, held_out, by_sequence),
            lambda: _held_out(frames, options.val_fraction, held_out, by_sequence),
        )
    else:
        listed = _listed(folder / (val_split or train_split), frames, source)
        validation = listed if val_split else frames.keys() - listed
    chosen = validation
    if train_split:
        training = _listed(folder / train_split, frames, source)
        chosen = training if split == "train" else validation
    elif split == "train":
        chosen = frames.keys() - validation - gap
    if not chosen:
        remedy = "change the splits" + (
            ", or train on all of them with --no-validate" if split == "train" else ""
        )
        raise DataError(f"{source}: none of its {len(frames)} images is left for {split}; {remedy}")
    return chosen, remark


def _held_out(
    frames: Depths, fraction: float, held_out: Collection[str] | None, by_sequence: bool
) -> tuple[Collection[str], set[str], str]:
    """Chooses the validation frames of a folder without split files.

    Args:
        frames: The depth map's path of each frame of both splits, or None, keyed by the frame's
            name.
        fraction: The fraction that is held out.
        held_out: Names of the validation frames; None, or names of which none exists any more,
            chooses them anew.
        by_sequence: True to choose the validation frames by folder (tiekd/data/held_out.py), and
            not by a hash of their names.

    Returns:
        The names of the validation frames; those of the frames between both splits, which are in
        neither; and a remark, which is empty unless both splits are parts of one sequence.
    """
    kept = frames.keys() & set(held_out or ())
    # Choose validation frames anew if none of the names in `held_out` exists any more.
    picks = held_out is None or (held_out and not kept)
    validation = kept
    if picks and by_sequence:
        validation = held_out_frames.choose(frames, fraction)
    elif picks:
        validation = _hash_picked(frames, fraction)
    if by_sequence and held_out_frames.shares_sequence(frames, validation):
        return validation, held_out_frames.gap(frames, validation), held_out_frames.SAME_SEQUENCE
    return validation, set(), ""


def _frames(folder: Path, options: FolderOptions, skip: bool) -> tuple[Depths, list[str]]:
    """Lists the images and the depth maps, and pairs them by name.

    Args:
        folder: The data root.
        options: The folders below the data root, and the unit of the depth maps.
        skip: True to leave out folders that can't be listed.

    Returns:
        The depth map's path of each frame of both splits, or None, keyed by the frame's name, which
        is its image's path, and sorted by name; and lines for the log.

    Raises:
        RecipeError: There are depth PNGs, but no unit for them.
        DataError: Files are missing, too many have no partner, or names are ambiguous.
    """
    images = folder / Path(options.images).expanduser()
    depths = None if options.depths is None else folder / Path(options.depths).expanduser()
    notes: list[str] = []
    image_names = _files(images, _IMAGE_SUFFIXES, "data.images", skip, notes)
    measured = {}
    if depths is not None:
        measured = _files(depths, _DEPTHS, "data.depths", skip, notes)
        notes += check_pairs(images, depths, image_names, measured, options.unmatched)
    if options.depth_unit is None:
        of_images = (measured[key] for key in image_names if key in measured)
        png = next((name for name in of_images if name.lower().endswith(".png")), None)
        if png is not None:
            raise RecipeError(
                f"data.depth_unit: needed, for a PNG such as {depths / png} doesn't say its unit; "
                "give how many levels make a metre, such as 1000 for millimetres or 256 for KITTI's"
            )
    _check_map_names(images, image_names)
    # Sorting the names alone is several times as fast as sorting pairs of key and name.
    names = sorted(image_names.values())
    return {name: measured.get(name[: name.rfind(".")]) for name in names}, notes


def _check_map_names(images: Path, image_names: dict[str, str]) -> None:
    """Raises DataError if the teacher maps of two images would have one file name.

    For example, the images a/b.jpg and a_b.jpg would share the map a_b.png.

    Args:
        images: The folder of the images, for the error message.
        image_names: The path of each image, keyed by the path without its suffix.
    """
    # Compare hashes first, which needs little memory for a million paths. The names are compared
    # only if two paths have one hash after `/` is replaced by `_`.
    stems = (key.replace("/", "_") for key in image_names)
    hashes = np.fromiter(map(hash, stems), np.int64, len(image_names))
    hashes.sort()
    if not (hashes[1:] == hashes[:-1]).any():
        return
    named: dict[str, str] = {}
    for name in sorted(image_names.values()):
        other = named.setdefault(joined_name(name), name)
        if other != name:
            raise DataError(
                f"{images}: {other} and {name} would share the teacher map {joined_name(name)}; "
                "rename one"
            )


def _files(
    folder: Path, suffixes: tuple[str, ...], option: str, skip: bool, notes: list[str]
) -> dict[str, str]:
    """Returns the paths of all files below a folder that have one of some suffixes.

    Hidden files are left out, and links are followed.

    Args:
        folder: The folder, to which the paths are relative.
        suffixes: The suffixes in lower case.
        option: The option that names the folder, for messages.
        skip: True to leave out folders that can't be listed.
        notes: List to which lines for the log are appended.

    Returns:
        A dict from each path without its suffix to the path.

    Raises:
        DataError: There are no files, two paths differ only in their suffix, or a folder can't be
            listed.
    """
    if not folder.is_dir():
        raise DataError(f"{option}: no folder at {folder}; give the folder that holds the files")
    refused: list[OSError] = []

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise unlistable(error, f"or give another folder ({option})") from None
        if not skip:
            raise unlistable(
                error, f"move it out of {option}, or leave it out by data.on_error=skip"
            ) from None
        refused.append(error)

    listing = list_files(folder, refuse)
    found: dict[str, str] = {}
    for name in listing.files:
        # Skip hidden files and files with other suffixes. A million names take half as long as with
        # the functions of os.path.
        place = name.rfind(".")
        suffix = name[place:]
        if suffix not in suffixes and suffix.lower() not in suffixes:
            continue
        if name[name.rfind("/") + 1] == ".":
            continue
        key = name[:place]
        # Refuse a name with a line break, because a split file, which has one name per line, can't
        # list it.
        if "\n" in name or "\r" in name:
            raise DataError(
                f"{option}: {name!r} in {folder} has a line break in its name; rename it"
            )
        other = found.setdefault(key, name)
        if other is not name:
            raise DataError(
                f"{option}: {other} and {name} in {folder} differ in suffix only; remove one"
            )
    # Report the folders that couldn't be listed.
    if refused:
        first = f"{refused[0].filename} ({refused[0].strerror})"
        notes.append(
            f"{option}: {len(refused)} folder(s) can't be listed and are left out, such as {first}"
        )
    if listing.repeated:
        count = len(listing.repeated)
        first = listing.repeated[0]
        notes.append(
            f"{option}: {count} link(s) in {folder} lead to folders that are read anyway, such as "
            f"{first}, and aren't followed"
        )
    if not found:
        raise DataError(
            f"{option}: no {', '.join(suffixes)} files in or below {folder}; give the folder that "
            "has them"
        )
    return found


def _listed(split_file: Path, frames: Depths, images: Path) -> set[str]:
    """Returns the set of the names of the frames that a split file lists.

    Args:
        split_file: The split file, with an image's path on each line.
        frames: The depth map's path of each frame of both splits, or None, keyed by the frame's
            name.
        images: Folder of the images, for messages.

    Raises:
        DataError: A name isn't in `frames`, or the file can't be read.
    """
    listed = set()
    for number, line in read_lines(split_file, "a line is an image's path below data.images", str):
        name = line if line in frames else below_root(line.strip(), f"{split_file}:{number}")
        if name not in frames:
            example = next(iter(frames))
            path = (
                "one path and nothing else," if re.split(r"[,;\s]", name)[0] in frames else "a path"
            )
            raise DataError(
                f"{split_file}:{number}: no image {name} in {images}; a line is {path} such as "
                f"{example}"
            )
        listed.add(name)
    return listed


def _hash_picked(frames: Depths, fraction: float) -> set[str]:
    """Chooses a fraction of the frames with ground truth, and returns the set of their names.

    Frames are chosen by a hash of their names, so the choice doesn't depend on the order of the
    files.

    Args:
        frames: The depth map's path of each frame of both splits, keyed by the frame's name; None
            for a frame without ground truth, which isn't chosen.
        fraction: The fraction, from 0 to below 1; above 0 at least one frame is chosen.
    """
    names = [name for name, depth in frames.items() if depth is not None]
    count = max(1, round(fraction * len(names))) if fraction else 0
    if not count or not names:
        return set()
    digest = hashlib.sha256
    # The first eight bytes of a digest order names as all of it does, unless two have the same.
    begins = b"".join(digest(name.encode(errors="surrogateescape")).digest()[:8] for name in names)
    ranks = np.frombuffer(begins, ">u8").astype(np.uint64)
    last = np.partition(ranks, count - 1)[count - 1]
    chosen = np.flatnonzero(ranks <= last)
    if len(chosen) == count:
        return {names[index] for index in chosen.tolist()}
    names.sort(key=lambda name: digest(name.encode(errors="surrogateescape")).digest())
    return set(names[:count])
