"""Finds what comes with tiekd: programs, recipes and engine configs; and spells their commands.

In a checkout these are the folders bin/, model_configs/ and ds_configs/ beside tiekd/. setup.py
puts the same folders into a wheel, below tiekd/share/. A program is started as bin/NAME.py from a
checkout, and as `tiekd NAME` where the package is installed. A message that tells the user to type
something takes the spelling from `command`.

Files are found by this file's own place and not by `importlib.resources`: with a second checkout on
PYTHONPATH, an editable install would answer for the folders of the first one.
"""

import os
import re
from pathlib import Path

RECIPES = "model_configs"
ENGINE_CONFIGS = "ds_configs"
PROGRAMS = "bin"
# The environment variable that the command `tiekd` sets, for the ranks and restarts that it starts.
CONSOLE = "TIEKD_CONSOLE"
_SHARE = Path(__file__).parent / "share"
_SUFFIXES = {RECIPES: ".yaml", ENGINE_CONFIGS: ".json"}
# The folders of files that are no recipes: pieces of some, and specifications of experiments.
_NO_RECIPES = ("_base_", "experiments")


def is_checkout() -> bool:
    """Returns True if this package runs from a checkout, also from one installed with `pip -e`."""
    return not _SHARE.is_dir()


def _names_bin() -> bool:
    # In an editable install the user of `tiekd` may be in any folder, where bin/ isn't.
    return is_checkout() and CONSOLE not in os.environ


def folder(kind: str) -> Path:
    """Returns the folder of the files of one kind.

    Args:
        kind: PROGRAMS, RECIPES or ENGINE_CONFIGS.
    """
    return (_SHARE.parents[1] if is_checkout() else _SHARE) / kind


def shown_folder(kind: str) -> str:
    """Returns the folder of one kind as a message names it: `ds_configs/`, or its whole path.

    Args:
        kind: As for `folder`.
    """
    return f"{kind}/" if _names_bin() else f"{folder(kind)}/"


def names(kind: str) -> dict[str, Path]:
    """Returns the path of each file of one kind by its name, which is the path's stem.

    The pieces of which recipes consist (model_configs/_base_) have no names of their own, nor have
    specifications of experiments.

    Args:
        kind: RECIPES or ENGINE_CONFIGS.
    """
    root = folder(kind)
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
        kind: RECIPES or ENGINE_CONFIGS.
        given: The path or name; `~` is expanded already.
        beside: The folder at which a relative path begins.

    Returns:
        The path of the file. If there is none, the path of the user's file that is missing.
    """
    path, suffix = beside / given, _SUFFIXES[kind]
    for local in (path, Path(f"{path}{suffix}")):
        # A dangling link or a pipe is the user's, too, and is reported by whoever reads it. A
        # folder isn't: work dirs and data are often called like a recipe.
        if os.path.lexists(local) and not os.path.isdir(local):
            return local
    parts = Path(given).parts
    if not parts or Path(given).is_absolute():
        return path
    if kind in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index(kind) :]
    # Of the package first what has this path in the folder, then what has this name anywhere.
    inside = folder(kind).joinpath(*parts)
    for ours in (inside, Path(f"{inside}{suffix}")):
        if os.path.isfile(ours):
            return ours
    return names(kind).get(parts[0].removesuffix(suffix), path) if len(parts) == 1 else path


def programs() -> dict[str, Path]:
    """Returns the path of each program's file by the program's name in `tiekd NAME`."""
    # `resume` is the only one whose file has no suffix.
    files = [*folder(PROGRAMS).glob("*.py"), folder(PROGRAMS) / "resume"]
    return {path.stem.replace("_", "-"): path for path in sorted(files)}


def command(program: str) -> str:
    """Returns what a user types to start a program: `bin/train.py`, or `tiekd train`.

    The latter if there is no checkout, or if the user has started this process as `tiekd`.

    Args:
        program: The stem of the program's file, such as `train` or `cache_teacher`.
    """
    if _names_bin():
        return f"bin/{program}" if program == "resume" else f"bin/{program}.py"
    return f"tiekd {program.replace('_', '-')}"


def respelled(text: str) -> str:
    """Returns a program's own description with the commands in it as `command` spells them.

    Args:
        text: The description, in which commands are spelled as in a checkout. It must be a text of
            tiekd's: in a user's text, a path of the user's could look like a command.
    """
    if _names_bin():
        return text
    # `tiekd` starts the launcher itself, and takes its options behind the program's arguments.
    text = re.sub(
        r"deepspeed (--num_gpus \d+) bin/(\w+)(?:\.py)?((?: \S+)*)",
        lambda found: f"{command(found[2])}{found[3]} {found[1]}",
        text,
    )
    text = re.sub(r"(?:python )?bin/(\w+)(?:\.py)?", lambda found: command(found[1]), text)
    return re.sub(r"model_configs/(?:\w+/)*(\w+)\.yaml", r"\1", text)
