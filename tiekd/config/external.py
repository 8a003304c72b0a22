"""Finds and imports modules outside the project that a recipe names: `name: my_package.my_module`.

The search order is the same under every launcher:

1. Python's own path: installed packages and PYTHONPATH;
2. the current folder;
3. the folder of each recipe that was read. If the folder is the work dir of a run, also the folder
   of the recipe with which the run was started, and the folder that was the current one then.

The folder that has the package is added at the end of sys.path. At the end it hides no installed
package, and being in sys.path it also serves the package's own later imports and the data workers.
Naming a module in a recipe runs the module's code, as any import does; nothing else in a recipe
runs code. Not covered: importing a module again when its file changes.
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
    """Adds the folder of a recipe's file to the folders in which `import_module` searches."""
    folder = recipe_path.resolve().parent
    if folder not in _recipe_folders:
        _recipe_folders.append(folder)


def import_module(name: str) -> ModuleType | None:
    """Imports a module outside the project from one of the folders listed at the top of this file.

    Args:
        name: The module's dotted name, such as `my_package.my_module`.

    Returns:
        The module; None if there is no module of this name.

    Raises:
        RecipeError: The module imports something from a place where only older versions of tiekd
            have it.
        Exception: Any other error that the module's code raises, such as a failed import.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    module = _imported(name)
    if module is None:
        for folder in _folders():
            # Add a folder to sys.path only if it contains the package, since its other files could
            # hide modules of the same name.
            if str(folder) not in sys.path and _has(folder, name):
                sys.path.append(str(folder))
                importlib.invalidate_caches()
                return _imported(name)
    return module


def source_of(name: str) -> Path | None:
    """Returns the path of the source file of a module, without importing it.

    Args:
        name: The module's dotted name, as in `import_module`.

    Returns:
        The file that an import would run; None if there is no such file.
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
    """Returns two of the folders in which a run's modules were searched when it was started.

    They are read from the run's launch record.

    Args:
        work_dir: The folder of the run, or any other folder.

    Returns:
        The folder of the recipe with which the run was started, and the folder that was the current
        one then. Empty if `work_dir` has no readable launch record, for example because it is no
        work dir.
    """
    # Ignore a launch record that is a folder or a pipe here; it is reported when the run is
    # resumed.
    if instead_of_file(work_dir / LAUNCH_RECORD):
        return ()
    try:
        record = json.loads((work_dir / LAUNCH_RECORD).read_text())
        return Path(record["recipe"]).parent, Path(record["folder"])
    except (OSError, ValueError, TypeError, LookupError):
        # This is the usual case: the folder isn't a run's work dir, so it has no launch record.
        return ()


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # The module may be written for an older tiekd, and import a module of tiekd that has moved
        # since.
        told = moved.advice(error)
        if told is not None:
            raise RecipeError(told) from None
        # If the module exists, but another import inside it failed, raise that error rather than
        # report the module as missing.
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
    """Yields the names of the modules outside the project that a recipe's node names.

    They are the values of all keys `name`, at any depth, that contain a dot.

    Args:
        node: A mapping, list or value of a recipe.
    """
    if isinstance(node, dict):
        if "." in str(node.get("name", "")):
            yield str(node["name"])
        node = list(node.values())
    for part in node if isinstance(node, list | tuple) else ():
        yield from names_in(part)
