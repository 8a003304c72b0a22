"""The launcher's processes above a rank, and whether they are still there.

A `deepspeed` that is terminated or killed leaves its ranks running, with nobody to end them; so ranks look up, from
their start on. Without another arrangement (`when_lost`) they end at once.
On many machines ranks are started over ssh: then it is the ssh session's end, and on the launcher's machine that of
`deepspeed` and its pdsh. Killed alone they leave the ssh connections, and so the ranks elsewhere, as they are.
Left out: launchers of other kinds (SLURM and the like end their processes themselves).
"""

import argparse
import base64
import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

_RUNNERS = ("deepspeed.launcher.runner", "bin/deepspeed")
# The environment variable with the process number of `bin/resume --restarts`.
SUPERVISOR = "TIEKD_SUPERVISOR"
_REAPERS = ("systemd", "init", "tini", "dumb-init", "containerd-shim")
_LAUNCHER_MODULES = ("deepspeed.launcher.launch", *_RUNNERS)


def end_process(_gone: psutil.Process | None = None, code: int = 1) -> None:
    """Ends this process on the spot, without a word: whoever would read it is gone. With it end the processes that it
    has started: a data worker whose disk doesn't answer would stay."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(code)


_on_lost_launcher: Callable[[psutil.Process], None] = end_process


def watch_launchers() -> None:
    """From now on, the end of a launcher of this process is answered as `when_lost` said last; of one that ended
    before, by this process's end."""
    found = launchers()
    if "CROSS_RANK" in os.environ and not any(
        _LAUNCHER_MODULES[0] in _command(process) for process in found
    ):
        end_process()  # DeepSpeed's launch.py set the variable, and is gone
    if found and _is_adopted(found[-1]):
        sys.stderr.write(
            f"tiekd: the launcher above process {found[-1].pid} has ended, and so does this rank\n"
        )
        end_process()
    if SUPERVISOR in os.environ and not psutil.pid_exists(int(os.environ[SUPERVISOR])):
        end_process()
    watch(found, lambda process: _on_lost_launcher(process))


def when_lost(answer: Callable[[psutil.Process], None]) -> None:
    """What to do when a launcher has ended: `answer(launcher)`, called from another thread."""
    global _on_lost_launcher
    _on_lost_launcher = answer


def launchers() -> list[psutil.Process]:
    """DeepSpeed's launcher and `bin/resume --restarts` among this process's ancestors, nearest first.

    Without its runner among them launch.py was started over ssh: then the session stands last, and after it what there
    is on this machine of pdsh and the launchers above it.
    """
    ancestors = [(process, _command(process)) for process in psutil.Process().parents()]
    found = [i for i, (_, command) in enumerate(ancestors) if _launches(command)]
    processes = [ancestors[i][0] for i in found]
    if not found or any(runner in ancestors[i][1] for i in found for runner in _RUNNERS):
        return processes
    session = [
        process for process, command in ancestors[found[-1] + 1 :][:1] if command.startswith("sshd")
    ]
    return [*processes, *session, *_pdsh_and_above(ancestors[found[0]][1])]


def told_hostfile() -> Path | None:
    """The hostfile that the `deepspeed` above this process was given; None where it was given none, or is on another
    machine."""
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            for place, word in enumerate(words[:3]):
                if word == _RUNNERS[0] or word.endswith(_RUNNERS[1]):
                    given = _hostfile_in(words[place + 1 :])
                    return None if given is None else Path(process.cwd(), given)
    return None


def _hostfile_in(words: list[str]) -> str | None:
    """Of words behind `deepspeed`: its own options stand before this program's name. Any beginning of one will do."""
    own = words[: words.index(sys.argv[0])] if sys.argv[0] in words else words
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-H", "--hostfile")
    return parser.parse_known_args(own)[0].hostfile


def nodes() -> dict[str, list[int]] | None:
    """The machines that the launcher of this process was told, and the devices on each; None where it was told one, or
    was started by hand on each, for then it can't be started from here."""
    commands = " ".join(map(_command, launchers()))
    told = re.search(r"--world_info=([\w=-]+)", commands)
    known = json.loads(base64.urlsafe_b64decode(told[1])) if told else {}
    return known if len(known) > 1 and "--no_ssh" not in commands.split() else None


def watch(
    processes: list[psutil.Process], on_loss: Callable[[psutil.Process], None], every_s: float = 1.0
) -> None:
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


def _is_adopted(launch: psutil.Process) -> bool:
    """Whether launch.py has lost the `deepspeed` that started it: its parent is now the system's first process, or one
    that takes its place, which is of no job of ours. One that was started by hand leads a group of its own."""
    with contextlib.suppress(psutil.Error, OSError):
        parent = launch.parent()
        if _LAUNCHER_MODULES[0] not in _command(launch) or parent is None:
            return False
        if parent.pid == 1 or parent.name() in _REAPERS:
            return os.getpgid(launch.pid) not in (launch.pid, os.getpgid(parent.pid))
    return False


def _launches(command: str) -> bool:
    supervises = re.search(r"(^|[/ ])resume ", command) and " --restart" in command
    return bool(supervises) or any(module in command for module in _LAUNCHER_MODULES)


def _pdsh_and_above(launch: str) -> list[psutil.Process]:
    """The pdsh that runs this command of launch.py on all machines, and its launchers; nothing where it isn't here."""
    marks = re.findall(r"--(?:world_info|master_addr|master_port)=\S+", launch)
    every = [(process, _command(process)) for process in psutil.process_iter()]
    here = [
        p
        for p, command in every
        if command.startswith("pdsh ") and all(mark in command for mark in marks)
    ]
    if not here:
        return []
    newest = max(here, key=lambda process: process.create_time())
    return [newest, *(process for process in newest.parents() if _launches(_command(process)))]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended, or is somebody else's
        return ""


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
