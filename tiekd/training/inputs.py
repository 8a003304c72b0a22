"""Records what a run reads in its work dir (`inputs.json`), so that a resume notices changes.

    {"recipe": {...}, "engine": {...}, "iterations_per_epoch": 12, "best_from": -1,
     "files": {"teacher.checkpoint": [path, CRC-32], ...},   and split files, the user's code, ...
     "recipe_files": {path: CRC-32, ...},                    the recipe, its bases and the teacher's
     "splits": {"train": {"count": 45, "source": ..., "names": [...], "files":
                    {"picture": [[bytes, CRC-32 or null, time of change in ns], ...], ...}}}}

Frames are in their order. Of a split of at most 256 MB the contents are read; of a larger one the
sizes and times of change are taken. Only rank 0 reads and writes; for 24,000 frames that takes some
2 s, and the file 3 MB. `tiekd/training/input_changes.py` compares two of them. Left out: contents
of large data sets, and of data sets without files.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from tiekd.config import external
from tiekd.config.recipe import merged
from tiekd.data import teacher_maps
from tiekd.data.file_fingerprints import crc, of_each, size_and_time
from tiekd.data.frames import Frames
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
READ_UP_TO = 256 * 10**6  # bytes of a split whose contents are read
KINDS = ("picture", "depth map", "teacher map")
_SHARES = tuple(
    key
    for key in ENGINE_KEYS
    if key.startswith(("train_", "gradient_accumulation", "gradient_clipping"))
)
Entry = list | None  # of a file: [bytes, CRC-32 or None, ns]; None where there is none


def collect(
    recipe: Recipe,
    recipe_path: Path,
    engine_config: EngineConfig,
    datasets: Mapping[str, Dataset | None],
    iterations_per_epoch: int,
    started: dict | None = None,
) -> dict:
    """Returns the record of a run as it is now. Rank 0 only.

    Args:
        recipe: The run's.
        recipe_path: Its file.
        engine_config: The engine's settings.
        datasets: "train" and "val", the latter None without validation.
        iterations_per_epoch: The length of an epoch.
        started: The record of the start if one is compared with it; contents that it has are read
            here, too.
    """
    old_splits = {} if started is None else started["splits"]
    # A run that resumes without validation may validate again later, on the frames of its start.
    splits = dict(old_splits)
    splits |= {
        name: _split(dataset, old_splits.get(name))
        for name, dataset in datasets.items()
        if dataset is not None
    }
    engine = {key: value for key, value in engine_config.values.items() if key not in _SHARES}
    record = {
        "version": VERSION,
        "recipe": recipe.node,
        "engine": engine,
        "iterations_per_epoch": iterations_per_epoch,
        "best_from": -1,
        "files": {name: [path, crc(path)] for name, path in _files(recipe, datasets)},
        "recipe_files": {path: crc(path) for path in _recipe_files(recipe, recipe_path, started)},
        "splits": splits,
    }
    return json.loads(json.dumps(record, default=str))  # as it will be read back: lists for tuples


def write(work_dir: Path, record: dict) -> None:
    """Writes the record so that it is whole or not there. Rank 0 only; raises OSError."""
    replace_text(work_dir / NAME, json.dumps(record, separators=(",", ":")) + "\n")


def read(work_dir: Path) -> dict | None:
    """The record in a work dir; None where there is none, or one of another version.

    Raises:
        CheckpointError: The file is damaged, or a folder or a pipe stands in its place; it would be
            overwritten if it counted as missing.
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
            "delete it to go on without a comparison with the start"
        ) from None


def _fault(record: dict) -> str | None:
    """Returns what is wrong with a record's parts; None where each is of its kind."""
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
    """Returns True for the facts of a split's frames, whose files are known or aren't."""
    if not isinstance(split, dict) or not isinstance(split.get("count"), int):
        return False
    if "names" not in split:
        return True
    names, files = split["names"], split.get("files")
    if not isinstance(names, list) or not isinstance(files, dict):
        return False
    return all(
        isinstance(states, list) and len(states) == len(names) and all(map(_is_state, states))
        for states in map(files.get, KINDS)
    )


def _is_state(state: object) -> bool:
    return state is None or (isinstance(state, list) and len(state) == 3)


def of_checkpoint(path: Path | None) -> dict | None:
    """The record in the work dir of a checkpoint, which may be another run's."""
    return None if path is None else read(path.absolute().parent.parent)


def held_out(record: dict | None, recipe: Recipe) -> list[str] | None:
    """Returns the names of the validation frames at the start.

    None if there were none, if they aren't known, and if the recipe asks for another share of the
    frames.
    """
    if record is None:
        return None
    shares = [each.data.get("val_fraction") for each in (Recipe(record["recipe"]), recipe)]
    return record["splits"].get("val", {}).get("names") if shares[0] == shares[1] else None


