"""Reads the specification of an experiment, a YAML file, and checks it before anything runs.

model_configs/experiments/README.md describes the keys. Every error is a RecipeError that names the
key, what was given and what is allowed. Not covered: checks of the rows' recipes, which are made
when the runs are listed (runs.py).
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from tiekd import paths
from tiekd.config import recipe_yaml, shipped
from tiekd.config.build import settings
from tiekd.data.splits import read_lines
from tiekd.errors import RecipeError
from tiekd.files import check_readable
from tiekd.tools.experiment.overrides import check_folds, keys_of

METRICS = ("abs_rel", "abs_rel_aligned", "silog", "edge")
READOUTS = ("mean", "mode", "local")  # as in tiekd/models/readout.py, which imports torch
# The pattern of names, which are also names of folders.
_NAME = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_LAUNCHER_OPTIONS = ("num_gpus", "num_nodes", "include", "exclude", "hostfile", "master_port")
_LAUNCHER_OPTIONS += ("master_addr", "launcher")
_LAUNCHER_OPTION = re.compile(rf"--({'|'.join(_LAUNCHER_OPTIONS)})=\S+")
# Key of recipes that the experiment controls -> the specification's key that sets it.
_CONTROLLED = {
    "train.seed": "seeds",
    "train.iterations": "steps",
    "train.epochs": "steps",
    "train.validate": "the experiment, which always validates",
    "work_dir": "the experiment's work_dir",
}
_CONTROLLED_BY_LAST = {
    "evaluation.by": "weights: last, which evaluates once",
    "evaluation.interval": "weights: last, which evaluates once",
}


@dataclass(frozen=True)
class Fold:
    """One fold of a set: its own lists of training and validation frames.

    Attributes:
        train: path of the split file of the training frames. It is relative to the folder of the
            specification if the file exists there, otherwise to `data.root`.
        val: path of the split file of the validation frames, likewise.
        set: overrides of the recipes of all rows on this fold, as for `--set`.
        rows: name of a row -> further overrides of its recipe on this fold.
    """

    train: str
    val: str
    set: Sequence[str] = ()
    rows: Mapping = field(default_factory=dict)

    @property
    def lists(self) -> dict[str, str]:
        """The fold's split files by their key, "train" or "val"."""
        return {"train": self.train, "val": self.val}

    def overrides_of(self, row: str) -> list[str]:
        """Returns the fold's overrides of a row's recipe, as for `--set`.

        Args:
            row: the row's name.
        """
        return [*self.set, *self.rows.get(row, ())]


@dataclass(frozen=True)
class DataSet:
    """A set: the data on which all rows are trained and evaluated, and what is compared on it.

    A row is a recipe with overrides, whose results are a row of the results table.

    Attributes:
        primary: (X, Y): the primary comparison, "row X is better than row Y".
        metric: the metric of the primary comparison, one of METRICS.
        compare: further pairs of rows; None for every other row against the primary's Y.
        set: overrides of the recipes, as for `--set`.
        train: split file of the training frames, as that of a fold; None for the recipes' own.
        val: split file of the validation frames; None for the recipes' own.
        test: split file of the test frames, read only if the specification has `headline: true`.
        size: (height, width) in pixels to which images are resized; None for the recipes' own.
        folds: lists by scene; every row is trained once per fold, and evaluated on the validation
            frames of all folds. None for a single training and validation list.
        shared_scenes: True to allow training on scenes that are evaluated, which the report then
            names; otherwise they are refused.
    """

    primary: tuple[str, str]
    metric: str = "abs_rel"
    compare: Sequence[Sequence[str]] | None = None
    set: Sequence[str] = ()
    train: str | None = None
    val: str | None = None
    test: str | None = None
    size: tuple[int, int] | None = None
    folds: Sequence[Mapping] | None = None
    shared_scenes: bool = False

    @property
    def parts(self) -> list[Fold | None]:
        """The folds of the set, a list; [None] if it has no folds."""
        return [None] if self.folds is None else list(self.folds)

    def overrides(self, fold: Fold | None) -> list[str]:
        """Returns the overrides (KEY=VALUE) of recipes that select the data of this set and a fold.

        Args:
            fold: the fold, whose own overrides are included; None for a set without folds.
        """
        lists = {"train": self.train, "val": self.val} if fold is None else fold.lists
        given = [f"data.{key}_split={path}" for key, path in lists.items() if path is not None]
        if self.size is not None:
            height, width = self.size
            given.append(f"data.resize={{height: {height}, width: {width}, mode: stretch}}")
        return [*self.set, *given, *(() if fold is None else fold.set)]


