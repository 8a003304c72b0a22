"""Typed access to the `teacher` section of a recipe.

The section describes a network, cached depth maps, or a module outside the project (whose other
keys are passed to that module). Without the section the student learns from the ground truth. Left
out: building the teacher, which tiekd/teaching.py does.
"""

from dataclasses import dataclass
from pathlib import Path

from tiekd.config.kinds import TEACHER
from tiekd.config.schema import check_keys, check_value
from tiekd.errors import RecipeError


@dataclass(frozen=True)
class TeacherNode:
    """A recipe's `teacher` section.

    Attributes:
        node: The section as a dict; None if the recipe has none.
    """

    node: dict | None

    @classmethod
    def of(cls, recipe: dict) -> "TeacherNode":
        """Returns the `teacher` section of a recipe."""
        return cls(recipe.get("teacher"))

    @property
    def is_given(self) -> bool:
        """True if the student learns from a teacher, False if it learns from the ground truth."""
        return bool(self.node)

    @property
    def module(self) -> str | None:
        """The dotted name of a module outside the project; None for a teacher of the project."""
        return self.node["name"] if self.is_given and "name" in self.node else None

    @property
    def maps(self) -> str | None:
        """The folder of cached depth maps; None if the teacher isn't a folder of maps."""
        return self._of_ours("maps")

    @property
    def network(self) -> dict | None:
        """The section `teacher.network`; None if the teacher isn't a network."""
        return None if self.maps is not None else self._of_ours("network")

    @property
    def recipe(self) -> Path | None:
        """The recipe with which the teacher's network is trained; None if it isn't given."""
        path = self._of_ours("recipe")
        return None if path is None else Path(path)

    @property
    def checkpoint(self) -> Path | None:
        """The network's weights: a file, a checkpoint's folder or a work dir; None if not given."""
        path = self._of_ours("checkpoint")
        return None if path is None else Path(path)

    @property
    def is_the_recipes_network(self) -> bool:
        """True if the section names no teacher, so that maps are made with the recipe's network."""
        return not self.is_given or self.node.keys() <= {"flip"}

    def lending_recipe(self) -> Path | None:
        """Returns the recipe to copy the teacher's network from; None if none is needed."""
        if not self.is_given or self.module is not None:
            return None
        path, given = self.recipe, self.node.get("network", {})
        # A recipe that was saved with a run has the whole network in `teacher.network`, which is
        # used even if the file has changed. An override sets only parts of the network.
        whole = {"encoder", "decoder", "head"} <= given.keys() or (
            given and path is not None and not path.exists()
        )
        return None if whole else path

    def with_checkpoint(self, path: str | Path) -> "TeacherNode":
        """Returns a copy of the section with `path` as its `checkpoint`."""
        return TeacherNode(self.node | {"checkpoint": str(path)})

    def check(self) -> None:
        """Raises RecipeError for a key that no teacher has, and for a value of the wrong type."""
        if self.node is None:
            return
        if "name" not in self.node:
            check_keys(self.node, TEACHER, "teacher")
            for key, value in self.node.items():
                check_value(value, TEACHER[key], f"teacher.{key}")
            return
        name = self.node["name"]
        if not isinstance(name, str) or "." not in name:
            raise RecipeError(
                f"teacher.name: got {name!r}; it must be a module of yours, as "
                "my_package.my_teacher (for a network of the project: teacher.recipe)"
            )

    def _of_ours(self, key: str):
        """Returns a key's value; None if it isn't set or the teacher is outside the project."""
        return self.node.get(key) if self.is_given and self.module is None else None


def without_teacher(recipe: dict) -> dict:
    """Returns a copy of the recipe without a teacher, so that the ground truth is the target."""
    return {**recipe, "teacher": None}
