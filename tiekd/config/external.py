"""Finds the modules outside the project that a recipe names: `name: my_package.my_module`.

They are looked for where Python looks (installed, or on PYTHONPATH), then in the current folder,
then beside the recipes that were read, in that order, under every launcher alike; for a recipe that
a run saved in its work dir also beside the one that the run was started with, and in the folder
where it was. Only the folder that has the package is added to Python's path, and at its end: it
hides nothing that is installed, the package's own imports find each other later on, and data
workers inherit it. Naming a module in a recipe runs its code, as any import does; nothing else in a
recipe runs any. Left out: reading a module again when its file changes.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from tiekd.config import moved
from tiekd.errors import RecipeError
from tiekd.files import instead_of_file

WHERE = "in the current folder, beside the recipe, or in a folder on PYTHONPATH"

LAUNCH_RECORD = (
    "launch.json"  # of a run, in its work dir; tiekd/workdir/launch_record.py has all of it
)

_recipe_folders: list[Path] = []


def look_beside(recipe_path: Path) -> None:
    """Makes packages beside this recipe be found from now on."""
    folder = recipe_path.resolve().parent
    if folder not in _recipe_folders:
        _recipe_folders.append(folder)


def import_module(name: str) -> ModuleType | None:
    """Returns the module; None where there is none.

    What goes wrong inside it, a missing import of its own too, is raised.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    module = _imported(name)
    if module is None:
        for folder in _folders():
            # A folder without the package stays off the path, where its files could hide others.
            if str(folder) not in sys.path and _has(folder, name):
                sys.path.append(str(folder))
                importlib.invalidate_caches()
                return _imported(name)
    return module


def source_of(name: str) -> Path | None:
    """The file that importing the module would run, None where there is none; it isn't run."""
    parts = name.split(".")
    for folder in (*map(Path, sys.path), *_folders()):
        place = folder.joinpath(*parts)
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _folders() -> Iterator[Path]:
    yield Path.cwd()
    for folder in _recipe_folders:
        yield folder
        yield from _of_run(folder)


def _of_run(work_dir: Path) -> tuple[Path, ...]:
    """Returns the folder of the recipe that a run was launched with, and the current folder then.

    Empty if the work dir has no readable launch record.
    """
    if instead_of_file(work_dir / LAUNCH_RECORD):  # who resumes the run reports it
        return ()
    try:
        record = json.loads((work_dir / LAUNCH_RECORD).read_text())
        return Path(record["recipe"]).parent, Path(record["folder"])
    except (OSError, ValueError, TypeError, LookupError):  # most recipes are in no work dir
        return ()


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # A part that was written for an older tiekd imports a module that is elsewhere now.
        told = moved.advice(error)
        if told is not None:
            raise RecipeError(told) from None
        # An import that fails inside the user's own module is that module's fault and must stay
        # visible.
        if not (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and f"{name}.".startswith(f"{error.name}.")
        ):
            raise
        return None


def _has(folder: Path, name: str) -> bool:
    place = folder.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def names_in(node) -> Iterator[str]:
    """Yields the dotted names in a recipe's node.

    Building the node would import each of them as a module.
    """
    if isinstance(node, dict):
        if "." in str(node.get("name", "")):
            yield str(node["name"])
        node = list(node.values())
    for part in node if isinstance(node, list | tuple) else ():
        yield from names_in(part)
