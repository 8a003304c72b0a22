"""Turns a recipe's node into the object that it names, and a section of fixed keys into its
dataclass.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType

from tiekd.config import external
from tiekd.config.schema import check_keys, check_value, converted
from tiekd.errors import RecipeError


def build(node: dict, package: str, where: str, **context):
    """Makes the object that a node names: `{name: X, **arguments}` is
    `<package>.X.build(**arguments)`.

    A dotted name is a module outside the project (tiekd/config/external.py). `context` holds what
    the program knows (channels, ranges); it is passed on where the signature asks for it. Raises
    RecipeError for an unknown name, and for arguments that are unknown, missing, of another kind
    than the signature's annotation, or belong to the program. An error of the part's own that
    begins with an argument's name, as in "sigma: got 0", gets that argument's place before it.
    """
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        names = ", ".join(_names(package))
        raise RecipeError(
            f"{where}: got {node!r}; it must be a mapping with a name, one of: {names}"
        )
    factory = find(node["name"], package, where)
    arguments = {key: value for key, value in node.items() if key != "name"}
    signature = inspect.signature(factory).parameters
    check_keys(
        arguments, [name for name in signature if name not in context], f"{where} ({node['name']})"
    )
    for key, value in arguments.items():
        check_value(value, signature[key].annotation, f"{where}.{key}")
        arguments[key] = converted(value, signature[key].annotation)
    arguments |= {key: value for key, value in context.items() if key in signature}
    missing = [n for n, p in signature.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise RecipeError(f"{where} ({node['name']}): needs {', '.join(missing)}")
    try:
        return factory(**arguments)
    except RecipeError as error:
        if str(error).partition(":")[0] in signature:
            raise RecipeError(f"{where}.{error}") from None
        raise


def find(name: str, package: str, where: str) -> Callable:
    """The `build` of module `package.name`, or of the module that a dotted name spells out."""
    if "." not in name:
        names = _names(package)
        if name not in names:
            names.sort(key=lambda n: -difflib.SequenceMatcher(None, n, name).ratio())
            raise RecipeError(
                f"{where}.name: no {name!r}; there are (nearest first): {', '.join(names)}"
            )
        return _build_of(importlib.import_module(f"{package}.{name}"), where)
    module = external.import_module(name)
    if module is None:
        raise RecipeError(
            f"{where}.name: no module {name!r} can be imported; its package belongs "
            f"{external.WHERE}"
        )
    return _build_of(module, where)


def _build_of(module: ModuleType, where: str) -> Callable:
    if not hasattr(module, "build"):
        raise RecipeError(
            f"{where}.name: module {module.__name__} has no build; end it with `build = YourClass`"
        )
    return module.build


def settings(recipe: dict, section: str, cls: type):
    """A section of fixed keys as its dataclass: unknown keys and wrong kinds refused, missing ones
    at defaults.
    """
    node = recipe.get(section, {})
    fields = cls.__dataclass_fields__
    check_keys(node, list(fields), section)
    for key, value in node.items():
        check_value(value, fields[key].type, f"{section}.{key}")
    return cls(**{key: converted(value, fields[key].type) for key, value in node.items()})


def _names(package: str) -> list[str]:
    """The modules of a package of parts, each of which ends with a `build`."""
    return [
        m.name
        for m in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not m.ispkg
    ]
