"""Typed access to the `teacher` section of a recipe, or to its list `teachers`.

The section describes a network, cached depth maps, or a module that `name` gives: one in
tiekd/teachers/ or one outside the project. All other keys are passed to the module's `build`.
Without the section the student learns from the ground truth. There may be several teachers: the
student learns a mixture of the entries of `teachers`, or the mean of those of `teacher: {name:
average, teachers: [...]}`. `TeacherList` contains all of them. Not covered: building teachers,
which tiekd/teaching.py does.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tiekd.config import data_sets
from tiekd.config.kinds import AVERAGE, OF_SEVERAL, TEACHER
from tiekd.config.schema import check_keys, check_value
from tiekd.errors import RecipeError, UserError

# MEAN: the value of `teacher.name` for the mean of several teachers. WEIGHTS: the allowed values of
# the mean's key `weights`.
MEAN = "average"
IN_MEAN = "teacher.teachers"  # the key with the teachers whose mean is learned
WEIGHTS = ("given", "precision")
_AUDIT = ("on", "off")
# Matches the word `teacher` at the beginning of an error message, unless the message names one of
# several teachers.
_TEACHER = re.compile(r"^teacher(?=[.: ])(?!\.teachers\[)")
_TEACHERS = Path(__file__).parents[1] / "teachers"
# The modules in tiekd/teachers/ that can't be given as `teacher.name`: they are selected by other
# keys, or used without a section `teacher`.
_WITHOUT_NAME = ("external", "ground_truth", "maps", "mixture", "network", "per_set")


def kinds() -> list[str]:
    """Returns the names of the project's teachers that a recipe can select by `teacher.name`."""
    found = {path.stem for path in _TEACHERS.glob("*.py")}
    return sorted(found - {"__init__", *_WITHOUT_NAME})


