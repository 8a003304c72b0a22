"""Dataset from tar shards in WebDataset's layout, which are read by offsets without extraction.

A shard has for each frame the members `KEY.jpg` or `.png` (the image) and, optionally,
`KEY.depth.png` or `.depth.npy` (its depth) and `KEY.json` (its camera: fx, fy, cx, cy, width,
height). A frame's name is the name of its image's member. Units, invalid values, orientation and
intrinsics follow the same rules as in the dataset `folder` (tiekd/data/datasets/folder.py). The
members' positions are read from an index file (tiekd/data/shards/index.py), which is made on first
use. tiekd/data/shards/order.py gives the order of the frames in an epoch. Not covered: compressed
shards, shards in object stores, and several frames of one key.
"""

import fnmatch
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiekd.data.cameras.source import check_numbers
from tiekd.data.frame_table import FrameTable
from tiekd.data.frames import (
    DatasetSplit,
    DepthFormat,
    Frames,
    check_depth_units,
    check_val_fraction,
    data_root,
    with_cameras,
)
from tiekd.data.pairing import check_unmatched, too_many_unpaired
from tiekd.data.shards.index import Index, open_index
from tiekd.data.shards.maps import MapShard
from tiekd.data.shards.order import ShardOrder
from tiekd.distributed import comm
from tiekd.errors import DataError, RecipeError

_PURPOSE = {"train": "training without a teacher needs", "val": "evaluation needs"}
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class ShardsOptions:
    """The options of a recipe's `data` section for tar shards.

    Attributes:
        root: The folder of the shards.
        shards: Pattern of the shards' paths below `root`.
        index: The file of the shards' index, below `root` or absolute; None for a file in `root`.
        window: Number of frames within which frames are shuffled. In each epoch the shards are
            shuffled, then every frame is moved by fewer than this many positions; 1 keeps the
            order of the frames in each shard.
        depth_unit: Stored units per metre of PNG files and of NPY files with whole numbers, e.g.
            1000 for millimetres; needed if there are such files.
        float_depth_unit: Units per metre of floating-point NPY depth; None means metres.
        invalid: Stored values that mean "not measured", in addition to 0, non-finite values and, in
            16-bit files, 65535.
        unmatched: "refuse" raises an error if more than half of the images have no depth map, or if
            an image has no depth map while more than half of the depth maps have no image; "allow"
            accepts both.
        val_shards: Pattern of the shards whose frames are for validation, such as `val-*.tar`.
        val_prefix: Folders whose frames are for validation, such as [day_2] for all frames with a
            key that begins with `day_2/`.
        val_fraction: Without the two options above, the share of the frames that is held out for
            validation: whole shards, chosen by a hash of their names.
        intrinsics: The cameras of the upright images (tiekd/data/cameras/source.py), in place of
            those in the members KEY.json; None uses those.
    """

    root: str
    shards: str = "*.tar"
    index: str | None = None
    window: int = 10_000
    depth_unit: float | None = None
    float_depth_unit: float | None = None
    invalid: Sequence[float] = ()
    unmatched: str = "refuse"
    val_shards: str | None = None
    val_prefix: Sequence[str] | None = None
    val_fraction: float = 0.1
    intrinsics: Path | Sequence[float] | None = None

    def __post_init__(self):
        check_depth_units(self.depth_unit, self.float_depth_unit)
        check_numbers(self.intrinsics)
        if self.window < 1:
            raise RecipeError(
                f"data.window: got {self.window}; it must be a number of frames from 1 (1 reads "
                "each shard in its own order)"
            )
        check_val_fraction(self.val_fraction)
        check_unmatched(self.unmatched)
        if self.val_shards is not None and self.val_prefix is not None:
            raise RecipeError(
                "data.val_shards: given together with data.val_prefix; give one, which says what "
                "is validation"
            )


