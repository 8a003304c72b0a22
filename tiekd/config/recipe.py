"""Loads a recipe: reads its YAML, merges the files of `_base_`, and applies overrides (`--set`).

`load_recipe` returns plain dicts, lists and scalars; tiekd/config/recipe_yaml.py describes the YAML
that is allowed. Merging is deep: a later value replaces an earlier one, and `null` removes a key.
If a mapping has another `name` than the one that it changes, it replaces that one as a whole, since
the options of the old component don't apply to the new one. An override's value is plain text if
its key expects text; otherwise it is parsed like a value in a recipe. `~` is expanded in keys that
expect a path (tiekd/config/kinds.py). Left out on purpose: registries, Python in configs,
interpolation between keys.
"""

import contextlib
import difflib
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import yaml

from tiekd import paths
from tiekd.config import data_sets, external, kinds, recipe_yaml, shipped
from tiekd.config.kinds import SECTIONS
from tiekd.config.schema import check_keys, check_value
from tiekd.config.teacher_node import TeacherList, TeacherNode
from tiekd.errors import RecipeError
from tiekd.files import check_readable

_DEEPEST = 32  # the largest number of dot-separated names in an override's key, such as `a.b.c`


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict:
    """Reads a recipe, merges the files of its `_base_`, and applies overrides.

    If the recipe has a key `teacher.recipe`, which names another recipe, the network of that recipe
    is copied to `teacher.network`.

    Args:
        path: The recipe's YAML file, or the name of a recipe that comes with tiekd
            (tiekd/config/shipped.py).
        overrides: Texts `key.sub=value`, applied in this order.

    Returns:
        The recipe as one dict of nested dicts, lists and scalars. All its top-level keys are known
        sections, and `~` is expanded in values that are paths.

    Raises:
        RecipeError: A file is missing or not valid YAML, bases form a loop, a section is unknown or
            of the wrong type, or an override is malformed.
    """
    path = shipped.find(shipped.RECIPES, paths.expanded(str(path), error=RecipeError))
    external.look_beside(path)
    recipe = merge_files(path, overrides)
    _check_sections(recipe, path)
    _resolve_teacher(recipe)
    return _with_home_expanded(recipe, (), recipe)


def _untransformed(node: dict, _origin: str) -> dict:
    return node


def merge_files(
    path: Path,
    overrides: Sequence[str] = (),
    transform: Callable[[dict, str], dict] = _untransformed,
) -> dict:
    """Merges a recipe with the files of its `_base_` and with overrides, without checks.

    Unlike `load_recipe`, it copies no network from the recipe that `teacher.recipe` names.

    Args:
        path: The recipe's YAML file.
        overrides: Texts `key.sub=value`, applied in this order.
        transform: Function called with the content of each file or override, and with its name,
            i.e. the path or `--set key.sub=value`. The dict that it returns is merged in place of
            the content. `annotated` (tiekd/config/provenance.py) uses it to store where a value
            comes from.

    Returns:
        The merged recipe as one dict.
    """
    # The type that an override's key expects depends on the plain values of the recipe. If
    # `transform` has changed the values, read the files a second time without it.
    recipe = _load_with_bases(path, (), transform)
    plain = (
        recipe
        if transform is _untransformed or not overrides
        else _load_with_bases(path, (), _untransformed)
    )
    for override in overrides:
        where = f"--set {override}"
        change = _as_override_of_list(_parse_override(override, plain), plain, where)
        change = _with_absolute_paths(change, Path(), where)
        recipe = merge(recipe, transform(change, where))
        plain = recipe if transform is _untransformed else merge(plain, change)
    return recipe


def apply_overrides(recipe: dict, overrides: Sequence[str]) -> dict:
    """Returns a recipe, or a part of one, with overrides applied as `--set` applies them.

    Args:
        recipe: The merged recipe, which isn't changed.
        overrides: Texts `key.sub=value`, applied in this order.

    Raises:
        RecipeError: An override is malformed.
    """
    for override in overrides:
        change = _with_absolute_paths(
            _parse_override(override, recipe), Path(), f"--set {override}"
        )
        recipe = merge(recipe, change)
    return recipe


