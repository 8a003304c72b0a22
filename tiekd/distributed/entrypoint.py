"""Starts and ends a process: the rank's environment, its exit code, one line per mistake.

Works under `deepspeed`, under `srun`, under any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT, and as plain `python` (one rank on a free port).

torch is imported within the functions that need it: its import takes two seconds, and `--help`, a
mistake in the call and programs that only read a recipe end in a fraction of that.
"""

import atexit
import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from tiekd import paths
from tiekd.distributed import allocator, hostfile, limits, slurm
from tiekd.errors import LaunchError, UserError

USER_ERROR_CODE = 2
STOPPED_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
_LOST_PEER = re.compile(
    r"Connection (closed|reset)|Broken pipe|Socket Timeout|NCCL.*(abort|remote)|recv.*failed|"
    r"Timed out|wait timeout",
    re.I,
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory|MemoryError", re.I
)
_LESS_MEMORY = (
    "not enough memory; smaller batches, images and networks need less (for training, "
    "bin/train.py RECIPE --dry-run --find-micro-batch says what fits)"
)
_MAKE_ROOM = "make room, then go on or start again"
_ALLOW = "change its permissions, or give another path"
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EACCES: _ALLOW,
    errno.EROFS: _ALLOW,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or give a disk that takes such "
    "files",
    errno.EIO: "the disk, or the way to it, fails; see what the system's log says of it, and go on "
    "when it is mended",
    errno.ESTALE: "the network's disk has lost it; mount it anew, then go on",
    errno.EISDIR: "a file is read or written there; move the folder, or give another path",
    errno.ENOTDIR: "a part of its path is a file; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a link there leads back to itself; remove it",
}
_LONGEST_LINE = 2000
_LAUNCHER_REACTS_S = 20.0
_LAUNCHER_KILLS_AFTER_S = 30.0  # a rank that doesn't end on SIGTERM
_RANKS_ANSWER_S = 10.0
_SAME_ERROR_ELSEWHERE_S = 15.0
_START_APART_S = 60.0


# The first error of writing to stdout, and whether the program's result is elsewhere (in files).
_stdout_error: OSError | None = None
_result_is_elsewhere = False
_NOT_TO_BE_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


# The reasons to stop that training/hooks/preemption.py got in this process.
asked_to_stop: list[str] = []


class Stopped(Exception):
    """Raised when a run that was asked to stop has saved its state and ends early."""


class _Stdout(io.RawIOBase):
    """Writes to the process's stdout until that fails, which one line on stderr says.

    A run must not end because its stdout is full, and each logger would print a traceback.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Returns True."""
        return True

    def fileno(self) -> int:
        """Returns the number of the file."""
        return self._descriptor

    def isatty(self) -> bool:
        """Returns True for a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data) -> int:
        """Writes bytes; takes all and drops them once that has failed."""
        global _stdout_error
        if _stdout_error is None:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                if error.errno not in _NOT_TO_BE_WRITTEN:
                    raise
                _stdout_error = error
                sys.stderr.write(
                    f"tiekd: stdout: {error.strerror}; what is printed from here on is lost\n"
                )
        return len(memoryview(data).cast("B"))


def guard_stdout() -> None:
    """Puts `_Stdout` in the place of this process's own stdout."""
    stream = sys.stdout
    with contextlib.suppress(AttributeError, OSError):  # another stream, or none
        raw = getattr(stream.buffer, "raw", stream.buffer)  # PYTHONUNBUFFERED has no buffer
        if stream is not sys.__stdout__ or not isinstance(raw, io.FileIO):
            return
        stream.flush()
        ours = _Stdout(stream.fileno())
        sys.stdout = io.TextIOWrapper(
            ours if raw is stream.buffer else io.BufferedWriter(ours),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )


def result_is_elsewhere() -> None:
    """Says that what this program prints isn't its result, so that it may be lost."""
    global _result_is_elsewhere
    _result_is_elsewhere = True


def _code_after_stdout(code: int) -> int:
    """Returns a program's exit code once all that it printed is written, or is known to be lost."""
    with contextlib.suppress(OSError):  # the reader is gone
        sys.stdout.flush()
    lost = _stdout_error is not None and not _result_is_elsewhere
    return USER_ERROR_CODE if lost and code == 0 else code


