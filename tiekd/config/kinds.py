"""The kind of value that each key of a recipe asks for, read from source that isn't imported.

Kinds are the annotations of a part's `build` and of the fields of its `options`
(tiekd/config/build.py), or of the fields of a section's dataclass. They say where `--set` takes a
value as it is typed and where `~` means a home (tiekd/config/recipe.py), before torch, or a module
of the user's own, has any business in a program. Costs a parse of one file, some 5 ms, once. Left
out: constructors and `options` that are defined in another file, and annotations that aren't built
in, of `typing`, `collections.abc` or `pathlib`. What can't be read is `Any`.
"""

import ast
import functools
import os
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Optional, Union, get_args, get_origin

from tiekd.config import external

_MAPPINGS = (
    *("network", "teacher", "losses", "data", "optimizer", "schedule", "train", "evaluation"),
    *("checkpoint", "log", "tensorboard", "load"),
)
# `losses` and `data` are open mappings: their keys depend on the parts that they name.
SECTIONS = dict.fromkeys(_MAPPINGS, dict) | {"hooks": list[dict], "work_dir": Path}
TEACHER = {
    "recipe": Path,
    "network": dict,
    "checkpoint": Path,
    "maps": Path,
    "flip": bool,
    "precision": str,
}

_TIEKD = Path(__file__).parents[1]
_NETWORK = {
    "encoder": dict,
    "neck": dict,
    "decoder": dict,
    "head": dict,
    "min_depth": float,
    "max_depth": float,
}
_TERM = {"weight": float, "against": str}
_FIELDS = {  # the dataclass of a section, by the file that has it
    ("train",): ("training/settings.py", "TrainSettings"),
    ("load",): ("training/settings.py", "LoadSettings"),
    ("evaluation",): ("evaluation/evaluate.py", "EvaluationSettings"),
    ("data",): ("data/loading/loader.py", "Loading"),
    ("data", "augment"): ("data/augment/augment.py", "Augment"),
    ("data", "resize"): ("data/resize.py", "Resize"),
}
# Text that is a path. A part of the user's own says so by the annotation `Path`.
_PATHS = {
    ("data",): ("root", "images", "depths", "image_folder", "train_split", "val_split", "decoded"),
    ("network", "encoder"): ("pretrained",),
    ("load",): ("checkpoint",),
}
_HOOKS = {"log": "text_log", "tensorboard": "tensorboard", "checkpoint": "checkpoint"}
_SCALARS, _CONTAINERS = (int, float, bool, str), (list, tuple, dict)
# The words that an annotation may use, spelled as in source; all others are Any.
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
    """The annotation of a key, given by its parts, as `("data", "root")`; an int counts in a list.

    recipe: says which parts there are, by their names. A list's item has the kind that the list
    asks for.
    """
    *path, last = key
    # An item of a list: the list's annotation has its kind.
    if isinstance(last, int):
        kinds = [
            get_args(kind)
            for kind in _alternatives(kind_of(path, recipe))
            if get_origin(kind) is not None
        ]
        return next((args[0] for args in kinds if args), Any)
    if path and last == "name":
        return str
    # A key of a mapping. The teacher's network has the keys of a student's, and the same paths.
    kind = _kinds_in(tuple(path), recipe).get(last, Any)
    ours = tuple(path[1:] if path[:2] == ["teacher", "network"] else path)
    return Path if last in _PATHS.get(ours, ()) and (kind is Any or is_text(kind)) else kind


def is_text(kind: Any) -> bool:
    """True where nothing but text is asked for: paths count as text, null is left aside."""
    alternatives = _alternatives(kind)
    return bool(alternatives) and all(each is str or _is_path(each) for each in alternatives)


def is_path(kind: Any) -> bool:
    """True where a path is asked for, at least among others."""
    return any(map(_is_path, _alternatives(kind)))


def are_texts(kind: Any) -> bool:
    """True where a list is asked for, each item of which is text."""
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
    """By name the kinds of the keys of the node at `path`."""
    node = _node_at(path, recipe)
    # A teacher is a module of the user's own, with its arguments, or a network, as a student is.
    if path[:1] == ("teacher",):
        if "name" in _node_at(("teacher",), recipe):
            return _of_part("", node.get("name")) if path == ("teacher",) else {}
        if path == ("teacher",):
            return TEACHER
        path = path[1:]
    match path:
        case ():
            return SECTIONS
        case ("network",):
            return _NETWORK
        case ("network", part):
            return _of_part(f"models/{part}s", node.get("name"))
        case ("losses", key):
            return _of_part("losses", node.get("name", key)) | _TERM
        case ("data",):
            own = _of_part("data/datasets", node.get("name"))
            return own | _of(*_FIELDS[path]) | {"augment": dict, "resize": dict}
        case ("hooks", _):
            return _of_part("training/hooks", node.get("name"))
        case (section,) if section in _HOOKS:
            return _of_part("training/hooks", _HOOKS[section])
    return _of(*_FIELDS[path]) if path in _FIELDS else {}


