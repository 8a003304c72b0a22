"""Paths as people write them: `~` is their home at every door, and `$NAME` is filled in at none.

A shell fills in both, but not within quotes, and `~` not behind `--option=` or `key=` either; a
recipe has no shell. So `~/x` and `~name/x` are expanded as a path comes in: by `tiekd.config.recipe` in
recipes and --set, by `option` on the command line. A variable is another one in the next shell, and
a saved recipe would no longer say what was read: it stays as it is written, and where nothing has
that name the message says so.
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
    """The path with the home folder in place of a leading `~` or `~name`.

    where: stands before the path in the message. Raises `error` for a user that this machine
    doesn't know, unless a file is called so: nothing is ever made whose name begins with `~`
    because somebody's home wasn't known.
    """
    if not path.startswith("~") or "\0" in path:  # which no path can have: its reader says so
        return path
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        remedy = f"for a name that begins with ~ write ./{path}"
        raise error(f"{where}{path}: no home folder is known for {user}; {remedy}")
    return found


def option(text: str) -> Path:
    """The path that an option or argument of a program gives, for argparse's `type`."""
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


def text_option(text: str) -> str:
    """As `option`, for a path that is also put into JSON."""
    return str(option(text))


def checkpoint_option(text: str) -> Path | str:
    """As `option`, for one that may also say `auto`."""
    return text if text == "auto" else option(text)


def unfilled(path: str | Path) -> str | None:
    """The beginning of a path, up to a part with a `$NAME`, where nothing is called so; None for
    any other path."""
    parts = Path(path).parts
    for end, part in enumerate(parts, 1):
        if _VARIABLE.search(part):
            beginning = os.path.join(*parts[:end])
            return None if os.path.lexists(beginning) else beginning
    return None


def refuse_unfilled(path: str | Path, where: str) -> None:
    """Raises RecipeError for a path below a `$NAME` that isn't there, so that no folder of that
    name is made."""
    missing = unfilled(path)
    if missing:
        raise RecipeError(f"{where}: nothing is called {missing}; {VARIABLES}")


def with_hint(message: str) -> str:
    """A message that something isn't there, with what may be the reason where a `$NAME` is in
    it."""
    hinted = _VARIABLE.search(message) and _MISSING.search(message) and VARIABLES not in message
    return f"{message}; {VARIABLES}" if hinted else message