def build(
    options: ShardsOptions,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    maps: str | None = None,
    on_error: str = "raise",
    held_out: Collection[str] | None = None,
) -> Frames:
    """Builds the dataset of a split's frames, and makes the shards' index first if there is none.

    Collective: all ranks must call it, because the others wait until rank 0 has made the index.

    Args:
        options: The shards, their units and the choice of the split.
        split: "train" or "val".
        max_depth: The largest depth that the network predicts, in metres.
        needs_ground_truth: True to skip images without a depth map.
        maps: Folder of cached teacher maps, below `options.root` or absolute; read for training
            frames only.
        on_error: "skip" accepts JSON files that can't be read, and counts them in the log.
        held_out: An empty collection if the run doesn't validate, so that no frame is held out but
            those of `val_shards` or `val_prefix`. Any other value is ignored, since the options
            determine the validation frames.

    Returns:
        The dataset, which reads a frame's members on access.

    Raises:
        RecipeError: If ground truth is needed and there is none, or depth PNGs have no unit.
        DataError: If shards can't be read, have changed since they were indexed, or a split is
            empty.
    """
    root = data_root(options.root, "the shards")
    index = _index_of(root, options)
    table = index.frames
    notes = _check_pairs(root, index, options.unmatched)
    notes += _check_problems(index, skip=on_error == "skip")
    if needs_ground_truth and not table.has_depth.any():
        raise RecipeError(
            f"data.shards: no depth (KEY.depth.png) in {root}, but {_PURPOSE[split]} ground truth; "
            "give shards with depth, or a teacher"
        )
    _check_unit(table, options)
    # Select the frames of the split.
    validation = np.zeros(len(table), bool)
    is_stated = (options.val_shards, options.val_prefix) != (None, None)
    if is_stated or held_out is None or held_out:
        validation = _validation(root, index, options)
    chosen = np.flatnonzero(validation if split == "val" else ~validation)
    if not len(chosen):
        raise DataError(
            f"{root}: none of the {len(table)} frames in its shards is left for {split}; change "
            "data.val_shards, data.val_prefix or data.val_fraction"
        )
    kept, camera_notes = with_cameras(table.take(chosen), options.intrinsics, root)
    files = DatasetSplit(
        kept,
        root,
        DepthFormat.of_files(options.depth_unit, options.float_depth_unit, options.invalid),
        notes=notes,
        camera_notes=camera_notes,
    )
    training_maps = root / maps if maps and split == "train" else None
    frames = Frames(files, max_depth, needs_ground_truth, maps=training_maps)
    frames.epoch_order = ShardOrder(frames.frames.images.shards, options.window)
    return frames


def _index_of(root: Path, options: ShardsOptions) -> Index:
    """Returns the content of the shards' index; rank 0 makes the index file if there is none.

    Collective: all ranks must call it.

    Args:
        root: The folder of the shards.
        options: The pattern of the shards' paths, and the path of the index file.

    Raises:
        DataError: There are no shards, or they can't be indexed; raised on all ranks.
    """
    index, problem = None, None
    if comm.is_main():
        try:
            index = open_index(_shards_of(root, options), _index_path(root, options))
        except DataError as error:
            problem = str(error), error.kind
    problem = comm.broadcast_object(problem)
    if problem is not None:
        raise DataError(*problem)
    # The other ranks read the index, or make it if they don't share rank 0's disk.
    return index or open_index(_shards_of(root, options), _index_path(root, options))


def _index_path(root: Path, options: ShardsOptions) -> Path:
    """Returns the path of the shards' index file.

    Args:
        root: The folder of the shards.
        options: The option `index`, which names the file. If it is None, the file is in `root`, and
            its name is made from the pattern `shards`, so that shards of another pattern in the
            same folder have another index file.
    """
    if options.index is not None:
        return root / Path(options.index).expanduser()
    name = re.sub(r"[^\w.-]+", "_", options.shards.replace("*", "all"))
    return root / f"{name}.index"


def _shards_of(root: Path, options: ShardsOptions) -> dict[str, Path]:
    """Returns the paths of all shards, keyed by their paths below `root`, sorted.

    Args:
        root: The folder of the shards.
        options: The pattern of the shards' paths below `root`. The index file isn't a shard, even
            if its path fits the pattern.

    Raises:
        DataError: There are no shards, or a shard of teacher maps is among them.
    """
    pattern, index = options.shards, _index_path(root, options)
    try:
        found = sorted(path for path in root.glob(pattern) if path != index)
    except (ValueError, NotImplementedError) as error:
        raise DataError(
            f"data.shards: got {pattern!r} ({error}); give a pattern below data.root, such as "
            "*.tar or train/*.tar"
        ) from None
    if not found:
        packed = sorted(path.name for path in root.glob("*") if path.name.endswith(_PACKED))
        hint = f"; decompress those such as {packed[0]}" if packed else ""
        raise DataError(f"data.shards: no {pattern} in {root}; give the tar shards' pattern{hint}")
    of_maps = next((path for path in found if MapShard(path, ()).record.exists()), None)
    if of_maps is not None:
        raise DataError(
            f"data.shards: {pattern} in {root} also fits {of_maps}, a shard of teacher maps; give "
            "a pattern that leaves the maps out, or move their folder"
        )
    return {path.relative_to(root).as_posix(): path for path in found}


