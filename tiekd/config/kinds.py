"""The type of value that each key of a recipe expects, read from source code without importing it.

The kind of a key is a type annotation: that of a parameter of a component's `build`, of a field of
its `options` (tiekd/config/build.py), or of a field of a section's dataclass.
tiekd/config/recipe.py uses kinds to read the values of `--set` and to expand `~` in paths. Parsing
takes some 5 ms per file, once; importing the file would also import torch, or run a user's module.
Not covered: constructors and `options` that are defined in another file; annotations with types
other than built-in ones and those of `typing`, `collections.abc` and `pathlib`. A kind that can't
be read is `Any`.
"""

import ast
import functools
import os
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Optional, Union, get_args, get_origin

from tiekd.config import data_sets, external

_MAPPINGS = (
    *("network", "teacher", "losses", "data", "optimizer", "schedule", "train", "evaluation"),
    *("checkpoint", "log", "tensorboard", "load"),
)
# The top-level sections of a recipe, and the type of each. Which keys `losses` and `data` have
# depends on the losses and the dataset that they name.
SECTIONS = dict.fromkeys(_MAPPINGS, dict)
SECTIONS |= {"teachers": list[dict], "hooks": list[dict], "work_dir": Path}
SECTIONS["data"] = dict | list[dict]
TEACHER = {
    "recipe": Path,
    "network": dict,
    "checkpoint": Path,
    "maps": Path,
    "flip": bool,
    "precision": str,
    "audit": str,
    "sigma": float | dict,
}
# The additional keys of a teacher that is one of several; and the keys of a teacher with `name:
# average`.
OF_SEVERAL = {"weight": float, "sigma": float | dict}
AVERAGE = {"name": str, "teachers": list[dict], "weights": str, "audit": str}
AVERAGE["sigma"] = float | dict

_TIEKD = Path(__file__).parents[1]
_NETWORK = {
    "encoder": dict,
    "neck": dict,
    "decoder": dict,
    "head": dict,
    "min_depth": float,
    "max_depth": float,
    "canonical_focal": float,
    "canonical_factors": tuple[float, float],
}
_TERM = {"weight": float, "against": str}
# For each section with fixed keys: the file with the section's dataclass, and the name of the
# dataclass.
_FIELDS = {
    ("train",): ("training/settings.py", "TrainSettings"),
    ("load",): ("training/settings.py", "LoadSettings"),
    ("evaluation",): ("evaluation/evaluate.py", "EvaluationSettings"),
    ("data",): ("data/loading/loader.py", "Loading"),
    ("data", "augment"): ("data/augment/augment.py", "Augment"),
    ("data", "resize"): ("data/resize.py", "Resize"),
}
# The keys of this project's components whose values are paths, although their annotation doesn't
# say so. (Users annotate such keys of their own components with `Path`.)
_PATHS = {
    ("data",): (
        *("root", "images", "depths", "image_folder", "train_split", "val_split", "decoded"),
        "index",
    ),
    ("network", "encoder"): ("pretrained",),
    ("load",): ("checkpoint",),
}
_HOOKS = {"log": "text_log", "tensorboard": "tensorboard", "checkpoint": "checkpoint"}
_SCALARS, _CONTAINERS = (int, float, bool, str), (list, tuple, dict)
# The names in annotations that are understood, by their spelling in source code. Any other name is
# read as Any.
_WORDS = {
    kind.__name__: kind
    for kind in (*_SCALARS, *_CONTAINERS, Path, Sequence, Collection, Iterable, Mapping)
}
_WORDS |= {
    "List": list,
    "Tuple": tuple,
    "Dict": dict,
    "Optional": Optional,
    "Union": Union,
    "None": None,
}
_WORDS |= {"PathLike": Path, "PurePath": Path}


def kind_of(key: Sequence[str | int], recipe: dict) -> Any:
    """Returns the type annotation of the value that a key of a recipe expects.

    Args:
        key: The keys that lead to the value, outermost first, such as `("data", "root")`; an int is
            an index into a list.
        recipe: The recipe. The components that it names determine which keys there are.

    Returns:
        The annotation, such as `int | None`; Any if it isn't known.
    """
    key, recipe = _translate_set_key(key, recipe)
    *path, last = key
    # For an item of a list, take the item type from the list's annotation.
    if isinstance(last, int):
        kinds = [
            get_args(kind)
            for kind in _alternatives(kind_of(path, recipe))
            if get_origin(kind) is not None
        ]
        return next((args[0] for args in kinds if args), Any)
    if path and last == "name":
        return str
    # For a key of a mapping, take the annotation from the mapping's keys. `teacher.network` has the
    # same keys as `network`, the student.
    kind = _kinds_in(tuple(path), recipe).get(last, Any)
    ours = tuple(path)
    teacher = _teacher_in(ours)
    if teacher and ours[len(teacher) : len(teacher) + 1] == ("network",):
        ours = ours[len(teacher) :]
    return Path if last in _PATHS.get(ours, ()) and (kind is Any or is_text(kind)) else kind


