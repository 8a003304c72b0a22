"""Lists the runs of an experiment, and recognises those that are finished.

A run is one row (a recipe with overrides), trained on one set of data (or one fold of it) with one
seed. Floors are baselines that don't look at the image, such as the best constant depth; they are
evaluated on each set. A run's key is a digest of everything that its results depend on: the
resolved recipe, the engine config, the ranks, the state of its data (tiekd/training/inputs.py),
tiekd's code, and the versions of the packages that compute. The key is part of the name of the
run's folder. So a change of any of these makes another run, and a finished run is never repeated:

    WORK_DIR/runs/SET/ROW/seed_S[_fold_F]-KEY/
      train/               the work dir of bin/train.py
      log.txt              what training and evaluation printed
      figures_val.json     the errors of each frame; written last, so the run is finished
    WORK_DIR/floors/SET[_fold_F]-KEY/
                           the same files for the floors of a set, without train/

Left out of the key: how the report is computed from the errors, and recipe keys that don't affect
the weights (`workdir.NOT_LEARNED_FROM`).
"""

import fnmatch
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset

from tiekd.config import data_sets, external, provenance
from tiekd.config.recipe import load_recipe, merge
from tiekd.data.build import build_dataset
from tiekd.data.file_fingerprints import crc
from tiekd.data.frames import listed_frames
from tiekd.distributed import hostfile
from tiekd.engine.config import read_engine_config
from tiekd.errors import RecipeError, UserError
from tiekd.evaluation.frame_figures import FrameFigures
from tiekd.inference.student import check_readout
from tiekd.models.build import build_network
from tiekd.teaching import with_checkpoints
from tiekd.tools.experiment.spec import DataSet, Fold, Spec, row_of
from tiekd.training import criterion, optimizer, schedules
from tiekd.training.inputs import fingerprint_files, fingerprint_splits
from tiekd.training.settings import Recipe
from tiekd.workdir.workdir import NOT_LEARNED_FROM

_CODE = Path(__file__).parents[2]  # the folder tiekd/
_PACKAGES = ("torch", "torchvision", "deepspeed", "numpy", "pillow", "timm", "transformers")
_PACKAGES += ("onnxruntime", "opencv-python-headless")
# Code that doesn't affect the errors of a frame: programs, and the code that computes a report from
# the errors.
_NOT_COMPUTED_WITH = ("share", "tools", "evaluation/intervals.py")
# Code in tools/ that computes them nevertheless.
_COMPUTED_WITH = ("tools/experiment/score.py", "tools/experiment/readout.py")
_SPLITS = {"val": "validation", "test": "test"}
_NAMED_SCENES = 10  # largest number of scenes that a message names
PILOT_SEEDS = 3  # number of seeds from which the smallest detectable difference is computed


class SplitNames(NamedTuple):
    """The names of the frames of all splits; empty for a data set that doesn't list files.

    Attributes:
        train: names of the training frames.
        val: names of the validation frames.
        test: names of the test frames; empty unless the experiment evaluates on its test lists
            (`headline: true`).
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The names of the evaluated frames: `test`, or `val` if there are no test frames."""
        return self.test or self.val


@dataclass(frozen=True)
class Job:
    """A run, or the evaluation of the floors of a set of data.

    Floors are baselines that don't look at the image, such as the best constant depth.

    Attributes:
        set: name of the set.
        row: name of the row, i.e. of a recipe with overrides; None for floors.
        seed: the random seed; None for floors.
        fold: number of the fold, from 0; None without folds.
        recipe: path of the row's recipe.
        overrides: all overrides of the recipe, as for `--set`.
        key: digest of everything that the results depend on.
        folder: the job's folder.
        frames: names of the training, the validation and the test frames.
        sources: digest of the recipe, the engine config, the hostfile and the code, as they were
            when the job was listed.
        data: digest of the files that the job reads, as they were when the job was listed.
    """

    set: str
    row: str | None
    seed: int | None
    fold: int | None
    recipe: Path
    overrides: tuple[str, ...]
    key: str
    folder: Path
    frames: SplitNames
    sources: str
    data: str

    @property
    def label(self) -> str:
        """The job's name in messages, such as `streets/light seed 0` or `streets/floors`."""
        fold = "" if self.fold is None else f" fold {self.fold}"
        return (
            f"{self.set}/floors{fold}"
            if self.row is None
            else (f"{self.set}/{self.row} seed {self.seed}{fold}")
        )

    @property
    def train_dir(self) -> Path:
        """The work dir of the run's training, a folder in the run's folder."""
        return self.folder / "train"

    @property
    def log(self) -> Path:
        """The log file, to which training and evaluation print."""
        return self.folder / "log.txt"

    def figures_file(self, split: str) -> Path:
        """Returns the path of the file with the job's results on a split.

        Args:
            split: "val" or "test".
        """
        return self.folder / f"figures_{split}.json"