def _check_pairs(root: Path, index: Index, unmatched: str) -> list[str]:
    """Returns log lines about members without an image, and about images without a depth map.

    Args:
        root: The folder of the shards, for messages.
        index: The content of the shards' index.
        unmatched: The option `data.unmatched`, "refuse" or "allow".

    Raises:
        DataError: No depth map has an image; or so many files have no partner that a mistake is
            likely, and `unmatched` is "refuse".
    """
    lines = []
    if index.unpaired:
        count, first = index.unpaired
        lines.append(f"{count} member(s) in {root} have no image of their key, such as {first}")
    has_depth = index.frames.has_depth
    unpaired_images = np.flatnonzero(~has_depth)
    num_depths = int(has_depth.sum()) + index.unpaired_depths
    if not num_depths:
        return lines
    if len(unpaired_images):
        lines.append(
            f"{len(unpaired_images)} of {len(has_depth)} images in {root} have no depth map of "
            f"their key, such as {index.frames.images[unpaired_images[0]]}"
        )
    is_refused = unmatched == "refuse" and too_many_unpaired(
        len(unpaired_images), len(has_depth), index.unpaired_depths, num_depths
    )
    if index.unpaired_depths == num_depths or is_refused:
        meant = "; if that is meant, set data.unmatched=allow" if is_refused else ""
        raise DataError(
            f"data.shards: {'; '.join(lines)}. A depth map is KEY.depth.png of its image's KEY: "
            f"write the shards again{meant}"
        )
    return lines


def _check_problems(index: Index, skip: bool) -> list[str]:
    """Returns a list with one log line, the number of JSON files that can't be read.

    Args:
        index: The content of the shards' index. If all JSON files could be read, the result is an
            empty list.
        skip: True to accept frames whose JSON file can't be read; their cameras are unknown.

    Raises:
        DataError: A JSON file can't be read, and `skip` is False.
    """
    if not index.problems:
        return []
    first, count = index.problems[0], len(index.problems)
    if not skip:
        more = f" ({count} such files)" if count > 1 else ""
        raise DataError(f"{first}{more}; or read without these cameras by data.on_error=skip")
    return [f"{count} JSON file(s) are left out, such as {first}"]


def _check_unit(table: FrameTable, options: ShardsOptions) -> None:
    """Raises RecipeError if there are depth PNGs, but `data.depth_unit` isn't set.

    Args:
        table: All frames of both splits.
        options: The options of the dataset, of which `depth_unit` is checked.
    """
    if options.depth_unit is not None:
        return
    endings = table.depths.names.ends_with(".png") & table.has_depth
    if endings.any():
        example = table.depths[int(np.flatnonzero(endings)[0])]
        raise RecipeError(
            f"data.depth_unit: needed, for a PNG such as {example} doesn't say its unit; give how "
            "many levels make a metre, such as 1000 for millimetres or 256 for KITTI's"
        )


def _validation(root: Path, index: Index, options: ShardsOptions) -> np.ndarray:
    """Returns a mask of the validation frames, (N,) bool for the N frames of all shards.

    Args:
        root: The folder of the shards, for messages.
        index: The content of the shards' index.
        options: The options `val_prefix`, `val_shards` and `val_fraction`, of which the first that
            is set determines the validation frames.

    Raises:
        DataError: No frame is chosen by `val_prefix` or `val_shards`; or `val_fraction` would hold
            out whole shards, and there is only one.
    """
    table, names = index.frames, index.names
    if options.val_prefix is not None:
        found = np.zeros(len(table), bool)
        for prefix in options.val_prefix:
            folder = f"{prefix.rstrip('/')}/"
            those = table.names.begins_with(folder)
            if not those.any():
                raise DataError(
                    f"data.val_prefix: no key in {root} begins with {folder}; a key is such as "
                    f"{table.names[0]}; null removes the option"
                )
            found |= those
        return found
    if options.val_shards is not None:
        chosen = [fnmatch.fnmatchcase(name, options.val_shards) for name in names]
        if not any(chosen):
            raise DataError(
                f"data.val_shards: no shard is called {options.val_shards}; they are such as "
                f"{names[0]}; null removes the option"
            )
        return np.array(chosen)[table.images.shards]
    if not options.val_fraction:
        return np.zeros(len(table), bool)
    if len(names) == 1:
        raise DataError(
            f"data.val_fraction: whole shards are held out, and {root} has one; give "
            "data.val_prefix, write more shards, or set train.validate=false"
        )
    # Take shards in the order of a hash of their names until they have the wanted number of frames.
    # The last shard is never taken, so that some frames are left for training.
    counts = np.bincount(table.images.shards, minlength=len(names))
    wanted = max(1, round(options.val_fraction * len(table)))
    by_hash = sorted(range(len(names)), key=lambda shard: _digest(names[shard]))
    before = np.cumsum([0, *counts[by_hash]])
    chosen = np.zeros(len(names), bool)
    for shard, seen in zip(by_hash[:-1], before, strict=False):
        chosen[shard] = seen < wanted
    return chosen[table.images.shards]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()