def _translate_set_key(key: Sequence[str | int], recipe: dict) -> tuple[Sequence[str | int], dict]:
    """Translates a key inside a list `data` to a recipe in which `data` is a mapping.

    For example `("data", "street", "root")` becomes `("data", "root")` in a recipe with the data
    set "street" alone. A key of all data sets, such as `("data", "workers")`, stays as it is.

    Args:
        key: The keys that lead to the value, outermost first. After "data", a data set's name or
            index.
        recipe: The recipe.

    Returns:
        The translated key, and the recipe to look it up in; `key` and `recipe` if the key isn't one
        in a list `data`.
    """
    if not data_sets.is_list(recipe) or len(key) < 2 or key[0] != "data":
        return key, recipe
    if key[1] in data_sets.SHARED:
        return key, recipe | {"data": {}}
    index = data_sets.index_of(key[1], recipe)
    if index is None or len(key) == 2 or not isinstance(recipe["data"][index], dict):
        return key, recipe
    node = recipe["data"][index]
    inner = tuple(key[2:])
    # A data set's entry may contain the sections `teacher`, `teachers` and `evaluation`. They have
    # the same keys as at the top of a recipe.
    if inner[0] in ("teacher", "teachers", "evaluation"):
        return inner, {**recipe, "teacher": None, "teachers": None, "data": {}, **_sections(node)}
    if inner[0] in data_sets.KEYS:
        return ("data", *inner), recipe | {"data": {}}
    return ("data", *inner), recipe | {"data": node}


def _sections(node: dict) -> dict:
    return {key: node[key] for key in ("teacher", "teachers") if key in node}


def is_text(kind: Any) -> bool:
    """Returns True if a type annotation allows only text or a path, apart from None.

    Args:
        kind: The annotation, as `kind_of` returns it.
    """
    alternatives = _alternatives(kind)
    return bool(alternatives) and all(each is str or _is_path(each) for each in alternatives)


def is_path(kind: Any) -> bool:
    """Returns True if a type annotation allows a path, possibly among other types.

    Args:
        kind: The annotation, as `kind_of` returns it.
    """
    return any(map(_is_path, _alternatives(kind)))


def are_texts(kind: Any) -> bool:
    """Returns True if a type annotation allows a list of texts, and no list of other items.

    Args:
        kind: The annotation, as `kind_of` returns it.
    """
    lists = [each for each in _alternatives(kind) if get_origin(each) is not None]
    return bool(lists) and all(
        is_text(item) for each in lists for item in get_args(each) if item is not Ellipsis
    )


def _alternatives(kind: Any) -> list:
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else [kind]
    return [part for part in parts if part not in (None, types.NoneType)]


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath | os.PathLike)


def _kinds_in(path: tuple, recipe: dict) -> dict[str, Any]:
    """Returns the type annotations of all keys that a mapping in a recipe may have.

    Args:
        path: The keys that lead to the mapping, outermost first; () for the whole recipe.
        recipe: The recipe. The components that it names determine which keys there are.

    Returns:
        The annotations by key; empty if they aren't known.
    """
    node = _node_at(path, recipe)
    # A teacher with a `name` has the arguments of its module's `build` as keys. Other teachers have
    # the keys of TEACHER, and their `network` has the keys of the student's.
    teacher = _teacher_in(path)
    if teacher:
        more = {} if teacher == ("teacher",) else OF_SEVERAL
        name = _node_at(teacher, recipe).get("name")
        if name == "average" and path == ("teacher",):
            return AVERAGE
        if name is not None:
            if path not in (teacher, (*teacher, "anchor")):
                return {}
            return (
                more
                | _parameters_of_build("teachers", node.get("name"))
                | {"audit": TEACHER["audit"]}
            )
        if path == teacher:
            return TEACHER | more
        path = path[len(teacher) :]
    match path:
        case ():
            return SECTIONS
        case ("network",):
            return _NETWORK
        case ("network", part):
            return _parameters_of_build(f"models/{part}s", node.get("name"))
        case ("losses", key):
            return _parameters_of_build("losses", node.get("name", key)) | _TERM
        case ("data",):
            own = (
                _parameters_of_build("data/datasets", node.get("name")) if node else data_sets.KEYS
            )
            return own | _parameters_in(*_FIELDS[path]) | {"augment": dict, "resize": dict}
        case ("hooks", _):
            return _parameters_of_build("training/hooks", node.get("name"))
        case (section,) if section in _HOOKS:
            return _parameters_of_build("training/hooks", _HOOKS[section])
    return _parameters_in(*_FIELDS[path]) if path in _FIELDS else {}


def _teacher_in(path: tuple) -> tuple:
    """Returns the beginning of a path that leads to a teacher; () if the path leads to none.

    It is `teacher`, or an entry of `teachers` or of `teacher.teachers`.
    """
    for several in (("teachers",), ("teacher", "teachers")):
        count = len(several)
        if path[:count] == several and len(path) > count:
            return path[: count + 1]
    return path[:1] if path[:1] == ("teacher",) else ()