def made_from(job: Job, spec: Spec) -> dict:
    """Returns a record of what a job's results depend on.

    It is stored with the results. Stored results whose record differs are ignored.

    Args:
        job: the job.
        spec: the experiment.

    Returns:
        "key", the job's key; "split" and "weights", which are evaluated; for a run "readouts"; and
        for an evaluation on a test list "test_list", a checksum of the list.
    """
    found = {"key": job.key, "split": spec.split, "weights": spec.weights}
    if job.row is not None:
        found["readouts"] = list(spec.rows[job.row].readouts)
    if spec.split == "test":
        # Include a checksum of the test list. Its frames are read only when it is evaluated.
        node = load_recipe(job.recipe, job.overrides)
        test = Path(node.get("data", {}).get("root", ".")) / spec.sets[job.set].test
        found["test_list"] = crc(test.expanduser())
    return found


def read_frame_errors(job: Job, spec: Spec) -> dict[str, list[FrameFigures]] | None:
    """Reads the errors that a finished job has written.

    Args:
        job: the job.
        spec: the experiment.

    Returns:
        For a run, name of the row of the results table -> errors of each frame; a run has one such
        row for each way to compute depth (readout). For the floors of a set, name of the floor ->
        errors of each frame. None if the job isn't finished.
    """
    content = _read_results(job, spec)
    try:
        return content and {
            name: [FrameFigures.from_json(frame) for frame in frames]
            for name, frames in content["figures"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        # Treat a damaged file like a missing one: the evaluation runs again and replaces it.
        return None


def left_out(job: Job, spec: Spec) -> dict[str, str]:
    """Returns the floors that couldn't be computed: name -> reason; empty if there are none.

    Floors are baselines that don't look at the image, such as the median of all training depths.

    Args:
        job: the evaluation of the floors of a set.
        spec: the experiment.
    """
    return (_read_results(job, spec) or {}).get("left_out", {})


def _read_results(job: Job, spec: Spec) -> dict | None:
    """Returns the content of the JSON file with the depth errors that a job's evaluation measured.

    It is None if there is no such file, or if what the errors depend on (recipe, data, weights,
    code) has changed since it was written.

    Args:
        job: the job.
        spec: the experiment.
    """
    try:
        found = json.loads(job.figures_file(spec.split).read_text(encoding="utf-8"))
        return found if found["made_from"] == made_from(job, spec) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def plan(spec: Spec, folder: Path | None = None) -> tuple[list[Job], list[Job]]:
    """Lists the runs and the floors of an experiment, in the order in which they run.

    Floors are baselines that don't look at the image. The first runs of a set are those of its
    pilot (the rows of the primary comparison with the first three seeds), from which the smallest
    detectable difference is computed.

    Args:
        spec: the experiment.
        folder: the experiment's work dir; None for the specification's.

    Returns:
        Two lists: the runs; and the evaluations of floors, one for each set and fold.

    Raises:
        UserError: a recipe can't be used, data are missing, or the scenes of a fold overlap.
    """
    folder = (folder or spec.folder).absolute()
    engine = read_engine_config(spec.engine_config)
    # Read the data once for all rows that read the same files.
    read = functools.cache(_read_splits)
    runs, floors = [], []
    for name, data_set in spec.sets.items():
        here = []
        every = {}
        for place, fold in enumerate(data_set.parts):
            number = None if data_set.folds is None else place
            of_rows = {row: _resolve_row(spec, name, row, fold, read) for row in spec.rows}
            fold_text = "" if number is None else f", fold {number}"
            every |= {f"{row}{fold_text}": resolved for row, resolved in of_rows.items()}
            here += [
                _run(spec, (name, row, seed, number), of_rows[row], engine)
                for row in spec.rows
                for seed in spec.seeds
            ]
            floors.append(
                _floors(spec, (name, number), of_rows[row_of(data_set.primary[1])], engine)
            )
        _check_protocols(name, every)
        runs += sorted(here, key=functools.partial(_order, spec, data_set))
    runs = [_with_folder(job, folder) for job in runs]
    floors = [_with_folder(job, folder) for job in floors]
    return runs, floors


def _order(spec: Spec, data_set: DataSet, job: Job) -> tuple:
    seed = list(spec.seeds).index(job.seed)
    # Sort by seed before row, first the pilot's runs and then the others, so that a partial table
    # compares rows with the same seeds.
    is_pilot = job.row in map(row_of, data_set.primary) and seed < PILOT_SEEDS
    return not is_pilot, seed, list(spec.rows).index(job.row), job.fold or 0


class _Splits(NamedTuple):
    """The datasets of a recipe, and the state of their files.

    Attributes:
        sets: the datasets "train" and "val".
        digest: digest of the state of the frames' files.
        names: names of the frames.
    """

    sets: dict[str, Dataset]
    digest: str
    names: SplitNames


class _ResolvedRow(NamedTuple):
    """A row (a recipe with overrides) on a set's data, without a seed.

    Attributes:
        recipe: path of the recipe.
        overrides: overrides of the recipe, except for the seed's.
        node: the resolved recipe.
        data: digest of the files that a run reads.
        frames: names of the frames.
    """

    recipe: Path
    overrides: tuple[str, ...]
    node: dict
    data: str
    frames: SplitNames


def _resolve_row(
    spec: Spec, name: str, row: str, fold: Fold | None, read: Callable[[str], _Splits]
) -> _ResolvedRow:
    """Resolves the recipe of a row on a set, and reads the state of its data.

    Args:
        spec: the experiment.
        name: the set's name.
        row: the row's name.
        fold: the fold's lists; None without folds.
        read: the function `_read_splits` with a cache of its results.

    Returns:
        The recipe with all overrides but the seed's, the digest of its data, and the frames' names.

    Raises:
        RecipeError: the recipe can't be used, or it reads a test list.
    """
    recipe = spec.recipe_of(row)
    overrides = [*spec.set, *spec.sets[name].overrides(fold), *spec.rows[row].set]
    overrides += () if fold is None else fold.rows.get(row, ())
    overrides += ["train.epochs=null", f"train.iterations={spec.steps}", "train.validate=true"]
    if spec.weights == "last":
        # Evaluate once, at the end, so that no evaluation chooses the weights.
        overrides += ["evaluation.by=iteration", f"evaluation.interval={spec.steps}"]
    try:
        node = load_recipe(recipe, overrides)
        if data_sets.is_list(node):
            raise RecipeError(
                f"{recipe}: data is a list of sets, and an experiment has data sets of its own "
                "(sets); give a recipe with one"
            )
        data = node.get("data") or {}
        root = Path(str(data.get("root", "."))).expanduser()
        lists = {key: data.get(key) for key in ("train_split", "val_split")}
        _refuse_test_lists(spec, name, row, root, lists)
        if "max_depth" not in (node.get("network") or {}):
            raise RecipeError(f"{recipe}: describes no network; give a recipe that can be trained")
        splits = read(_as_text(_read_sections(node)))
        # Check also the lists that the dataset reads by itself, without an entry in the recipe.
        own = {
            f"{split}_split": getattr(each, "source", None) for split, each in splits.sets.items()
        }
        _refuse_test_lists(spec, name, row, root, own)
        names = splits.names
        if spec.headline:
            names = names._replace(test=_test_names(node, spec.sets[name].test))
        digest = _data_digest(node, splits)
    except RecipeError as error:
        raise provenance.with_origins(error, recipe, overrides) from error
    return _ResolvedRow(recipe, tuple(overrides), node, digest, names)


def _test_names(node: dict, test: str) -> tuple[str, ...]:
    """Returns the names of the frames in a test list, without reading the frames' files.

    Args:
        node: the resolved recipe.
        test: path of the test list, absolute or below `data.root`.
    """
    recipe = Recipe(merge(node, {"data": {"val_split": test}})).without_teacher()
    dataset = build_dataset(recipe.dataset, "val", as_evaluated=True)
    return tuple(frame.name for frame in getattr(dataset, "frames", ()))


def _data_digest(node: dict, splits: _Splits) -> str:
    """Returns the digest of all files that a run reads beside its recipe.

    Args:
        node: the resolved recipe.
        splits: the recipe's data sets, and the state of their files.
    """
    # Import parts from outside the project first, because their code affects the results.
    for module in external.names_in(node):
        external.import_module(module)
    # Replace a teacher's work dir by the weights file in it, since other weights may be the
    # best ones later.
    files = fingerprint_files(Recipe(with_checkpoints(node)), splits.sets)
    return _digest({"files": files, "splits": splits.digest})


def _check_protocols(name: str, rows: Mapping[str, _ResolvedRow]) -> None:
    """Checks that all rows of a set would be evaluated on the same pixels.

    Args:
        name: the set's name.
        rows: name of each row -> the row on the set's data, those of each fold.

    Raises:
        RecipeError: rows differ in evaluation crop, smallest depth or largest evaluated depth.
    """
    found = {}
    for row, resolved in rows.items():
        protocol = Recipe(resolved.node).protocol("val")
        found[row] = {
            "evaluation.crop": protocol.settings.crop,
            "network.min_depth": protocol.min_depth,
            "evaluation.cap": protocol.cap,
        }
    first = next(iter(found))
    for row, values in found.items():
        for key, value in values.items():
            if value != found[first][key]:
                # Name network.max_depth, too: it is the largest evaluated depth if `evaluation.cap`
                # isn't set.
                told = "evaluation.cap (or network.max_depth)" if key == "evaluation.cap" else key
                raise RecipeError(
                    f"rows.{row}: {told} is {value} on {name}, and {found[first][key]} for "
                    f"{first}; evaluate all rows of a set on the same pixels"
                )


def _run(
    spec: Spec, identity: tuple[str, str, int, int | None], row: _ResolvedRow, engine: dict
) -> Job:
    """Returns a run whose attribute `folder` is still empty; the caller sets it.

    Args:
        spec: the experiment.
        identity: names of set and row, seed and number of the fold.
        row: the row on the set's data.
        engine: the engine config.
    """
    seed = identity[2]
    node = merge(row.node, {"train": {"seed": seed}})
    made = {"recipe": _learned_from(node), "engine": engine, "launcher": _launcher_of(spec)}
    key = _digest({**made, "data": row.data, "code": code_digest()})
    overrides = (*row.overrides, f"train.seed={seed}")
    sources = _sources(spec, node, engine)
    return Job(*identity, row.recipe, overrides, key, Path(), row.frames, sources, row.data)


def _launcher_of(spec: Spec) -> dict:
    """Returns the launcher's settings on which results depend: the ranks and their machines.

    Ports, and the path of the hostfile, don't affect results.

    Args:
        spec: the experiment.

    Returns:
        "options", the launcher's other options; and "hosts", the content of the hostfile.
    """
    others = [each for each in spec.launcher if not each.startswith(("--master_", "--hostfile="))]
    return {"options": others, "hosts": hostfile.of_options(spec.launcher)}


def _floors(spec: Spec, identity: tuple[str, int | None], row: _ResolvedRow, engine: dict) -> Job:
    """Returns the job that evaluates the floors of a set, on the data of one of the set's rows.

    Floors are baselines that don't look at the image, such as the best constant depth.

    Args:
        spec: the experiment.
        identity: name of the set, and number of the fold.
        row: the second row of the primary comparison, whose recipe's data are used.
        engine: the engine config.
    """
    protocol = Recipe(row.node).protocol("val")
    scored = (protocol.min_depth, protocol.cap, protocol.settings.crop)
    # Include the scenes in the key, since the best constant depth is chosen by the mean of the
    # errors' means over scenes.
    rule = {key: crc(Path(v)) if key == "list" else v for key, v in spec.absolute_scenes.items()}
    made = {"recipe": _learned_from({"data": row.node.get("data")}), "scored": scored}
    made |= {"scenes": rule, "data": row.data, "code": code_digest()}
    key = _digest(made)
    # Use any seed, because floors (baselines that don't look at the image) involve no random
    # numbers.
    overrides = (*row.overrides, f"train.seed={spec.seeds[0]}")
    sources = _sources(spec, merge(row.node, {"train": {"seed": spec.seeds[0]}}), engine)
    named = (identity[0], None, None, identity[1], row.recipe, overrides)
    return Job(*named, key, Path(), row.frames, sources, row.data)


def _sources(spec: Spec, node: dict, engine: dict) -> str:
    made = {"recipe": _learned_from(node), "engine": engine, "launcher": _launcher_of(spec)}
    return _digest({**made, "code": code_digest()})


def changed_sources(job: Job, spec: Spec) -> str | None:
    """Checks that a job's inputs haven't changed since the experiment listed its jobs.

    A job's processes may start hours later, and read recipe, engine config, hostfile, data and code
    again. If one of them has changed, the results would be stored under the key of the old inputs.

    Args:
        job: the job.
        spec: the experiment.

    Returns:
        None if nothing has changed; otherwise the reason not to start the job, in one line.
    """
    code_digest.cache_clear()
    try:
        node = load_recipe(job.recipe, job.overrides)
        changed = None
        if _sources(spec, node, read_engine_config(spec.engine_config)) != job.sources:
            changed = "its recipe, the engine config, the hostfile or tiekd's code has"
        elif _data_digest(node, _read_splits(_as_text(_read_sections(node)))) != job.data:
            changed = "its data, the teacher's weights or code of the recipe's own parts have"
    except UserError as error:
        return str(error)
    if changed is None:
        return None
    return (
        f"{changed} changed since the experiment was started; start it again, which lists the runs "
        "anew"
    )


def _with_folder(job: Job, folder: Path) -> Job:
    fold = "" if job.fold is None else f"_fold_{job.fold}"
    if job.row is None:
        place = folder / "floors" / f"{job.set}{fold}-{job.key[:10]}"
    else:
        place = folder / "runs" / job.set / job.row / f"seed_{job.seed}{fold}-{job.key[:10]}"
    return Job(**{**vars(job), "folder": place})


def _read_sections(node: dict) -> dict:
    """Returns the sections of a recipe that determine which frames a run reads, and how, as a dict.

    Args:
        node: the resolved recipe.
    """
    # Include the teachers, whose cached maps are read with the frames.
    keys = ("data", "teacher", "teachers")
    found = {key: node[key] for key in keys if node.get(key) is not None}
    # Of the network, include only the depth range, on which the datasets depend.
    depths = {key: node["network"].get(key) for key in ("min_depth", "max_depth")}
    return found | {"network": depths, "train": {"iterations": 1}}


def _read_splits(sections: str) -> _Splits:
    """Builds the datasets of a recipe, and reads the state of their files.

    Args:
        sections: the recipe's sections as JSON, as `_read_sections` returns them.

    Returns:
        The datasets, a digest of their frames' names and files, and the frames' names.
    """
    recipe = Recipe(json.loads(sections))
    sets = {split: build_dataset(recipe.dataset, split) for split in ("train", "val")}
    state = fingerprint_splits(sets)
    # Take the names from the datasets, since `state` omits those of large splits and tar shards.
    names = (tuple(getattr(listed_frames(each), "names", ())) for each in sets.values())
    return _Splits(sets, _digest(state), SplitNames(*names))


def _refuse_test_lists(
    spec: Spec, name: str, row: str, root: Path, lists: Mapping[str, str | Path | None]
) -> None:
    """Checks that a row neither trains nor validates on the test list of a set.

    Args:
        spec: the experiment.
        name: the set's name.
        row: the row's name.
        root: the folder to which relative paths of lists refer.
        lists: key of the recipe's section `data` -> path of a list that the row reads.

    Raises:
        RecipeError: a list is the test list; or the test list doesn't exist although it is to be
            evaluated (`headline: true`), which would otherwise be found only after all trainings.
    """
    test = spec.sets[name].test
    if test is None:
        return
    if spec.headline and not (root / test).is_file():
        raise RecipeError(
            f"sets.{name}.test: no file at {root / test}; give the test list's path from the "
            "folder of the specification or from data.root"
        )
    for key, path in lists.items():
        # Compare resolved paths, because one list can be spelled in several ways.
        if isinstance(path, str | Path) and (root / path).resolve() == (root / test).resolve():
            raise RecipeError(
                f"rows.{row}: data.{key} is {test}, the test list of {name}; training and "
                "selection must not read it, so give another list"
            )


def _learned_from(node: dict) -> dict:
    """Returns those keys of a recipe that affect results, as a dict such as {"train.seed": 0}.

    Args:
        node: the resolved recipe.
    """
    flat: dict[str, object] = {}

    def add(value: object, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, each in value.items():
                add(each, f"{key}.{name}" if key else str(name))
        elif not key.startswith(NOT_LEARNED_FROM) and key != "teacher.recipe":
            flat[key] = value

    add(node, "")
    return flat


@functools.cache
def code_digest() -> str:
    """Returns a digest of the code and of the packages' versions that results are computed with."""
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob("*.py")):
        name = path.relative_to(_CODE).as_posix()
        if name.startswith(_NOT_COMPUTED_WITH) and name not in _COMPUTED_WITH:
            continue
        digest.update(f"{name}\0".encode() + path.read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {metadata.version(package)}\n".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{package} not installed\n".encode())
    return digest.hexdigest()


def _as_text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(value: object) -> str:
    return hashlib.sha256(_as_text(value).encode(errors="surrogateescape")).hexdigest()


def chosen(runs: Sequence[Job], patterns: Sequence[str]) -> list[Job]:
    """Returns the runs that all patterns of `--only` match.

    A pattern (`*`, `?`, `[...]`) is compared with the run's row, set and seed, and with
    SET/ROW/SEED.

    Args:
        runs: the runs.
        patterns: the patterns; without any, all runs are returned.

    Raises:
        UserError: no run is left; the message names the rows, sets and seeds.
    """
    # Keep only runs that match every pattern.
    left = list(runs)
    for pattern in patterns:
        left = [
            job
            for job in left
            if any(
                fnmatch.fnmatchcase(name, pattern)
                for name in (job.row, job.set, str(job.seed), f"{job.set}/{job.row}/{job.seed}")
            )
        ]
    if not left:
        names = (
            f"{title}: {', '.join(dict.fromkeys(str(getattr(job, key)) for job in runs))}"
            for title, key in (("rows", "row"), ("sets", "set"), ("seeds", "seed"))
        )
        raise UserError(f"--only {' '.join(patterns)}: no run matches; {'; '.join(names)}")
    return left


def check_recipes(runs: Sequence[Job], spec: Spec) -> None:
    """Checks each row's recipe by building what it describes, without reading data.

    So a mistake in a recipe or an override is reported before the first run, and not by a failed
    run hours later. Not covered: the teacher, whose weights may be large, and the hooks.

    Args:
        runs: the runs.
        spec: the experiment.

    Raises:
        RecipeError: a value isn't allowed; the message names where it is set.
    """
    for job in {(job.set, job.row): job for job in runs}.values():
        try:
            recipe = Recipe(load_recipe(job.recipe, job.overrides))
            _check_recipe(recipe, spec.steps, spec.rows[job.row].readouts)
        except RecipeError as error:
            raise provenance.with_origins(error, job.recipe, job.overrides) from error


def _check_recipe(recipe: Recipe, steps: int, row_readouts: Sequence[str]) -> None:
    # Access the sections with fixed keys, which raises an error for a value that isn't allowed.
    for section in ("evaluation", "augment", "loading", "resize", "load"):
        getattr(recipe, section)
    train = recipe.train
    criterion.build(recipe.section("losses"), recipe.teachers.is_given)
    _, arguments = optimizer.checked(
        recipe.section("optimizer"), train.batch_size, train.lr_scaling
    )
    schedules.build(
        recipe.section("schedule", {"name": "constant"}),
        base_lr=arguments["lr"],
        base_momentum=None,
        total_iterations=steps,
        iterations_per_epoch=steps,
    )
    if recipe.network.get("canonical_focal") is not None:
        return  # such a network can be built only once the frames' focal lengths are read
    network = build_network(recipe.network)
    for readout in row_readouts:
        check_readout(network, readout)


def check_scenes(runs: Sequence[Job], spec: Spec) -> list[str]:
    """Checks the scenes of all sets: every evaluated frame has one, and no run trains on it.

    Folds must be split by scene, and all rows must have the same validation frames.

    Args:
        runs: the runs.
        spec: the experiment.

    Returns:
        For each set a line with its numbers of scenes and frames, and one with the scenes that are
        trained on where the specification allows that.

    Raises:
        RecipeError: rows have different validation frames, the specification's rule gives no scene
            for a frame, a scene is evaluated in two folds, or a run trains on a scene on which it
            is evaluated.
    """
    # Count the scenes before anything runs, so that a wrong rule for scenes is found early.
    rule = spec.scene_rule()
    lines = []
    for name, data_set in spec.sets.items():
        by_fold: dict[int | None, SplitNames] = {}
        for job in runs:
            if job.set == name and by_fold.setdefault(job.fold, job.frames).val != job.frames.val:
                raise RecipeError(
                    f"rows.{job.row}: has other validation frames on {name} than the first row; "
                    "give all rows of a set the same ones"
                )
        seen: set[str] = set()
        for fold, frames in by_fold.items():
            evaluated = {rule(frame) for frame in frames.evaluated}
            twice = sorted(evaluated & seen)
            if twice:
                raise RecipeError(
                    f"sets.{name}.folds: fold {fold} is evaluated on scene {twice[0]!r}, on which "
                    "another fold is evaluated too; split folds by scene"
                )
            seen |= evaluated
        shared = shared_scenes(runs, spec, name)
        count = sum(len(frames.evaluated) for frames in by_fold.values())
        lines.append(f"{name}: {len(seen)} scenes, {count} {_SPLITS[spec.split]} frames")
        if shared:
            told = f"{len(shared)} of {len(seen)} scenes are trained on too: {_listed(shared)}"
            if not data_set.shared_scenes:
                raise RecipeError(
                    f"sets.{name}: {told}; give lists without common scenes, or set "
                    f"sets.{name}.shared_scenes to true, and the report says so"
                )
            lines.append(f"{name}: {told}")
    return lines


def shared_scenes(runs: Sequence[Job], spec: Spec, name: str) -> list[str]:
    """Returns the sorted names of the scenes on which runs of a set are both trained and evaluated.

    Args:
        runs: all runs of the experiment.
        spec: the experiment.
        name: the set's name.
    """
    rule = spec.scene_rule()
    shared: set[str] = set()
    # Take each row's frames once, since all seeds of a row have the same ones.
    for frames in {job.frames for job in runs if job.set == name}:
        evaluated = {rule(frame) for frame in frames.evaluated}
        shared |= evaluated & {rule(frame) for frame in frames.train}
    return sorted(shared)


def _listed(scenes: Sequence[str]) -> str:
    more = f" and {len(scenes) - _NAMED_SCENES} more" if len(scenes) > _NAMED_SCENES else ""
    return ", ".join(scenes[:_NAMED_SCENES]) + more
