"""Builds objects from a recipe: the component that a node names, or the dataclass of a section.

A node is a mapping in a recipe. A node with a key `name` describes a component, such as an encoder
or a loss term.
"""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection
from types import ModuleType

from tiekd.config import external
from tiekd.config.schema import check_keys, check_value, converted
from tiekd.errors import RecipeError


def build(node: dict, package: str, where: str, **context):
    """Builds the component that a recipe's node names.

    The node `{name: X, **arguments}` becomes `<package>.X.build(**arguments)`. A dotted name is a
    module outside the project (tiekd/config/external.py). If `build` has a parameter `options` that
    is annotated with a dataclass, the fields of that class are keys of the node (`parameters_of`).
    If `build` raises a RecipeError whose text begins with an argument's name, as in "sigma: got 0",
    the argument's place in the recipe is put before the text.

    Args:
        node: A mapping with a key `name`.
        package: The dotted name of the package with the components of this kind, such as
            `tiekd.models.encoders`.
        where: The node's place in the recipe, for errors, such as `network.encoder`.
        context: Values that the program gives and no recipe may set, such as the number of
            channels. Each is passed on if `build` has a parameter of that name.

    Returns:
        The object that `build` returned.

    Raises:
        RecipeError: The name is unknown; or an argument is unknown, missing, not of the annotated
            type, or is one of `context`.
    """
    factory, arguments = _prepared(node, package, where, context)
    # Add the program's own values last: a recipe can't override them.
    parameters = parameters_of(factory)
    arguments |= {key: value for key, value in context.items() if key in parameters}
    # If `build` refuses an argument, put the argument's place in the recipe in front of the
    # message.
    try:
        return _call(factory, arguments)
    except RecipeError as error:
        if str(error).partition(":")[0] in parameters:
            raise RecipeError(f"{where}.{error}") from None
        raise


def check(node: dict, package: str, where: str, context: Collection[str] = ()) -> None:
    """Checks the arguments of a component as `build` does, without building it.

    If the component's `build` has a parameter `options`, the dataclass is made, which checks its
    values.

    Args:
        node: A mapping with a key `name`; all other keys are arguments of the component.
        package: The dotted name of the package with the components of this kind.
        where: The node's place in the recipe, for errors, such as `network.encoder`.
        context: The names of the arguments that the program gives and a recipe may not set.

    Raises:
        UserError: The name is unknown, or an argument is unknown, missing or not allowed.
    """
    factory, arguments = _prepared(node, package, where, context)
    options = inspect.signature(factory).parameters.get("options")
    if options is not None and _is_options(options):
        of_options = {field.name for field in _fields_of(options.annotation)}
        options.annotation(**{key: arguments[key] for key in arguments.keys() & of_options})


def _prepared(
    node: dict, package: str, where: str, context: Collection[str]
) -> tuple[Callable, dict]:
    """Checks a node's arguments against the signature of its component's `build`.

    Args:
        node: A mapping with a key `name`; all other keys are arguments of the component.
        package: The dotted name of the package with the components of this kind.
        where: The node's place in the recipe, for errors, such as `network.encoder`.
        context: The names of the arguments that the program gives and a recipe may not set.

    Returns:
        1. The component's function or class `build`.
        2. The node's arguments by name, with text converted to paths where `build` expects paths.

    Raises:
        RecipeError: The name is unknown; or an argument is unknown, missing, of the wrong type, or
            in `context`.
    """
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        names = ", ".join(_names(package))
        raise RecipeError(
            f"{where}: got {node!r}; it must be a mapping with a name, one of: {names}"
        )
    factory = find(node["name"], package, where)
    arguments = {key: value for key, value in node.items() if key != "name"}
    parameters = parameters_of(factory)
    check_keys(
        arguments, [name for name in parameters if name not in context], f"{where} ({node['name']})"
    )
    for key, value in arguments.items():
        check_value(value, parameters[key].annotation, f"{where}.{key}")
        arguments[key] = converted(value, parameters[key].annotation)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments and name not in context
    ]
    if missing:
        raise RecipeError(f"{where} ({node['name']}): needs {', '.join(missing)}")
    return factory, arguments


def parameters_of(factory: Callable) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a component's `build` that a recipe or the program can give.

    The result is a dict from the name of each parameter in its signature to the
    `inspect.Parameter`. But a parameter `options` that is annotated with a dataclass is replaced by
    the dataclass's fields, so that a component can receive many options as one object:

        @dataclass(frozen=True)
        class BlurOptions:
            width: int
            sigma: float = 1.0

        def build(in_channels: int, options: BlurOptions): ...

    The recipe's node is then `{name: blur, width: 3}`, as for `build(in_channels, width, sigma)`.
    `*args` and `**kwargs` are left out, since they don't define names of arguments. (A class
    without its own `__init__` inherits them from nn.Module.)

    Args:
        factory: The `build` function or class.
    """
    parameters = {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in variadic:
            continue
        if not _is_options(parameter):
            parameters[name] = parameter
            continue
        for field in _fields_of(parameter.annotation):
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            parameters[field.name] = inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
                annotation=field.type,
            )
    return parameters


def _call(factory: Callable, arguments: dict):
    """Calls the `build` function of a component, and returns the object that it returns.

    If `build` has a parameter `options` that is annotated with a dataclass, the arguments that are
    fields of the dataclass are passed on as one object of it.

    Args:
        factory: The `build` function or class.
        arguments: The arguments by name, as `parameters_of` names them.
    """
    options = inspect.signature(factory).parameters.get("options")
    if options is None or not _is_options(options):
        return factory(**arguments)
    of_options = {field.name for field in _fields_of(options.annotation)}
    fields = {key: value for key, value in arguments.items() if key in of_options}
    others = {key: value for key, value in arguments.items() if key not in of_options}
    return factory(**others, options=options.annotation(**fields))


def _is_options(parameter: inspect.Parameter) -> bool:
    is_class = isinstance(parameter.annotation, type)
    return (
        parameter.name == "options" and is_class and dataclasses.is_dataclass(parameter.annotation)
    )


def _fields_of(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def find(name: str, package: str, where: str) -> Callable:
    """Imports the module of a component, and returns its attribute `build`: a function or class.

    Args:
        name: The component's name: a module in `package`, or the full dotted path of a module
            outside the project.
        package: The dotted name of the package with the components of this kind.
        where: The place in the recipe of the node that names the component, such as
            `network.encoder`, for errors.

    Raises:
        RecipeError: There is no such module, or it has no `build`.
    """
    if "." not in name:
        names = _names(package)
        if name not in names:
            # The name is probably misspelt, so list the most similar names first.
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
    """Builds a dataclass object from a section of a recipe.

    Args:
        recipe: The whole recipe. If the section, or a key in it, is missing, the fields get their
            defaults.
        section: The section's name, a top-level key of the recipe.
        cls: The dataclass, whose fields are the section's keys.

    Returns:
        The object of `cls`.

    Raises:
        RecipeError: A key is unknown, or a value has the wrong type.
    """
    node = recipe.get(section, {})
    fields = cls.__dataclass_fields__
    check_keys(node, list(fields), section)
    for key, value in node.items():
        check_value(value, fields[key].type, f"{section}.{key}")
    return cls(**{key: converted(value, fields[key].type) for key, value in node.items()})


def _names(package: str) -> list[str]:
    """Returns the names of the modules in a package, without those of its subpackages.

    Args:
        package: The package's dotted name.
    """
    return [
        m.name
        for m in pkgutil.iter_modules(importlib.import_module(package).__path__)
        if not m.ispkg
    ]
