"""Lets DeepSpeed's launcher fork its processes from the warm server, instead of starting Python.

`deepspeed` starts launch.py, which starts a process for each rank; `bin/resume` and
`bin/experiment.py` start `deepspeed`. Each of these processes would import torch and DeepSpeed. In
a program that the warm server forked they are forked, too, and run the same code. Options,
environments, signals, exit codes, process groups and parents are those of the real launcher. Ranks
find their launchers by command lines, so each process gets the command line that it would have.

A process is still started with a new interpreter if it isn't one of these programs, if its
environment has another value of a variable that libraries read at their import, or if a thread
other than the main thread starts it.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = Path(sys.executable).parent / "deepspeed"
RUNNER, LAUNCH = "deepspeed.launcher.runner", "deepspeed.launcher.launch"
# Variables that libraries or the interpreter read when they start; a forked process can't set them.
READ_AT_START = re.compile("OMP_|ATEN_|ONEDNN_|LD_|MALLOC|PYTHON|TIEKD_ALLOCATOR|MKL_|KMP_")
# A command line is written over the arguments of the server, which has a last one of this length.
# Linux reads at most 4096 bytes of a command line that was written so.
ROOM = 4000
# Environment variables that importing DeepSpeed has set in the server, as it does in a launcher.
set_by_deepspeed: dict[str, str] = {}


class Become(BaseException):
    """Raised in a forked process to leave its parent's code, and to run another program.

    Args:
        command: the command line of the program, which begins with the interpreter.
        environment: its environment variables.
    """

    def __init__(self, command: list[str], environment: dict[str, str]):
        super().__init__(command)
        self.command, self.environment = command, environment


class ForkedProcess:
    """A child process that was forked, with the methods of subprocess.Popen that launchers use."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        """Waits for the end, and returns the exit code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def program_of(command: list[str]) -> list[str]:
    """Returns the program and its arguments, for a command that a fork of this process can run.

    The program is the path of a Python file of the checkout or of `deepspeed`, or the name of a
    module of the launcher. For other commands the result is empty.
    """
    words = [word for word in command[:2] if word not in (sys.executable, "python", "-u")]
    words += command[2:]
    if words[:1] == ["-m"]:
        return words[1:] if words[1:2] in ([RUNNER], [LAUNCH]) else []
    path = Path(words[0]).absolute() if words else Path()
    is_ours = path.suffix == ".py" or path == ROOT / "bin" / "resume"
    return words if path == LAUNCHER or (is_ours and path.is_relative_to(ROOT)) else []


def module_of(program: str) -> types.ModuleType | None:
    """Returns the launcher's module of a program that `program_of` returned; None for a file."""
    names = {RUNNER: RUNNER, LAUNCH: LAUNCH, str(LAUNCHER): RUNNER}
    return sys.modules[names[program]] if program in names else None


def fork_from_now_on() -> None:
    """Makes this process, and those that it forks, fork the launcher's processes."""
    import deepspeed.launcher.launch
    import deepspeed.launcher.runner

    from tiekd.tools import supervise

    forking = types.ModuleType("subprocess")
    forking.__dict__.update(vars(subprocess), Popen=_started)
    for module in (deepspeed.launcher.runner, deepspeed.launcher.launch, supervise):
        module.subprocess = forking
    replace = os.execv

    def replaced(path: str, command: list[str]) -> None:
        if not program_of(command):
            replace(path, command)
        raise Become(command, dict(os.environ))

    os.execv = replaced


def _started(command: list, **options) -> ForkedProcess | subprocess.Popen:
    """Starts a process as subprocess.Popen does: by a fork, where that is possible."""
    words = [str(word) for word in command]
    environment = dict(options.get("env") or os.environ)
    known = {"env", "stdout", "stderr", "start_new_session"}
    is_same = _read_at_start(environment) == _read_at_start(os.environ)
    is_main = threading.current_thread() is threading.main_thread()
    if not (program_of(words) and is_same and is_main and options.keys() <= known):
        return subprocess.Popen(command, **options)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return ForkedProcess(pid)
    if options.get("start_new_session"):
        os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        if options.get(name) is not None:
            os.dup2(options[name].fileno(), number)
    raise Become(words, environment)


def _read_at_start(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if READ_AT_START.match(name)}


def begin(command: list[str], environment: dict[str, str]) -> None:
    """Gives this process the state of a new interpreter that was started with a command line."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The streams of before have other buffers. A stream that owned its file would close it when the
    # next one takes its place.
    buffering = 1 if "-u" in command[:2] else -1
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(set_by_deepspeed | environment)
    set_command_line(command)


def set_command_line(command: list[str]) -> None:
    """Sets this process's command line, as `ps` shows it; in it words are separated by spaces."""
    start, end = _arguments_in_memory()
    text = " ".join(command).encode(errors="surrogateescape")[:ROOM]
    # A last byte that isn't 0 tells Linux that the text before is a whole command line, which ends
    # at its first 0.
    ctypes.memmove(start, text.ljust(end - start - 1, b"\0") + b"-", end - start)


def has_command_line() -> bool:
    """Returns True if a process of this system can set its command line."""
    return sys.platform == "linux" and _arguments_in_memory()[0] > 0


def _arguments_in_memory() -> tuple[int, int]:
    """Returns the first address of this process's arguments, and the one after the last."""
    fields = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    return int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
