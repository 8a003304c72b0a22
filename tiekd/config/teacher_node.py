"""Typed access to the `teacher` section of a recipe.

The section describes a network, cached depth maps, or what `name` says: a kind of the project (a
file in tiekd/teachers/) or a module outside the project, whose other keys are passed to its
`build`. Without the section the student learns from the ground truth. Left out: building the
teacher, which tiekd/teaching.py does.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from tiekd.config.kinds import TEACHER
from tiekd.config.schema import check_keys, check_value
from tiekd.errors import RecipeError

_AUDIT = ("on", "off")
_TEACHERS = Path(__file__).parents[1] / "teachers"
# The modules in tiekd/teachers/ that `teacher.name` can't select: other keys select them, or the
# absence of a teacher.
_WITHOUT_NAME = ("external", "ground_truth", "maps", "network")


def kinds() -> list[str]:
    """Returns the names of the project's teachers that a recipe can select by `teacher.name`."""
    found = {path.stem for path in _TEACHERS.glob("*.py")}
    return sorted(found - {"__init__", *_WITHOUT_NAME})


@dataclass(frozen=True)
class TeacherNode:
    """A recipe's section `teacher`, with methods that say what kind of teacher it describes.

    Attributes:
        node: The section as a dict; None if the recipe has none.
    """

    node: dict | None

    @classmethod
    def of(cls, recipe: dict) -> "TeacherNode":
        """Returns the section `teacher` of a recipe, also if the recipe has no such section."""
        return cls(recipe.get("teacher"))

    @property
    def is_given(self) -> bool:
        """True if the student learns from a teacher, False if it learns from the ground truth."""
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
        """The dotted name of the teacher's module outside the project; None for all others."""
        return self.name if "." in str(self.name) else None

    @property
    def kind(self) -> str | None:
        """The value of `teacher.name` if it names a file in tiekd/teachers/, else None.

        It is None for a module outside the project, a network of the project and cached maps.
        """
        return self.name if self.module is None else None

    @property
    def model_files(self) -> list[Path]:
        """The model's file, or the files of its folder; empty where a kind names none that exist.

        Subfolders are left out.
        """
        if self.kind is None:
            return []
        named = [self.node[key] for key in ("model", "file") if key in self.node]
        if not named:
            return []
        place = Path(named[0]).expanduser()
        found = sorted(place.iterdir()) if place.is_dir() else [place]
        return [path for path in found if path.is_file()]

    @property
    def anchor(self) -> "TeacherNode":
        """The section of the metric teacher that is the anchor (`teacher.anchor`).

        The relative output of this teacher is fitted to the anchor's depth. If there is no anchor,
        or it is the ground truth, the section is empty: its `is_given` is False.
        """
        node = self.node.get("anchor") if self.kind is not None else None
        return TeacherNode(node if isinstance(node, dict) else None)

    @property
    def maps(self) -> str | None:
        """The folder of cached depth maps, from `teacher.maps`; None if that key isn't given."""
        return self._of_ours("maps")

    @property
    def network(self) -> dict | None:
        """The section `teacher.network`; None if the teacher isn't a network."""
        return None if self.maps is not None else self._of_ours("network")

    @property
    def recipe(self) -> Path | None:
        """The path of the recipe with which the teacher's network was trained, or None."""
        path = self._of_ours("recipe")
        return None if path is None else Path(path)

    @property
    def checkpoint(self) -> Path | None:
        """The path of the teacher network's weights; None if it isn't given.

        It is the path of a file, of a checkpoint's folder or of a work dir.
        """
        path = self._of_ours("checkpoint")
        return None if path is None else Path(path)

    @property
    def is_audited(self) -> bool:
        """True if the teacher's depth has to be audited before training (`teacher.audit: on`)."""
        return self.is_given and self.node.get("audit", _AUDIT[0]) == _AUDIT[0]

    @property
    def part(self) -> dict | None:
        """The section as a dict without the key `audit`, which the teacher doesn't take; or None.

        None if the recipe has no teacher.
        """
        if self.node is None:
            return None
        return {key: value for key, value in self.node.items() if key != "audit"}

    @property
    def is_the_recipes_network(self) -> bool:
        """True if the section describes no teacher, or sets only `flip` and `audit`.

        bin/cache_teacher.py then computes maps with the recipe's own section `network`.
        """
        return not self.is_given or self.node.keys() <= {"flip", "audit"}

    def lending_recipe(self) -> Path | None:
        """Returns the path of the recipe from which the teacher's network has to be copied.

        None if the teacher isn't a network, or `teacher.network` already describes it completely.
        """
        if not self.is_given or self.name is not None:
            return None
        path, given = self.recipe, self.node.get("network", {})
        # A recipe that was saved with a run has the whole network in `teacher.network`, which is
        # used even if the file has changed. An override sets only parts of the network.
        whole = {"encoder", "decoder", "head"} <= given.keys() or (
            given and path is not None and not path.exists()
        )
        return None if whole else path

    def with_checkpoint(self, path: str | Path) -> "TeacherNode":
        """Returns a copy of the section with another value of the key `checkpoint`.

        Args:
            path: The path of the weights.
        """
        return TeacherNode(self.node | {"checkpoint": str(path)})

    def check(self, where: str = "teacher") -> None:
        """Raises RecipeError for a key that no teacher has, and for a value of the wrong type.

        Args:
            where: The section's place in the recipe, for messages.
        """
        if self.node is None:
            return
        if self.node.get("audit", _AUDIT[0]) not in _AUDIT:
            raise RecipeError(
                f"teacher.audit: got {self.node['audit']!r}; allowed: {', '.join(_AUDIT)}"
            )
        if "name" not in self.node:
            check_keys(self.node, TEACHER, "teacher")
            for key, value in self.node.items():
                check_value(value, TEACHER[key], f"teacher.{key}")
            return
        name, allowed = self.node["name"], kinds()
        if not isinstance(name, str) or ("." not in name and name not in allowed):
            # The name is probably misspelt, so the message lists the most similar names first.
            allowed.sort(key=lambda n: -difflib.SequenceMatcher(None, n, str(name)).ratio())
            raise RecipeError(
                f"{where}.name: got {name!r}; allowed: {', '.join(allowed)}, or a module of yours, "
                "as my_package.my_teacher (for a network of the project: teacher.recipe)"
            )

    def _of_ours(self, key: str):
        """Returns the value of a key that only a network of the project or cached maps have.

        Args:
            key: The key, such as "maps".

        Returns:
            The value; None if it isn't set, or if the section has a key `name`.
        """
        return self.node.get(key) if self.is_given and self.name is None else None


def without_teacher(recipe: dict) -> dict:
    """Returns a copy of a recipe without a teacher, for training on the ground truth."""
    return {**recipe, "teacher": None}