def program(main: Callable[[], int | None]) -> NoReturn:
    """Runs a program as `run` does, and exits with its exit code.

    One of several ranks exits without Python's cleanup: gloo's threads may outlive what they use,
    and the process would abort. Functions that are registered with `atexit` are called.
    """

    def main_with_allocator() -> int | None:
        allocator.set_by_environment()
        return main()

    threading.excepthook = _tell_of_a_thread
    was_in_a_group = _is_in_a_group()
    guard_stdout()
    code = _code_after_stdout(run(main_with_allocator))
    # The process group that `main` joined is left here, before Python's cleanup.
    if _is_in_a_group() and not was_in_a_group:
        import torch

        alone = torch.distributed.get_world_size() == 1
        if code in (0, STOPPED_CODE):
            with contextlib.suppress(RuntimeError):  # another rank may be gone
                torch.distributed.destroy_process_group()
        # The functions that Python would call at its end, then the end without it.
        if not alone:
            atexit._run_exitfuncs()
            with contextlib.suppress(OSError):  # the reader is gone
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def run(main: Callable[[], int | None]) -> int:
    """Runs a program and returns its exit code.

    If all ranks fail with the same user error, the first rank of each machine prints it; the others
    wait until the launcher ends them. A rank whose peer died waits likewise, so that only the root
    cause is printed.

    Args:
        main: the program; returns its exit code, or None for 0.

    Returns:
        The program's own exit code; 2 after a user error, which is reported in one line on
        stderr; 75 if a run was asked to stop and can resume from its checkpoint; 130 after Ctrl-C.
    """
    slurm.adopt_task()
    for stream in (sys.stdout, sys.stderr):  # file names may be bytes that are no text
        with contextlib.suppress(AttributeError):  # a stream that a caller has replaced
            stream.reconfigure(errors="backslashreplace")
    try:
        check_ranks(os.environ)
    except LaunchError as error:  # each rank has its own mistake
        return _report(error)
    try:
        if "CROSS_RANK" in os.environ:  # DeepSpeed's launcher sets it
            _check_hostfile()
        code = main() or 0
        _say_farewell()
        return code
    except UserError as error:
        _let_signals_end_this()
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            # Until the process group exists, ranks of a busy machine may be far apart.
            time.sleep(_SAME_ERROR_ELSEWHERE_S if _is_in_a_group() else _START_APART_S)
        return _report(error)
    except Stopped as stopped:
        # The launcher ends all ranks as soon as one has ended, so they end together. A rank that is
        # lost here has saved as well.
        with contextlib.suppress(RuntimeError):
            from tiekd.distributed.comm import barrier

            barrier()
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stderr.write(f"tiekd: {stopped}\n")
        _say_farewell()
        return STOPPED_CODE
    except KeyboardInterrupt:
        return 130
    except UnicodeEncodeError as error:
        _let_signals_end_this()
        return _report(LaunchError(_not_to_be_written(error)))
    except Exception as error:
        # Faults of the machine, not of the program: disk, limits, a lost rank, memory.
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            _let_signals_end_this()
            name = error.filename2 or error.filename or "a file"
            return _report(LaunchError(f"{name}: {error.strerror}; {_REMEDIES[error.errno]}"))
        if (told := limits.lacking(error)) is not None:
            _let_signals_end_this()
            return _report(LaunchError(told))
        if lost_a_rank(error):
            _let_signals_end_this()
            if asked_to_stop:
                # The launcher is already ending the run, and another rank has reported the cause.
                return USER_ERROR_CODE
            return _report(_lost_rank(error))
        if is_out_of_memory(error):
            _let_signals_end_this()
            return _report(LaunchError(f"{_LESS_MEMORY} ({error})"))
        raise


def check_ranks(told: Mapping[str, str]) -> None:
    """Refuses ranks that no launcher gives, which the other ranks would wait for in vain.

    Args:
        told: the environment; what isn't set in it isn't looked at.

    Raises:
        LaunchError: a variable is no whole number, or a rank isn't below the count of ranks.
    """
    counts = ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
    for name in ("RANK", "LOCAL_RANK", *counts):
        least = 1 if name in counts else 0
        text = told.get(name, str(least))
        # DeepSpeed takes an empty LOCAL_SIZE for one that isn't set, and so does `start_rank`.
        if name.startswith("LOCAL_") and name in counts and not text:
            continue
        if re.fullmatch(r"[0-9]{1,9}", text) is None or int(text) < least:
            raise LaunchError(
                f"{name}: got {text!r:.80}; a launcher sets it to a whole number from {least}; "
                f"start with a launcher, or unset {name}"
            )
    pairs = [("RANK", "WORLD_SIZE")] + [("LOCAL_RANK", name) for name in counts]
    for rank, count in pairs:
        if rank in told and told.get(count) and int(told[rank]) >= int(told[count]):
            raise LaunchError(
                f"{rank}: got {int(told[rank])} with {count}={told[count]}; it must be from 0 to "
                f"{int(told[count]) - 1}; mend the launcher's settings"
            )


