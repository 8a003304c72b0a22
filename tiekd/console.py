"""Shows the progress of a long job, makes text safe to print, and spells commands for the user.

On a terminal the progress is one line with a bar, which is rewritten; in a file it is a plain line
from time to time. Cost: one reading of the clock per step, and one call of `count` (which may list
a folder) per written line.
"""

import os
import re
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TextIO

TERMINAL_INTERVAL_S = 0.5
FILE_INTERVAL_S = 30.0
_LONGEST_BAR = 30
_SHORTEST_BAR = 5
# The folder with the recipes, programs and engine configs in an installed wheel. A checkout doesn't
# have it, since they are outside the package there (tiekd/config/shipped.py).
SHARE = Path(__file__).parent / "share"
# The environment variable that the command `tiekd` sets for the programs that it starts.
CONSOLE = "TIEKD_CONSOLE"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str, kept: str = "") -> str:
    r"""Returns text in which control characters are escaped, such as \x1b as four characters.

    A file's name may contain any control character, and a terminal would react to it. Characters
    that the output stream can't encode are not changed here, since the stream escapes them itself.

    Args:
        text: The text, such as a path or a message that contains one.
        kept: Control characters that stay as they are, such as a line break.
    """

    def escaped(found: re.Match) -> str:
        character = found[0]
        return character if character in kept else f"\\x{ord(character):02x}"

    return _CONTROL.sub(escaped, text)


class Progress:
    """Shows how many items of a job are done, the rate, and the estimated time left.

    On a terminal: `frames [=====>    ] 120/697, 12.3/s, eta 0:00:47`. In a file: `frames: 120/697,
    12.3/s, eta: ...`. As a context manager it writes the last line at the end of the block. If the
    block raises an error, the bar stays as it is and the error message starts on a new line.
    """

    def __init__(
        self, noun: str, total: int, count: Callable[[], int], stream: TextIO, in_files: bool = True
    ):
        """Shows the first line if the stream is a terminal.

        Args:
            noun: The name of the items that are counted, such as `frames`.
            total: The number of items at the end of the job.
            count: Function that returns the number of items that are done, by any process. The rate
                is computed only from items done after the construction.
            stream: The stream to which lines are written, such as stderr.
            in_files: False to write nothing if the stream isn't a terminal.
        """
        self.noun = noun
        self.total = total
        self.count = count
        self.stream = stream
        self._rewrites = stream.isatty()
        self._silent = not (self._rewrites or in_files)
        self._interval_s = TERMINAL_INTERVAL_S if self._rewrites else FILE_INTERVAL_S
        self._started = self._told = time.monotonic()
        self._at_start = 0 if self._silent else count()
        self._length = 0  # The length of the current line on the terminal.
        if self._rewrites:
            self._tell(finished=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.finish()
        elif self._rewrites:
            self._write("\n")

    def update(self) -> None:
        """Shows the progress if enough time has passed since it was last shown.

        Call this method after every step of the job.
        """
        if not self._silent and time.monotonic() - self._told >= self._interval_s:
            self._tell(finished=False)

    def finish(self) -> None:
        """Writes the last line, with the number of items that are done."""
        if not self._silent:
            self._tell(finished=True)

    def _tell(self, finished: bool) -> None:
        self._told = time.monotonic()
        done = self.count()
        elapsed_s = self._told - self._started
        rate = (done - self._at_start) / elapsed_s if elapsed_s > 0 else 0.0
        eta = str(timedelta(seconds=round((self.total - done) / rate))) if rate > 0 else "?"
        if not self._rewrites:
            self._write(f"{self.noun}: {done}/{self.total}, {rate:.1f}/s, eta: {eta}\n")
            return
        ending = f"in {timedelta(seconds=round(elapsed_s))}" if finished else f"eta {eta}"
        told = f" {done}/{self.total}, {rate:.1f}/s, {ending}"
        line = f"{self.noun}{self._bar(done, len(self.noun) + len(told))}{told}"
        # Pad with spaces to overwrite the end of a longer previous line.
        self._write(f"\r{line:<{self._length}}" + ("\n" if finished else ""))
        self._length = len(line)

    def _bar(self, done: int, taken: int) -> str:
        """Returns a bar, such as ` [===>  ]`, that fits into a line of the terminal.

        Args:
            done: The number of items that are done.
            taken: The number of characters that the line has besides the bar.

        Returns:
            The bar, in which the filled part is the fraction of items that are done; empty if the
            line has no room for it.
        """
        width = min(_LONGEST_BAR, shutil.get_terminal_size().columns - 1 - taken - len(" []"))
        if width < _SHORTEST_BAR:
            return ""
        filled = min(width, width * done // self.total) if self.total else width
        return f" [{'=' * filled}{'>' * (filled < width)}{' ' * (width - filled - 1)}]"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def is_checkout() -> bool:
    """Returns True if this package runs from a checkout, also from one installed with `pip -e`."""
    return not SHARE.is_dir()


def names_bin() -> bool:
    """Returns True if the user starts programs as bin/NAME.py, False if as `tiekd NAME`."""
    # Don't name bin/ if the user has typed `tiekd`, even in an editable install: the user may be in
    # a folder without bin/.
    return is_checkout() and CONSOLE not in os.environ


def command(program: str) -> str:
    """Returns what a user types to start a program: `bin/train.py`, or `tiekd train`.

    It is `tiekd ...` if there is no checkout, or if the user has started this process as `tiekd`.

    Args:
        program: The stem of the program's file, such as `train` or `cache_teacher`.
    """
    if names_bin():
        return f"bin/{program}" if program == "resume" else f"bin/{program}.py"
    return f"tiekd {program.replace('_', '-')}"


def respelled(text: str) -> str:
    """Returns a program's own description with the commands in it as `command` spells them.

    Args:
        text: The description, in which commands are spelled as in a checkout. It must be tiekd's
            own text: in a user's text, a path could look like a command.
    """
    if names_bin():
        return text
    # Move the launcher's options to the end: `tiekd` starts the launcher itself, and takes its
    # options after the program's arguments.
    text = re.sub(
        r"deepspeed (--num_gpus \d+) bin/(\w+)(?:\.py)?((?: \S+)*)",
        lambda found: f"{command(found[2])}{found[3]} {found[1]}",
        text,
    )
    text = re.sub(r"(?:python )?bin/(\w+)(?:\.py)?", lambda found: command(found[1]), text)
    return re.sub(r"model_configs/(?:\w+/)*(\w+)\.yaml", r"\1", text)
