"""Parses paths from users: a leading `~` is expanded everywhere, `$NAME` nowhere.

A shell expands both, but not within quotes, and `~` not after `--option=` or `key=`; and no shell
reads a recipe. So `~/x` and `~name/x` are expanded here, for recipes and --set by
`tiekd.config.recipe`, for the command line by `path_argument`. `$NAME` is not expanded, since a
variable may have another value in the next shell, and the saved recipe would no longer say which
file was read. If there is no file of such a name, the error message says that `$NAME` isn't
expanded.
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
    """Returns the path with the home folder in place of a leading `~` or `~name`.

    Args:
        path: the path as the user wrote it.
        where: the beginning of the message, before the path.
        error: the class of the exception.

    Raises:
        UserError: of the class `error`, if there is no user of that name and no file of that name
            either. (Otherwise a folder with a name that begins with `~` would be created.)
    """
    # No path can contain "\0"; the code that opens the path reports that.
    if not path.startswith("~") or "\0" in path:
        return path
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        remedy = f"for a name that begins with ~ write ./{path}"
        raise error(f"{where}{path}: no home folder is known for {user}; {remedy}")
    return found


def path_argument(text: str) -> Path:
    """Parses a path from the command line, as a `type` for argparse."""
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
    """Parses a path as `path_argument` does, but returns a string, for values that become JSON."""
    return str(path_argument(text))


def checkpoint_argument(text: str) -> Path | str:
    """Parses a path as `path_argument` does, or the word `auto`."""
    return text if text == "auto" else path_argument(text)


def unfilled(path: str | Path) -> str | None:
    """Returns a path up to its first part with a `$NAME`, if nothing has that path; else None."""
    parts = Path(path).parts
    # A folder may really be called `$NAME`, so only a path that doesn't exist is a mistake.
    for end, part in enumerate(parts, 1):
        if _VARIABLE.search(part):
            beginning = os.path.join(*parts[:end])
            return None if os.path.lexists(beginning) else beginning
    return None


def refuse_unfilled(path: str | Path, where: str) -> None:
    """Raises RecipeError if a path contains a `$NAME` and doesn't exist.

    Otherwise a folder of that name would be created. `where` begins the message.
    """
    missing = unfilled(path)
    if missing:
        raise RecipeError(f"{where}: nothing is called {missing}; {VARIABLES}")


def with_hint(message: str) -> str:
    """Adds a hint that `$NAME` isn't expanded to a "not found" message with a `$NAME` in it."""
    hinted = _VARIABLE.search(message) and _MISSING.search(message) and VARIABLES not in message
    return f"{message}; {VARIABLES}" if hinted else message
