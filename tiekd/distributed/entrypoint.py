"""Starting and ending a process: the rank's environment, and one line instead of a traceback.

Works under `deepspeed`, under `srun`, under any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT, and as plain `python` (one rank on a free port).

torch is imported where it is needed, by who starts a rank: `--help`, a mistake in the call and what
only reads a recipe end in a fraction of the two seconds that this takes.
"""

import atexit
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from tiekd import paths
from tiekd.distributed import allocator, hostfile, limits, slurm
from tiekd.errors import LaunchError, UserError

USER_ERROR_CODE = 2
STOPPED_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
_LOST_PEER = re.compile(
    r"Connection (closed|reset)|Broken pipe|Socket Timeout|NCCL.*(abort|remote)|recv.*failed|Timed out|wait timeout",
    re.I,
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory|MemoryError", re.I
)
_LESS_MEMORY = (
    "not enough memory; smaller batches, pictures and networks need less (for training, "
    "bin/train.py RECIPE --dry-run --find-micro-batch says what fits)"
)
_MAKE_ROOM, _ALLOW = (
    "make room, then go on or start again",
    "change its permissions, or give another path",
)
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EACCES: _ALLOW,
    errno.EROFS: _ALLOW,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or give a disk that takes such files",
    errno.EIO: "the disk, or the way to it, fails; see what the system's log says of it, and go on when it is mended",
    errno.ESTALE: "the network's disk has lost it; mount it anew, then go on",
    errno.ENOTDIR: "a part of its path is a file; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a link there leads back to itself; remove it",
}
_LONGEST_LINE = 2000
_LAUNCHER_REACTS_S = 20.0
_LAUNCHER_KILLS_AFTER_S = 30.0  # a rank that doesn't end when it is told to
_RANKS_ANSWER_S = 10.0
_SAME_ERROR_ELSEWHERE_S, _START_APART_S = 15.0, 60.0


# The reasons that training/hooks/preemption.py was given in this process.
asked_to_stop: list[str] = []


class Stopped(Exception):
    """A run that was asked to end has saved its state and ended early."""


def program(main: Callable[[], int | None]) -> NoReturn:
    """Runs a program as `run` does, and ends the process with its exit code.

    One of several ranks then ends without Python being taken down around it: gloo's threads may outlive what they use,
    and the process abort. What was registered for the end is done.
    """

    def main_with_allocator() -> int | None:
        allocator.set_by_environment()
        return main()

    threading.excepthook = _tell_of_a_thread
    was_in_a_group = _is_in_a_group()
    code = run(main_with_allocator)
    if _is_in_a_group() and not was_in_a_group:
        import torch

        alone = torch.distributed.get_world_size() == 1
        if code in (0, STOPPED_CODE):
            with contextlib.suppress(RuntimeError):  # another rank may be gone
                torch.distributed.destroy_process_group()
        if not alone:
            atexit._run_exitfuncs()
            with contextlib.suppress(OSError):  # nobody reads any more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def run(main: Callable[[], int | None]) -> int:
    """Runs a program and returns its exit code: the program's own or 0, 2 after a user's mistake, told in one line on
    stderr, or 75 where a run was asked to stop and can go on from its checkpoint.

    A mistake that every rank finds is told by the first rank of a machine: the others wait until the launcher has ended
    them. A rank that loses another one waits in the same way, so that the cause is the only thing to be read.
    """
    slurm.adopt_task()
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text in any encoding
        with contextlib.suppress(AttributeError):  # a stream of somebody else's
            stream.reconfigure(errors="backslashreplace")
    try:
        if "CROSS_RANK" in os.environ:  # DeepSpeed's launcher sets it
            _check_hostfile()
        code = main() or 0
        _say_farewell()
        return code
    except UserError as error:
        _let_signals_end_this()
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            # Before they have met, ranks of a busy machine may be far apart.
            time.sleep(_SAME_ERROR_ELSEWHERE_S if _is_in_a_group() else _START_APART_S)
        return _report(error)
    except Stopped as stopped:
        # The launcher ends the other ranks as soon as one has ended, so they end together.
        with contextlib.suppress(RuntimeError):  # one that was lost now has saved as well
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
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            _let_signals_end_this()
            return _report(
                LaunchError(
                    f"{error.filename or 'a file'}: {error.strerror}; {_REMEDIES[error.errno]}"
                )
            )
        if (told := limits.lacking(error)) is not None:
            _let_signals_end_this()
            return _report(LaunchError(told))
        if lost_a_rank(error):
            _let_signals_end_this()
            if asked_to_stop:
                # The launcher is about it already, and another rank has told the cause.
                return USER_ERROR_CODE
            return _report(_lost_rank(error))
        if is_out_of_memory(error):
            _let_signals_end_this()
            return _report(LaunchError(f"{_LESS_MEMORY} ({error})"))
        raise


