"""Builds the object that a recipe's node names, and the dataclass of a section of fixed keys."""

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
    """Builds the object that a node names.

    `{name: X, **arguments}` is `<package>.X.build(**arguments)`. A dotted name is a module outside
    the project (tiekd/config/external.py). An error of the part's own that begins with an
    argument's name, as in "sigma: got 0", gets that argument's place before it.

    Args:
        node: A mapping with a name.
        package: Where the parts of that kind are.
        where: The node's place in the recipe, for errors.
        context: What the program knows (channels, ranges); passed on where the signature asks for
            it.

    Raises:
        RecipeError: The name is unknown; or an argument is unknown, missing, of another kind than
            its annotation, or belongs to the program.
    """
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        names = ", ".join(_names(package))
        raise RecipeError(
            f"{where}: got {node!r}; it must be a mapping with a name, one of: {names}"
        )
    # Arguments are checked against the signature: nothing is declared twice.
    factory = find(node["name"], package, where)
    arguments = {key: value for key, value in node.items() if key != "name"}
    signature = inspect.signature(factory).parameters
    check_keys(
        arguments, [name for name in signature if name not in context], f"{where} ({node['name']})"
    )
    for key, value in arguments.items():
        check_value(value, signature[key].annotation, f"{where}.{key}")
        arguments[key] = converted(value, signature[key].annotation)
    # The program's own values come last, so that no recipe can set them.
    arguments |= {key: value for key, value in context.items() if key in signature}
    missing = [n for n, p in signature.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise RecipeError(f"{where} ({node['name']}): needs {', '.join(missing)}")
    # The part's own complaint gets the place of its argument.
    try:
        return factory(**arguments)
    except RecipeError as error:
        if str(error).partition(":")[0] in signature:
            raise RecipeError(f"{where}.{error}") from None
        raise


def find(name: str, package: str, where: str) -> Callable:
    """Returns the `build` of module `package.name`, or of the module that a dotted name gives."""
    if "." not in name:
        names = _names(package)
        if name not in names:
            # A typing mistake is the likely reason, so the nearest name comes first.
            names.sort(key=lambda n: -difflib.SequenceMatcher(None, n, name).ratio())
            raise RecipeError(
                f"{where}.name: no {name!r}; there are (nearest first): {', '.join(names)}"
            )
        return _build_of(importlib.import_module(f"{package}.{name}"), name, where)
    module = external.import_module(name)
    if module is None:
        raise RecipeError(
            f"{where}.name: no module {name!r} can be imported; its package belongs "
            f"{external.WHERE}"
        )
    return _build_of(module, name, where)


def _build_of(module: ModuleType, name: str, where: str) -> Callable:
    if not hasattr(module, "build"):
        raise RecipeError(
            f"{where}.name: module {name} has no build; end it with `build = YourClass`"
        )
    return module.build


def settings(recipe: dict, section: str, cls: type):
    """Builds the dataclass of a section of fixed keys; missing ones are at their defaults.

    Raises:
        RecipeError: A key is unknown, or a value of the wrong kind.
    """
    node = recipe.get(section, {})
    fields = cls.__dataclass_fields__
    check_keys(node, list(fields), section)
    for key, value in node.items():
        check_value(value, fields[key].type, f"{section}.{key}")
    return cls(**{key: converted(value, fields[key].type) for key, value in node.items()})


def _names(package: str) -> list[str]:
    """Returns the modules of a package of parts, each of which ends with a `build`."""
    return [
        m.name
        for m in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not m.ispkg
    ]
