"""Runs a program's main function: checks the rank's environment, reports errors, sets exit codes.

A user's mistake is reported in one line. A program may be started by `deepspeed`, by `srun`, by any
launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or by plain `python`
(one rank on a free port).

torch is imported only inside the functions that need it, since importing it takes two seconds. So
`--help`, errors in the arguments, and programs that only read a recipe are fast.
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

from tiekd import console, paths
from tiekd.console import printable
from tiekd.distributed import allocator, hostfile, limits, slurm
from tiekd.errors import LaunchError, UserError
from tiekd.files import cause_of

USER_ERROR_CODE = 2
STOPPED_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
# Matches messages of a collective that fails because another rank is gone.
_LOST_PEER = re.compile(
    r"Connection (closed|reset)|Broken pipe|Socket Timeout|NCCL.*(abort|remote)|recv.*failed|"
    r"Timed out|wait timeout",
    re.I,
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory|MemoryError", re.I
)
_MAKE_ROOM = "make room, then resume or start again"
_ALLOW = "change its permissions, or give another path"
# Maps error numbers of the operating system to the end of the error message, which tells the user
# what to do.
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: _ALLOW,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or give a disk that allows such "
    "files",
    errno.EIO: "the disk, or the connection to it, fails; look into the system's log, and resume "
    "when it is repaired",
    errno.ESTALE: "the network file system no longer has it; mount it again, then resume",
    errno.EISDIR: "a file is read or written there; move the folder, or give another path",
    errno.ENOTDIR: "a part of its path is a file; give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a link there leads back to itself; remove it",
}
# Packages that are missing in a small install, which can only run students.
_LEFT_OUT = ("deepspeed", "psutil", "tensorboard", "torchvision")
_LONGEST_LINE = 2000
_LAYOUT = "\n\r\t"  # control characters that programs print themselves
# Seconds that a rank waits before it reports an error, so that only the rank with the root cause
# reports one. There is one number for each event that it waits for:
_LAUNCHER_REACTS_S = 20.0  # for the launcher to end the other ranks after one has ended;
_LAUNCHER_KILLS_AFTER_S = 30.0  # for the launcher to kill a rank that ignores SIGTERM;
_RANKS_ANSWER_S = 10.0  # for the answers of ranks that are still alive;
_SAME_ERROR_ELSEWHERE_S = 15.0  # for the first rank to report an error that all ranks have;
_START_APART_S = 60.0  # for the same before training, when ranks may be a minute apart.


# `_stdout_error` is the first error that occurred when stdout was written. `_result_is_elsewhere`
# is True if the program writes its result to files, so that lost output on stdout is no failure.
_stdout_error: OSError | None = None
_result_is_elsewhere = False
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


# The names of the signals that asked this process to stop its run; set by
# training/hooks/preemption.py.
asked_to_stop: list[str] = []


class Stopped(Exception):
    """Raised when a run that was asked to stop, for example by a signal, has saved its state.

    The text of the exception says why the run stops, and how to resume.
    """


class _Stdout(io.RawIOBase):
    """A raw stream for stdout that drops all output after the first failed write.

    The error of that write is reported in one line on stderr. Otherwise a run would end when the
    disk with the file of its stdout is full, and loggers would print a traceback for every message.
    If stdout is a pipe whose reader has ended, as in `bin/train.py ... | head`, nothing is
    reported. The constructor takes the file descriptor of stdout.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._reader_has_ended = False

    def writable(self) -> bool:
        """Returns True, as io.RawIOBase requires for a stream that can be written to."""
        return True

    def fileno(self) -> int:
        """Returns the file descriptor of stdout."""
        return self._descriptor

    def isatty(self) -> bool:
        """Returns True if stdout is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data) -> int:
        """Writes bytes to stdout; drops them after the first failed write.

        Args:
            data: The bytes.

        Returns:
            The number of bytes that were written or dropped.
        """
        global _stdout_error
        if _stdout_error is None and not self._reader_has_ended:
            try:
                return os.write(self._descriptor, data)
            except BrokenPipeError:
                self._reader_has_ended = True
            except OSError as error:
                if error.errno not in _WRITE_ERRORS:
                    raise
                _stdout_error = error
                sys.stderr.write(
                    f"tiekd: stdout: {error.strerror}; all later output to stdout is lost\n"
                )
        return len(memoryview(data).cast("B"))


class _Printable(io.TextIOWrapper):
    """A text stream that escapes control characters, which may come from file names.

    Line breaks and tabs are left as they are, since programs print them.
    """

    def write(self, text: str) -> int:
        """Writes text with its control characters escaped.

        Args:
            text: The text.

        Returns:
            The number of characters in `text` before escaping.
        """
        super().write(printable(text, _LAYOUT))
        return len(text)


def guard_stderr() -> None:
    """Replaces this process's stderr by a stream that escapes control characters.

    It does nothing if other code, such as a test, has replaced stderr already.
    """
    stream = sys.stderr
    with contextlib.suppress(AttributeError, OSError):  # stderr is closed or isn't a file
        if stream is not sys.__stderr__ or not isinstance(stream, io.TextIOWrapper):
            return
        stream.flush()
        sys.stderr = _Printable(
            io.FileIO(stream.fileno(), "w", closefd=False),
            encoding=stream.encoding,
            errors=stream.errors,
            write_through=True,
        )


def guard_stdout() -> None:
    """Replaces this process's stdout by a stream that drops output if the disk is full.

    The stream also escapes control characters. This function does nothing if other code, such as a
    test, has replaced stdout already.
    """
    stream = sys.stdout
    # If stdout is closed or isn't a file, the code below raises one of these errors; stdout then
    # stays as it is.
    with contextlib.suppress(AttributeError, OSError):
        # Under unbuffered Python (PYTHONUNBUFFERED) `stream.buffer` is the raw file itself.
        raw = getattr(stream.buffer, "raw", stream.buffer)
        if stream is not sys.__stdout__ or not isinstance(raw, io.FileIO):
            return
        stream.flush()
        ours = _Stdout(stream.fileno())
        sys.stdout = _Printable(
            ours if raw is stream.buffer else io.BufferedWriter(ours),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )


def result_is_elsewhere() -> None:
    """Declares that the program writes its result to files and not to stdout.

    Then the exit code is 0 even if output to stdout was lost, for example on a full disk.
    """
    global _result_is_elsewhere
    _result_is_elsewhere = True


def _code_after_stdout(code: int) -> int:
    """Flushes stdout, and returns the exit code that takes lost output into account.

    Args:
        code: The program's exit code.

    Returns:
        2 if `code` is 0, writing to stdout has failed, and the program's result is on stdout; else
        `code`.
    """
    # An OSError here means that stdout is closed.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    lost = _stdout_error is not None and not _result_is_elsewhere
    return USER_ERROR_CODE if lost and code == 0 else code


def program(main: Callable[[], int | None]) -> NoReturn:
    """Runs a program with `run`, and ends the process with the program's exit code.

    With several ranks, the process exits without Python's cleanup: threads of gloo might use
    objects that the cleanup has destroyed, which would abort the process. Functions that are
    registered with `atexit` are called nevertheless.

    Args:
        main: The program's main function; it returns the exit code, or None for 0.
    """

    def main_with_allocator() -> int | None:
        allocator.set_by_environment()
        return main()

    threading.excepthook = _report_thread_error
    was_in_a_group = _is_in_a_group()
    guard_stdout()
    guard_stderr()
    code = _code_after_stdout(run(main_with_allocator))
    # If `main` has joined a process group, leave the group before the process exits.
    if _is_in_a_group() and not was_in_a_group:
        import torch

        alone = torch.distributed.get_world_size() == 1
        if code in (0, STOPPED_CODE):
            # A RuntimeError means that another rank has ended already.
            with contextlib.suppress(RuntimeError):
                torch.distributed.destroy_process_group()
        # With several ranks, call the functions registered with `atexit`, then exit without
        # Python's cleanup.
        if not alone:
            atexit._run_exitfuncs()
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def run(main: Callable[[], int | None]) -> int:
    """Runs a program's main function, reports its errors, and returns the exit code.

    If all ranks fail with the same user error, only the first rank of each machine prints it
    immediately. The others wait first, and the launcher normally ends them before they print it,
    too. A rank that fails because another rank has ended also waits, so that only the root cause is
    printed.

    Args:
        main: The program's main function; it returns the exit code, or None for 0.

    Returns:
        The program's own exit code; 2 after a user error, i.e. a mistake that the user can correct,
        which is reported in one line on stderr; 75 if a run was asked to stop and can resume from
        its checkpoint; 130 after Ctrl-C.
    """
    slurm.adopt_task()
    # Print escapes for the bytes of file names that the stream's encoding can't represent.
    for stream in (sys.stdout, sys.stderr):
        # A stream that was replaced by another object may lack `reconfigure`.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    try:
        check_ranks(os.environ)
    except LaunchError as error:
        # Report the error on every rank, since the ranks' environment variables may differ.
        return _report(error)
    try:
        # If CROSS_RANK is set, DeepSpeed's launcher has started this process; check that the
        # hostfile in its command exists.
        if "CROSS_RANK" in os.environ:
            _check_hostfile()
        code = main() or 0
        _say_farewell()
        return code
    except UserError as error:
        _restore_default_signals()
        if int(os.environ.get("LOCAL_RANK", 0)) > 0:
            # Wait while the first rank of this machine reports the error. Before the process group
            # exists, ranks on a busy machine may get here up to a minute apart.
            time.sleep(_SAME_ERROR_ELSEWHERE_S if _is_in_a_group() else _START_APART_S)
        return _report(error)
    except Stopped as stopped:
        # The launcher kills all ranks as soon as one has ended, so wait until all have saved. A
        # RuntimeError means that a rank is lost; this rank has saved its state already.
        with contextlib.suppress(RuntimeError):
            from tiekd.distributed.comm import barrier

            barrier()
        if int(os.environ.get("RANK", 0)) == 0:
            sys.stderr.write(f"tiekd: {printable(str(stopped))}\n")
        _say_farewell()
        return STOPPED_CODE
    except KeyboardInterrupt:
        return 130
    except UnicodeEncodeError as error:
        _restore_default_signals()
        return _report(LaunchError(_encoding_message(error)))
    except Exception as error:
        # Report these errors in one line, since they are no fault of the program: a full disk,
        # process limits, a lost rank, too little memory.
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            _restore_default_signals()
            name = error.filename2 or error.filename or "a file"
            return _report(LaunchError(f"{name}: {cause_of(error)}; {_REMEDIES[error.errno]}"))
        if (message := limits.exhausted_resource_message(error)) is not None:
            _restore_default_signals()
            return _report(LaunchError(message))
        if isinstance(error, ModuleNotFoundError) and error.name in _LEFT_OUT:
            return _report(
                LaunchError(
                    f"{error.name} is not installed, and this needs it; install it, or tiekd "
                    "again without pip's --no-deps"
                )
            )
        if lost_a_rank(error):
            _restore_default_signals()
            if asked_to_stop:
                # If this rank was asked to stop, the launcher is already ending all ranks, and the
                # rank with the root cause reports the error.
                return USER_ERROR_CODE
            return _report(_lost_rank(error))
        if is_out_of_memory(error):
            _restore_default_signals()
            return _report(
                LaunchError(
                    "not enough memory; smaller batches, images and networks need less (for "
                    f"training, {console.command('train')} RECIPE --dry-run --find-micro-batch "
                    f"says what fits) ({error})"
                )
            )
        raise


def check_ranks(environment: Mapping[str, str]) -> None:
    """Checks the environment variables that a launcher sets, such as RANK and WORLD_SIZE.

    With wrong values, the ranks of a run would wait for each other for ever.

    Args:
        environment: The environment variables by name. Variables that aren't set aren't checked.

    Raises:
        LaunchError: A variable is not a whole number in its range, or a rank isn't below the number
            of ranks.
    """
    counts = ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
    for name in ("RANK", "LOCAL_RANK", *counts):
        least = 1 if name in counts else 0
        text = environment.get(name, str(least))
        # Skip an empty LOCAL_SIZE or LOCAL_WORLD_SIZE: DeepSpeed and `start_rank` treat it as not
        # set.
        if name.startswith("LOCAL_") and name in counts and not text:
            continue
        if re.fullmatch(r"[0-9]{1,9}", text) is None or int(text) < least:
            raise LaunchError(
                f"{name}: got {text!r:.80}; a launcher sets it to a whole number from {least}; "
                f"start with a launcher, or unset {name}"
            )
    port = environment.get("MASTER_PORT", "1") if "RANK" in environment else "1"
    if re.fullmatch(r"[0-9]{1,5}", port) is None or not 1 <= int(port) <= 65535:
        raise LaunchError(
            f"MASTER_PORT: got {port!r:.80}; a launcher sets it to a port from 1 to 65535; start "
            "with a launcher, or unset RANK"
        )
    pairs = [("RANK", "WORLD_SIZE")] + [("LOCAL_RANK", name) for name in counts]
    for rank, count in pairs:
        if (
            rank in environment
            and environment.get(count)
            and int(environment[rank]) >= int(environment[count])
        ):
            raise LaunchError(
                f"{rank}: got {int(environment[rank])} with {count}={environment[count]}; it must "
                f"be from 0 to {int(environment[count]) - 1}; correct the launcher's settings"
            )


def _encoding_message(error: UnicodeEncodeError) -> str:
    what = error.object
    if len(what) > 200:
        what = what[max(0, error.start - 100) : error.end + 100]
    named = what.encode("ascii", "backslashreplace").decode()
    return (
        f"{named}: a name that can't be written as {error.encoding}; rename it to have letters of "
        "UTF-8, and start with LC_ALL=C.UTF-8 where the environment has another encoding"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Returns True if an error means that there isn't enough memory, on the CPU or on a GPU.

    Args:
        error: The error; its text is searched for the messages of PyTorch, CUDA and Python.
    """
    return (
        isinstance(error, MemoryError | RuntimeError)
        and _OUT_OF_MEMORY.search(repr(error)) is not None
    )


