"""Restarts a run when it crashes, until it has finished: `bin/resume --restarts N`.

`run_once` also runs the trainings of bin/experiment.py and the stages of bin/distill.py.

The run is a child process. After a crash it is launched again after a delay of 1, 2, 4, ... and at
most 60 seconds. It isn't launched again if it has finished or was stopped early, if it was asked to
stop, or if two launches in a row produced no newer checkpoint, as with a user error. The ranks
watch this process as they watch the launcher (tiekd/distributed/launcher_watch.py), so they exit if
this process dies.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from tiekd.distributed.entrypoint import STOPPED_CODE
from tiekd.distributed.launcher_watch import SUPERVISOR
from tiekd.workdir import checkpoints, workdir

_LONGEST_PAUSE_S = 60
_RANKS_LEAVE_S = 90.0  # seconds that ranks have to save and exit after their launcher has ended
_STARTS_WITHOUT_GAIN = 2


def supervise(command: Sequence[str], work_dir: Path, restarts: int) -> int:
    """Runs a command that resumes a run, and runs it again after each crash.

    The first signal to this process (SIGTERM, SIGUSR1 or SIGINT) is forwarded to the run, which
    saves a checkpoint and stops. A second signal kills the run.

    Args:
        command: the command that resumes the run.
        work_dir: the run's work dir.
        restarts: largest number of times that the command is run again.

    Returns:
        The exit code: 0 if the run finished, 75 if it was asked to stop, otherwise the exit code of
        the last launch.
    """
    received_signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received_signals.append(number))
    newest = _newest(work_dir)
    idle = 0  # number of consecutive launches that produced no newer checkpoint
    for attempt in range(restarts + 1):
        before = workdir.read_outcome(work_dir)
        code = run_once(command, work_dir, received_signals)
        outcome = workdir.read_outcome(work_dir)
        # Ignore an unchanged outcome.json: it describes the previous launch, because this launch
        # ended too early to write its own.
        outcome = None if outcome == before else outcome
        reached = newest
        newest = _newest(work_dir)
        idle = 0 if newest > reached else idle + 1
        # Return if the run is complete or was asked to stop.
        if outcome is not None and outcome.is_complete:
            return 0
        if received_signals or (outcome is not None and outcome.outcome == "stopped"):
            return STOPPED_CODE
        # Launch the crashed run again, unless several launches in a row gave no newer checkpoint.
        why = "killed, or it did not begin"
        if outcome is not None and outcome.reason:
            why = outcome.reason
        ended = (
            f"the run ended with code {code} ({why}); its newest checkpoint is of iteration "
            f"{newest}"
        )
        if idle == _STARTS_WITHOUT_GAIN:
            _print_line(f"{ended}, as before; not started again")
            break
        if attempt == restarts:
            _print_line(f"{ended}; that was the last of {restarts} restarts")
            break
        pause_s = min(_LONGEST_PAUSE_S, 2**attempt)
        _print_line(f"{ended}; restart {attempt + 1} of {restarts} in {pause_s} s")
        _wait(lambda: bool(received_signals), pause_s)
        if received_signals:
            return STOPPED_CODE
    return code or 1


def run_once(
    command: Sequence[str],
    work_dir: Path,
    received_signals: list[int],
    output: BinaryIO | None = None,
    watch: Callable[[set[psutil.Process]], None] | None = None,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Runs a command, waits until the command and all ranks have ended, and returns its exit code.

    The first signal to this process is forwarded; a second one kills all processes.

    Args:
        command: the command that resumes the run.
        work_dir: the run's work dir, whose lock shows that rank 0 still runs.
        received_signals: the signals to this process so far; the signal handlers append to it.
        output: file that receives what the command prints; None for this process's own streams.
        watch: function that is called several times a second with all descendants of this process;
            None for no calls.
        prepare: function that the child calls before the command starts; None for no call.

    Returns:
        The command's exit code; 128 + N if signal N ended it.
    """
    environment = os.environ | {SUPERVISOR: str(os.getpid())}
    # Start the command in a new session, so that it doesn't receive Ctrl-C from the terminal; this
    # process forwards it.
    child = subprocess.Popen(
        command,
        start_new_session=True,
        env=environment,
        stdout=output,
        stderr=output,
        preexec_fn=prepare,  # noqa: PLW1509 - it only calls the kernel
    )
    everything: set[psutil.Process] = set()
    num_forwarded = 0
    gone_at = None
    while True:
        everything |= _descendants()
        if watch is not None:
            watch(everything)
        if child.poll() is not None:
            gone_at = gone_at or time.monotonic()
            # Wait up to _RANKS_LEAVE_S seconds after the launcher has ended, because rank 0 may
            # still be saving a checkpoint.
            if not workdir.is_in_use(work_dir) or time.monotonic() - gone_at > _RANKS_LEAVE_S:
                break
        if len(received_signals) > num_forwarded:
            num_forwarded = len(received_signals)
            with contextlib.suppress(ProcessLookupError):
                os.kill(_pid_to_signal(work_dir, child.pid), signal.SIGTERM)
            for process in everything if num_forwarded > 1 else ():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        time.sleep(0.2)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _pid_to_signal(work_dir: Path, child: int) -> int:
    """Returns the ID of the process to which a request to stop the run is sent.

    It is rank 0's process if rank 0 runs on this machine: rank 0 makes all ranks save and stop
    together, while DeepSpeed's launcher would end ranks on other machines immediately. Otherwise it
    is the child process.

    Args:
        work_dir: the run's work dir.
        child: the process ID of the command that resumes the run.
    """
    return workdir.pid_of_rank_0(work_dir) or child


def _newest(work_dir: Path) -> int:
    return max(
        map(checkpoints.iteration_of, checkpoints.newest_first(work_dir / checkpoints.FOLDER)),
        default=-1,
    )


def _wait(condition, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def _print_line(text: str) -> None:
    sys.stderr.write(f"tiekd: {text}\n")
    sys.stderr.flush()
