"""Parses paths from users: a leading `~` is expanded everywhere, `$NAME` nowhere.

A shell expands `~` and `$NAME`, but not in single quotes, and not a `~` after `--option=` or
`key=`. Nothing is expanded in a recipe. So `~/x` and `~name/x` are expanded in Python: by
`tiekd.config.recipe` for recipes and --set, by `path_argument` for the command line. `$NAME` is not
expanded, since the variable may have another value in the next shell, so that the saved recipe
wouldn't tell which file was read. If a path with `$NAME` doesn't exist, the error message says that
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
        path: The path as the user wrote it.
        where: Text that is put before the path in the error message.
        error: The class of the exception that is raised.

    Raises:
        UserError: The path begins with `~name`, but there is neither a user `name` nor a file
            `~name`. (Without the error a folder whose name begins with `~` would be created.) The
            error is of the class `error`.
    """
    # A path with a NUL character is invalid; the error is raised when it is opened.
    if not path.startswith("~") or "\0" in path:
        return path
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        remedy = f"for a name that begins with ~ write ./{path}"
        raise error(f"{where}{path}: no home folder is known for {user}; {remedy}")
    return found


def path_argument(text: str) -> Path:
    """Converts a path from the command line to a Path; used as `type` of argparse arguments.

    Args:
        text: The path as typed. A leading `~` is expanded.

    Raises:
        argparse.ArgumentTypeError: The path is empty, has a `~` that can't be expanded, or contains
            `$NAME` and doesn't exist.
    """
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
    """Converts a path from the command line as `path_argument` does, but returns a string.

    It is for arguments that are saved as JSON, which has no paths.

    Args:
        text: The path as typed. A leading `~` is expanded.
    """
    return str(path_argument(text))


def checkpoint_argument(text: str) -> Path | str:
    """Converts the value of a checkpoint option; used as `type` of argparse arguments.

    Args:
        text: The value as typed: a path, as for `path_argument`, or the word `auto`.

    Returns:
        The path as a Path, or "auto".
    """
    return text if text == "auto" else path_argument(text)


def unfilled(path: str | Path) -> str | None:
    """Returns the beginning of a path, up to its first `$NAME`, if that doesn't exist.

    Args:
        path: The path, such as `$DATA/kitti`.

    Returns:
        The path up to and including the first folder or file whose name contains `$NAME`, such as
        `$DATA`. None if there is a folder or file with this name, or if the path has no `$NAME`.
    """
    parts = Path(path).parts
    # A folder may really be called `$NAME`, so it is only a mistake if it doesn't exist.
    for end, part in enumerate(parts, 1):
        if _VARIABLE.search(part):
            beginning = os.path.join(*parts[:end])
            return None if os.path.lexists(beginning) else beginning
    return None


def refuse_unfilled(path: str | Path, where: str) -> None:
    """Raises RecipeError if a path in a recipe contains `$NAME`, which isn't expanded there.

    A path to a folder or file that really has such a name is allowed. Without the error a folder
    called `$NAME` would be created.

    Args:
        path: The path.
        where: The path's place in the recipe, such as `data.root`, for the message.
    """
    missing = unfilled(path)
    if missing:
        raise RecipeError(f"{where}: nothing is called {missing}; {VARIABLES}")


def with_hint(message: str) -> str:
    """Adds a hint to an error message about a missing path with `$NAME`.

    The hint tells the user that `$NAME` isn't expanded.

    Args:
        message: The message. If it isn't about such a path, it is returned unchanged, otherwise
            with the hint at its end.
    """
    hinted = _VARIABLE.search(message) and _MISSING.search(message) and VARIABLES not in message
    return f"{message}; {VARIABLES}" if hinted else message
