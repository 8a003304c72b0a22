"""Shows for each value of a recipe which file or --set option it comes from.

Each value is wrapped in an object with its origin, and these are merged by the same code as in
`load_recipe`. So the origins always match the merged values. Cost: every file is read twice.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiekd import paths
from tiekd.config import recipe_yaml, shipped
from tiekd.config.recipe import load_recipe, merge, merge_files
from tiekd.config.teacher_node import TeacherNode
from tiekd.errors import RecipeError

_PROJECT = Path(__file__).parents[2]
# The key under which a mapping's own origin is stored. No key in YAML can contain a NUL.
_HERE = "\0origin"
_COLUMN = 60  # the column at which the comments with origins begin


@dataclass(frozen=True)
class _Value:
    """A recipe's value together with its origin: the file's path, or the --set option.

    Equality ignores the origin, since `merge` compares the values of two keys `name`.
    """

    value: Any
    origin: str = field(compare=False)


def annotated(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """Returns a recipe as YAML, with each value's origin as a comment at the end of its line.

    An origin is the path of a YAML file, or a `--set` option. The path is relative to the project's
    folder or to the recipe's folder, or absolute if the file is in neither. A list has one origin
    as a whole. Reading this YAML gives the same recipe as `load_recipe`.

    Args:
        path: The recipe's YAML file.
        overrides: Texts `key.sub=value`, as in `load_recipe`.

    Raises:
        RecipeError: As `load_recipe` does.
    """
    recipe = load_recipe(path, overrides)
    path = shipped.find(shipped.RECIPES, paths.expanded(str(path)))
    wrapped = merge_files(path, overrides, _wrap)
    # If the teacher is the network of another recipe (`teacher.recipe`), take its network from the
    # files of that recipe, as `load_recipe` does.
    teacher = wrapped.get("teacher", {})
    theirs = TeacherNode(_plain(teacher)).network_recipe()
    if theirs is not None:
        teacher["network"] = merge(
            merge_files(theirs, (), _wrap)["network"], teacher.get("network", {})
        )
    return "".join(
        f"{line}\n" for line in _lines(_with_values(wrapped, recipe), path.resolve().parent, "")
    )


def with_origins(
    error: RecipeError, path: str | Path, overrides: Sequence[str] = ()
) -> RecipeError:
    """Returns an error whose message also says where the recipe's values that it is about are set.

    For each value the message names the YAML file or the override that sets it. A value that comes
    from elsewhere, such as another option of the program, is not mentioned. An error without `keys`
    is returned unchanged.

    Args:
        error: The error; `error.keys` names the values in the recipe, such as `train.epochs`.
        path: The recipe's YAML file.
        overrides: Texts `key.sub=value`, as in `load_recipe`.
    """
    if not error.keys:
        return error
    path = shipped.find(shipped.RECIPES, paths.expanded(str(path)))
    wrapped = merge_files(path, overrides, _wrap)
    told = []
    for key in error.keys:
        found = wrapped
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, _Value):
            told.append(f"{key} is from {_origin_name(found.origin, path.resolve().parent)}")
    return RecipeError("; ".join([str(error), *told]), error.keys)


def _wrap(node, origin: str):
    if isinstance(node, dict):
        return {_HERE: origin, **{key: _wrap(value, origin) for key, value in node.items()}}
    return None if node is None else _Value(node, origin)


def _with_values(wrapped: dict, recipe: dict) -> dict:
    """Returns a recipe of wrapped values, with origins from one recipe and values from another.

    Args:
        wrapped: The merged recipe. Its values are `_Value` objects with their origins; `~` is not
            expanded in them.
        recipe: The same recipe as `load_recipe` returns it, with `~` expanded in paths.
    """
    found = {_HERE: wrapped.get(_HERE)}
    for key, value in recipe.items():
        own = wrapped[key]
        is_node = isinstance(own, dict)
        found[key] = _with_values(own, value) if is_node else _Value(value, own.origin)
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
        # Write a mapping that isn't empty with one line per key. Write an empty mapping, or any
        # other value, in one line that ends with the origin.
        if isinstance(value, dict) and len(value) > 1:
            yield name
            yield from _lines(value, folder, indent + "  ")
            continue
        plain, origin = (
            ({}, value[_HERE]) if isinstance(value, dict) else (value.value, value.origin)
        )
        yield f"{name} {_in_one_line(plain)}".ljust(_COLUMN) + f"  # {_origin_name(origin, folder)}"


def _in_one_line(value) -> str:
    text = recipe_yaml.dump(value, default_flow_style=True, width=float("inf"))
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text


def _origin_name(origin: str, folder: Path) -> str:
    if origin.startswith("--set "):
        return " ".join(map(str.strip, origin.splitlines()))
    file = Path(origin).resolve()
    start = next((start for start in (_PROJECT, folder) if file.is_relative_to(start)), None)
    return str(file.relative_to(start) if start else file)