@dataclass(frozen=True)
class TeacherNode:
    """A recipe's section `teacher`, with methods that say what kind of teacher it describes.

    Attributes:
        node: The section as a dict; None if the recipe has none.
        where: The section's place in the recipe, for messages: "teacher", or that of an entry of
            several teachers, such as "teachers[1]" or "teacher.teachers[0]".
    """

    node: dict | None
    where: str = "teacher"

    @property
    def is_of_several(self) -> bool:
        """True if the section is an entry of a list of teachers, with its own weight and sigma."""
        return self.where.endswith("]")

    @property
    def weight(self) -> float:
        """The weight of the teacher among several teachers, from the key `weight`."""
        return float(self.node.get("weight", 1.0)) if self.is_of_several else 1.0

    @property
    def sigma(self) -> float | None:
        """The constant sigma of a teacher among several teachers, in metres, from the key `sigma`.

        None without the key, or if its value isn't a number. In the latter case the teacher
        interprets it.
        """
        value = self.node.get("sigma") if self.is_of_several else None
        return float(value) if _is_number(value) else None

    @property
    def is_given(self) -> bool:
        """True if the student learns from a teacher; False if it learns from the ground truth."""
        return bool(self.node)

    @property
    def name(self) -> str | None:
        """The value of `teacher.name`; None if the teacher is given by other keys.

        It is the name of a file in tiekd/teachers/, or the dotted name of a module outside the
        project. A network of the project and cached maps are given by other keys.
        """
        return self.node["name"] if self.is_given and "name" in self.node else None

    @property
    def module(self) -> str | None:
        """The dotted name of the teacher's module if that is outside the project; else None."""
        return self.name if "." in str(self.name) else None

    @property
    def kind(self) -> str | None:
        """The value of `teacher.name` if it names a file in tiekd/teachers/, else None.

        It is None for a module outside the project, a network of the project and cached maps.
        """
        return self.name if self.module is None else None

    @property
    def model_files(self) -> list[Path]:
        """The model's file, or the files in its folder, as a list of paths.

        Files in subfolders are left out. The list is empty if the section names no model, or none
        that exists on this machine.
        """
        if self.kind is None:
            return []
        named = [self.node[key] for key in ("model", "file") if key in self.node]
        if not named:
            return []
        path = Path(named[0]).expanduser()
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        return [path for path in found if path.is_file()]

    @property
    def anchor(self) -> "TeacherNode":
        """The `TeacherNode` of the metric teacher that is the anchor (`teacher.anchor`).

        A teacher whose output is depth up to an unknown scale (and shift) is fitted to the depth of
        its anchor. If there is no anchor, or the anchor is the ground truth, the result is an empty
        section: its `is_given` is False.
        """
        node = self.node.get("anchor") if self.kind is not None else None
        return TeacherNode(node if isinstance(node, dict) else None, f"{self.where}.anchor")

    @property
    def maps(self) -> str | None:
        """The folder of cached depth maps, from `teacher.maps`; None if that key isn't given."""
        return self._project_value("maps")

    @property
    def network(self) -> dict | None:
        """The section `teacher.network`; None if the teacher isn't a network."""
        return None if self.maps is not None else self._project_value("network")

    @property
    def recipe(self) -> Path | None:
        """The path of the recipe with which the teacher's network was trained, or None."""
        path = self._project_value("recipe")
        return None if path is None else Path(path)

    @property
    def checkpoint(self) -> Path | None:
        """The path of the teacher network's weights; None if it isn't given.

        It is the path of a file, of a checkpoint's folder or of a work dir.
        """
        path = self._project_value("checkpoint")
        return None if path is None else Path(path)

    @property
    def calibration(self) -> Path | None:
        """The path of the file that calibrates the teacher's sigma (`teacher.sigma.calibration`).

        None if the key isn't given.
        """
        sigma = self.node.get("sigma") if self.is_given else None
        path = sigma.get("calibration") if isinstance(sigma, dict) else None
        return Path(path).expanduser() if isinstance(path, str) else None

    @property
    def is_audited(self) -> bool:
        """True if the teacher is audited before a run (tiekd/training/teacher_audit.py)."""
        return self.is_given and self.node.get("audit", _AUDIT[0]) == _AUDIT[0]

    @property
    def own_section(self) -> dict | None:
        """The section as a dict without the keys that the teacher itself doesn't take.

        The removed keys are `audit` and, for one of several teachers, `weight` and a constant
        `sigma`. The result is None if the recipe has no teacher.
        """
        if self.node is None:
            return None
        left_out = {"audit"}
        if self.is_of_several:
            left_out |= {"weight"} if self.sigma is None else {"weight", "sigma"}
        return {key: value for key, value in self.node.items() if key not in left_out}

    @property
    def is_the_recipes_network(self) -> bool:
        """True if the section describes no teacher, or sets only `flip`, `sigma` and `audit`.

        bin/cache_teacher.py then computes maps with the recipe's own section `network`.
        """
        return not self.is_given or self.node.keys() <= {"flip", "sigma", "audit"}

    def network_recipe(self) -> Path | None:
        """Returns the path of the recipe that contains the network of the teacher.

        None if the teacher isn't a network, or `teacher.network` already describes it completely.
        """
        if not self.is_given or self.name is not None:
            return None
        path, given = self.recipe, self.node.get("network", {})
        # A recipe that was saved with a run has the whole network in `teacher.network`. That is
        # used even if the file of `teacher.recipe` has changed. An override, in contrast, sets only
        # parts of the network.
        whole = {"encoder", "decoder", "head"} <= given.keys() or (
            given and path is not None and not path.exists()
        )
        return None if whole else path

    def with_checkpoint(self, path: str | Path) -> "TeacherNode":
        """Returns a copy of the section with another value of the key `checkpoint`.

        Args:
            path: The path of the weights.
        """
        return replace(self, node=self.node | {"checkpoint": str(path)})

    def check(self) -> None:
        """Raises RecipeError if a key of the section or the type of a value isn't allowed."""
        if self.node is None:
            return
        where = self.where
        if self.node.get("audit", _AUDIT[0]) not in _AUDIT:
            raise RecipeError(
                f"{where}.audit: got {self.node['audit']!r}; allowed: {', '.join(_AUDIT)}"
            )
        if self.is_of_several:
            self._check_factors()
        if "name" not in self.node:
            keys = TEACHER | (OF_SEVERAL if self.is_of_several else {})
            check_keys(self.node, keys, where)
            for key, value in self.node.items():
                check_value(value, keys[key], f"{where}.{key}")
            return
        name, allowed = self.node["name"], kinds()
        # Refuse `name: average`, the mean of several teachers, inside a list of teachers or as an
        # anchor.
        if self.where != "teacher":
            allowed.remove(MEAN)
        if not isinstance(name, str) or ("." not in name and name not in allowed):
            # The name is probably misspelt, so list the most similar names first.
            allowed.sort(key=lambda n: -difflib.SequenceMatcher(None, n, str(name)).ratio())
            raise RecipeError(
                f"{where}.name: got {name!r}; allowed: {', '.join(allowed)}, or a module of yours, "
                "as my_package.my_teacher (for a network of the project: teacher.recipe)"
            )

    def _check_factors(self) -> None:
        """Raises RecipeError if `weight` or `sigma` of one of several teachers isn't allowed."""
        weight, sigma = self.node.get("weight", 1.0), self.node.get("sigma")
        if not _is_number(weight) or not 0 < weight < math.inf:
            raise RecipeError(
                f"{self.where}.weight: got {weight!r:.80}; it must be a number above 0; leave out "
                "a teacher that should not count"
            )
        if _is_number(sigma) and not 0 < sigma < math.inf:
            raise RecipeError(f"{self.where}.sigma: got {sigma}; it must be metres above 0")

    def _project_value(self, key: str):
        """Returns the value of a key that only a network of the project or cached maps can have.

        Args:
            key: The key, such as "maps".

        Returns:
            The value; None if it isn't set, or if the section has a key `name`.
        """
        return self.node.get(key) if self.is_given and self.name is None else None