@dataclass(frozen=True)
class Row:
    """A recipe with overrides, which is trained once per seed.

    Attributes:
        recipe: path of the recipe, from the specification's folder, or the name of one of tiekd.
        set: overrides, as for `--set`.
        readouts: ways to compute depth from the network's distribution over depth bins: "mean",
            "mode" (most probable bin) or "local" (mean around the mode). The results table has a
            row for each.
    """

    recipe: str
    set: Sequence[str] = ()
    readouts: Sequence[str] = ("mean",)

    def named(self, name: str) -> dict[str, str]:
        """Returns the names of the rows of the results table that this recipe has: name -> readout.

        A readout is a way to compute depth from a distribution over bins. The row of the mean has
        the recipe's own name; those of other readouts are called NAME:READOUT, such as
        "light:mode".

        Args:
            name: the recipe's name in the specification.
        """
        return {name if each == "mean" else f"{name}:{each}": each for each in self.readouts}


def row_of(name: str) -> str:
    """Returns the name of the recipe that a row of the results table belongs to.

    Args:
        name: the row's name in the table, NAME or NAME:READOUT; the result is NAME.
    """
    return name.partition(":")[0]


@dataclass(frozen=True)
class Spec:
    """The specification of an experiment.

    Attributes:
        steps: iterations of every run.
        seeds: seeds with which every row is trained.
        rows: name -> row, i.e. a recipe with overrides.
        sets: name -> set, i.e. the data on which all rows are trained and evaluated.
        scenes: rule for a frame's scene: {"regex": TEXT} or {"list": FILE}.
        set: overrides of all rows and sets, as for `--set`.
        headline: True to evaluate on the sets' test lists instead of validation frames.
        weights: which weights are evaluated: "last" for those of the last iteration, "best" for
            those of the best evaluation.
        launcher: options of the `deepspeed` command.
        engine_config: path of the engine config, relative to the current folder; None for the
            default.
        work_dir: folder of the experiment; None for work_dirs/experiments/NAME.
        readings: file that records each evaluation on a test list; None for test_readings.jsonl
            beside the work dir, which is shared by all experiments there.
        path: the specification's file.
    """

    steps: int
    seeds: Sequence[int]
    rows: Mapping
    sets: Mapping
    scenes: Mapping
    set: Sequence[str] = ()
    headline: bool = False
    weights: str = "last"
    launcher: Sequence[str] = ("--num_gpus=1",)
    engine_config: str | None = None
    work_dir: str | None = None
    readings: str | None = None
    path: Path = field(default=Path())

    @property
    def folder(self) -> Path:
        """The path of the experiment's work dir."""
        default = f"work_dirs/experiments/{self.path.stem}"
        return Path(paths.expanded(self.work_dir or default))

    @property
    def readings_file(self) -> Path:
        """The path of the file that records each evaluation on a test list."""
        if self.readings is not None:
            return Path(paths.expanded(self.readings))
        return self.folder.parent / "test_readings.jsonl"

    @property
    def split(self) -> str:
        """The evaluated split: "test" if the specification has `headline: true`, else "val"."""
        return "test" if self.headline else "val"

    @property
    def table_rows(self) -> list[str]:
        """The names of the rows of the results table, in order."""
        return [each for name, row in self.rows.items() for each in row.named(name)]

    def recipe_of(self, row: str) -> Path:
        """Returns the path of a row's recipe, the user's file or one that comes with tiekd.

        Args:
            row: the row's name.
        """
        given = paths.expanded(self.rows[row].recipe)
        return shipped.find(shipped.RECIPES, given, self.path.parent)

    def scene_rule(self) -> Callable[[str], str]:
        """Returns the function from a frame's name to the name of its scene.

        The function raises RecipeError for a frame for which the specification's rule gives no
        scene.
        """
        return scene_rule(self.scenes, self.path.parent)

    @property
    def absolute_scenes(self) -> Mapping:
        """The rule for a frame's scene: {"regex": PATTERN} or {"list": absolute path of a file}."""
        if "regex" in self.scenes:
            return self.scenes
        listed = self.path.parent / paths.expanded(self.scenes["list"])
        return {"list": str(listed.absolute())}


