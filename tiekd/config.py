"""Recipes: YAML with `_base_`, overrides from the command line, and `build`, which turns a node into an object.

A recipe is plain dicts, lists and scalars after `load_recipe`; nothing else in the project reads YAML. Merging is
deep: later wins, `null` removes, and a node whose `name` changes is replaced whole (the old options don't apply to it).
Left out on purpose: registries, Python in configs, interpolation between keys.
"""

import difflib
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path

import yaml

from tiekd import outside
from tiekd.annotations import check_value
from tiekd.errors import RecipeError

_MAPPINGS = "network teacher losses data optimizer schedule train evaluation checkpoint log tensorboard load".split()
SECTIONS = dict.fromkeys(_MAPPINGS, dict) | {"hooks": list[dict], "work_dir": str}


# `def build` of a part takes its arguments from a recipe's node; one that takes the node itself builds no part.
_BUILD = re.compile(r"^(build = |def build\((?!\w*node\b))", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that reads 1e-3 as a number, as YAML 1.2 does and PyYAML does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict:
    """Reads a recipe with its bases, applies `key.sub=value` overrides and resolves the teacher's recipe.

    Returns plain dicts with only known top-level sections. Raises RecipeError for a missing file, bad YAML, a loop of
    bases, an unknown section, a section of the wrong kind or a malformed override.
    """
    path = Path(path)
    outside.look_beside(path)
    recipe = merged(path, overrides)
    _check_sections(recipe, path)
    _resolve_teacher(recipe)
    return recipe


def merged(path: Path, overrides: Sequence[str] = (), mark: Callable[[dict, str], dict] = lambda node, _origin: node):
    """A recipe with its bases and overrides, unchecked, the teacher's network not yet in it.

    mark: what is made of the content of each file or override, named by the second argument, before it is merged.
    """
    recipe = _load_with_bases(path, (), mark)
    for override in overrides:
        where = f"--set {override}"
        recipe = merge(recipe, mark(_anchored(_parse_override(override), Path(), where), where))
    return recipe


def teachers_recipe(teacher: dict) -> Path | None:
    """The recipe that lends its network to a teacher node, None for a node that needs no other."""
    if "name" in teacher:
        return None
    path, given = Path(teacher["recipe"]) if "recipe" in teacher else None, teacher.get("network", {})
    # A saved recipe has the network whole, and its word counts, file or no file; an override has only parts of it.
    whole = {"encoder", "decoder", "head"} <= given.keys() or (given and path is not None and not path.is_file())
    return None if whole else path


def merge(base: dict, change: dict) -> dict:
    """`change` laid over `base`, neither modified: deep for dicts, `None` removes, another `name` replaces.

    So does another form of `resize`, whose keys exclude each other.
    """
    if change.get("name", base.get("name")) != base.get("name"):
        base = {}
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            old = merged.get(key)
            if key == "resize" and isinstance(old, dict) and not value.keys() <= old.keys():
                old = None
            merged[key] = merge(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def dump_recipe(recipe: dict) -> str:
    """The recipe as YAML that `load_recipe` reads back to the same dict."""
    return yaml.safe_dump(recipe, sort_keys=False, width=120)


def build(node: dict, package: str, where: str, **context):
    """Makes the object that a node names: `{name: X, **arguments}` is `<package>.X.build(**arguments)`.

    A dotted name is a module outside the project (tiekd/outside.py). `context` holds what the program knows (channels,
    ranges); it is passed on where the signature asks for it. Raises RecipeError for an unknown name, and for arguments
    that are unknown, missing, of another kind than the signature's annotation, or belong to the program. An error of
    the part's own that begins with an argument's name, as in "sigma: got 0", gets that argument's place before it.
    """
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        names = ", ".join(_names(package))
        raise RecipeError(f"{where}: got {node!r}; it must be a mapping with a name, one of: {names}")
    factory = find(node["name"], package, where)
    arguments = {key: value for key, value in node.items() if key != "name"}
    signature = inspect.signature(factory).parameters
    check_keys(arguments, [name for name in signature if name not in context], f"{where} ({node['name']})")
    for key, value in arguments.items():
        check_value(value, signature[key].annotation, f"{where}.{key}")
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
            raise RecipeError(f"{where}.name: no {name!r}; there are (nearest first): {', '.join(names)}")
        return importlib.import_module(f"{package}.{name}").build
    module = outside.import_module(name)
    if module is None:
        raise RecipeError(f"{where}.name: no module {name!r} can be imported; its package belongs {outside.WHERE}")
    if not hasattr(module, "build"):
        raise RecipeError(f"{where}.name: module {name} has no build; end it with `build = YourClass`")
    return module.build


def check_keys(node: dict, allowed: Iterable[str], where: str) -> None:
    """Raises RecipeError that names the first key of `node` not in `allowed`, with the nearest ones that are."""
    allowed = list(allowed)
    if not isinstance(node, dict):
        raise RecipeError(f"{where}: got {node!r}; it must be a mapping with keys from: {', '.join(allowed)}")
    for key in node:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"{where}: unknown key {key!r}; {hint}allowed: {', '.join(sorted(allowed))}")


def settings(recipe: dict, section: str, cls: type):
    """A section of fixed keys as its dataclass: unknown keys and wrong kinds refused, missing ones at defaults."""
    node = recipe.get(section, {})
    fields = cls.__dataclass_fields__
    check_keys(node, list(fields), section)
    for key, value in node.items():
        check_value(value, fields[key].type, f"{section}.{key}")
    return cls(**node)


def _names(package: str) -> list[str]:
    """The modules of a package that end with a `build`; told from their text, for importing them all takes seconds."""
    folders = importlib.import_module(package).__path__
    files = {m.name: Path(m.module_finder.path, f"{m.name}.py") for m in pkgutil.iter_modules(folders) if not m.ispkg}
    return [name for name, file in files.items() if _BUILD.search(file.read_text(encoding="utf-8"))]


def _check_sections(recipe: dict, path: Path) -> None:
    check_keys(recipe, SECTIONS, str(path))
    for section, value in recipe.items():
        check_value(value, SECTIONS[section], section)


def _load_with_bases(path: Path, seen: tuple[Path, ...], mark: Callable[[dict, str], dict]) -> dict:
    resolved = path.resolve()
    if resolved in seen:
        raise RecipeError(f"{path}: its _base_ leads back to itself; remove one of: {', '.join(map(str, seen))}")
    node = _read_yaml(path)
    bases = node.pop("_base_", None) or []
    check_value(bases, str | list[str], f"{path}: _base_")
    recipe: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        recipe = merge(recipe, _load_with_bases(path.parent / base, (*seen, resolved), mark))
    return merge(recipe, mark(_anchored(node, path.parent, str(path)), str(path)))


def _anchored(change: dict, folder: Path, where: str) -> dict:
    """The change with `teacher.recipe` as an absolute path, which takes the old teacher's network and weights away,
    or what it was if it was none of the project's; whose own `recipe` is its own affair."""
    teacher = change.get("teacher")
    if not isinstance(teacher, dict) or teacher.get("recipe") is None or teacher.get("name") is not None:
        return change
    check_value(teacher["recipe"], str, f"{where}: teacher.recipe")
    recipe = str((folder / teacher["recipe"]).resolve())
    return change | {"teacher": {"name": None, "network": None, "checkpoint": None} | teacher | {"recipe": recipe}}


def _read_yaml(path: Path) -> dict:
    try:
        node = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
        json.dumps(node, skipkeys=True, default=str)  # ValueError for an anchor that holds itself
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=3, cutoff=0.3)
        raise RecipeError(f"{path}: no such recipe; near it: {', '.join(near) or 'none'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can't be read as a recipe ({error}); give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of dates that are none and endless nesting
        raise RecipeError(f"{path}: not YAML that is allowed: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections ({', '.join(SECTIONS)}), not {node!r:.60}")
    return node


def _parse_override(override: str) -> dict:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: must be key.sub=value, for example --set data.workers=2")
    try:
        node = yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"--set {override}: value is not YAML: {' '.join(str(error).split())}") from None
    for part in reversed(parts):
        node = {part: node}
    return node


