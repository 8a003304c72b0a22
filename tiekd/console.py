"""How far a long job is: on a terminal one line with a bar that is rewritten, in a file a plain line now and then.

Costs one look at the clock a step, and a count (which may be a folder's listing) as often as a line is due.
"""

import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

TERMINAL_INTERVAL_S = 0.5
FILE_INTERVAL_S = 30.0
_LONGEST_BAR, _SHORTEST_BAR = 30, 5


class Progress:
    """On a terminal `frames [=====>    ] 120/697, 12.3/s, eta 0:00:47`, in a file `frames: 120/697, 12.3/s, eta: ...`.

    total: of all that is to be there at the end. count: how much of it is there now, done by whoever; the rate is that
    since this was made. in_files: False says nothing at all where the stream is no terminal. As a context it finishes
    by itself, and a job that fails leaves the terminal's line as it is, so that its message has a line of its own.
    """

    def __init__(
        self, noun: str, total: int, count: Callable[[], int], stream: TextIO, in_files: bool = True
    ):
        self.noun, self.total, self.count, self.stream = noun, total, count, stream
        self._rewrites = stream.isatty()
        self._silent = not (self._rewrites or in_files)
        self._interval_s = TERMINAL_INTERVAL_S if self._rewrites else FILE_INTERVAL_S
        self._started = self._told = time.monotonic()
        self._at_start = 0 if self._silent else count()
        self._length = 0  # of the terminal's line
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
        """To be called after every step; says something when it is time to."""
        if not self._silent and time.monotonic() - self._told >= self._interval_s:
            self._tell(finished=False)

    def finish(self) -> None:
        """The last line."""
        if not self._silent:
            self._tell(finished=True)

    def _tell(self, finished: bool) -> None:
        self._told = time.monotonic()
        done, elapsed_s = self.count(), self._told - self._started
        rate = (done - self._at_start) / elapsed_s if elapsed_s > 0 else 0.0
        eta = str(timedelta(seconds=round((self.total - done) / rate))) if rate > 0 else "?"
        if not self._rewrites:
            return self._write(f"{self.noun}: {done}/{self.total}, {rate:.1f}/s, eta: {eta}\n")
        ending = f"in {timedelta(seconds=round(elapsed_s))}" if finished else f"eta {eta}"
        told = f" {done}/{self.total}, {rate:.1f}/s, {ending}"
        line = f"{self.noun}{self._bar(done, len(self.noun) + len(told))}{told}"
        # Spaces hide what is left of a longer line before it.
        self._write(f"\r{line:<{self._length}}" + ("\n" if finished else ""))
        self._length = len(line)

    def _bar(self, done: int, taken: int) -> str:
        """As long as the terminal leaves room for, at most _LONGEST_BAR; none at all where that is too short."""
        width = min(_LONGEST_BAR, shutil.get_terminal_size().columns - 1 - taken - len(" []"))
        if width < _SHORTEST_BAR:
            return ""
        filled = min(width, width * done // self.total) if self.total else width
        return f" [{'=' * filled}{'>' * (filled < width)}{' ' * (width - filled - 1)}]"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
