"""Watches the launcher processes above a rank, and ends the rank when one of them has ended.

If `deepspeed` is terminated or killed, its ranks keep running and nothing would end them. So each
rank watches its launcher from the start. When the launcher has ended, the rank exits, or calls the
function that was set by `when_lost`.

In a run on several machines, ranks are started over ssh, and each rank watches its ssh session.
Ranks on the launcher's machine also watch `deepspeed` and pdsh, the program with which `deepspeed`
opens the ssh sessions. If only these two are killed, the ssh connections stay open, so ranks on the
other machines don't notice it.

Not covered: other launchers (SLURM and similar ones end their processes themselves).
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
# The environment variable with the process ID of the program that supervises this run: `bin/resume
# --restarts`, bin/experiment.py, bin/distill.py or tiekd/tools/rebuild_student.py.
SUPERVISOR = "TIEKD_SUPERVISOR"
_REAPERS = ("systemd", "init", "tini", "dumb-init", "containerd-shim")
_LAUNCHER_MODULES = ("deepspeed.launcher.launch", *_RUNNERS)


def end_process(_gone: psutil.Process | None = None, code: int = 1) -> None:
    """Kills all child processes and ends this process immediately, without a message.

    It is called when the launcher has ended, which would pass on any message. Child processes are
    killed, since a data worker that waits for a hanging disk would outlive this process.

    Args:
        _gone: The launcher that has ended; not used, but given to every function set by
            `when_lost`.
        code: The exit code.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(code)


_on_lost_launcher: Callable[[psutil.Process], None] = end_process


def watch_launchers() -> None:
    """Starts to watch the launchers of this process, i.e. the programs that started it as a rank.

    If one of them has already ended, the process exits. If one ends later, the function that was
    set by `when_lost` is called; if none was set, the process exits.
    """
    found = launchers()
    # CROSS_RANK shows that DeepSpeed's launch.py has started this process. If launch.py isn't among
    # the ancestors any more, it has ended, so exit.
    is_there = any(_LAUNCHER_MODULES[0] in _command(process) for process in found)
    if "CROSS_RANK" in os.environ and not is_there:
        end_process()
    # Exit if the `deepspeed` process that started launch.py has already ended.
    if found and _is_adopted(found[-1]):
        sys.stderr.write(
            f"tiekd: the launcher above process {found[-1].pid} has ended, and so does this rank\n"
        )
        end_process()
    # Exit if the program that supervises the run, such as `bin/resume --restarts`, has already
    # ended.
    if SUPERVISOR in os.environ and not psutil.pid_exists(int(os.environ[SUPERVISOR])):
        end_process()
    watch(found, lambda process: _on_lost_launcher(process))


def when_lost(answer: Callable[[psutil.Process], None]) -> None:
    """Sets the function that is called when a launcher of this process has ended.

    Args:
        answer: Called once, in another thread, with the launcher process that has ended. It
            replaces the function that was set before.
    """
    global _on_lost_launcher
    _on_lost_launcher = answer