@dataclass(frozen=True)
class TeacherList:
    """All teachers of a recipe, as a list of their sections.

    Attributes:
        nodes: The teachers' sections in the order of the recipe; empty if the student learns from
            the ground truth.
        several: The key of the recipe's list of teachers: "teachers" for a mixture,
            "teacher.teachers" for a mean; None if the recipe has one teacher or none.
        weights: For a mean, one of WEIGHTS: "given" for each teacher's `weight`, "precision" for
            weight / sigma^2.
        is_audited: False for a mean with `teacher.audit: off`, whose teachers are not audited.
        sigma: For a mean, the value of `teacher.sigma`; None if it isn't given.
    """

    nodes: tuple[TeacherNode, ...] = ()
    several: str | None = None
    weights: str = WEIGHTS[0]
    is_audited: bool = True
    sigma: float | dict | None = None

    @classmethod
    def of(cls, recipe: dict) -> "TeacherList":
        """Returns the teachers of a recipe as a `TeacherList`.

        Args:
            recipe: The recipe as a dict, whose `data` isn't read.

        Raises:
            RecipeError: There are both `teacher` and `teachers`, the section is empty, or a list of
                teachers has another form.
        """
        one, several = recipe.get("teacher"), recipe.get("teachers")
        if one == {}:
            # An override such as teacher.maps=null leaves it. Learning from the ground truth
            # instead would go unnoticed.
            raise RecipeError(
                "teacher: is empty; give maps, recipe or name, or set the whole section to null "
                "for no teacher"
            )
        if several is not None:
            if one:
                raise RecipeError(
                    "teachers: got a `teacher`, too; give one of them, and set the other to null",
                    keys=("teacher", "teachers"),
                )
            return cls(_entries(several, "teachers"), "teachers")
        if not isinstance(one, dict):
            return cls()
        if one.get("name") != MEAN:
            return cls((TeacherNode(one),))
        check_keys(one, AVERAGE, "teacher")
        weights = one.get("weights", WEIGHTS[0])
        if weights not in WEIGHTS:
            raise RecipeError(
                f"teacher.weights: got {weights!r:.80}; allowed: {', '.join(WEIGHTS)}"
            )
        whole = TeacherNode(one)
        whole.check()
        nodes = _entries(one.get("teachers"), IN_MEAN)
        return cls(nodes, IN_MEAN, weights, whole.is_audited, one.get("sigma"))

    @property
    def is_given(self) -> bool:
        """True if the student learns from a teacher; False if it learns from the ground truth."""
        return bool(self.nodes)

    @property
    def maps(self) -> dict[str, str]:
        """A dict from the recipe's keys that name folders of cached depth maps to these folders.

        The keys are `teacher.maps`, or `teachers[1].maps` and the like, in the order of the
        teachers.
        """
        return {f"{node.where}.maps": node.maps for node in self.nodes if node.maps is not None}

    @property
    def stated_sigmas(self) -> dict[str, float | dict]:
        """A dict from the recipe's keys that set the sigma that the student learns to their values.

        Sigma is the standard deviation of the error of a teacher's depth; a value is a number of
        metres or a dict. For a mean of teachers the key is `teacher.sigma`, since the sigmas of its
        teachers only weight them. The key `sigma` of a module outside the project isn't included,
        since the module interprets it.
        """
        if self.several == IN_MEAN:
            return {} if self.sigma is None else {"teacher.sigma": self.sigma}
        stated = {}
        for node in self.nodes:
            sigma = node.sigma
            if sigma is None and node.module is None:
                sigma = node.node.get("sigma")
            if sigma is not None:
                stated[f"{node.where}.sigma"] = sigma
        return stated

    def map_index_of(self, index: int) -> int:
        """Returns the index in `maps` of the folder of a teacher with cached maps.

        Args:
            index: The teacher's index in `nodes`.
        """
        return sum(node.maps is not None for node in self.nodes[:index])

    def check(self) -> None:
        """Raises RecipeError if one of the sections is wrong."""
        for node in self.nodes:
            node.check()

    def replace_in(self, recipe: dict, change: Callable[[TeacherNode], dict]) -> dict:
        """Returns a copy of a recipe in which each teacher's section is replaced.

        Args:
            recipe: The recipe from which this list was made.
            change: Function from a teacher's section to the new section, a dict.
        """
        nodes = [change(node) for node in self.nodes]
        if not nodes:
            return recipe
        if self.several is None:
            return recipe | {"teacher": nodes[0]}
        if self.several == "teachers":
            return recipe | {"teachers": nodes}
        return recipe | {"teacher": recipe["teacher"] | {"teachers": nodes}}