def merge(base: dict, change: dict) -> dict:
    """Returns a new dict: `base` updated by `change`, recursively. Neither argument is modified.

    A value of None in `change` removes the key. A mapping in `change` replaces the one in `base` as
    a whole if both have a `name` and these differ. The node `resize` has several forms that exclude
    each other, with keys such as `scale` or `short_side`. If `change` has a `resize`, the keys of
    other forms are removed from the `resize` of `base`.
    """
    # If `name` differs, the component differs, and the options of the old one don't apply to it.
    if change.get("name", base.get("name")) != base.get("name"):
        base = {}
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        # Merge two mappings key by key. Any other value, also a list, replaces the old one.
        elif isinstance(value, dict):
            old = merged.get(key)
            if key == "resize" and isinstance(old, dict):
                old = _without_other_forms(old, value)
            merged[key] = merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = deepcopy(value)
    return merged


_RESIZE_FORMS = ({"height", "width", "mode"}, {"short_side"}, {"scale"})  # the keys of each form


def _without_other_forms(old: dict, change: dict) -> dict:
    """Returns a node `resize` without the keys that can't be combined with the keys of an update.

    Args:
        old: The node before the update.
        change: The node with which it will be updated. Keys with the value None are ignored.
    """
    said = {key for key, value in change.items() if value is not None}
    known = set().union(*_RESIZE_FORMS)
    return {
        key: value
        for key, value in old.items()
        if key not in known or any({key, *(said & known)} <= form for form in _RESIZE_FORMS)
    }


def dump_recipe(recipe: dict) -> str:
    """Returns a recipe as YAML text, which `load_recipe` reads back to the same dict."""
    return recipe_yaml.dump(recipe, width=120)


def _check_sections(recipe: dict, path: Path) -> None:
    check_keys(recipe, SECTIONS, str(path))
    for section, value in recipe.items():
        check_value(value, SECTIONS[section], section)


def _load_with_bases(
    path: Path, seen: tuple[Path, ...], transform: Callable[[dict, str], dict]
) -> dict:
    resolved = path.resolve()
    if resolved in seen:
        raise RecipeError(
            f"{path}: its _base_ leads back to itself; remove one of: {', '.join(map(str, seen))}"
        )
    node = _read_yaml(path)
    bases = node.pop("_base_", None) or []
    check_value(bases, str | list[str], f"{path}: _base_")
    recipe: dict = {}
    # Merge the files of `_base_` in their order, then the file itself, so that later values replace
    # earlier ones.
    for base in [bases] if isinstance(bases, str) else bases:
        base = paths.expanded(base, f"{path}: _base_: ", RecipeError)
        base_path = shipped.find(shipped.RECIPES, base, path.parent)
        recipe = merge(recipe, _load_with_bases(base_path, (*seen, resolved), transform))
    return merge(recipe, transform(_with_absolute_paths(node, path.parent, str(path)), str(path)))


def _with_absolute_paths(change: dict, folder: Path, where: str) -> dict:
    """Returns the content of a recipe's file or override with `teacher.recipe` made absolute.

    The `recipe` of each entry of several teachers is made absolute, too. A new `teacher.recipe`
    selects another teacher, so the result sets `name`, `network` and `checkpoint` of `teacher` to
    None, unless `change` sets them: in the merge, None removes the values of a base. For a teacher
    with a `name`, the key `recipe` belongs to its module and is not changed.

    Args:
        change: The content of the file or override, as a nested dict.
        folder: The folder from which a relative `teacher.recipe` starts.
        where: The name of the file or override, for errors.
    """
    if data_sets.is_list(change):
        change = change | {
            "data": _sets_with_absolute_paths(change["data"], folder, f"{where}: data")
        }
    teacher = change.get("teacher")
    # A list `teachers` replaces the list of a base as a whole in the merge, so no key has to be set
    # to None for it.
    if "teachers" in change:
        several = _list_with_absolute_paths(change["teachers"], folder, f"{where}: teachers")
        change = change | {"teachers": several}
    if isinstance(teacher, dict) and "teachers" in teacher:
        several = _list_with_absolute_paths(
            teacher["teachers"], folder, f"{where}: teacher.teachers"
        )
        return change | {"teacher": teacher | {"teachers": several}}
    absolute = _teacher_with_absolute_path(teacher, folder, f"{where}: teacher")
    if absolute is teacher:
        return change
    return change | {"teacher": {"name": None, "network": None, "checkpoint": None} | absolute}


