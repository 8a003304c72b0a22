"""Records the inputs of a run in its work dir (`inputs.json`), so that a resume notices changes.

    {"recipe": {...}, "engine": {...}, "iterations_per_epoch": 12, "best_from": -1,
     "files": {"teacher.checkpoint": [path, CRC-32], ...},   also split files, the user's code, ...
     "recipe_files": {path: CRC-32, ...},                    the recipe, its bases and the teacher's
     "teachers": [{...}],                                    see tiekd/data/learned_from.py
     "splits": {"train": {"count": 45, "source": ..., "names": [...], "files":
                    {"picture": [[bytes, CRC-32 or null, modification time in ns], ...], ...}}}}

With several data sets the splits of each are called `street train` and so on, by the set's name.
`names`, and the lists in a split's `files`, have one entry per frame, in the order of the frames.
("picture" is the key of images.) The CRC-32 of each file is recorded if a split has at most 256 MB;
of a larger split only sizes and modification times are recorded. A split of more than 100,000
frames has neither `names` nor `files`: it has a `digest` of all names in their order, and a
`sample`, the entries "count", "names" and "files" of 1000 of its frames. A split of tar shards has
a `digest`, too, and under `shards` the same three entries for the shards' own files; the files
inside the shards aren't read. `best_from` is the last iteration whose metrics were measured on
other data than the present; -1 for none. Only rank 0 reads and writes. For 24,000 frames that takes
about 2 s, and the file has 3 MB. `tiekd/training/input_changes.py` compares two records. Changed
contents aren't noticed in large splits, nor in a dataset of the user's that names no files.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from tiekd.config import external
from tiekd.config.recipe import merge_files
from tiekd.data import teacher_maps
from tiekd.data.file_fingerprints import crc, map_paths, size_and_time
from tiekd.data.frame_table import LARGE_DATA_SET, TEXTS_AT_ONCE, FrameTable, spaced
from tiekd.data.frames import Frames
from tiekd.data.learned_from import Teacher
from tiekd.data.mixed import sets_in
from tiekd.data.shards.members import Members
from tiekd.engine.config import ENGINE_KEYS, EngineConfig
from tiekd.errors import CheckpointError, UserError
from tiekd.files import check_readable, replace_text
from tiekd.training.settings import Recipe
from tiekd.workdir import checkpoints

NAME = "inputs.json"
_NOUN = "record of a run's inputs"
VERSION = 1
_PARTS = {
    "recipe": dict,
    "engine": dict,
    "iterations_per_epoch": int,
    "best_from": int,
    "files": dict,
    "recipe_files": dict,
    "splits": dict,
}
_SAMPLED = 1000  # frames of a large split whose files are recorded
SHARD = "shard"  # the kind of file of a tar shard
SHARDS = "shards"  # the key of the record of a split's shards
READ_UP_TO = 256 * 10**6  # size in bytes of the largest split whose file contents are read
KINDS = ("picture", "depth map", "teacher map")
_SHARES = tuple(
    key
    for key in ENGINE_KEYS
    if key.startswith(("train_", "gradient_accumulation", "gradient_clipping"))
)
# The state of one frame's file: [size in bytes, CRC-32 or None, modification time in ns]; None if
# the frame has no such file.
Entry = list | None


def collect(
    recipe: Recipe,
    recipe_path: Path,
    engine_config: EngineConfig,
    datasets: Mapping[str, Dataset | None],
    iterations_per_epoch: int,
    started: dict | None = None,
    teachers: Sequence[Teacher] = (),
) -> dict:
    """Returns a record of a run's current inputs, as a dict for JSON. Rank 0 only.

    Args:
        recipe: The run's recipe.
        recipe_path: The recipe's file.
        engine_config: The engine config, in which every "auto" is replaced by a value.
        datasets: The datasets "train" and "val"; the latter is None if the run doesn't validate.
        iterations_per_epoch: The number of iterations in an epoch.
        started: The record of the run's start, with which the result will be compared; None for a
            new run. Files of frames that have a CRC-32 in `started` are read even in a large split.
        teachers: The teachers from which the run's weights learn (tiekd/data/learned_from.py).
    """
    old_splits = {} if started is None else started["splits"]
    # Keep the splits as recorded at the run's start: a run that resumes without validation may
    # validate again after a later resume, and then on the validation frames of its start.
    splits = dict(old_splits)
    for split, dataset in datasets.items():
        for name, frames in sets_in(dataset):
            key = split_name(split, name)
            splits[key] = _split(frames, old_splits.get(key))
    engine = {key: value for key, value in engine_config.values.items() if key not in _SHARES}
    record = {
        "version": VERSION,
        "recipe": recipe.node,
        "engine": engine,
        "iterations_per_epoch": iterations_per_epoch,
        "best_from": -1,
        "files": {name: [path, crc(path)] for name, path in _files(recipe, datasets)},
        "recipe_files": {path: crc(path) for path in _recipe_files(recipe, recipe_path, started)},
        "teachers": teachers,
        "splits": splits,
    }
    # Convert the record to JSON and back, which turns tuples into lists, so that it equals a record
    # that was read from a file.
    return json.loads(json.dumps(record, default=str))


def fingerprint_splits(datasets: Mapping[str, Dataset]) -> dict:
    """Returns the state of the frames' files, without their paths.

    Equal fingerprints mean equal files, even if the dataset was moved or copied. If contents are
    too large to be read (READ_UP_TO), sizes and modification times take their place.

    Args:
        datasets: The datasets "train" and "val".

    Returns:
        A dict for JSON: for each split the names of its frames and the states of their files.
    """
    splits = {}
    for split, dataset in datasets.items():
        for name, frames in sets_in(dataset):
            splits[split_name(split, name)] = _fingerprint(_split(frames, None))
    return splits


def _fingerprint(split: dict) -> dict:
    """Returns a copy of a split's record that doesn't change when the split is moved or copied.

    The path is left out, and so are the modification times of files whose contents were read.

    Args:
        split: The record of a split, or of its `sample` or `shards`, which have the same form.
    """
    found = {key: value for key, value in split.items() if key != "source"}
    if "files" in split:
        found["files"] = {
            # Leave out the modification time of files whose content was read.
            kind: [state and (state[:2] if state[1] is not None else state) for state in states]
            for kind, states in split["files"].items()
        }
    for part in {"sample", SHARDS} & split.keys():
        found[part] = _fingerprint(split[part])
    return found


def split_name(split: str, data_set: str) -> str:
    """Returns the name of a split in a record of inputs, such as `train` or `street train`.

    Args:
        split: "train" or "val".
        data_set: The name of the data set; "" if the recipe has only one.
    """
    return f"{data_set} {split}" if data_set else split


def fingerprint_files(recipe: Recipe, datasets: Mapping[str, Dataset | None]) -> dict:
    """Returns the CRC-32 of a run's input files other than those of its frames.

    The files include the source of the modules from outside the project that are imported.

    Args:
        recipe: The run's recipe.
        datasets: The datasets "train" and "val"; the latter is None if the run doesn't validate.

    Returns:
        A dict from the file's name in a record of inputs, such as `teacher.checkpoint`, to its
        CRC-32.
    """
    return {name: crc(path) for name, path in _files(recipe, datasets)}


def write(work_dir: Path, record: dict) -> None:
    """Writes a record of inputs to a run's work dir, atomically. Rank 0 only.

    Args:
        work_dir: The folder of the run.
        record: The record, as `collect` returns it.

    Raises:
        OSError: The file can't be written.
    """
    replace_text(work_dir / NAME, json.dumps(record, separators=(",", ":")) + "\n")


def read(work_dir: Path) -> dict | None:
    """Reads the record of inputs in a run's work dir.

    Args:
        work_dir: The folder of the run.

    Returns:
        The record; None if there is none, or if another version of tiekd wrote it in another
        format.

    Raises:
        CheckpointError: The file is damaged, or is a folder or a pipe. If it were treated as
            missing, it would be overwritten.
    """
    path = work_dir / NAME
    check_readable(path, _NOUN, CheckpointError)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or type(record.get("version")) is not int:
            raise ValueError("it has no version")
        if record["version"] != VERSION:
            return None
        if (wrong := _fault(record)) is not None:
            raise ValueError(wrong)
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{path}: not the record of a run's inputs ({why}); put the run's own file back, or "
            "delete it to resume without a comparison with the start"
        ) from None


def _fault(record: dict) -> str | None:
    """Returns a message on the first value in a record of inputs that is missing or misshapen.

    The result is None if there is no such value.
    """
    for key, kind in _PARTS.items():
        if not isinstance(record.get(key), kind):
            return f"{key} is missing or wrong"
    entries = record["files"].values()
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
        return "files is wrong"
    is_wrong = (name for name, split in record["splits"].items() if not _is_split(split))
    wrong = next(is_wrong, None)
    return None if wrong is None else f"splits.{wrong} is wrong"


def _is_split(split: object) -> bool:
    """Returns True if a value has the form of a split in a record of inputs.

    Args:
        split: The value. The state of a frame's file in it may be None.
    """
    if not isinstance(split, dict) or not isinstance(split.get("count"), int):
        return False
    if "digest" in split:
        parts = [split[part] for part in ("sample", SHARDS) if part in split]
        return isinstance(split["digest"], str) and all(map(_is_split, parts))
    if "names" not in split:
        return True
    names, files = split["names"], split.get("files")
    if not isinstance(names, list) or not isinstance(files, dict):
        return False
    return all(
        isinstance(states, list) and len(states) == len(names) and all(map(_is_state, states))
        for states in map(files.get, files if SHARD in files else {*KINDS, *files})
    )


def _is_state(state: object) -> bool:
    return state is None or (isinstance(state, list) and len(state) == 3)


def of_checkpoint(path: Path | None) -> dict | None:
    """Reads the record of inputs in the work dir that contains a checkpoint.

    Args:
        path: The checkpoint's folder, which may be in another run's work dir; None for a new run.

    Returns:
        The record; None if there is none, or for a new run.

    Raises:
        CheckpointError: The record is damaged.
    """
    return None if path is None else read(path.absolute().parent.parent)


def held_out(record: dict | None, recipe: Recipe) -> list[str] | None | dict[str, list[str] | None]:
    """Returns the names of a run's validation frames at its start.

    A resumed run holds the same frames out of its training frames.

    Args:
        record: The record of the inputs at the start; None for a new run.
        recipe: The present recipe.

    Returns:
        A list of names; None if there were no validation frames, if their names aren't known, or if
        `data.val_fraction` in the recipe has changed since. If the recipe lists several data sets,
        a dict from each set's name to such a list or None. None if `record` is None.
    """
    if record is None:
        return None
    before = {each.name: each.recipe.data for each in Recipe(record["recipe"]).data_sets}
    found = {}
    for name, _, own in recipe.data_sets:
        split = record["splits"].get(split_name("val", name), {})
        shares = [data.get("val_fraction") for data in (before.get(name, {}), own.data)]
        found[name] = split.get("names") if shares[0] == shares[1] else None
    return found if recipe.is_mixed else found[""]


def held_out_of(record: dict | None, recipe: Recipe, data_set: str) -> list[str] | None:
    """Returns the names of the validation frames of one data set, as `held_out` does.

    Args:
        record: The record of the inputs at the start; None for a new run.
        recipe: The present recipe, with all of its data sets.
        data_set: The set's name; empty if the recipe has one.
    """
    found = held_out(record, recipe)
    return (found or {}).get(data_set) if recipe.is_mixed else found


def _split(dataset: Dataset, old: dict | None) -> dict:
    if not isinstance(dataset, Frames):
        return {"count": len(dataset)}
    source = str(dataset.source.absolute())
    table = dataset.frames
    if isinstance(table.images, Members):
        return {
            "count": len(table),
            "source": source,
            "digest": _digest(table),
            SHARDS: _of_shards(table.images, source),
        }
    if len(table) > LARGE_DATA_SET:
        sample = copy.copy(dataset)
        sample.frames = table.take(spaced(len(table), _SAMPLED))
        old_sample = None if old is None else old.get("sample")
        return {
            "count": len(table),
            "source": source,
            "digest": _digest(table),
            "sample": _split(sample, old_sample),
        }
    paths = _paths(dataset)
    # Record every file's size and modification time. Read the contents, which takes long, only of
    # small datasets, and of frames whose contents were read at the start.
    files = {
        kind: [
            state and [state[0], None, state[1]] for state in map_paths(size_and_time, paths[kind])
        ]
        for kind in paths
    }
    names = [frame.name for frame in dataset.frames]
    total = sum(state[0] for states in files.values() for state in states if state)
    known = set(names) if total <= READ_UP_TO else _read_at_the_start(old)
    for kind, states in files.items():
        wanted = [i for i, name in enumerate(names) if name in known and states[i]]
        for index, value in zip(
            wanted, map_paths(crc, [paths[kind][i] for i in wanted]), strict=True
        ):
            states[index][1] = value
    return {
        "count": len(names),
        "source": source,
        "names": names,
        "files": files,
    }


def left_out(datasets: Iterable[Dataset | None]) -> list[str]:
    """Returns lines for the log on what a resume doesn't compare because a dataset is large.

    Args:
        datasets: The datasets of training and validation frames. None, and a dataset that isn't
            large, gives no line.
    """
    sizes = [
        len(dataset)
        for dataset in datasets
        if isinstance(dataset, Frames)
        and len(dataset) > LARGE_DATA_SET
        and not isinstance(dataset.frames.images, Members)
    ]
    return [
        f"Of {size} frames a resume compares all names and {_SAMPLED} frames' files with the run's "
        "start, and weights record a sample of the frames that they are trained on"
        for size in sizes
    ]


def _digest(table: FrameTable) -> str:
    """Returns a digest of the names of all frames in their order, hexadecimal.

    Args:
        table: The frames.
    """
    value = hashlib.blake2b(digest_size=16)
    names = table.names.raws()
    while part := list(itertools.islice(names, TEXTS_AT_ONCE)):
        value.update(b"\0".join(part) + b"\0")
    return value.hexdigest()


def _of_shards(members: Members, source: str) -> dict:
    """Returns the record of the tar shards that contain a split's frames, as a dict.

    Args:
        members: The positions of the frames' images in the shards.
        source: The path of the split, from which the names of the shards are relative.
    """
    used = np.unique(members.shards).tolist()
    states = [members.states[shard] for shard in used]
    return {
        "count": len(used),
        "source": source,
        # Use relative paths as names, since two shards in different folders may have the same file
        # name.
        "names": [os.path.relpath(members.paths[shard], source) for shard in used],
        "files": {SHARD: [[size, None, time] for size, time in states]},
    }


def _paths(frames: Frames) -> dict[str, list[str | None]]:
    """Returns the paths of the frames' files, by the kind of file.

    Args:
        frames: The dataset.

    Returns:
        A dict from each kind of file to a list of paths in the order of the frames, with None for a
        frame without such a file. The kinds are those in KINDS and, if there are several maps per
        frame, names such as "teacher map 1" and "sigma map".
    """
    nothing = [None] * len(frames)
    columns = (
        [frame.image for frame in frames.frames],
        [frame.depth for frame in frames.frames],
        nothing,
    )
    found = dict(zip(KINDS, columns, strict=True))
    names = [frames.map_name(index) for index in range(len(frames))] if frames.map_folders else []
    for key, folder in frames.map_kinds().items():
        # Name the maps: `teacher_depth_1` becomes "teacher map 1".
        kind = key.replace("teacher_depth", KINDS[2]).replace("teacher_sigma", "sigma map")
        found[kind.replace("_", " ")] = [os.path.join(folder, name) for name in names]
    return found


def _read_at_the_start(old: dict | None) -> set[str]:
    """Returns the names of the frames whose files' contents were read at the start of the run.

    Args:
        old: The split in the record of the start, which has a CRC-32 for each file that was read;
            None if there is no record. Without a list of names in it the result is empty.
    """
    if old is None or "names" not in old:
        return set()
    return {
        name
        for name, state in zip(old["names"], old["files"][KINDS[0]], strict=True)
        if state and state[1]
    }


def _files(recipe: Recipe, datasets: Mapping[str, Dataset | None]) -> Iterator[tuple[str, str]]:
    """Yields the input files of a run other than those of its frames, if they exist.

    They are split files, the file of intrinsics, teacher weights, initial weights, the manifest of
    cached teacher maps, and the code of components from outside the project.

    Args:
        recipe: The run's recipe.
        datasets: The datasets "train" and "val"; the latter is None if the run doesn't validate.

    Yields:
        The file's name in the record, such as `teacher.checkpoint`, and its absolute path.
    """
    of_sets = {split: dict(sets_in(dataset)) for split, dataset in datasets.items()}
    for data_set, _, own in recipe.data_sets:
        theirs = {split: found.get(data_set) for split, found in of_sets.items()}
        for name, path in _single_files(own, theirs):
            if path is None or not os.path.isfile(path):
                continue
            # If the recipe lists several data sets, put the data set's name into the name of each
            # file that belongs to one set only, as in `data.street.train_split`.
            if data_set and not name.startswith(("load.", "module ")):
                name = f"data.{data_set}.{name.removeprefix('data.')}"
            yield name, os.path.abspath(path)


def _single_files(
    recipe: Recipe, datasets: Mapping[str, Dataset | None]
) -> Iterator[tuple[str, str | Path | None]]:
    data, teachers = recipe.data, recipe.teachers.nodes
    # Yield the split file that each dataset has read, or else the one that the recipe names. In a
    # dataset from outside the project `root` and `train_split` may have values of any type.
    given = data.get("root", ".")
    root = Path(given).expanduser() if isinstance(given, str) else Path()
    for split, dataset in datasets.items():
        listed = data.get(f"{split}_split")
        if isinstance(dataset, Frames) and dataset.source.is_file():
            listed = dataset.source
        yield f"data.{split}_split", root / listed if isinstance(listed, str | Path) else None
    # Yield the file of the images' intrinsics.
    if isinstance(data.get("intrinsics"), str):
        yield "data.intrinsics", root / Path(data["intrinsics"]).expanduser()
    # Yield each teacher's weights and the manifest of its cached maps, and the student's initial
    # weights.
    for teacher in teachers:
        if teacher.checkpoint is not None:
            yield f"{teacher.where}.checkpoint", teacher.checkpoint.expanduser()
        if teacher.calibration is not None:
            yield f"{teacher.where}.sigma.calibration", teacher.calibration
        for model in (teacher, teacher.anchor):
            yield from ((f"{model.where} {path.name}", path) for path in model.model_files)
    folders = [folder.path for folder in getattr(datasets["train"], "map_folders", ())]
    for option, folder in zip(recipe.teachers.maps, folders, strict=False):
        yield option, folder / teacher_maps.MANIFEST
    if recipe.load.checkpoint is not None:
        path = Path(recipe.load.checkpoint).expanduser()
        with contextlib.suppress(UserError):
            yield "load.checkpoint", checkpoints.find_weights(path) if path.is_dir() else path
    sections = [("data", data), *((teacher.where, teacher.node) for teacher in teachers)]
    for section, node in sections:
        # Yield the files of a dataset or teacher from outside the project. Its `build` defines the
        # keys of its node, so any key with a text value may name a file.
        if "." in str(node.get("name", "")):
            yield f"{section}.name", _code_of(node["name"])
            own = {
                key: value
                for key, value in node.items()
                if key != "name" and isinstance(value, str)
            }
            yield from (
                (f"{section}.{key}", Path(value).expanduser()) for key, value in own.items()
            )
    # Yield the source code of all modules from outside the project.
    for name in sorted(set(external.names_in(recipe.node))):
        yield f"module {name}", _code_of(name)


def _recipe_files(recipe: Recipe, recipe_path: Path, started: dict | None) -> Sequence[str]:
    """Returns the paths of all YAML files of the run's recipe and of the teacher's recipe.

    These are the recipes themselves and the files of their `_base_`.

    Args:
        recipe: The run's recipe.
        recipe_path: The recipe's file.
        started: The record of the inputs at the run's start, or None. Its paths are included if the
            recipe's file is gone or can't be read.

    Returns:
        Absolute paths, sorted.
    """
    found: list[str] = []

    def record_path(node: dict, origin: str) -> dict:
        found.append(os.path.abspath(origin))
        return node

    try:
        # Collect the files of each recipe: merging calls `record_path` for every file that the
        # recipe consists of.
        teachers = [node for own in recipe.data_sets for node in own.recipe.teachers.nodes]
        for path in (recipe_path, *(teacher.recipe for teacher in teachers)):
            if path is not None and path.is_file():
                merge_files(path, transform=record_path)
    except UserError:
        # Use the file names recorded at the start instead of raising an error: the run may resume
        # with the recipe that is saved in its work dir.
        found += (started or {}).get("recipe_files", ())
    if not recipe_path.is_file():
        found += (started or {}).get("recipe_files", ())
    return sorted(set(found))


def _code_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)