def has_teacher(recipe: dict) -> bool:
    """Returns True if the student learns from a teacher on at least one data set.

    Args:
        recipe: The recipe.
    """
    sets = data_sets.sets_of(recipe)
    recipes = [data_sets.single_set_recipe(recipe, each) for each in sets] or [recipe]
    return any(TeacherList.of(each).is_given for each in recipes)


def _entries(several: object, where: str) -> tuple[TeacherNode, ...]:
    """Returns the sections in a list of teachers as a tuple of `TeacherNode`.

    Args:
        several: The list's value in the recipe.
        where: The list's place in the recipe.

    Raises:
        RecipeError: The value isn't a list of sections, or it is empty.
    """
    is_list = isinstance(several, list)
    if not is_list or not several or not all(isinstance(each, dict) and each for each in several):
        raise RecipeError(
            f"{where}: got {several!r:.80}; it must be a list of one teacher or more, each as "
            "`teacher` has them: [{maps: FOLDER, weight: 1.0}, {recipe: FILE}]"
        )
    return tuple(TeacherNode(each, f"{where}[{i}]") for i, each in enumerate(several))


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Context manager that puts a teacher's place into the errors raised in its block.

    A message such as "teacher.device: got ..." then begins with the place in place of `teacher`.

    Args:
        where: The teacher's place in the recipe, such as "teachers[1]".
    """
    try:
        yield
    except UserError as error:
        error.args = (_TEACHER.sub(where, str(error)), *error.args[1:])
        raise


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def without_teacher(recipe: dict) -> dict:
    """Returns a copy of a recipe without a teacher, which trains and evaluates on ground truth."""
    found = {**{key: recipe[key] for key in recipe if key != "teachers"}, "teacher": None}
    # Each of several data sets may have a teacher of its own.
    if isinstance(recipe.get("data"), list):
        own = ("teacher", "teachers")
        found["data"] = [
            {key: value for key, value in node.items() if key not in own} for node in recipe["data"]
        ]
    # Remove `evaluation.against`, since without a teacher there is nothing to compare with.
    if "against" in (recipe.get("evaluation") or {}):
        evaluation = recipe["evaluation"].items()
        found["evaluation"] = {key: value for key, value in evaluation if key != "against"}
    return found