def scene_rule(scenes: Mapping, folder: Path) -> Callable[[str], str]:
    """Returns the function from a frame's name to the name of its scene.

    The function raises RecipeError for a frame for which the rule gives no scene.

    Args:
        scenes: the rule: {"regex": PATTERN}, to be found in a frame's name, or {"list": FILE},
            whose lines are `FRAME SCENE`.
        folder: the folder to which a relative FILE refers.
    """
    if "regex" in scenes:
        pattern = re.compile(scenes["regex"])
        return lambda name: _scene_by(pattern, name)
    listed = _read_scenes(folder / paths.expanded(scenes["list"]))
    return lambda name: _scene_in(listed, name, scenes["list"])


def _scene_by(pattern: re.Pattern, name: str) -> str:
    found = pattern.search(name)
    if found is None:
        raise RecipeError(
            f"scenes.regex: {pattern.pattern!r} doesn't match the frame {name!r}; give a pattern "
            "that finds the scene in the name of every frame"
        )
    # Take the pattern's first group as the scene, or the whole match for a pattern without groups.
    scene = found[1] if pattern.groups else found[0]
    if not scene:
        raise RecipeError(
            f"scenes.regex: {pattern.pattern!r} finds no scene in the frame {name!r}; its first "
            "group must take part in every match"
        )
    return scene


def _scene_in(listed: Mapping[str, str], name: str, file: str) -> str:
    if name not in listed:
        raise RecipeError(f"scenes.list: {file} has no line for the frame {name!r}; add one")
    return listed[name]


def _read_scenes(path: Path) -> dict[str, str]:
    """Reads a list of scenes, whose lines are `FRAME SCENE`.

    Args:
        path: the list.

    Returns:
        Name of a frame -> name of its scene.

    Raises:
        DataError: the file can't be read.
        RecipeError: a line has another form, or a frame has two scenes.
    """
    scenes: dict[str, str] = {}
    for number, line in read_lines(path, "a line is `FRAME SCENE`"):
        words = line.split()
        # Refuse a frame with two scenes. A frame may be listed twice with the same scene.
        if len(words) != 2 or scenes.get(words[0], words[1]) != words[1]:
            raise RecipeError(
                f"{path}:{number}: got {line!r:.80}; a line is `FRAME SCENE`, one scene a frame"
            )
        scenes[words[0]] = words[1]
    return scenes


def read(path: Path) -> Spec:
    """Reads and checks the YAML file of an experiment.

    Args:
        path: the YAML file.

    Returns:
        The specification.

    Raises:
        RecipeError: the file can't be read, a key is unknown or missing, or a value isn't allowed.
    """
    node = _read_yaml(path)
    needed = ("steps", "seeds", "scenes", "sets", "rows")
    _check_needed(node, needed, str(path))
    if "path" in node:
        raise RecipeError(f"{path}: unknown key 'path'; the keys are: {', '.join(_KEYS)}")
    # Check the types of the top level, then of each row and set.
    spec = settings({"experiment": node}, "experiment", Spec)
    for key, named in (("rows", spec.rows), ("sets", spec.sets)):
        if not all(isinstance(name, str) for name in named):
            raise RecipeError(f"{key}: got {list(named)!r:.80}; a name is text, so quote it")
    rows = {name: _part(row, f"rows.{name}", Row, ("recipe",)) for name, row in spec.rows.items()}
    sets = {
        name: _with_own_lists(_data_set(each, f"sets.{name}"), path.parent)
        for name, each in spec.sets.items()
    }
    spec = Spec(**{**vars(spec), "rows": rows, "sets": sets, "path": path})
    _check_values(spec)
    for name, each in sets.items():
        _check_set(spec, name, each)
    # Refuse overrides that the experiment would silently replace.
    parts = {"set": spec.set}
    parts |= {f"sets.{name}.set": each.set for name, each in sets.items()}
    parts |= {f"rows.{name}.set": row.set for name, row in rows.items()}
    for name, each in sets.items():
        parts |= dict(_fold_overrides(name, each))
    for where, overrides in parts.items():
        _check_overrides(where, overrides, spec.weights)
    for name, each in sets.items():
        check_folds(
            f"sets.{name}.folds", each.folds or (), {row: of.set for row, of in rows.items()}
        )
    return spec


_KEYS = tuple(key for key in Spec.__dataclass_fields__ if key != "path")


