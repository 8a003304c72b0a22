"""`bin/resume --restarts N`: starts a run again when it crashes, until it has finished.

A run is started as a process of its own, and again after 1, 2, 4, ... at most 60 seconds. Not again: where it finished,
was asked to stop, made a mistake that a start won't mend, or where two starts in a row brought no newer checkpoint. The
ranks watch this process as they do the launcher (tiekd/ancestry.py), so nothing is left running without it.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tiekd import checkpoint, work_dirs
from tiekd.launch import STOPPED_CODE, USER_ERROR_CODE

_LONGEST_PAUSE_S = 60
_RANKS_LEAVE_S = 90.0  # after their launcher, having saved
_STARTS_WITHOUT_GAIN = 2


def supervise(command: Sequence[str], work_dir: Path, restarts: int) -> int:
    """Runs `command`, which goes on with the run of a work dir, at most 1 + `restarts` times; returns its exit code.

    0: finished; 75: asked to stop, through a signal to this process or the run.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, _frame: asked.append(number))
    newest, idle = _newest(work_dir), 0
    for attempt in range(restarts + 1):
        before = work_dirs.read_outcome(work_dir)
        code = _run(command, asked)
        _wait(lambda: not work_dirs.is_in_use(work_dir), _RANKS_LEAVE_S)
        outcome = work_dirs.read_outcome(work_dir)
        outcome = None if outcome == before else outcome  # it came to nothing before it could write one
        reached, newest = newest, _newest(work_dir)
        idle = 0 if newest > reached else idle + 1
        if outcome is not None and outcome.outcome == "finished":
            return 0
        if asked or (outcome is not None and outcome.outcome == "stopped" and code != USER_ERROR_CODE):
            return STOPPED_CODE
        why = outcome.reason if outcome is not None and outcome.outcome == "failed" else "killed"
        ended = f"the run ended with code {code} ({why}); its newest checkpoint is of iteration {newest}"
        if idle and code == USER_ERROR_CODE or idle == _STARTS_WITHOUT_GAIN:
            return _give_up(f"{ended}, as before; not started again", code)
        if attempt == restarts:
            return _give_up(f"{ended}; that was the last of {restarts} restarts", code)
        pause_s = min(_LONGEST_PAUSE_S, 2**attempt)
        _tell(f"{ended}; restart {attempt + 1} of {restarts} in {pause_s} s")
        _wait(lambda: bool(asked), pause_s)
        if asked:
            return STOPPED_CODE
    raise AssertionError("unreachable")


def _run(command: Sequence[str], asked: list[int]) -> int:
    """Runs a program to its end, handing on each signal that comes once."""
    process = subprocess.Popen(command, start_new_session=True)  # a terminal's Ctrl-C comes once, and from here
    handed_on = 0
    while process.poll() is None:
        for number in asked[handed_on:]:
            process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
            handed_on += 1
        time.sleep(0.1)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _newest(work_dir: Path) -> int:
    return max((int(path.name[5:]) for path in checkpoint.newest_first(work_dir / checkpoint.FOLDER)), default=-1)


def _wait(condition, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def _give_up(text: str, code: int) -> int:
    _tell(text)
    return code or 1


def _tell(text: str) -> None:
    sys.stderr.write(f"tiekd: {text}\n")
    sys.stderr.flush()
