"""Compares the overrides of a specification's folds and rows: what they set, and where they clash.

A fold's overrides are there for what must differ between folds, such as a teacher that wasn't
trained on the scenes on which the fold is evaluated. So a row mustn't replace them silently. Not
covered: the overrides that the experiment itself controls, which spec.py refuses.
"""

from collections.abc import Mapping, Sequence

import yaml

from tiekd.config import recipe_yaml
from tiekd.errors import RecipeError

# Keys that a fold sets by its own keys train and val.
_LISTS = ("data.train_split", "data.val_split")
# Keys that say which teacher it is. The merge of recipes drops some of an earlier teacher's keys if
# one of these is set.
_ANOTHER_TEACHER = ("teacher.name", "teacher.recipe", "teacher.checkpoint", "teacher.maps")


def keys_of(override: str) -> list[str]:
    """Returns the dotted keys of the values that an override sets, also inside a mapping.

    Args:
        override: the override, such as "train={seed: 3}".
    """
    key, _, text = override.partition("=")
    try:
        value = recipe_yaml.value(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        # Text that is no YAML is no mapping either; the recipe's reader reports it if it is wrong.
        value = None
    keys: list[str] = []

    def add(place: str, node: object) -> None:
        if not isinstance(node, dict):
            keys.append(place)
            return
        for name, each in node.items():
            add(f"{place}.{name}", each)

    add(key.strip(), value)
    return keys


def check_folds(where: str, folds: Sequence, rows: Mapping[str, Sequence[str]]) -> None:
    """Raises RecipeError if overrides of folds contradict those of rows, or those of other folds.

    Args:
        where: the place of the folds in the specification, such as "sets.rooms.folds".
        folds: the folds of a set (`spec.Fold`).
        rows: name of each row -> its own overrides, as for `--set`.
    """
    for place, fold in enumerate(folds):
        here = f"{where}.{place}"
        unknown = [row for row in fold.rows if row not in rows]
        if unknown:
            raise RecipeError(
                f"{here}.rows: got {unknown[0]!r}; it must be one of: {', '.join(rows)}"
            )
        for row, given in rows.items():
            of_fold = _keys(fold.overrides_of(row))
            replaced = [key for key in of_fold if key in _LISTS]
            if replaced:
                raise RecipeError(
                    f"{here}: sets {replaced[0]} for {row}, which comes from the fold's train and "
                    "val; leave it out"
                )
            # Let the fold alone decide: the row's value would be that of every fold, such as a
            # teacher that was trained on the scenes on which some of them are evaluated.
            clash = _clash(of_fold, _keys(given))
            if clash is not None:
                raise RecipeError(
                    f"rows.{row}.set: {clash} is set by {here} too, and differs between folds; "
                    f"leave it out, and give the row a value of its own in {here}.rows.{row}"
                )
            other = _other_teacher(of_fold, _keys(fold.set), _keys(given))
            if other is not None:
                raise RecipeError(
                    f"rows.{row}.set: {other} gives a teacher in place of that of {here}, and "
                    f"would be that of every fold; leave it out, and give it in {here}.rows.{row}"
                )
            # Refuse a key that only some folds set: the others would keep the recipe's value, such
            # as the teacher of another fold.
            other = set(of_fold) ^ set(_keys(folds[0].overrides_of(row)))
            if other:
                raise RecipeError(
                    f"{here}: {min(other)} of {row} is set in only one of folds 0 and {place}; set "
                    "the same keys in all folds"
                )


def _keys(overrides: Sequence[str]) -> list[str]:
    return [key for override in overrides for key in keys_of(override)]


def _clash(of_fold: Sequence[str], of_row: Sequence[str]) -> str | None:
    """Returns the first key of a row that sets a value of a fold, or a part of one; None if none.

    A key above the fold's doesn't count: `teacher=null` removes the section with the fold's
    `teacher.maps`, which a row without a teacher has no use for.

    Args:
        of_fold: the fold's dotted keys.
        of_row: the row's dotted keys.
    """
    return next(
        (key for key in of_row if any(key == own or key.startswith(f"{own}.") for own in of_fold)),
        None,
    )


def _other_teacher(
    of_fold: Sequence[str], of_all_rows: Sequence[str], of_row: Sequence[str]
) -> str | None:
    """Returns the first key of a row that sets another teacher than the fold's; None if none.

    `teacher=null` removes the fold's teacher. A teacher that the row sets beside it, by other keys
    than the fold's or as `teachers`, would be one for all folds. So would one that the row sets by
    such a key as `teacher.recipe` or `teacher.checkpoint`, if the fold sets another of these.

    Args:
        of_fold: the fold's dotted keys for this row.
        of_all_rows: those of them that the fold sets for all rows, i.e. before the row's.
        of_row: the row's dotted keys.
    """
    others: tuple[str, ...] = ()
    if "teacher" in of_row and _of_teacher(of_fold):
        others = ("teacher.", "teachers")
    elif any(key in _ANOTHER_TEACHER for key in of_all_rows):
        others = _ANOTHER_TEACHER
    return next((key for key in of_row if key.startswith(others)), None)


def _of_teacher(keys: Sequence[str]) -> bool:
    return any(key.startswith("teacher.") for key in keys)
