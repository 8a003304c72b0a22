"""Reads a recipe's `data` if it is a list: several data sets, from which a run trains at once.

    data:
      - {set: street, name: kitti, root: /data/kitti, weight: 2.0, augment: {crop: [352, 704]}}
      - {set: own, name: folder, images: rgb, weight: 1.0, teacher: {maps: maps}, validate: false}

An entry has the keys of `data`, and those of KEYS. A set is called by `set`, by default its `name`.
What applies to whole batches (SHARED) is the same for all sets: an entry may leave it out, but two
entries can't differ. `recipe_of` returns the recipe of one set by itself, from which everything
about that set is built. Left out: building data sets, which tiekd/data/build.py does.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tiekd.config.schema import check_value
from tiekd.errors import RecipeError, UserError

# Keys that an entry has beside those of `data`. A `teacher` of null is none, whatever the recipe's.
KEYS = {
    "set": str,
    "weight": float,
    "validate": bool,
    "teacher": dict | None,
    "teachers": list[dict] | None,
    "evaluation": dict,
}
# Keys of `data` that apply to batches, in which the sets are mixed.
SHARED = ("augment", "resize", "workers", "on_error", "max_errors", "timeout_s")
# Keys of `evaluation` that a set may have for itself.
_OF_EVALUATION = ("crop", "cap")
_TEACHERS = ("teacher", "teachers")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_OPTION = re.compile(r"^data(?=[. ])")


class DataSet(NamedTuple):
    """One entry of a recipe's list `data`.

    Attributes:
        name: What the set is called.
        node: The entry as the recipe has it.
        weight: Its share of the images, relative to the other sets'; None if no entry gives one,
            so that shares are as the sets' sizes.
    """

    name: str
    node: dict
    weight: float | None


def is_list(recipe: Mapping) -> bool:
    """Returns True if a recipe's `data` is a list of data sets.

    Args:
        recipe: The recipe.
    """
    return isinstance(recipe.get("data"), list)


def sets_of(recipe: Mapping) -> tuple[DataSet, ...]:
    """Returns the data sets of a recipe whose `data` is a list; an empty tuple for a mapping.

    Args:
        recipe: The recipe.

    Raises:
        RecipeError: The list is empty, or an entry is wrong or contradicts another one.
    """
    if not is_list(recipe):
        return ()
    entries = recipe["data"]
    if not entries:
        raise RecipeError(
            "data: got an empty list; give one data set or more, as [{name: folder, ...}, ...], or "
            "a mapping of one"
        )
    for place, node in enumerate(entries):
        check_entry(node, f"data[{place}]")
    names = [name_of(node) for node in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(
            f"data: got two sets of the name {twice!r}; tell them apart by the key `set`, as in "
            "{set: street, name: folder, ...}"
        )
    weighted = [name for name, node in zip(names, entries, strict=True) if "weight" in node]
    if 0 < len(weighted) < len(names):
        without = next(name for name in names if name not in weighted)
        raise RecipeError(
            f"data.{without}.weight: got none, but {weighted[0]} has one; give all sets a weight, "
            "or none, which means as many as there are images"
        )
    shared_of(entries)
    return tuple(
        DataSet(name, node, float(node["weight"]) if "weight" in node else None)
        for name, node in zip(names, entries, strict=True)
    )


def name_of(node: Mapping) -> str:
    """Returns what an entry's set is called: its `set`, or its `name`.

    Args:
        node: The entry. The name of a module from outside the project is shortened to its last
            word.
    """
    return str(node.get("set", str(node.get("name", "")).split(".")[-1]))


def shared_of(entries: list[dict]) -> dict:
    """Returns the keys of SHARED that the entries of a list `data` have.

    Args:
        entries: The entries, each a mapping.

    Raises:
        RecipeError: Two entries have another value of one key.
    """
    found, origin = {}, {}
    for node in entries:
        for key in SHARED:
            if key not in node:
                continue
            if key in found and found[key] != node[key]:
                raise RecipeError(
                    f"data.{name_of(node)}.{key}: got {node[key]!r:.80}, but {origin[key]} has "
                    f"{found[key]!r:.80}; a batch holds images of all sets, so give one value, or "
                    "leave it out in all sets but one"
                )
            found.setdefault(key, node[key])
            origin.setdefault(key, name_of(node))
    return found


def recipe_of(recipe: Mapping, data_set: DataSet) -> dict:
    """Returns the recipe of one data set by itself, with `data` as a mapping.

    Its teacher, and what it states of its evaluation, take the place of the recipe's.

    Args:
        recipe: The recipe whose `data` is a list.
        data_set: One of its sets.
    """
    node = data_set.node
    own = {key: value for key, value in node.items() if key not in KEYS}
    found = {**recipe, "data": shared_of(recipe["data"]) | own}
    if any(key in node for key in _TEACHERS):
        found = {key: value for key, value in found.items() if key not in _TEACHERS}
        found |= {key: node[key] for key in _TEACHERS if node.get(key) is not None}
    evaluation = dict(recipe.get("evaluation") or {}) | node.get("evaluation", {})
    evaluation.pop("set", None)
    if not node.get("validate", True):
        # Nothing of this set is compared with a teacher that it may not have.
        evaluation.pop("against", None)
        found["train"] = dict(recipe.get("train") or {}) | {"validate": False}
    if evaluation:
        found["evaluation"] = evaluation
    return found


def option_of_set(option: str, name: str, recipe: Mapping) -> str:
    """Returns an override of one set's own recipe as one of the whole recipe.

    Args:
        option: The override, such as "data.val_fraction=0.2" or "teacher.flip=true".
        name: The set's name.
        recipe: The recipe; if its `data` is a mapping, the override stays.
    """
    if not is_list(recipe):
        return option
    section, _, key = option.partition(".")
    has_teacher = any(each in recipe["data"][place_of(name, recipe)] for each in _TEACHERS)
    if section in _TEACHERS and has_teacher:
        return f"data.{name}.{option}"
    if section == "data" and re.split("[.=]", key)[0] not in SHARED:
        return f"data.{name}.{key}"
    return option


def put_teachers(recipe: dict, of_sets: list[dict]) -> dict:
    """Returns a copy of a recipe with other values in the sections of its sets' own teachers.

    Args:
        recipe: The recipe whose `data` is a list.
        of_sets: For each set its recipe, as `recipe_of` returns it, with the new values. Those of
            the recipe's teacher are taken from the first set that learns from it.
    """
    entries, top = [], None
    for node, of_set in zip(recipe["data"], of_sets, strict=True):
        theirs = {key: of_set[key] for key in _TEACHERS if key in of_set}
        if any(key in node for key in _TEACHERS):
            node = node | theirs
        elif top is None:
            top = theirs
        entries.append(node)
    return {**recipe, **(top or {}), "data": entries}


@contextmanager
def errors_of_set(name: str) -> Iterator[None]:
    """Context manager that names a data set in the errors of its block.

    "data.root: no folder" becomes "data.street.root: no folder"; any other message gets the set's
    name before it.

    Args:
        name: What the set is called; empty for a recipe with one set, whose errors stay.
    """
    try:
        yield
    except UserError as error:
        if name and not str(error).startswith(f"data.{name}"):
            told, found = _OPTION.subn(f"data.{name}", str(error), count=1)
            error.args = (told if found else f"data.{name}: {error}", *error.args[1:])
        raise


def place_of(key: str | int, recipe: Mapping) -> int | None:
    """Returns the place in a list `data` of the set that a key names; None without such a set.

    Args:
        key: The set's name, or its number from 0, also as text.
        recipe: The recipe.
    """
    entries = recipe["data"]
    names = [name_of(node) if isinstance(node, Mapping) else None for node in entries]
    if key in names:
        return names.index(key)
    places = [str(place) for place in range(len(entries))]
    return places.index(str(key)) if str(key) in places else None


def check_entry(node: object, where: str) -> None:
    """Raises RecipeError unless an entry of a list `data` describes a data set.

    Args:
        node: The entry.
        where: Its place, for the message.
    """
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise RecipeError(
            f"{where}: got {node!r:.80}; it must be a mapping with the name of a data set, as in "
            "{name: folder, images: rgb, ...}"
        )
    for key, kind in KEYS.items():
        if key in node:
            check_value(node[key], kind, f"{where}.{key}")
    if _NAME.fullmatch(name_of(node)) is None or name_of(node) in SHARED:
        raise RecipeError(
            f"{where}.set: got {name_of(node)!r:.80}; give letters, digits, - and _, beginning "
            f"with a letter, and none of {', '.join(SHARED)}"
        )
    weight = node.get("weight", 1.0)
    if not 0 < weight < math.inf:
        raise RecipeError(
            f"{where}.weight: got {weight!r}; it must be a number above 0; leave out a set from "
            "which nothing should be learned"
        )
    if node.get("teacher") and node.get("teachers"):
        raise RecipeError(f"{where}: got both teacher and teachers; give one of them")
    for key in node.get("evaluation", {}):
        if key not in _OF_EVALUATION:
            raise RecipeError(
                f"{where}.evaluation: got {key!r}; a set has its own {' and '.join(_OF_EVALUATION)}"
                "; everything else is the recipe's evaluation"
            )