def _not_to_be_written(error: UnicodeEncodeError) -> str:
    what = error.object
    if len(what) > 200:
        what = what[max(0, error.start - 100) : error.end + 100]
    named = what.encode("ascii", "backslashreplace").decode()
    return (
        f"{named}: a name that can't be written as {error.encoding}; rename it to have letters of "
        "UTF-8, and start with LC_ALL=C.UTF-8 where the environment has another encoding"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Returns True if an error's text says that memory is exhausted, on whatever device."""
    return (
        isinstance(error, MemoryError | RuntimeError)
        and _OUT_OF_MEMORY.search(repr(error)) is not None
    )


def lost_a_rank(error: Exception) -> bool:
    """Returns True if a collective failed because another rank is gone."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and _LOST_PEER.search(str(error)) is not None


def _check_hostfile() -> None:
    """Raises LaunchError if `deepspeed` was given a hostfile that doesn't exist.

    DeepSpeed would continue on this machine alone.
    """
    from tiekd.distributed import launcher_watch

    if (told := launcher_watch.launcher_hostfile()) is not None:
        hostfile.check_is_file(told)


def _lost_rank(error: Exception) -> LaunchError:
    """Returns the error that names the rank for which a collective failed.

    Only the lowest rank that still answers reports it at once. The others wait: a rank that ended
    by an error of its own has reported that, and its launcher ends the others.
    """
    from tiekd.distributed.comm import missing_ranks

    me = int(os.environ["RANK"])
    missing = missing_ranks(_RANKS_ANSWER_S)
    if not missing or me != min(set(range(int(os.environ["WORLD_SIZE"]))) - set(missing)):
        # The launcher ends one rank after the other.
        time.sleep(_LAUNCHER_REACTS_S + _LAUNCHER_KILLS_AFTER_S * len(missing))
    lost = "another rank"
    if missing:
        lost = f"rank {', '.join(map(str, missing))}, which does not answer"
    waited = re.search(r"(\d+) ?ms", str(error))
    how = f"waited {int(waited[1]) / 1000:g} s for" if waited else "lost"
    return LaunchError(
        f"rank {me} {how} {lost}; it hangs, was stopped or has ended (then its own message says "
        "why); once that is mended, go on with bin/resume"
    )


def _is_in_a_group() -> bool:
    """Returns True if this process has joined a group; without torch it hasn't."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


def _say_farewell() -> None:
    if _is_in_a_group():
        from tiekd.distributed import machine_watch

        machine_watch.say_farewell()


def _let_signals_end_this() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def on_lost_machine(name: str, silent: bool) -> None:
    """Ends this rank after another machine was lost.

    Args:
        name: of the machine.
        silent: True if it fell silent. Otherwise its connection closed; then this rank waits, since
            its own collective may fail and its error says more.
    """
    from tiekd.distributed import launcher_watch

    if not silent:
        time.sleep(_RANKS_ANSWER_S + _LAUNCHER_REACTS_S + 5)
    what = "fell silent" if silent else "has lost its rank"
    told = f"machine {name} {what}; go on with bin/resume, on others if it stays away"
    launcher_watch.end_process(code=_report(LaunchError(told)))


def _tell_of_a_thread(ended) -> None:
    """Reports a thread's end in one line if no fault of the program caused it.

    An example is TensorBoard's writer when the disk is full.
    """
    error = ended.exc_value
    remedy = _REMEDIES.get(error.errno) if isinstance(error, OSError) else None
    told = None
    if remedy is not None:
        told = f"{error}; {remedy}"
    elif error is not None:
        told = limits.lacking(error)
    if not told or os.environ.get("TIEKD_DEBUG") == "1":
        threading.__excepthook__(ended)
        return
    name = "a thread" if ended.thread is None else f"thread {ended.thread.name}"
    sys.stderr.write(f"tiekd: {name} has ended: {' '.join(told.split())}\n")


def _report(error: UserError) -> int:
    if os.environ.get("TIEKD_DEBUG") == "1":
        traceback.print_exc()
    message = " ".join(map(str.strip, str(error).splitlines()))
    line = f"{type(error).__name__}: {paths.with_hint(message)}"
    if len(line) > _LONGEST_LINE:  # it quotes a long value; what to do comes at the end
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return USER_ERROR_CODE
