"""Paths as users write them: `~` is expanded everywhere, `$NAME` nowhere.

A shell expands both, but not within quotes, and `~` not after `--option=` or `key=`. A recipe is
read by no shell. So `~/x` and `~name/x` are expanded when a path is read: by `tiekd.config.recipe`
in recipes and --set, by `path_argument` on the command line. A variable may have another value in
the next shell, and the saved recipe would no longer say what was read. So `$NAME` stays as it is
written, and if no file has that name the message says so.
"""

import argparse
import os
import re
from pathlib import Path

from tiekd.errors import LaunchError, RecipeError, UserError

VARIABLES = "a $NAME in a path isn't filled in here: let the shell do that, or write the path out"
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
_MISSING = re.compile(r"\bno\b|\bnothing\b|not found|doesn't exist|can't be", re.IGNORECASE)


def expanded(path: str, where: str = "", error: type[UserError] = LaunchError) -> str:
    """Returns the path with the home folder in place of a leading `~` or `~name`.

    Args:
        path: as the user wrote it.
        where: stands before the path in the message.
        error: the class of the exception.

    Raises:
        UserError: of the class `error`, if this machine doesn't know the user and no file has that
            name. So no folder is ever created whose name begins with `~`.
    """
    # No path can contain "\0"; the code that reads the path reports that.
    if not path.startswith("~") or "\0" in path:
        return path
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        remedy = f"for a name that begins with ~ write ./{path}"
        raise error(f"{where}{path}: no home folder is known for {user}; {remedy}")
    return found


def path_argument(text: str) -> Path:
    """Parses a path on the command line, for argparse's `type`."""
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
    """Parses a path as `path_argument` does; returns a string, for values in JSON."""
    return str(path_argument(text))


def checkpoint_argument(text: str) -> Path | str:
    """Parses a path as `path_argument` does, or the word `auto`."""
    return text if text == "auto" else path_argument(text)


def unfilled(path: str | Path) -> str | None:
    """Returns the beginning of a path up to a part with `$NAME`, if it doesn't exist, else None."""
    parts = Path(path).parts
    # A folder may really be called `$NAME`: only one that doesn't exist is a mistake.
    for end, part in enumerate(parts, 1):
        if _VARIABLE.search(part):
            beginning = os.path.join(*parts[:end])
            return None if os.path.lexists(beginning) else beginning
    return None


def refuse_unfilled(path: str | Path, where: str) -> None:
    """Raises RecipeError for a path with a `$NAME` that doesn't exist, before it is created."""
    missing = unfilled(path)
    if missing:
        raise RecipeError(f"{where}: nothing is called {missing}; {VARIABLES}")


def with_hint(message: str) -> str:
    """Adds to a "not found" message the hint that `$NAME` isn't expanded, if one is in it."""
    hinted = _VARIABLE.search(message) and _MISSING.search(message) and VARIABLES not in message
    return f"{message}; {VARIABLES}" if hinted else message