def _node_at(path: tuple, recipe: dict) -> dict:
    node = recipe
    for part in path:
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _parameters_of_build(folder: str, name: Any) -> dict[str, Any]:
    """Returns the type annotations of the parameters of a component's `build`.

    Args:
        folder: The folder of the component's module, relative to tiekd/. Not used if `name` is a
            dotted name.
        name: The name of the component, or the dotted name of a module outside the project.

    Returns:
        The annotations by parameter name; empty if there is no such module.
    """
    if not isinstance(name, str) or not all(word.isidentifier() for word in name.split(".")):
        return {}
    file = external.source_of(name) if "." in name else _TIEKD / folder / f"{name}.py"
    return {} if file is None else _read(file, "build")


def _parameters_in(file: str, name: str) -> dict[str, Any]:
    return _read(_TIEKD / file, name)


@functools.cache
def _read(file: Path, name: str) -> dict[str, Any]:
    """Returns the type annotation of each argument of a function or class, without importing it.

    Args:
        file: The Python file.
        name: The name of the function or class in the file.

    Returns:
        The annotations by argument name; empty if the file can't be read or parsed, or has no
        function or class of this name.
    """
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}  # reported later, when the file is imported
    # Collect functions and classes by their names, and by the names to which they are assigned, as
    # in `build = Dpm`.
    definitions = {s.name: s for s in statements if isinstance(s, ast.FunctionDef | ast.ClassDef)}
    for s in statements:
        if isinstance(s, ast.Assign) and isinstance(s.value, ast.Name):
            definitions |= {
                target.id: definitions.get(s.value.id)
                for target in s.targets
                if isinstance(target, ast.Name)
            }
    return _parameters_of(definitions.get(name), definitions)


def _parameters_of(found: ast.stmt | None, definitions: dict) -> dict[str, Any]:
    if isinstance(found, ast.FunctionDef):
        kinds = {}
        for a in [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]:
            options = _options_class(a, definitions)
            if options is not None:
                # The fields of an `options` dataclass are arguments, too (tiekd/config/build.py).
                kinds |= _parameters_of(options, definitions)
            elif a.annotation is not None:
                kinds[a.arg] = _parse_annotation(a.annotation)
        return kinds
    if not isinstance(found, ast.ClassDef):
        return {}
    # A class with an `__init__` has the arguments of that. Any other class is a dataclass or
    # inherits its `__init__`: it has the arguments of its bases, and its annotated fields.
    for s in found.body:
        if isinstance(s, ast.FunctionDef) and s.name == "__init__":
            return _parameters_of(s, definitions)
    kinds = {}
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id != found.name:
            kinds |= _parameters_of(
                definitions.get(base.id),
                {name: each for name, each in definitions.items() if name != found.name},
            )
    fields = [
        s for s in found.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    ]
    return kinds | {s.target.id: _parse_annotation(s.annotation) for s in fields}


def _options_class(argument: ast.arg, definitions: dict) -> ast.ClassDef | None:
    """Returns the dataclass with which an argument named `options` is annotated.

    Args:
        argument: The argument in the syntax tree of a function.
        definitions: The functions and classes of the same file by name.

    Returns:
        The syntax tree of the dataclass; None for an argument of another name, or if the file
        doesn't define the dataclass.
    """
    found = (
        definitions.get(argument.annotation.id)
        if isinstance(argument.annotation, ast.Name)
        else None
    )
    if argument.arg != "options" or not isinstance(found, ast.ClassDef):
        return None
    # The decorator may be @dataclass, @dataclass(frozen=True) or @dataclasses.dataclass.
    decorators = [d.func if isinstance(d, ast.Call) else d for d in found.decorator_list]
    names = [d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in decorators]
    return found if "dataclass" in names else None


def _parse_annotation(node: ast.expr | None) -> Any:
    """Converts the syntax tree of a type annotation to a type.

    Args:
        node: The syntax tree.

    Returns:
        The type, such as `int | None`; Any if the annotation has a form or a name that isn't
        supported (the supported names are in _WORDS).
    """
    match node:
        case ast.Constant(value=None):
            return None
        # An annotation in quotes is parsed like one without.
        case ast.Constant(value=str(text)):
            try:
                return _parse_annotation(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return Any
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _WORDS.get(name, Any)
        # `int | None`: use Union, since `|` doesn't accept every operand, such as Any.
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            left, right = _parse_annotation(left), _parse_annotation(right)
            return Union[left, right]  # noqa: UP007 - these are values
        case ast.Subscript(
            value=ast.Name(id="Literal") | ast.Attribute(attr="Literal"), slice=inner
        ):
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return (
                str
                if all(isinstance(getattr(value, "value", None), str) for value in values)
                else Any
            )
        case ast.Subscript(value=value, slice=inner):
            # `list[int]`, `Optional[int]` and the like. An invalid annotation, such as `int[str]`,
            # is read as Any.
            base = _parse_annotation(value)
            items = tuple(map(_item_type, inner.elts if isinstance(inner, ast.Tuple) else [inner]))
            try:
                return Any if base is Any else base[items[0] if base is Optional else items]
            except TypeError:
                return Any
    return Any


def _item_type(node: ast.expr) -> Any:
    is_dots = isinstance(node, ast.Constant) and node.value is Ellipsis
    return Ellipsis if is_dots else _parse_annotation(node)
