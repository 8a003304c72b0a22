"""Runs the programs of the stages as processes of their own, and prints their commands.

A program that works on ranks is started by DeepSpeed's launcher. All processes end with this one:
ranks watch it (tiekd/distributed/launcher_watch.py), and the kernel kills the direct child. What a
killed call has left running is waited for before the next call begins.
"""

import ctypes
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tiekd import console
from tiekd.config import shipped
from tiekd.distributed.launcher_watch import SUPERVISOR
from tiekd.errors import LaunchError
from tiekd.files import replace_text
from tiekd.tools.supervise import run_once

_ON_RANKS = ("train", "cache-teacher", "evaluate")
_RUNNING = ".running.json"
_LEFTOVERS_LEAVE_S = 90.0
_PR_SET_PDEATHSIG = 1
_MEMORY_EVERY_S = 1.0


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: Its exit code.
        seconds: How long it took.
        peak_bytes: The most memory that its processes held together, as seen once a second; pages
            that they share count several times.
    """

    code: int
    seconds: float
    peak_bytes: int


@dataclass
class Commands:
    """Starts programs for one distillation.

    Attributes:
        out: The folder of the distillation, where a running program is noted.
        ranks: Number of ranks of programs that work on several.
        threads: OMP_NUM_THREADS of each.
        launcher: Options of DeepSpeed's launcher that the user gave.
        tell: Prints a line.
        asked: The signals so far that asked this process to stop.
        output: A file that receives what programs print; None for this process's own streams.
        is_running: True while a program runs, which then gets a signal to this process.
    """

    out: Path
    ranks: int
    threads: int
    launcher: Sequence[str]
    tell: Callable[[str], None]
    asked: list[int] = field(default_factory=list)
    output: Path | None = None
    is_running: bool = False

    def run(self, program: str, arguments: Sequence[str], folder: Path | None = None) -> Ended:
        """Prints a program's command, and runs it until it ends.

        Args:
            program: Its name in `tiekd NAME`, such as "check-data".
            arguments: Its arguments.
            folder: The work dir of a training, whose lock shows that a rank still runs.
        """
        is_launched = program in _ON_RANKS and (program == "train" or self.ranks > 1)
        options = self._launcher_options() if is_launched else []
        self.tell(f"$ {self.shown(program, arguments, options)}")
        command = [sys.executable]
        if is_launched:
            command += ["-m", "deepspeed.launcher.runner", *options]
        command += [str(shipped.programs()[program]), *arguments]
        # Let the commands that programs print, and their ranks' threads, be as in the printed one.
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        memory = _Memory()
        started = time.monotonic()
        sink = None if self.output is None else self.output.open("ab")
        replace_text(self.out / _RUNNING, json.dumps({"owner": os.getpid()}) + "\n")
        self.is_running = True
        try:
            code = run_once(
                command, folder or self._idle(), self.asked, sink, memory, _end_with_parent()
            )
        finally:
            self.is_running = False
            if sink is not None:
                sink.close()
        (self.out / _RUNNING).unlink(missing_ok=True)
        return Ended(code, time.monotonic() - started, memory.peak)

    def shown(self, program: str, arguments: Sequence[str], options: Sequence[str]) -> str:
        """Returns a program's command as the user would type it.

        Args:
            program: Its name in `tiekd NAME`.
            arguments: Its arguments.
            options: The options of the launcher; empty without it.
        """
        words = shlex.join(arguments)
        start = console.command(program.replace("-", "_"))
        threads = f"OMP_NUM_THREADS={self.threads} "
        if not options:
            return f"{threads}{start} {words}"
        if console.names_bin():
            return f"{threads}deepspeed {shlex.join(options)} {start} {words}"
        return f"{threads}{start} {words} {shlex.join(options)}"

    def _idle(self) -> Path:
        """Returns a folder in the place of a work dir, of which no run ever holds the lock."""
        folder = self.out / ".idle"
        folder.mkdir(exist_ok=True)
        return folder

    def _launcher_options(self) -> list[str]:
        names = {option.partition("=")[0] for option in self.launcher}
        options = list(self.launcher)
        if not names & {"--num_gpus", "--include"}:
            options.append(f"--num_gpus={self.ranks}")
        if "--master_port" not in names:
            # Another job on this machine may use the default port.
            options.append(f"--master_port={_free_port()}")
        return options


class _Memory:
    """Records the largest sum of the memory of processes, called with them again and again."""

    def __init__(self):
        self.peak = 0
        self._last = 0.0

    def __call__(self, processes: set[psutil.Process]) -> None:
        if time.monotonic() - self._last < _MEMORY_EVERY_S:
            return
        self._last = time.monotonic()
        total = 0
        for process in processes:
            with suppress(psutil.Error):
                total += process.memory_info().rss
        self.peak = max(self.peak, total)


def wait_for_leftovers(out: Path, tell: Callable[[str], None]) -> None:
    """Waits until the programs that a killed call has left running have ended.

    They are recognised by the variable that names their supervisor, the killed process.

    Args:
        out: The folder of the distillation.
        tell: Prints a line.

    Raises:
        LaunchError: One of them is still there after 90 s.
    """
    note = out / _RUNNING
    try:
        owner = json.loads(note.read_text())["owner"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    end, told = time.monotonic() + _LEFTOVERS_LEAVE_S, False
    while left := _supervised_by(owner):
        if time.monotonic() > end:
            raise LaunchError(
                f"{out}: process {left[0].pid} of an earlier call still runs; wait until it has "
                "ended, or end it"
            )
        if not told:
            tell(f"Waiting for process {left[0].pid} of an earlier call to end")
            told = True
        time.sleep(0.2)
    note.unlink(missing_ok=True)


def _supervised_by(owner: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and process.environ().get(SUPERVISOR) == str(owner):
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def _end_with_parent() -> Callable[[], None]:
    """Returns a function for a new child, after which the kernel kills it when this process dies.

    The C library is loaded here, since a child of a fork should do as little as possible.
    """
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