def _as_override_of_list(change: dict, recipe: dict, where: str) -> dict:
    """Converts an override of keys inside a list `data` to an override of the whole list.

    The keys `data.0.root` and `data.street.root` set a value of one data set, `data.workers` sets
    one of all data sets.

    Args:
        change: The override as a nested dict, such as `{"data": {"street": {"root": ...}}}`.
        recipe: The merged recipe without this override.
        where: The name of the override, for errors.

    Returns:
        `change` with the whole changed list as its `data`. `change` itself if it sets no key inside
        a list `data`.

    Raises:
        RecipeError: There is no such data set, or the key names no data set although it doesn't
            apply to all of them.
    """
    keys = change.get("data")
    is_whole = where.startswith("--set data=")
    if is_whole or not data_sets.is_list(recipe) or not isinstance(keys, dict):
        return change
    for index, node in enumerate(recipe["data"]):
        data_sets.check_entry(node, f"data[{index}]")
    entries = [dict(node) for node in recipe["data"]]
    for key, value in keys.items():
        index = data_sets.index_of(key, recipe)
        if key in data_sets.SHARED:
            # Keep the value of a key that applies to all data sets only in the first entry, so that
            # no other entry contradicts it.
            old = [node.pop(key) for node in entries if key in node]
            entries[0] |= merge({key: old[0]} if old else {}, {key: value})
        elif index is None:
            names = ", ".join(map(data_sets.name_of, entries))
            raise RecipeError(
                f"{where}: data is a list of sets: {names}; give data.SET.KEY=VALUE with the name "
                f"or number of a set, or one of {', '.join(data_sets.SHARED)}, which are of all"
            )
        elif value is None:
            # Another entry takes over the keys of all data sets that only this entry gives.
            removed = entries.pop(index)
            given = {shared for node in entries for shared in node}
            taken = {k: removed[k] for k in data_sets.SHARED if k in removed and k not in given}
            if entries:
                entries[0] |= taken
        else:
            check_value(value, dict, where)
            entries[index] = _changed_set(
                entries[index], _with_absolute_paths(value, Path(), where)
            )
    return change | {"data": entries}


def _changed_set(node: dict, change: dict) -> dict:
    """Returns an entry of a list `data`, updated with the values of an override.

    Args:
        node: The entry.
        change: The new values. None removes a key, except that `teacher: None` is stored: it means
            that the data set has no teacher, even if the recipe has one.
    """
    kept = node
    if change.get("name", node["name"]) != node["name"]:
        # The override selects another type of data set. Drop the options of the old type, and keep
        # the keys that every data set may have.
        of_any = (*data_sets.KEYS, *data_sets.SHARED)
        kept = {key: value for key, value in node.items() if key in of_any}
        kept["name"] = change["name"]
    changed = merge(kept, change)
    return changed | {"teacher": None} if change.get("teacher", node) is None else changed


def _sets_with_absolute_paths(entries: list, folder: Path, where: str) -> list:
    """Returns the entries of a list `data` with absolute paths in the `recipe` of their teachers.

    Args:
        entries: The entries, which aren't checked yet.
        folder: The folder from which a relative `recipe` starts.
        where: The list's place in the recipe, for errors.
    """
    found = []
    for index, node in enumerate(entries):
        if isinstance(node, dict) and any(key in node for key in ("teacher", "teachers")):
            keys = {key: node[key] for key in ("teacher", "teachers") if key in node}
            theirs = _with_absolute_paths(keys, folder, f"{where}[{index}]")
            node = node | {key: theirs[key] for key in keys}
            # Drop the None values that `_with_absolute_paths` added to remove values of a base: a
            # list `data` replaces that of a base as a whole, so there is nothing to remove.
            if isinstance(node.get("teacher"), dict):
                given = keys["teacher"]
                kept = {k: v for k, v in node["teacher"].items() if v is not None or k in given}
                node["teacher"] = kept
        found.append(node)
    return found


