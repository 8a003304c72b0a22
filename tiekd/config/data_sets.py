"""Reads a recipe's `data` if it is a list: several data sets, from which a run trains at once.

    data:
      - {set: street, name: kitti, root: /data/kitti, weight: 2.0, augment: {crop: [352, 704]}}
      - {set: own, name: folder, images: rgb, weight: 1.0, teacher: {maps: maps}, validate: false}

An entry has the keys of `data`, and those of KEYS. The name of a data set is its `set`, by default
its `name`. Keys that apply to whole batches (SHARED) have the same value for all data sets: it is
enough if one entry gives it, and an error if two entries give different values. `single_set_recipe`
returns a recipe with one of the data sets alone, from which everything that concerns this set is
built. Not covered: building data sets, which tiekd/data/build.py does.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from tiekd.config.schema import check_value
from tiekd.errors import RecipeError, UserError

# The keys that an entry of the list may have in addition to those of a mapping `data`. An entry
# with `teacher: null` has no teacher, even if the recipe has one.
KEYS = {
    "set": str,
    "weight": float,
    "validate": bool,
    "teacher": dict | None,
    "teachers": list[dict] | None,
    "evaluation": dict,
}
# Keys of `data` that apply to whole batches. A batch has images of all data sets, so these keys
# have the same value for all of them.
SHARED = ("augment", "resize", "workers", "on_error", "max_errors", "timeout_s")
# The keys of `evaluation` that may differ between data sets.
_OF_EVALUATION = ("crop", "cap")
_TEACHERS = ("teacher", "teachers")
_NAME = re.compile(r"[A-Za-z][\w-]*")
# An option of one set. Those of SHARED are of all sets, so that no set's name belongs in them.
_OPTION = re.compile(rf"^data(?=[. ])(?!\.(?:{'|'.join(SHARED)})\b)")


class DataSet(NamedTuple):
    """One entry of a recipe's list `data`.

    Attributes:
        name: The data set's name.
        node: The entry as it is in the recipe.
        weight: The set's share of the training images, relative to the `weight` of the other sets.
            None if no entry gives one, in which case shares follow from the sets' sizes.
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
    """Returns the entries of a recipe's list `data`; an empty tuple if `data` is a mapping.

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
    """Returns the name of a data set: its key `set`, or else its key `name`.

    Args:
        node: The data set's entry in the list `data`. If its `name` is the dotted name of a module
            from outside the project, only the last part is used.
    """
    return str(node.get("set", str(node.get("name", "")).split(".")[-1]))


def shared_of(entries: list[dict]) -> dict:
    """Returns the keys that apply to all data sets of a list `data`, with their values.

    These are the keys in SHARED that at least one entry has.

    Args:
        entries: The entries of the list, each a mapping.

    Raises:
        RecipeError: Two entries have different values of such a key.
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


def single_set_recipe(recipe: Mapping, data_set: DataSet) -> dict:
    """Returns a recipe with one of a recipe's data sets alone, so that `data` is a mapping.

    If the data set's entry has a teacher or evaluation settings of its own, they replace those of
    the recipe. If the entry has `validate: false`, the section `train` of the result has it, too.

    Args:
        recipe: The recipe whose `data` is a list.
        data_set: The data set, one of those in `recipe`.
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
        # This set isn't evaluated, so drop `against: teacher`, which would need a teacher that the
        # set may not have.
        evaluation.pop("against", None)
        found["train"] = dict(recipe.get("train") or {}) | {"validate": False}
    if evaluation:
        found["evaluation"] = evaluation
    return found


def option_of_set(option: str, name: str, recipe: Mapping) -> str:
    """Converts an override of a data set's own recipe into one of the whole recipe.

    Args:
        option: The override, such as "data.val_fraction=0.2" or "teacher.flip=true".
        name: The set's name.
        recipe: The whole recipe. If its `data` is a mapping, the override is returned unchanged.

    Returns:
        The override, such as "data.street.val_fraction=0.2".
    """
    if not is_list(recipe):
        return option
    section, _, key = option.partition(".")
    has_teacher = any(each in recipe["data"][index_of(name, recipe)] for each in _TEACHERS)
    if section in _TEACHERS and has_teacher:
        return f"data.{name}.{option}"
    if section == "data" and re.split("[.=]", key)[0] not in SHARED:
        return f"data.{name}.{key}"
    return option


def replace_teachers(recipe: dict, of_sets: list[dict]) -> dict:
    """Returns a copy of a recipe with other sections `teacher` and `teachers`.

    Both the sections of the recipe and those in its data sets are replaced.

    Args:
        recipe: The recipe whose `data` is a list.
        of_sets: For each data set, a recipe that `single_set_recipe` returned, with the new
            sections. The sections of a set without its own teacher are put at the top of the result
            (those of the first such set).
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
    """Context manager that adds a data set's name to the message of a UserError in its block.

    "data.root: no folder" becomes "data.street.root: no folder"; any other message, such as that of
    a key in SHARED, is put after "data.street: ".

    Args:
        name: The data set's name, such as "street"; "" for a recipe with one data set, whose
            messages are not changed.
    """
    try:
        yield
    except UserError as error:
        if name and not str(error).startswith(f"data.{name}"):
            told, found = _OPTION.subn(f"data.{name}", str(error), count=1)
            error.args = (told if found else f"data.{name}: {error}", *error.args[1:])
        raise


def index_of(key: str | int, recipe: Mapping) -> int | None:
    """Returns the index of a data set in a recipe's list `data`; None if there is no such set.

    Args:
        key: The data set's name, or its index, as a number or text.
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
        where: The entry's place in the recipe, such as "data[0]", for the message.
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