def _split(dataset: Dataset, old: dict | None) -> dict:
    if not isinstance(dataset, Frames):
        return {"count": len(dataset)}
    paths = _paths(dataset)
    # Every file's size and time; reading contents is dear, so that is for small data sets, and for
    # the frames that were read at the start, which a resume compares.
    files = {
        kind: [
            state and [state[0], None, state[1]] for state in of_each(size_and_time, paths[kind])
        ]
        for kind in KINDS
    }
    names = [frame.name for frame in dataset.frames]
    total = sum(state[0] for states in files.values() for state in states if state)
    known = set(names) if total <= READ_UP_TO else _read_at_the_start(old)
    for kind, states in files.items():
        wanted = [i for i, name in enumerate(names) if name in known and states[i]]
        for index, value in zip(
            wanted, of_each(crc, [paths[kind][i] for i in wanted]), strict=True
        ):
            states[index][1] = value
    return {
        "count": len(names),
        "source": str(dataset.source.absolute()),
        "names": names,
        "files": files,
    }


def _paths(frames: Frames) -> dict[str, list[str | None]]:
    """Returns lists of one path a frame, by kind."""
    maps = [None] * len(frames)
    if frames.maps is not None:
        maps = [os.path.join(frames.maps, frames.map_name(index)) for index in range(len(frames))]
    columns = (
        [frame.image for frame in frames.frames],
        [frame.depth for frame in frames.frames],
        maps,
    )
    return dict(zip(KINDS, columns, strict=True))


def _read_at_the_start(old: dict | None) -> set[str]:
    """Names of the frames whose contents are in a record of the start."""
    if old is None or "names" not in old:
        return set()
    return {
        name
        for name, state in zip(old["names"], old["files"][KINDS[0]], strict=True)
        if state and state[1]
    }


def _files(recipe: Recipe, datasets: Mapping[str, Dataset | None]) -> Iterator[tuple[str, str]]:
    """Names and absolute paths of single files: those that decide what is trained on.

    And those that the run began from.
    """
    for name, path in _single_files(recipe, datasets):
        if path is not None and os.path.isfile(path):
            yield name, os.path.abspath(path)


def _single_files(
    recipe: Recipe, datasets: Mapping[str, Dataset | None]
) -> Iterator[tuple[str, str | Path | None]]:
    data, teacher = recipe.data, recipe.teacher
    # The lists of frames: the data set's own file, or what the recipe names. The options of a
    # dataset from outside the project may be anything.
    given = data.get("root", ".")
    root = Path(given).expanduser() if isinstance(given, str) else Path()
    for split, dataset in datasets.items():
        listed = data.get(f"{split}_split")
        if isinstance(dataset, Frames) and dataset.source.is_file():
            listed = dataset.source
        yield f"data.{split}_split", root / listed if isinstance(listed, str | Path) else None
    # What the student learns from and begins with: weights and the maps' manifest.
    if teacher.checkpoint is not None:
        yield "teacher.checkpoint", teacher.checkpoint.expanduser()
    maps = getattr(datasets["train"], "maps", None)
    yield "teacher.maps", None if maps is None else Path(maps) / teacher_maps.MANIFEST
    if recipe.load.checkpoint is not None:
        path = Path(recipe.load.checkpoint).expanduser()
        with contextlib.suppress(UserError):
            yield "load.checkpoint", checkpoints.find_weights(path) if path.is_dir() else path
    for section, node in (("data", data), ("teacher", teacher.node or {})):
        if "." in str(
            node.get("name", "")
        ):  # a part from outside the project interprets its other keys itself
            yield f"{section}.name", _code_of(node["name"])
            own = {
                key: value
                for key, value in node.items()
                if key != "name" and isinstance(value, str)
            }
            yield from (
                (f"{section}.{key}", Path(value).expanduser()) for key, value in own.items()
            )
    # The code of all parts from outside the project.
    for name in sorted(set(external.names_in(recipe.node))):
        yield f"module {name}", _code_of(name)


def _recipe_files(recipe: Recipe, recipe_path: Path, started: dict | None) -> Sequence[str]:
    """Returns absolute paths of the recipe, its bases and the teacher's.

    They are the start's where the recipe can't be read now.
    """
    found: list[str] = []

    def noted(node: dict, origin: str) -> dict:
        found.append(os.path.abspath(origin))
        return node

    try:
        # Merging a recipe names every file that it is made of.
        for path in (recipe_path, recipe.teacher.recipe):
            if path is not None and path.is_file():
                merged(path, mark=noted)
    except UserError:  # a run that resumes from the recipe in its work dir doesn't mind
        found += (started or {}).get("recipe_files", ())
    if not recipe_path.is_file():
        found += (started or {}).get("recipe_files", ())
    return sorted(set(found))


def _code_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)