def lost_a_rank(error: Exception) -> bool:
    """Returns True if an error means that a collective failed because another rank is gone.

    Args:
        error: The error that the collective raised. Its message decides; with a single rank the
            result is always False.
    """
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and _LOST_PEER.search(str(error)) is not None


def _check_hostfile() -> None:
    """Raises LaunchError if the hostfile in the `deepspeed` command doesn't exist.

    Without this check, DeepSpeed would run on this machine alone.
    """
    from tiekd.distributed import launcher_watch

    if (path := launcher_watch.launcher_hostfile()) is not None:
        hostfile.check_is_file(path)


def _lost_rank(error: Exception) -> LaunchError:
    """Returns a LaunchError whose message names the missing ranks.

    It is called on every rank after a collective has failed. Of the ranks that still answer, the
    lowest returns immediately. The others first wait for the launcher to end them, so that they
    don't report the same failure again.

    Args:
        error: The error that the collective raised.
    """
    from tiekd.distributed.comm import missing_ranks

    me = int(os.environ["RANK"])
    missing = missing_ranks(_RANKS_ANSWER_S)
    if not missing or me != min(set(range(int(os.environ["WORLD_SIZE"]))) - set(missing)):
        # Wait longer if more ranks are missing, since the launcher ends ranks one after the other.
        time.sleep(_LAUNCHER_REACTS_S + _LAUNCHER_KILLS_AFTER_S * len(missing))
    lost = "another rank"
    if missing:
        lost = f"rank {', '.join(map(str, missing))}, which does not answer"
    waited = re.search(r"(\d+) ?ms", str(error))
    how = f"waited {int(waited[1]) / 1000:g} s for" if waited else "lost"
    return LaunchError(
        f"rank {me} {how} {lost}; it hangs, was stopped or has ended (then its own message says "
        f"why); once that is repaired, resume with {console.command('resume')}"
    )