def _list_with_absolute_paths(several: object, folder: Path, where: str) -> object:
    if not isinstance(several, list):
        return several
    return [
        _teacher_with_absolute_path(each, folder, f"{where}[{i}]") for i, each in enumerate(several)
    ]


def _teacher_with_absolute_path(teacher: object, folder: Path, where: str) -> object:
    """Returns a teacher's section with its `recipe` made absolute.

    Args:
        teacher: The section, or any other value that a recipe has in its place.
        folder: The folder from which a relative `recipe` starts.
        where: The section's place in the recipe, for errors.

    Returns:
        A copy; `teacher` itself if there is nothing to change.
    """
    is_ours = isinstance(teacher, dict) and teacher.get("name") is None
    if not is_ours or teacher.get("recipe") is None:
        return teacher
    check_value(teacher["recipe"], str, f"{where}.recipe")
    recipe = paths.expanded(teacher["recipe"], f"{where}.recipe: ", RecipeError)
    return teacher | {"recipe": str(shipped.find(shipped.RECIPES, recipe, folder).resolve())}


def _read_yaml(path: Path) -> dict:
    # Skip the check for a folder: the error below lists the recipes in the folder.
    if not path.is_dir():
        check_readable(path, "recipe", RecipeError)
    try:
        node = recipe_yaml.load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        there = {p.name for p in path.parent.glob("*.yaml")} | shipped.names(shipped.RECIPES).keys()
        near = difflib.get_close_matches(path.name, sorted(there), n=3, cutoff=0.3)
        raise RecipeError(f"{path}: no such recipe; near it: {', '.join(near) or 'none'}") from None
    except IsADirectoryError:
        files = ", ".join(sorted(map(str, path.glob("*.yaml")))[:3]) or "it has none"
        told = f"{path}: can't be read as a recipe, it is a folder; give a YAML file: {files}"
        raise RecipeError(told) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: can't be read as a recipe ({error}); give a YAML file"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: not YAML that is allowed: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(node, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of sections ({', '.join(SECTIONS)}), not {node!r:.60}"
        )
    return node


