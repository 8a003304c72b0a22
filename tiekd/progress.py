"""How far a long job is: on a terminal one line that is rewritten, in a file a plain line now and then.

Costs one look at the clock a step, and a count (which may be a folder's listing) as often as a line is due.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

TERMINAL_INTERVAL_S = 2.0
FILE_INTERVAL_S = 30.0


class Progress:
    """Lines `<noun>: 1200/23158, 12.3/s, eta: 0:29:45` on a stream.

    total: of all that is to be there at the end. count: how much of it is there now, done by whoever; the rate is that
    since this was made.
    """

    def __init__(self, noun: str, total: int, count: Callable[[], int], stream: TextIO):
        self.noun, self.total, self.count, self.stream = noun, total, count, stream
        self._rewrites = stream.isatty()
        self._interval_s = TERMINAL_INTERVAL_S if self._rewrites else FILE_INTERVAL_S
        self._started = self._told = time.monotonic()
        self._at_start = count()

    def update(self) -> None:
        """To be called after every step; says something when it is time to."""
        if time.monotonic() - self._told >= self._interval_s:
            self._tell("\r" if self._rewrites else "", "" if self._rewrites else "\n")

    def finish(self) -> None:
        """The last line."""
        self._tell("\r" if self._rewrites else "", "\n")

    def _tell(self, before: str, after: str) -> None:
        self._told = time.monotonic()
        done, elapsed_s = self.count(), self._told - self._started
        rate = (done - self._at_start) / elapsed_s if elapsed_s > 0 else 0.0
        eta = str(timedelta(seconds=round((self.total - done) / rate))) if rate > 0 else "?"
        line = f"{self.noun}: {done}/{self.total}, {rate:.1f}/s, eta: {eta}"
        self.stream.write(f"{before}{line:<60}{after}" if self._rewrites else f"{line}{after}")
        self.stream.flush()
