"""Finds the files that come with tiekd: programs, recipes, experiments and engine configs.

In a checkout these are the folders bin/, model_configs/ and ds_configs/ beside tiekd/. setup.py
puts the same folders into a wheel, below tiekd/share/.

The folders are found relative to this file and not by `importlib.resources`, which would find those
of an editable install even if the code is imported from a second checkout on PYTHONPATH.
"""

import os
from pathlib import Path

from tiekd import console

RECIPES = "model_configs"
ENGINE_CONFIGS = "ds_configs"
PROGRAMS = "bin"
EXPERIMENTS = f"{RECIPES}/experiments"
_SUFFIXES = {RECIPES: ".yaml", ENGINE_CONFIGS: ".json", EXPERIMENTS: ".yaml"}
# Folders in which the YAML files aren't recipes, but pieces of recipes or specifications of
# experiments.
_NO_RECIPES = ("_base_", "experiments")


def folder(kind: str) -> Path:
    """Returns the folder of the files of one kind.

    Args:
        kind: PROGRAMS, RECIPES, EXPERIMENTS or ENGINE_CONFIGS.
    """
    return (console.SHARE.parents[1] if console.is_checkout() else console.SHARE) / kind


def shown_folder(kind: str) -> str:
    """Returns the folder of the files of one kind as text for a message.

    If the user starts programs as bin/NAME.py, i.e. in a checkout, the text is short, such as
    `ds_configs/`. If the user starts them as `tiekd NAME`, it is the whole path.

    Args:
        kind: PROGRAMS, RECIPES, EXPERIMENTS or ENGINE_CONFIGS.
    """
    return f"{kind}/" if console.names_bin() else f"{folder(kind)}/"


def names(kind: str) -> dict[str, Path]:
    """Returns the files of one kind as a dict from name to path; a name is the path's stem.

    For RECIPES, the folders `_base_` (pieces of recipes) and `experiments` are left out. For
    EXPERIMENTS, only the specifications of experiments are returned, and not the recipes that
    belong to them.

    Args:
        kind: RECIPES, EXPERIMENTS or ENGINE_CONFIGS.
    """
    root = folder(kind)
    if kind == EXPERIMENTS:
        # Leave out the sub-folders, which hold recipes that belong to the specifications.
        return {path.stem: path for path in sorted(root.glob(f"*{_SUFFIXES[kind]}"))}
    paths = sorted(root.rglob(f"*{_SUFFIXES[kind]}"))
    return {
        path.stem: path
        for path in paths
        if not set(_NO_RECIPES) & set(path.relative_to(root).parts)
    }


def find(kind: str, given: str | Path, beside: Path = Path()) -> Path:
    """Returns the file that a user means: a file of the user's, else one that comes with tiekd.

    The user's file may be given without its suffix. A file of tiekd is given by its name, such as
    `fp16`, by its path in its folder, such as `_base_/datasets/folder.yaml`, or by a path that
    leads through a folder of this name, such as `../model_configs/_base_/datasets/folder.yaml`.

    Args:
        kind: RECIPES, EXPERIMENTS or ENGINE_CONFIGS.
        given: The path or name; `~` is expanded already.
        beside: The folder at which a relative path begins.

    Returns:
        The path of the file. If there is none, the path of the user's file that is missing.
    """
    path, suffix = beside / given, _SUFFIXES[kind]
    for local in (path, Path(f"{path}{suffix}")):
        # A dangling link or a pipe is returned as the user's file, and the code that reads it
        # reports the error. A folder is not, since work dirs and data are often named like a
        # recipe.
        if os.path.lexists(local) and not os.path.isdir(local):
            return local
    parts = Path(given).parts
    if not parts or Path(given).is_absolute():
        return path
    last = Path(kind).name
    if last in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index(last) :]
    # Look first for this path in tiekd's folder, then for a file of this name anywhere in the
    # folder.
    inside = folder(kind).joinpath(*parts)
    for ours in (inside, Path(f"{inside}{suffix}")):
        if os.path.isfile(ours):
            return ours
    return names(kind).get(parts[0].removesuffix(suffix), path) if len(parts) == 1 else path


def programs() -> dict[str, Path]:
    """Returns the programs in bin/ as a dict from name to path.

    A name is the one in the command `tiekd NAME`, such as "cache-teacher".
    """
    # Add `resume`, whose file is the only one without a suffix.
    files = [*folder(PROGRAMS).glob("*.py"), folder(PROGRAMS) / "resume"]
    return {path.stem.replace("_", "-"): path for path in sorted(files)}
