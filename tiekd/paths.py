"""Parses paths from users: a leading `~` is expanded everywhere, `$NAME` nowhere.

A shell expands `~` and `$NAME`, but neither in single quotes, and `~` neither after `--option=` nor
after `key=`. No shell expands anything in a recipe. So `~/x` and `~name/x` are expanded in Python:
by `tiekd.config.recipe` for recipes and --set, by `path_argument` for the command line. `$NAME` is
not expanded, since a variable may have another value in the next shell, and the saved recipe would
no longer say which file was read. If a path with `$NAME` doesn't exist, the error message says that
`$NAME` isn't expanded.
"""

import argparse
import os
import re
from pathlib import Path

from tiekd.errors import LaunchError, RecipeError, UserError

VARIABLES = "a $NAME in a path isn't expanded here: let the shell do that, or write the path out"
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
_MISSING = re.compile(r"\bno\b|\bnothing\b|not found|doesn't exist|can't be", re.IGNORECASE)


def expanded(path: str, where: str = "", error: type[UserError] = LaunchError) -> str:
    """Returns a path with the home folder in place of a leading `~` or `~name`.

    Args:
        path: the path as the user wrote it.
        where: text that is put before the path in the error message.
        error: the class of the exception.

    Raises:
        UserError: of the class `error`, if there is no user of that name and no file of that name
            either. (Otherwise a folder with a name that begins with `~` would be created.)
    """
    # A path with a NUL character is invalid; opening it raises the error.
    if not path.startswith("~") or "\0" in path:
        return path
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        remedy = f"for a name that begins with ~ write ./{path}"
        raise error(f"{where}{path}: no home folder is known for {user}; {remedy}")
    return found


def path_argument(text: str) -> Path:
    """Parses a path from the command line, as the `type` of an argparse argument."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    try:
        path = expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    missing = unfilled(path)
    if missing:
        raise argparse.ArgumentTypeError(f"nothing is called {missing}; {VARIABLES}")
    return Path(path)


def path_text_argument(text: str) -> str:
    """Parses a path as `path_argument` does, but returns a string, for arguments saved as JSON."""
    return str(path_argument(text))


def checkpoint_argument(text: str) -> Path | str:
    """Parses the value of a checkpoint option: a path (see `path_argument`) or the word `auto`."""
    return text if text == "auto" else path_argument(text)


def unfilled(path: str | Path) -> str | None:
    """Returns the beginning of a path with `$NAME` in it that doesn't exist; None if there is none.

    The beginning ends with the first folder or file name that contains `$NAME`, such as `$DATA` of
    `$DATA/kitti`.
    """
    parts = Path(path).parts
    # A folder may really be called `$NAME`, so it is only a mistake if it doesn't exist.
    for end, part in enumerate(parts, 1):
        if _VARIABLE.search(part):
            beginning = os.path.join(*parts[:end])
            return None if os.path.lexists(beginning) else beginning
    return None


def refuse_unfilled(path: str | Path, where: str) -> None:
    """Raises RecipeError if a path contains a `$NAME` and doesn't exist.

    Otherwise a folder called `$NAME` would be created.

    Args:
        path: the path.
        where: the path's place in the recipe, with which the message begins.
    """
    missing = unfilled(path)
    if missing:
        raise RecipeError(f"{where}: nothing is called {missing}; {VARIABLES}")


def with_hint(message: str) -> str:
    """Adds to a message about a missing path with `$NAME` that `$NAME` isn't expanded.

    Any other message is returned unchanged.
    """
    hinted = _VARIABLE.search(message) and _MISSING.search(message) and VARIABLES not in message
    return f"{message}; {VARIABLES}" if hinted else message