def launchers() -> list[psutil.Process]:
    """Returns the launcher processes that started this process, as a list, nearest first.

    These are DeepSpeed's launch.py, which starts the ranks of one machine; DeepSpeed's runner,
    which starts launch.py; and `bin/resume --restarts`, bin/experiment.py, bin/distill.py and
    tiekd/tools/rebuild_student.py. If launch.py is an ancestor of this process and the runner
    isn't, launch.py was started over ssh. Then the ssh session is added. If the pdsh process that
    opened the session runs on this machine, it is added too, with the launchers above it.
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


def launcher_hostfile() -> Path | None:
    """Returns the hostfile that was given to the `deepspeed` command that started this process.

    Returns:
        The value of --hostfile in the command line, as an absolute path; None if the option isn't
        given, or if `deepspeed` runs on another machine.
    """
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            for place, word in enumerate(words[:3]):
                if word == _RUNNERS[0] or word.endswith(_RUNNERS[1]):
                    given = _hostfile_in(words[place + 1 :])
                    return None if given is None else Path(process.cwd(), given)
    return None


def _hostfile_in(words: list[str]) -> str | None:
    """Returns the value of --hostfile, or of an abbreviation of it, in a `deepspeed` command.

    Args:
        words: The command's words after `deepspeed`. Words from this program's name on are the
            program's own arguments and are ignored.

    Returns:
        The value as the user typed it; None if the option isn't given.
    """
    own = words[: words.index(sys.argv[0])] if sys.argv[0] in words else words
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-H", "--hostfile")
    return parser.parse_known_args(own)[0].hostfile


def nodes() -> dict[str, list[int]] | None:
    """Returns the numbers of the devices on each machine of this run.

    They are read from the command line of DeepSpeed's launcher.

    Returns:
        A dict from the machine's name to a list of device numbers; None if there is only one
        machine. Also None if the user started the launcher on each machine by hand (--no_ssh),
        since bin/resume, which uses the result, can't repeat that.
    """
    commands = " ".join(map(_command, launchers()))
    world_info = re.search(r"--world_info=([\w=-]+)", commands)
    known = json.loads(base64.urlsafe_b64decode(world_info[1])) if world_info else {}
    return known if len(known) > 1 and "--no_ssh" not in commands.split() else None


def watch(
    processes: list[psutil.Process], on_loss: Callable[[psutil.Process], None], every_s: float = 1.0
) -> None:
    """Watches processes in another thread until one of them has ended.

    Args:
        processes: The processes to watch; if there are none, nothing is done.
        on_loss: Called once, in the other thread, with the first process that has ended.
        every_s: Seconds between two checks.
    """

    def poll() -> None:
        pause = threading.Event()
        while not pause.wait(every_s):
            # A process counts as ended, too, if its ID now belongs to another process, or if it is
            # a zombie.
            gone = next((p for p in processes if not p.is_running() or _is_zombie(p)), None)
            if gone is not None:
                on_loss(gone)
                return

    if processes:
        threading.Thread(target=poll, name="ancestry", daemon=True).start()


def _is_adopted(launch: psutil.Process) -> bool:
    """Returns True if the `deepspeed` process that started launch.py has ended.

    launch.py then has a new parent: init, or another process that adopts orphans. But it is still
    in the process group of `deepspeed`, i.e. neither in that of the new parent nor in one of its
    own. (A launch.py that was started by hand has a group of its own.)

    Args:
        launch: The process of launch.py.
    """
    with contextlib.suppress(psutil.Error, OSError):
        parent = launch.parent()
        if _LAUNCHER_MODULES[0] not in _command(launch) or parent is None:
            return False
        if parent.pid == 1 or parent.name() in _REAPERS:
            return os.getpgid(launch.pid) not in (launch.pid, os.getpgid(parent.pid))
    return False


def _launches(command: str) -> bool:
    supervises = re.search(r"(^|[/ ])resume ", command) and " --restart" in command
    supervises = supervises or re.search(r"(^|[/ ])(experiment|distill)\.py( |$)", command)
    supervises = supervises or re.search(r"(^|[/ ])tiekd (experiment|distill)( |$)", command)
    supervises = supervises or re.search(r" tiekd\.tools\.rebuild_student( |$)", command)
    return bool(supervises) or any(module in command for module in _LAUNCHER_MODULES)


def _pdsh_and_above(launch: str) -> list[psutil.Process]:
    """Returns the pdsh process that started launch.py on all machines, and the launchers above it.

    Args:
        launch: The command line of launch.py, whose options identify the run.

    Returns:
        The pdsh process, then the launchers among its ancestors, nearest first; empty if pdsh
        doesn't run on this machine.
    """
    marks = re.findall(r"--(?:world_info|master_addr|master_port)=\S+", launch)
    every = [(process, _command(process)) for process in psutil.process_iter()]
    running = [
        p
        for p, command in every
        if command.startswith("pdsh ") and all(mark in command for mark in marks)
    ]
    if not running:
        return []
    newest = max(running, key=lambda process: process.create_time())
    return [newest, *(process for process in newest.parents() if _launches(_command(process)))]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        # The command can't be read: the process has just ended, or it belongs to another user.
        return ""


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