def _not_to_be_written(error: UnicodeEncodeError) -> str:
    what = (
        error.object
        if len(error.object) <= 200
        else error.object[max(0, error.start - 100) : error.end + 100]
    )
    named = what.encode("ascii", "backslashreplace").decode()
    return (
        f"{named}: a name that can't be written as {error.encoding}; rename it to have letters of "
        "UTF-8, and start with LC_ALL=C.UTF-8 where the environment has another encoding"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was lacking, of whatever device, by what the error says."""
    return (
        isinstance(error, MemoryError | RuntimeError)
        and _OUT_OF_MEMORY.search(repr(error)) is not None
    )


def lost_a_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and _LOST_PEER.search(str(error)) is not None


def _check_hostfile() -> None:
    """LaunchError where `deepspeed` was told a hostfile that isn't there, for it goes on with this machine alone."""
    from tiekd.distributed import launcher_watch

    if (told := launcher_watch.told_hostfile()) is not None:
        hostfile.check_is_file(told)


def _lost_rank(error: Exception) -> LaunchError:
    """Which rank a collective failed for. Only the first one that is left says so at once: a rank that has ended by an
    error of its own has told that, and its launcher ends the others."""
    from tiekd.distributed.comm import missing_ranks

    me, missing = int(os.environ["RANK"]), missing_ranks(_RANKS_ANSWER_S)
    if not missing or me != min(set(range(int(os.environ["WORLD_SIZE"]))) - set(missing)):
        # It ends one rank after the other.
        time.sleep(_LAUNCHER_REACTS_S + _LAUNCHER_KILLS_AFTER_S * len(missing))
    lost = (
        f"rank {', '.join(map(str, missing))}, which does not answer" if missing else "another rank"
    )
    waited = re.search(r"(\d+) ?ms", str(error))
    how = f"waited {int(waited[1]) / 1000:g} s for" if waited else "lost"
    return LaunchError(
        f"rank {me} {how} {lost}; it hangs, was stopped or has ended (then its own message says "
        "why); once that is mended, go on with bin/resume"
    )


def _is_in_a_group() -> bool:
    """True where this process has joined a group; one that hasn't imported torch has not."""
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
    """Ends this rank, after a while in which the rank itself may find out and tell more."""
    from tiekd.distributed import launcher_watch

    if not silent:
        time.sleep(_RANKS_ANSWER_S + _LAUNCHER_REACTS_S + 5)
    what = "fell silent" if silent else "has lost its rank"
    told = f"machine {name} {what}; go on with bin/resume, on others if it stays away"
    launcher_watch.end_process(code=_report(LaunchError(told)))


def _tell_of_a_thread(ended) -> None:
    """The end of a thread, TensorBoard's writer for example, in a line where it isn't a fault of the program."""
    error = ended.exc_value
    told = _REMEDIES.get(error.errno) if isinstance(error, OSError) else None
    told = f"{error}; {told}" if told is not None else error is not None and limits.lacking(error)
    if not told or os.environ.get("TIEKD_DEBUG") == "1":
        return threading.__excepthook__(ended)
    name = "a thread" if ended.thread is None else f"thread {ended.thread.name}"
    sys.stderr.write(f"tiekd: {name} has ended: {' '.join(told.split())}\n")


def _report(error: UserError) -> int:
    if os.environ.get("TIEKD_DEBUG") == "1":
        traceback.print_exc()
    message = " ".join(map(str.strip, str(error).splitlines()))
    line = f"{type(error).__name__}: {paths.with_hint(message)}"
    if len(line) > _LONGEST_LINE:  # somebody's value is; what to do stands at the end
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return USER_ERROR_CODE
