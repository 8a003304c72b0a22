"""What people read: a long job's progress, and text that is safe to print.

Progress is one rewritten line with a bar on a terminal, plain lines in a file.

Costs one reading of the clock per step, and one call of `count` (which may list a folder) per line.
"""

import re
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

TERMINAL_INTERVAL_S = 0.5
FILE_INTERVAL_S = 30.0
_LONGEST_BAR = 30
_SHORTEST_BAR = 5
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str, kept: str = "") -> str:
    r"""Escapes control characters, which a terminal would obey, as in \x1b.

    A file's name may hold any of them. Names that aren't UTF-8 are left to the stream, which
    escapes what it can't encode.

    Args:
        text: such as a path or a message with one.
        kept: control characters that stay, such as a line break.
    """

    def escaped(found: re.Match) -> str:
        character = found[0]
        return character if character in kept else f"\\x{ord(character):02x}"

    return _CONTROL.sub(escaped, text)


class Progress:
    """Shows how many things of a job are done, the rate, and the estimated time left.

    On a terminal: `frames [=====>    ] 120/697, 12.3/s, eta 0:00:47`. In a file: `frames: 120/697,
    12.3/s, eta: ...`. Used as a context manager it writes the last line at the end of the block. If
    the block raises an error, the bar stays as it is and the error message starts on a new line.
    """

    def __init__(
        self, noun: str, total: int, count: Callable[[], int], stream: TextIO, in_files: bool = True
    ):
        """Shows the first line if the stream is a terminal.

        Args:
            noun: the name of the things that are counted, such as `frames`.
            total: the number of things at the end of the job.
            count: returns the number of things done so far, by any process. The rate counts only
                those done after this moment.
            stream: the stream that lines are written to.
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
        self._length = 0  # Characters in the line that is on the terminal.
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
        """Updates the bar or writes a line if enough time has passed; call it after every step."""
        if not self._silent and time.monotonic() - self._told >= self._interval_s:
            self._tell(finished=False)

    def finish(self) -> None:
        """Writes the last line."""
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
        """Returns a bar that fills the terminal's width; empty if there is too little room.

        `taken` is the number of characters in the rest of the line.
        """
        width = min(_LONGEST_BAR, shutil.get_terminal_size().columns - 1 - taken - len(" []"))
        if width < _SHORTEST_BAR:
            return ""
        filled = min(width, width * done // self.total) if self.total else width
        return f" [{'=' * filled}{'>' * (filled < width)}{' ' * (width - filled - 1)}]"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