def _is_in_a_group() -> bool:
    """Returns True if this process has joined a process group of torch.distributed.

    The function doesn't import torch.
    """
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


def _say_farewell() -> None:
    if _is_in_a_group():
        from tiekd.distributed import machine_watch

        machine_watch.say_farewell()


def _restore_default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def on_lost_machine(name: str, silent: bool) -> None:
    """Reports that another machine of the run was lost, and ends this process.

    Args:
        name: The lost machine's name.
        silent: True if the machine stopped answering; False if its connection was closed. In the
            latter case this rank waits before it reports: its own collective may fail with a better
            message.
    """
    from tiekd.distributed import launcher_watch

    if not silent:
        time.sleep(_RANKS_ANSWER_S + _LAUNCHER_REACTS_S + 5)
    what = "stopped answering" if silent else "has lost its rank"
    message = (
        f"machine {name} {what}; resume with {console.command('resume')}, on other machines if it "
        "stays away"
    )
    launcher_watch.end_process(code=_report(LaunchError(message)))


def _report_thread_error(ended) -> None:
    """Reports an exception that has ended a thread; used as `threading.excepthook`.

    If the system and not the program is the cause, such as a full disk to which TensorBoard's
    thread writes, the report is one line on stderr. For any other exception it is a traceback.

    Args:
        ended: The exception and its thread, as `threading.excepthook` gets them.
    """
    error = ended.exc_value
    remedy = _REMEDIES.get(error.errno) if isinstance(error, OSError) else None
    message = None
    if remedy is not None:
        message = f"{error.filename or 'a file'}: {cause_of(error)}; {remedy}"
    elif error is not None:
        message = limits.exhausted_resource_message(error)
    if not message or os.environ.get("TIEKD_DEBUG") == "1":
        threading.__excepthook__(ended)
        return
    name = "a thread" if ended.thread is None else f"thread {ended.thread.name}"
    sys.stderr.write(f"tiekd: {name} has ended: {printable(' '.join(message.split()))}\n")


def _report(error: UserError) -> int:
    if os.environ.get("TIEKD_DEBUG") == "1":
        traceback.print_exc()
    message = printable(" ".join(map(str.strip, str(error).splitlines())))
    line = f"{type(error).__name__}: {paths.with_hint(message)}"
    # Cut a too long message in the middle, since its end tells the user what to do.
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return USER_ERROR_CODE