def _parse_override(override: str, recipe: dict) -> dict:
    """Parses an override `key.sub=value` to a nested dict `{key: {sub: value}}`.

    If the key expects text, the value is the text as typed. Otherwise a number, true, false, a
    [list], a {mapping} and 'text in quotes' are read as in a recipe, and any other value is taken
    as text. `null` becomes None, which removes the key.

    Args:
        override: The override as typed.
        recipe: The merged recipe without this override. The type that a key expects depends on the
            components that it names.

    Raises:
        RecipeError: The override is not of this form, or its value is not YAML.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > _DEEPEST:
        raise RecipeError(
            f"--set {override}: must be key.sub=value, for example --set data.workers=2"
        )
    if not text:
        raise RecipeError(f"--set {override}: has no value; give one, or null to remove {key}")
    if parts[:2] == ["teacher", "network"]:
        recipe = _with_teachers_network(recipe)
    # Parse the value according to the type that the key expects.
    kind = kinds.kind_of(parts, recipe)
    try:
        node = text if kinds.is_text(kind) else recipe_yaml.value(text, kinds.are_texts(kind))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"--set {override}: value is not YAML: {' '.join(str(error).split())}"
        ) from None
    if text == "null":
        node = None
    # Build the nested dict from the inside: `a.b=1` is {a: {b: 1}}.
    for part in reversed(parts):
        node = {part: node}
    return node


def is_overridden(key: Sequence[str], recipe: dict, overrides: Sequence[str]) -> bool:
    """Returns True if one of the overrides sets the given key of the recipe.

    The override may set the key itself, a key inside its mapping, or a mapping that contains it. Of
    a list `data`, it may also set the key of one data set, as in `data.street.resize`.

    Args:
        key: The keys that lead to the value, outermost first, such as `("data", "resize")`.
        recipe: The recipe to which the overrides were applied.
        overrides: Texts `key.sub=value`.
    """
    nodes = [_parse_override(override, recipe) for override in overrides]
    return any(_has_key(each, key) for node in nodes for each in [node, *_of_sets(node, recipe)])


def _of_sets(change: dict, recipe: dict) -> list[dict]:
    """Returns what an override changes in the single sets of a list `data`.

    Args:
        change: The override as a nested dict, such as `{"data": {"street": {"root": ...}}}`.
        recipe: The recipe to which it was applied.

    Returns:
        A dict such as `{"data": {"root": ...}}` for each set that is changed; empty if the recipe's
        `data` is a mapping.
    """
    data = change.get("data") if data_sets.is_list(recipe) else None
    if isinstance(data, dict):
        data = [node for key, node in data.items() if data_sets.index_of(key, recipe) is not None]
    return [{"data": node} for node in data or ()]


def _has_key(node: object, key: Sequence[str]) -> bool:
    """Returns True if a nested dict has a value, or null, at the given keys."""
    for part in key:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _with_home_expanded(node, key: tuple, recipe: dict):
    """Returns a node of the recipe with a leading `~` expanded in all values that are paths.

    Args:
        node: A mapping, list or value of the recipe.
        key: The node's place in the recipe: a tuple of the keys, and of the positions in lists,
            that lead to it; () for the whole recipe.
        recipe: The whole recipe. The type that a key expects depends on the components that the
            recipe names.
    """
    if isinstance(node, dict):
        return {
            name: _with_home_expanded(value, (*key, name), recipe) for name, value in node.items()
        }
    if isinstance(node, list):
        return [
            _with_home_expanded(value, (*key, index), recipe) for index, value in enumerate(node)
        ]
    if isinstance(node, str) and node.startswith("~") and kinds.is_path(kinds.kind_of(key, recipe)):
        return paths.expanded(node, ".".join(map(str, key)) + ": ", RecipeError)
    return node


def _with_teachers_network(recipe: dict) -> dict:
    """Returns a recipe with the network of the recipe that `teacher.recipe` names.

    The network is the value of `teacher.network` in the result. If `teacher.recipe` isn't set or
    can't be read, `recipe` is returned unchanged.
    """
    teacher, network = recipe.get("teacher"), None
    # Ignore errors here: another override may still correct the mistake. _resolve_teacher raises
    # them after all overrides are applied.
    reported_later = (RecipeError, LookupError, TypeError, AttributeError)
    with contextlib.suppress(*reported_later):
        path = TeacherNode(teacher).network_recipe()
        network = path and merge(merge_files(path)["network"], teacher.get("network", {}))
    return recipe | {"teacher": teacher | {"network": network}} if network else recipe


def _resolve_teacher(recipe: dict) -> None:
    """Copies the network of the recipe that `teacher.recipe` names to `teacher.network`, in place.

    So the recipe that is saved with a run needs no other file. The networks of several teachers are
    copied likewise. If the key isn't set, nothing is done.

    Args:
        recipe: The merged recipe; changed in place.

    Raises:
        RecipeError: The section `teacher` is wrong, or the recipe that it names has no network.
    """
    for data_set in data_sets.sets_of(recipe):
        # Copy the network into the teacher sections of this data set's entry only. `own` has the
        # same dicts as the entry, so the recipe is changed in place.
        own = {key: data_set.node[key] for key in ("teacher", "teachers") if key in data_set.node}
        with data_sets.errors_of_set(data_set.name):
            _resolve_teacher(own)
    teachers = TeacherList.of(recipe)
    teachers.check()
    for teacher in teachers.nodes:
        path = teacher.network_recipe()
        if path is None:
            continue
        external.look_beside(path)
        theirs = merge_files(path)
        _check_sections(theirs, path)
        if "network" not in theirs:
            raise RecipeError(
                f"{teacher.where}.recipe: {path} describes no network; give the recipe that trains "
                "the teacher"
            )
        teacher.node["network"] = merge(theirs["network"], teacher.node.get("network", {}))


def work_dir_of(recipe_path: str | Path) -> Path:
    """Returns the default folder of a recipe's runs, `work_dirs/NAME` for the file `NAME.yaml`.

    Args:
        recipe_path: The recipe's YAML file.
    """
    return Path("work_dirs") / Path(recipe_path).stem
