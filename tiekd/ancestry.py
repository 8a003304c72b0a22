"""The launcher's processes above a rank, and whether they are still there.

A `deepspeed` that is terminated or killed leaves its ranks running, with nobody to end them; so ranks look up, from
their start on. Without another arrangement (`when_lost`) they end at once.
Left out: launchers of other kinds (SLURM and the like end their processes themselves).
"""

import os
import threading
from collections.abc import Callable

import psutil

_LAUNCHER_MODULES = ("deepspeed.launcher.launch", "deepspeed.launcher.runner", "bin/deepspeed")


def end_process(_gone: psutil.Process | None = None) -> None:
    """Ends this process on the spot, without a word: whoever would read it is gone."""
    os._exit(1)


_on_lost_launcher: Callable[[psutil.Process], None] = end_process


def watch_launchers() -> None:
    """From now on, the end of a launcher of this process is answered as `when_lost` said last."""
    watch(launchers(), lambda process: _on_lost_launcher(process))


def when_lost(answer: Callable[[psutil.Process], None]) -> None:
    """What to do when a launcher has ended: `answer(launcher)`, called from another thread."""
    global _on_lost_launcher
    _on_lost_launcher = answer


def launchers() -> list[psutil.Process]:
    """DeepSpeed's launcher and `bin/resume --restarts` among this process's ancestors, nearest first."""
    found = []
    for process in psutil.Process().parents():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:  # it has just ended, or is somebody else's
            continue
        if any(module in command for module in _LAUNCHER_MODULES) or _supervises(command):
            found.append(process)
    return found


def _supervises(command: str) -> bool:
    return "bin/resume " in command and " --restarts" in command


def watch(processes: list[psutil.Process], on_loss: Callable[[psutil.Process], None], every_s: float = 1.0) -> None:
    """Calls `on_loss(process)` once, from a thread of its own, when one of the processes has ended."""

    def look() -> None:
        pause = threading.Event()
        while not pause.wait(every_s):
            # A process number that was given anew counts as ended, and so does a zombie, for it will do nothing more.
            gone = next((p for p in processes if not p.is_running() or _is_zombie(p)), None)
            if gone is not None:
                return on_loss(gone)

    if processes:
        threading.Thread(target=look, name="ancestry", daemon=True).start()


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
