"""Checks the values of a recipe against type annotations, so that a wrong type is a clear error.

The annotations are those of the constructor that receives the value, such as `int | None`,
`tuple[int, int]` or `Sequence[float]`. A YAML list is accepted for tuples and sequences, and a
whole number for float; true and false are never numbers. `Path` accepts text, which becomes a Path
unless the annotation also allows str. Not covered: other annotations, which accept any value, and
ranges, which the constructors check.
"""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from tiekd.errors import RecipeError

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "nothing",
}
_WORDS[Path] = _WORDS[str]


def check_value(value: Any, annotation: Any, where: str) -> None:
    """Raises RecipeError if a recipe's value doesn't fit a type annotation.

    Args:
        value: The value from the recipe.
        annotation: The type annotation, such as `tuple[int, int] | None`.
        where: The value's place in the recipe, such as `train.epochs`. The error message names this
            place, the value, and what is allowed.
    """
    if not fits(value, annotation):
        # Add a hint if the value looks like a number in quotes, or like one with `_` between
        # digits, which only Python allows.
        hint = "; write numbers without quotes" if _looks_like_a_number(value) else ""
        if hint and "_" in value:
            hint = "; write numbers without _"
        if isinstance(value, bool | int | float) and describe(annotation) == _WORDS[str]:
            hint = "; write it in quotes"
        if isinstance(value, int) and not _in_64_bits(value):
            hint = " of at most 64 bits"
        raise RecipeError(f"{where}: got {value!r:.80}; it must be {describe(annotation)}{hint}")


def fits(value: Any, annotation: Any) -> bool:
    """Returns True if a value from a recipe is of the annotated type.

    It also returns True for annotations that this module doesn't check.

    Args:
        value: The value.
        annotation: The type annotation, such as `int | None`.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if annotation in (None, types.NoneType):
        return value is None
    # Refuse a bool for a number, although bool is a subclass of int in Python.
    if annotation in (int, float):
        number = isinstance(value, (int, annotation)) and not isinstance(value, bool)
        return number and (isinstance(value, float) or _in_64_bits(value))
    if annotation is Path:
        return isinstance(value, Path) or fits(value, str)
    if annotation is str:
        return isinstance(value, str) and "\0" not in value  # no path can contain a NUL
    if annotation is bool:
        return isinstance(value, bool)
    if origin is tuple and parts[-1] is not Ellipsis:
        return _is_list(value) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin in (tuple, list, Sequence):
        return _is_list(value) and all(fits(item, parts[0]) for item in value)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def converted(value: Any, annotation: Any) -> Any:
    """Converts text to a Path if the annotation asks for a Path.

    Args:
        value: A value from a recipe.
        annotation: The type annotation of the argument that gets the value.

    Returns:
        A Path if the value is text and the annotation allows Path but not str; a list of Paths if
        the value is a list and the annotation is a list or Sequence of Path; else the value itself.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(value, str):
        alternatives = parts if origin in (Union, types.UnionType) else (annotation,)
        return Path(value) if Path in alternatives and str not in alternatives else value
    if _is_list(value) and origin in (list, Sequence) and parts[0] is Path:
        return [converted(item, Path) for item in value]
    return value


def describe(annotation: Any) -> str:
    """Returns a type annotation in words, for an error message.

    `tuple[int, int]` for example gives "a list of 2: a whole number, a whole number".
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        words = [describe(part) for part in parts if part is not types.NoneType]
        return " or ".join(dict.fromkeys(words))
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)}: {', '.join(map(describe, parts))}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {describe(parts[0])}"
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return "a mapping"
    return _WORDS.get(annotation, str(annotation))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _in_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _looks_like_a_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def check_keys(node: dict, allowed: Iterable[str], where: str) -> None:
    """Raises RecipeError if a mapping in a recipe has a key that isn't allowed, or is no mapping.

    The message names the first such key, the most similar allowed key, and all allowed keys.

    Args:
        node: The mapping.
        allowed: The allowed keys.
        where: The mapping's place in the recipe, for the message.
    """
    allowed = list(allowed)
    if not isinstance(node, dict):
        raise RecipeError(
            f"{where}: got {node!r}; it must be a mapping with keys from: {', '.join(allowed)}"
        )
    for key in node:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"{where}: unknown key {key!r}; {hint}allowed: {', '.join(sorted(allowed))}"
            )
