"""Finds and imports modules outside the project that a recipe names: `name: my_package.my_module`.

The search order is the same under every launcher:

1. Python's own path: installed packages and PYTHONPATH;
2. the current folder;
3. the folder of each recipe that was read. If that folder is the work dir of a run, the folder of
   the recipe that the run was started with, and the current folder of that start, follow.

The folder that has the package is added at the end of sys.path. There it hides no installed
package, the package's own imports work later on, and data workers inherit it. Naming a module in a
recipe runs the module's code, as any import does; nothing else in a recipe runs code. Left out:
importing a module again when its file changes.
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

# The file in a work dir that records how its run was started (tiekd/workdir/launch_record.py).
LAUNCH_RECORD = "launch.json"

_recipe_folders: list[Path] = []


def look_beside(recipe_path: Path) -> None:
    """Adds the folder of a recipe's file to the folders in which named modules are searched."""
    folder = recipe_path.resolve().parent
    if folder not in _recipe_folders:
        _recipe_folders.append(folder)


def import_module(name: str) -> ModuleType | None:
    """Imports and returns the module with a dotted name; None if there is no such module.

    An error inside the module is raised, including a failed import of another module by it.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    module = _imported(name)
    if module is None:
        for folder in _folders():
            # Add a folder to sys.path only if it has the package: files in other folders could hide
            # modules of the same name.
            if str(folder) not in sys.path and _has(folder, name):
                sys.path.append(str(folder))
                importlib.invalidate_caches()
                return _imported(name)
    return module


def source_of(name: str) -> Path | None:
    """Returns the file that importing a module would run; None if there is none.

    The module is not imported.

    Args:
        name: The module's dotted name.
    """
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
    """Returns the folder of the recipe that a run was started with, and the current folder then.

    Empty if `work_dir` has no readable launch record, for example because it is no work dir.
    """
    # A folder or a pipe with the launch record's name can't be read. Resuming the run reports it.
    if instead_of_file(work_dir / LAUNCH_RECORD):
        return ()
    try:
        record = json.loads((work_dir / LAUNCH_RECORD).read_text())
        return Path(record["recipe"]).parent, Path(record["folder"])
    except (OSError, ValueError, TypeError, LookupError):
        # The usual case: the folder is not a work dir, so it has no launch record.
        return ()


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # The module may be written for an older tiekd and import one of its modules that has moved
        # since.
        told = moved.advice(error)
        if told is not None:
            raise RecipeError(told) from None
        # If the named module exists, but another import inside it failed, raise that error instead
        # of reporting that the named module is missing.
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
    """Yields the dotted `name`s in a recipe's node: the modules that building it would import."""
    if isinstance(node, dict):
        if "." in str(node.get("name", "")):
            yield str(node["name"])
        node = list(node.values())
    for part in node if isinstance(node, list | tuple) else ():
        yield from names_in(part)