def _read_yaml(path: Path) -> dict:
    check_readable(path, "specification of an experiment", RecipeError)
    try:
        node = recipe_yaml.load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        there = {each.name for each in path.parent.glob("*.yaml")}
        there |= shipped.names(shipped.EXPERIMENTS).keys()
        near = difflib.get_close_matches(path.name, sorted(there), n=3, cutoff=0.3)
        raise RecipeError(
            f"{path}: no such specification; near it: {', '.join(near) or 'none'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can't be read ({error}); give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: not YAML that is allowed: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(node, dict):
        raise RecipeError(
            f"{path}: a specification is a mapping of {', '.join(_KEYS)}, not {node!r:.60}"
        )
    return node


def _check_needed(node: dict, needed: Sequence[str], where: str) -> None:
    missing = [key for key in needed if key not in node]
    if missing:
        raise RecipeError(f"{where}: {missing[0]} is missing; it needs {', '.join(needed)}")


def _part(node: object, where: str, kind: type, needed: Sequence[str]):
    name = where.partition(".")[2]
    if _NAME.fullmatch(name) is None:
        raise RecipeError(
            f"{where}: a name begins with a letter and has letters, digits, '.', '-' and '_' alone"
        )
    if not isinstance(node, dict):
        raise RecipeError(f"{where}: got {node!r:.60}; it must be a mapping with {needed[0]}")
    _check_needed(node, needed, where)
    return settings({where: node}, where, kind)


def _data_set(node: object, where: str) -> DataSet:
    each = _part(node, where, DataSet, ("primary",))
    if each.folds is None:
        return each
    if not each.folds:
        raise RecipeError(f"{where}.folds: is empty; give folds of train and val, or leave it out")
    # Check each fold like a section of its own, so that errors name its key.
    folds = []
    for place, fold in enumerate(each.folds):
        here = f"{where}.folds.{place}"
        _check_needed(fold, ("train", "val"), here)
        made = settings({here: fold}, here, Fold)
        rows = {row: _texts(given, f"{here}.rows.{row}") for row, given in made.rows.items()}
        folds.append(replace(made, rows=rows))
    if each.train is not None or each.val is not None:
        raise RecipeError(
            f"{where}: folds have their own lists; leave train and val out, or leave folds out"
        )
    return replace(each, folds=folds)


def _texts(given: object, where: str) -> list[str]:
    """Returns a list of overrides. Raises RecipeError for anything else."""
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise RecipeError(f"{where}: got {given!r:.60}; it must be a list of KEY=VALUE")
    return given


def _fold_overrides(name: str, each: DataSet) -> list[tuple[str, Sequence[str]]]:
    """Returns the overrides of a set's folds, each with its place in the specification.

    Args:
        name: the set's name.
        each: the set.
    """
    found = []
    for place, fold in enumerate(each.folds or ()):
        here = f"sets.{name}.folds.{place}"
        found.append((f"{here}.set", fold.set))
        found += [(f"{here}.rows.{row}", given) for row, given in fold.rows.items()]
    return found


def _with_own_lists(each: DataSet, folder: Path) -> DataSet:
    """Returns a set in which paths of lists that exist in the specification's folder are absolute.

    Other paths are unchanged; they are relative to the recipe's `data.root`.

    Args:
        each: the set.
        folder: the folder of the specification's file.
    """

    def found(part: DataSet | Fold) -> dict[str, str | None]:
        lists = {key: getattr(part, key, None) for key in ("train", "val", "test")}
        beside = {key: folder / paths.expanded(name) for key, name in lists.items() if name}
        return {key: str(path.absolute()) for key, path in beside.items() if path.is_file()}

    folds = each.folds and [replace(fold, **found(fold)) for fold in each.folds]
    return replace(each, folds=folds, **found(each))


def _check_values(spec: Spec) -> None:
    """Checks the values of the specification's top level.

    Args:
        spec: the specification.

    Raises:
        RecipeError: a value isn't allowed.
    """
    if spec.steps < 1:
        raise RecipeError(f"steps: got {spec.steps}; it must be a whole number from 1")
    if not spec.seeds or len(set(spec.seeds)) != len(spec.seeds) or min(spec.seeds) < 0:
        raise RecipeError(
            f"seeds: got {list(spec.seeds)}; give different whole numbers from 0, at least one"
        )
    if not spec.rows or not spec.sets:
        raise RecipeError("rows and sets: give at least one row and one set")
    for name, row in spec.rows.items():
        given = list(row.readouts)
        if not given or len(set(given)) != len(given) or not set(given) <= set(READOUTS):
            raise RecipeError(
                f"rows.{name}.readouts: got {given}; give different ones of: {', '.join(READOUTS)}"
            )
    for option in spec.launcher:
        if _LAUNCHER_OPTION.fullmatch(option) is None:
            raise RecipeError(
                f"launcher: got {option!r:.80}; allowed are options of deepspeed, as --NAME=VALUE: "
                f"{', '.join(_LAUNCHER_OPTIONS)}"
            )
    if spec.weights not in ("last", "best"):
        raise RecipeError(f"weights: got {spec.weights!r}; allowed: last, best")
    if len(spec.scenes) != 1 or next(iter(spec.scenes)) not in ("regex", "list"):
        raise RecipeError(
            f"scenes: got {dict(spec.scenes)}; give either {{regex: PATTERN}} or {{list: FILE}}"
        )
    kind, value = next(iter(spec.scenes.items()))
    if not isinstance(value, str) or not value:
        raise RecipeError(f"scenes.{kind}: got {value!r}; it must be text")
    if kind == "regex":
        try:
            re.compile(value)
        except re.error as error:
            raise RecipeError(
                f"scenes.regex: {value!r} is no regular expression: {error}"
            ) from None


def _check_set(spec: Spec, name: str, each: DataSet) -> None:
    """Checks the values of one set in the specification.

    Args:
        spec: the whole specification.
        name: the set's name.
        each: the set.

    Raises:
        RecipeError: a value isn't allowed, values contradict each other, or a row doesn't exist.
    """
    where = f"sets.{name}"
    pairs = [("primary", each.primary), *(("compare", pair) for pair in each.compare or ())]
    for key, pair in pairs:
        unknown = [row for row in pair if row not in spec.table_rows]
        if len(pair) != 2 or unknown or pair[0] == pair[1]:
            raise RecipeError(
                f"{where}.{key}: got {list(pair)}; give two different rows of: "
                f"{', '.join(spec.table_rows)}"
            )
    if each.metric not in METRICS:
        raise RecipeError(f"{where}.metric: got {each.metric!r}; allowed: {', '.join(METRICS)}")
    if each.size is not None and min(each.size) < 1:
        raise RecipeError(f"{where}.size: got {list(each.size)}; it must be [height, width]")
    _check_test_list(spec, name, each)


def _check_test_list(spec: Spec, name: str, each: DataSet) -> None:
    """Checks that neither training nor the choice of weights would read a set's test list.

    Args:
        spec: the whole specification.
        name: the set's name.
        each: the set.

    Raises:
        RecipeError: another list or an override names the test list; or `headline: true` is given
            for a set with folds or without a test list.
    """
    where = f"sets.{name}"
    if spec.headline and each.test is None:
        raise RecipeError(
            f"{where}: headline: true evaluates on the test list, and there is none; give "
            f"{where}.test, or leave headline out"
        )
    if spec.headline and each.folds is not None:
        raise RecipeError(
            f"{where}: headline: true and folds contradict each other, because each network "
            "of a fold would be evaluated on the same test list; leave one out"
        )
    # Return if the set has no test list, since there is nothing to protect.
    if each.test is None:
        return
    # Compare the test list with all lists that training and selection read.
    lists = [("train", each.train), ("val", each.val)]
    for place, fold in enumerate(each.folds or ()):
        lists += [(f"folds.{place}.{key}", path) for key, path in fold.lists.items()]
    given = [(f"{where}.{key}", path) for key, path in lists if path is not None]
    # Compare the test list also with the values of all overrides, which may set any key to a list.
    everywhere = [("set", spec.set), (f"{where}.set", each.set)]
    everywhere += [(f"rows.{row}.set", spec.rows[row].set) for row in spec.rows]
    everywhere += _fold_overrides(name, each)
    given += [(key, each.partition("=")[2]) for key, values in everywhere for each in values]
    for key, path in given:
        if Path(path) == Path(each.test):
            raise RecipeError(
                f"{key}: {path} is the test list of {name}; training and selection must not read "
                "it, so give another list"
            )


def _check_overrides(where: str, overrides: Sequence[str], weights: str) -> None:
    """Raises RecipeError for an override of what the experiment itself sets.

    Args:
        where: the place of the overrides, such as "rows.light.set".
        overrides: the overrides, as for `--set`.
        weights: the evaluated weights, "last" or "best".
    """
    controlled = _CONTROLLED | (_CONTROLLED_BY_LAST if weights == "last" else {})
    for override in overrides:
        for key in keys_of(override):
            if key in controlled:
                raise RecipeError(
                    f"{where}: {override} would be replaced; {key} comes from {controlled[key]}"
                )