def _is_a_module(teacher: dict) -> bool:
    """Whether a teacher is a module outside the project, whose arguments its other keys are."""
    if "name" in teacher and not (isinstance(teacher["name"], str) and "." in teacher["name"]):
        raise RecipeError(
            f"teacher.name: got {teacher['name']!r}; it must be a module of yours, as my_package.my_teacher (for a "
            "network of the project: teacher.recipe)"
        )
    return "name" in teacher


def _resolve_teacher(recipe: dict) -> None:
    """Puts the network of `teacher.recipe` into the recipe, so that the saved recipe needs no other file."""
    teacher = recipe.get("teacher")
    if teacher is None or _is_a_module(teacher):
        return
    kinds = {"recipe": str, "network": dict, "checkpoint": str, "maps": str, "flip": bool, "precision": str}
    check_keys(teacher, kinds, "teacher")
    for key, value in teacher.items():
        check_value(value, kinds[key], f"teacher.{key}")
    path = teachers_recipe(teacher)
    if path is not None:
        outside.look_beside(path)
        theirs = merged(path)
        _check_sections(theirs, path)
        if "network" not in theirs:
            raise RecipeError(f"teacher.recipe: {path} describes no network; give the recipe that trains the teacher")
        teacher["network"] = merge(theirs["network"], teacher.get("network", {}))
