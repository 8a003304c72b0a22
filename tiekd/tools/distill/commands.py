"""Runs other programs of bin/ as child processes for `distill`, and prints their commands.

A program that trains or works on several ranks is started by DeepSpeed's launcher. If this process
dies, its children end too: the kernel kills the direct child, and ranks exit by themselves since
they check that their launcher lives (tiekd/distributed/launcher_watch.py). The next call of
`distill` waits until they have ended.
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
from tiekd.tools.arguments import with_visible_devices
from tiekd.tools.supervise import run_once

_ON_RANKS = ("train", "cache-teacher", "evaluate")
_RUNNING = ".running.json"
_LEFTOVERS_LEAVE_S = 90.0
_PR_SET_PDEATHSIG = 1
_MEMORY_EVERY_S = 1.0


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended, and what it needed.

    Attributes:
        code: Its exit code.
        seconds: Wall time from its start to its end.
        peak_bytes: The largest sum of the resident memory of its processes, measured once a second.
            Pages that processes share count once for each process.
    """

    code: int
    seconds: float
    peak_bytes: int


@dataclass
class Commands:
    """Runs the programs of one distillation, one at a time, and prints their commands.

    Attributes:
        out: The folder of --out. While a program runs, a file in it holds this process's ID.
        ranks: Number of ranks of the programs that can run on several (`_ON_RANKS`).
        threads: OMP_NUM_THREADS of each program.
        launcher: Options of DeepSpeed's launcher that the user gave, each as `--name=value`.
        print_line: Function that prints a line.
        received_signals: Numbers of the signals that asked this process to stop; signal handlers
            append to it.
        output: A file that receives what programs print; None for this process's own streams.
        is_running: True while a program runs. A signal to this process is then forwarded to it.
    """

    out: Path
    ranks: int
    threads: int
    launcher: Sequence[str]
    print_line: Callable[[str], None]
    received_signals: list[int] = field(default_factory=list)
    output: Path | None = None
    is_running: bool = False

    def run(
        self, program: str, arguments: Sequence[str], folder: Path | None = None
    ) -> ProgramResult:
        """Prints a program's command, runs the program until it ends, and returns how it ended.

        Args:
            program: The program's name in `tiekd NAME`, such as "check-data".
            arguments: The program's arguments.
            folder: The work dir, if the program trains. The training holds a lock in it, by which
                this process sees if a rank is still running. None for other programs.
        """
        uses_launcher = program in _ON_RANKS and (program == "train" or self.ranks > 1)
        options = self.launcher_options() if uses_launcher else []
        self.print_line(f"$ {self.shell_command(program, arguments, options)}")
        command = [sys.executable]
        if uses_launcher:
            command += ["-m", "deepspeed.launcher.runner", *options]
        command += [str(shipped.programs()[program]), *arguments]
        # Set OMP_NUM_THREADS as the printed command does. Child processes inherit it.
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        memory = _Memory()
        started = time.monotonic()
        sink = None if self.output is None else self.output.open("ab")
        replace_text(self.out / _RUNNING, json.dumps({"owner": os.getpid()}) + "\n")
        self.is_running = True
        try:
            code = run_once(
                command,
                folder or self._placeholder_work_dir(),
                self.received_signals,
                sink,
                memory,
                _end_with_parent(),
            )
        finally:
            self.is_running = False
            if sink is not None:
                sink.close()
        (self.out / _RUNNING).unlink(missing_ok=True)
        return ProgramResult(code, time.monotonic() - started, memory.peak)

    def shell_command(self, program: str, arguments: Sequence[str], options: Sequence[str]) -> str:
        """Returns the shell command that runs a program, as the user would type it.

        Args:
            program: The program's name in `tiekd NAME`, such as "check-data".
            arguments: The program's arguments.
            options: Options of DeepSpeed's launcher; empty to run the program without the launcher.
        """
        words = shlex.join(arguments)
        start = console.command(program.replace("-", "_"))
        threads = f"OMP_NUM_THREADS={self.threads} "
        if not options:
            return f"{threads}{start} {words}"
        if console.names_bin():
            return f"{threads}deepspeed {shlex.join(options)} {start} {words}"
        return f"{threads}{start} {words} {shlex.join(options)}"

    def _placeholder_work_dir(self) -> Path:
        """Creates and returns the folder that stands in for the work dir of a program without one.

        `run_once` needs a work dir, whose lock it waits for. No training locks this folder.
        """
        folder = self.out / ".idle"
        folder.mkdir(exist_ok=True)
        return folder

    def launcher_options(self) -> list[str]:
        """Returns the options with which DeepSpeed's launcher is called.

        Those that the user didn't give are added: the devices, which are the first ones of
        CUDA_VISIBLE_DEVICES if that is set, and a port.

        Raises:
            LaunchError: CUDA_VISIBLE_DEVICES lists fewer devices than there are ranks, or names no
                device.
        """
        names = {option.partition("=")[0] for option in self.launcher}
        options = list(self.launcher)
        if not names & {"--num_gpus", "--include"}:
            options.append(f"--num_gpus={self.ranks}")
        options = with_visible_devices(options, takes_first=True)
        if "--master_port" not in names:
            # Choose a free port for the ranks' communication, since another job on this machine may
            # use the launcher's default port.
            options.append(f"--master_port={_free_port()}")
        return options


class _Memory:
    """A callable that records the largest amount of memory that some processes use together.

    It is called several times a second with the set of processes. Once a second it sums their
    resident memory. `peak` is the largest sum so far, in bytes.
    """

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


def wait_for_leftovers(out: Path, print_line: Callable[[str], None]) -> None:
    """Waits until programs that an earlier, killed call of `distill` has started have ended.

    The killed call has left a file with its process ID in `out`. Its programs have this ID in an
    environment variable (SUPERVISOR).

    Args:
        out: The folder of --out.
        print_line: Function that prints a line.

    Raises:
        LaunchError: One of these programs still runs after 90 s.
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
            print_line(f"Waiting for process {left[0].pid} of an earlier call to end")
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
    """Returns a function that makes the kernel kill a child process when its parent dies.

    The child calls it before its program starts, and gets SIGKILL when this process dies. The C
    library is loaded here and not in the child, because code between fork and exec should do as
    little as possible.
    """
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
