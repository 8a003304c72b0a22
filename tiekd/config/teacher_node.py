"""The `teacher` section of a recipe: which kind of teacher it asks for, and what it names.

A teacher is a network, cached maps, or a module outside the project, whose other keys are its own
affair; without the section the ground truth teaches. Every package that has a question about the
section asks it here. Left out: the teacher itself, which `tiekd.teaching` builds.
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
        node: The section as the recipe has it; None where it has none.
    """

    node: dict | None

    @classmethod
    def of(cls, recipe: dict) -> "TeacherNode":
        """Returns the section of a recipe."""
        return cls(recipe.get("teacher"))

    @property
    def is_given(self) -> bool:
        """True where the student learns from a teacher, False where from the ground truth."""
        return bool(self.node)

    @property
    def module(self) -> str | None:
        """The dotted name of a module outside the project; None for a teacher of ours."""
        return self.node["name"] if self.is_given and "name" in self.node else None

    @property
    def maps(self) -> str | None:
        """The folder of cached maps, as the recipe names it; None without any."""
        return self._of_ours("maps")

    @property
    def network(self) -> dict | None:
        """The node of the network that teaches; None where something else does."""
        return None if self.maps is not None else self._of_ours("network")

    @property
    def recipe(self) -> Path | None:
        """The recipe that trains the network; None where it isn't named."""
        path = self._of_ours("recipe")
        return None if path is None else Path(path)

    @property
    def checkpoint(self) -> Path | None:
        """The network's weights: a file, a checkpoint's folder or a work dir; None if not named."""
        path = self._of_ours("checkpoint")
        return None if path is None else Path(path)

    @property
    def is_the_recipes_network(self) -> bool:
        """True where no teacher is named: the recipe's own network is the one to make maps with."""
        return not self.is_given or self.node.keys() <= {"flip"}

    def lending_recipe(self) -> Path | None:
        """Returns the recipe whose network the section needs; None if it needs no other file."""
        if not self.is_given or self.module is not None:
            return None
        path, given = self.recipe, self.node.get("network", {})
        # A saved recipe has the network whole, and its word counts, file or no file; an override
        # has only parts of it.
        whole = {"encoder", "decoder", "head"} <= given.keys() or (
            given and path is not None and not path.exists()
        )
        return None if whole else path

    def with_checkpoint(self, path: str | Path) -> "TeacherNode":
        """Returns the section with the network's weights named."""
        return TeacherNode(self.node | {"checkpoint": str(path)})

    def check(self) -> None:
        """Raises RecipeError for a key that no teacher has, and for a value of the wrong kind."""
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
        """Returns the value of a key of a teacher of ours; None where it lacks."""
        return self.node.get(key) if self.is_given and self.module is None else None


def without_teacher(recipe: dict) -> dict:
    """Returns the recipe with the ground truth as its teacher."""
    return {**recipe, "teacher": None}