def _node_at(path: tuple, recipe: dict) -> dict:
    node = recipe
    for part in path:
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _of_part(folder: str, name: Any) -> dict[str, Any]:
    """The kinds that a part's `build` asks for."""
    if not isinstance(name, str) or not all(word.isidentifier() for word in name.split(".")):
        return {}
    file = external.source_of(name) if "." in name else _TIEKD / folder / f"{name}.py"
    return {} if file is None else _read(file, "build")


def _of(file: str, name: str) -> dict[str, Any]:
    return _read(_TIEKD / file, name)


@functools.cache
def _read(file: Path, name: str) -> dict[str, Any]:
    """Returns the kinds of the arguments of a function, or a class, of the file.

    Empty where they can't be read.
    """
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}  # whoever builds it, or imports the file, says what is wrong
    # The functions and classes by name, and the other names that they get, as `build = Dpm`.
    named = {s.name: s for s in statements if isinstance(s, ast.FunctionDef | ast.ClassDef)}
    for s in statements:
        if isinstance(s, ast.Assign) and isinstance(s.value, ast.Name):
            named |= {
                target.id: named.get(s.value.id)
                for target in s.targets
                if isinstance(target, ast.Name)
            }
    return _taken_by(named.get(name), named)


def _taken_by(found: ast.stmt | None, named: dict) -> dict[str, Any]:
    if isinstance(found, ast.FunctionDef):
        kinds = {}
        for a in [*found.args.posonlyargs, *found.args.args, *found.args.kwonlyargs]:
            options = _options_class(a, named)
            if options is not None:
                # A part takes the fields of its `options` (tiekd/config/build.py).
                kinds |= _taken_by(options, named)
            elif a.annotation is not None:
                kinds[a.arg] = _kind(a.annotation)
        return kinds
    if not isinstance(found, ast.ClassDef):
        return {}
    # A class takes what its own `__init__` takes, else what its bases and its fields say: a
    # dataclass has only these.
    for s in found.body:
        if isinstance(s, ast.FunctionDef) and s.name == "__init__":
            return _taken_by(s, named)
    kinds = {}
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id != found.name:
            kinds |= _taken_by(
                named.get(base.id),
                {name: each for name, each in named.items() if name != found.name},
            )
    fields = [
        s for s in found.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    ]
    return kinds | {s.target.id: _kind(s.annotation) for s in fields}


def _options_class(argument: ast.arg, named: dict) -> ast.ClassDef | None:
    """Returns the dataclass of the same file that an argument `options` is annotated with."""
    found = named.get(argument.annotation.id) if isinstance(argument.annotation, ast.Name) else None
    if argument.arg != "options" or not isinstance(found, ast.ClassDef):
        return None
    # Of decorators as they are written: @dataclass, @dataclass(frozen=True), @dataclasses.dataclass
    decorators = [d.func if isinstance(d, ast.Call) else d for d in found.decorator_list]
    names = [d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in decorators]
    return found if "dataclass" in names else None


def _kind(node: ast.expr | None) -> Any:
    """An annotation as the object that it stands for, as far as this module knows its words."""
    match node:
        case ast.Constant(value=None):
            return None
        # An annotation in quotes is parsed as if it stood without them.
        case ast.Constant(value=str(text)):
            try:
                return _kind(ast.parse(text, mode="eval").body)
            except SyntaxError:
                return Any
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _WORDS.get(name, Any)
        # `int | None`; a Union takes more kinds of operands than `|` does.
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_kind(left), _kind(right)]  # noqa: UP007 - of values
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
            # `list[int]`, `Optional[int]` and the like; an odd one, as `int[str]`, is Any.
            base = _kind(value)
            items = tuple(map(_item, inner.elts if isinstance(inner, ast.Tuple) else [inner]))
            try:
                return Any if base is Any else base[items[0] if base is Optional else items]
            except TypeError:
                return Any
    return Any


def _item(node: ast.expr) -> Any:
    is_dots = isinstance(node, ast.Constant) and node.value is Ellipsis
    return Ellipsis if is_dots else _kind(node)
