"""Says where each value of a resolved recipe comes from: the file or --set that gave it last.

The same merge as `load_recipe`'s runs over values that carry their origin, so the two can't
disagree. Cost: every file is read twice.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiekd import paths
from tiekd.config import recipe_yaml
from tiekd.config.recipe import load_recipe, merge, merged
from tiekd.config.teacher_node import TeacherNode
from tiekd.errors import RecipeError

_PROJECT = Path(__file__).parents[2]
_HERE = "\0origin"  # no YAML has such a key: the origin of a mapping that has nothing in it
_COLUMN = 60


@dataclass(frozen=True)
class _Value:
    """Equal to the same value from elsewhere, for `merge` compares names."""

    value: Any
    origin: str = field(compare=False)


def annotated(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """Returns the recipe as YAML with each value's origin behind it.

    It reads back as what `load_recipe` returns. Files are named by their paths from the project's
    folder, else from the recipe's; a list comes from one place as a whole.

    Raises:
        RecipeError: As `load_recipe` does.
    """
    recipe = load_recipe(path, overrides)  # refuses what is wrong
    path = Path(paths.expanded(str(path)))
    marked = merged(path, overrides, _mark)
    # The teacher's network comes from its own recipe's files, as `load_recipe` takes it.
    teacher = marked.get("teacher", {})
    theirs = TeacherNode(_plain(teacher)).lending_recipe()
    if theirs is not None:
        teacher["network"] = merge(merged(theirs, (), _mark)["network"], teacher.get("network", {}))
    return "".join(
        f"{line}\n" for line in _lines(_with_values(marked, recipe), path.resolve().parent, "")
    )


def with_origins(
    error: RecipeError, path: str | Path, overrides: Sequence[str] = ()
) -> RecipeError:
    """Returns an error about a recipe's values with the origin of each behind its text.

    An error that names no keys is returned as it is. A value that no file or override gave, as an
    option of the program did, has no origin.

    Args:
        error: What was wrong with the recipe.
        path: The recipe's YAML file.
        overrides: Each `key.sub=value`.
    """
    if not error.keys:
        return error
    path = Path(paths.expanded(str(path)))
    marked = merged(path, overrides, _mark)
    told = []
    for key in error.keys:
        found = marked
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, _Value):
            told.append(f"{key} is from {_named(found.origin, path.resolve().parent)}")
    return RecipeError("; ".join([str(error), *told]), error.keys)


def _mark(node, origin: str):
    if isinstance(node, dict):
        return {_HERE: origin, **{key: _mark(value, origin) for key, value in node.items()}}
    return None if node is None else _Value(node, origin)


def _with_values(marked: dict, recipe: dict) -> dict:
    """The origins with the values of the recipe, in which paths are expanded."""
    found = {_HERE: marked.get(_HERE)}
    for key, value in recipe.items():
        mark = marked[key]
        is_node = isinstance(mark, dict)
        found[key] = _with_values(mark, value) if is_node else _Value(value, mark.origin)
    return found


def _plain(node):
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key != _HERE}
    return node.value


def _lines(node: dict, folder: Path, indent: str) -> Iterator[str]:
    for key, value in node.items():
        if key == _HERE:
            continue
        name = f"{indent}{_in_one_line(key)}:"
        # A mapping with something besides its origin has its keys on lines of their own; an empty
        # one, and any other value, ends with the origin.
        if isinstance(value, dict) and len(value) > 1:
            yield name
            yield from _lines(value, folder, indent + "  ")
            continue
        plain, origin = (
            ({}, value[_HERE]) if isinstance(value, dict) else (value.value, value.origin)
        )
        yield f"{name} {_in_one_line(plain)}".ljust(_COLUMN) + f"  # {_named(origin, folder)}"


def _in_one_line(value) -> str:
    text = recipe_yaml.dump(value, default_flow_style=True, width=float("inf"))
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text


def _named(origin: str, folder: Path) -> str:
    if origin.startswith("--set "):
        return " ".join(map(str.strip, origin.splitlines()))
    file = Path(origin).resolve()
    start = next((start for start in (_PROJECT, folder) if file.is_relative_to(start)), None)
    return str(file.relative_to(start) if start else file)
