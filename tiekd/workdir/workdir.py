"""Whose a work dir is, and what of a run is written down in it besides logs and checkpoints.

    config.yaml ds_config.json    the recipe and the engine config, resolved; the run can be repeated from these two
    launch.json hostfile          how it was started (tiekd/workdir/launch_record.py), and on which machines
    environment.txt               on what machine and software
    inputs.json                   which files it reads, as they were (tiekd/training/inputs.py)
    layouts.json                  how convolutions run on a CPU (tiekd/kernels/layouts.py); a resumed run takes it over
    outcome.json                  running, finished, stopped, orphaned or failed; who was killed left "running"
    .lock                         held by the main rank while it lives, so that two runs can't share a work dir

All of them are replaced whole, never written over.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path

from tiekd.config.recipe import dump_recipe, load_recipe
from tiekd.distributed import comm
from tiekd.errors import LaunchError
from tiekd.files import replace_text
from tiekd.workdir import checkpoints, launch_record
from tiekd.workdir.environment import environment

RECIPE, ENGINE_CONFIG, ENVIRONMENT = "config.yaml", "ds_config.json", "environment.txt"
OUTCOME, LOCK = "outcome.json", ".lock"
_ENDING_RUN_LEAVES_S = 30.0  # it may be saving
NOT_LEARNED_FROM = (
    "work_dir",
    "train.timeout_minutes",
    "data.workers",
    "data.timeout_s",
    "checkpoint.",
    "log.",
    "tensorboard.",
)
# A network file system may remember for a while that a file was not there.
_SHARED_FILES_APPEAR_S = 10.0


_locks: dict[Path, TextIOWrapper] = {}


@dataclass(frozen=True)
class Outcome:
    """How a run ended, or that it didn't: `outcome` is running, finished, failed, stopped (as it was asked to) or
    orphaned (stopped because its launcher was gone)."""

    outcome: str
    iteration: int
    total_iterations: int
    reason: str | None
    time: str  # ISO 8601, local


@contextlib.contextmanager
def outcome_of(state) -> Iterator[None]:
    """Writes down how the training in a `with` statement ends. Only the main rank writes."""

    def write_down(outcome: str, reason: str | None = None) -> None:
        now = datetime.now().isoformat(timespec="seconds")
        facts = asdict(Outcome(outcome, state.iteration, state.total_iterations, reason, now))
        if comm.is_main():
            with contextlib.suppress(OSError):  # a full disk ends no run by this file
                replace_text(state.work_dir / OUTCOME, json.dumps(facts, indent=1) + "\n")

    write_down("running")
    try:
        yield
    except BaseException as error:
        write_down("failed", " ".join(f"{type(error).__name__}: {error}".split()))
        raise
    ended = (
        "orphaned" if state.orphaned else "stopped" if state.stop_reason is not None else "finished"
    )
    write_down(ended, state.stop_reason)


def read_outcome(work_dir: Path) -> Outcome | None:
    """The outcome of the last start, None where there is none that can be read."""
    try:
        return Outcome(**json.loads((work_dir / OUTCOME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def lock(work_dir: Path, resuming: bool = False) -> None:
    """Makes the work dir this run's own until its process ends; LaunchError where another run has it. Collective.

    resuming: waits half a minute for a run that is about to end, and makes no work dir where there is none. A file
    system without locks is used without one.
    """
    problem = None
    if comm.is_main() and work_dir not in _locks and (work_dir.is_dir() or not resuming):
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            problem = _lock(work_dir, _ENDING_RUN_LEAVES_S if resuming else 0.0)
        except OSError as error:
            problem = f"{work_dir}: can't be written to ({error.strerror}); give another --work-dir"
    problem = comm.broadcast_object(problem)
    if problem:
        raise LaunchError(problem)


def is_in_use(work_dir: Path) -> bool:
    """Whether a run that another process is part of has the work dir."""
    in_use = _lock(work_dir, 0.0) is not None
    if not in_use:
        _locks.pop(work_dir).close()
    return in_use


def main_rank_here(work_dir: Path) -> int | None:
    """The process that has the work dir, where it is one of this machine; None where nobody has it."""
    try:
        owner = re.match(r"process (\d+) on (\S+),", (work_dir / LOCK).read_text())
    except OSError:
        return None
    here = owner is not None and owner[2] == socket.gethostname() and is_in_use(work_dir)
    return int(owner[1]) if here else None


def check(work_dir: Path, recipe_path: Path, resuming: bool) -> None:
    """Refuses a work dir that another recipe or run owns. Collective."""
    problem = comm.broadcast_object(_problem(work_dir, recipe_path, resuming))
    if problem:
        raise LaunchError(problem)


def check_shared(work_dir: Path) -> None:
    """Refuses a work dir whose lock, as the main rank wrote it, another rank's machine doesn't see. Collective."""
    written = None
    if comm.is_main():  # not read anew: to close the file would give the lock back
        _locks[work_dir].seek(0)
        written = _locks[work_dir].read()
    written = comm.broadcast_object(written)
    end = time.monotonic() + _SHARED_FILES_APPEAR_S
    while not (seen := comm.is_main() or _sees(work_dir, written)) and time.monotonic() < end:
        time.sleep(0.1)
    blind = [host for host, saw in comm.gather_objects((socket.gethostname(), seen)) if not saw]
    if blind:
        raise LaunchError(
            f"{work_dir} isn't shared: {blind[0]} doesn't see it; give a --work-dir on a shared "
            "disk"
        )


def write(work_dir: Path, recipe: dict, recipe_path: Path, engine_config: dict) -> None:
    """Makes the work dir and writes down the run in it, when nothing can be refused any more. Main rank only."""
    # First: a finished run that is extended isn't finished any more.
    (work_dir / OUTCOME).unlink(missing_ok=True)
    replace_text(work_dir / RECIPE, dump_recipe(recipe))
    replace_text(work_dir / ENGINE_CONFIG, json.dumps(engine_config, indent=2) + "\n")
    facts = "".join(f"{name}: {value}\n" for name, value in environment().items())
    replace_text(work_dir / ENVIRONMENT, facts)
    launch_record.write(work_dir, recipe_path)


def changed_keys(work_dir: Path, recipe: dict) -> list[str]:
    """Dotted names of the values in which a recipe differs from the one that the run was last started with, and that
    change what is learned."""
    if not (work_dir / RECIPE).is_file():
        return []
    return [
        key
        for key in differences(load_recipe(work_dir / RECIPE), recipe)
        if not key.startswith(NOT_LEARNED_FROM)
    ]


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the values that differ between two recipes, or two engine configs."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changed.append(prefix + key)
    return changed


def _problem(work_dir: Path, recipe_path: Path, resuming: bool) -> str | None:
    if (work_dir / launch_record.RECORD).exists():
        maker = launch_record.read(work_dir).recipe
        if maker != str(recipe_path):
            return f"{work_dir} belongs to {maker}; give this run another --work-dir"
    elif (work_dir / RECIPE).exists() and not (work_dir / LOCK).exists():
        # Not of a start that was killed.
        return f"{work_dir} holds a config.yaml that no run made; give this run another --work-dir"
    held = [*(work_dir / checkpoints.FOLDER).glob("iter_*"), *work_dir.glob("best_*.pth")]
    if held and not resuming:
        return (
            f"{work_dir} already holds a run ({held[0].name}); go on with bin/resume "
            f"{shlex.quote(str(work_dir))}, or start anew in another --work-dir"
        )
    return None


def _sees(work_dir: Path, written: str) -> bool:
    try:
        return (work_dir / LOCK).read_text() == written
    except OSError:
        return False


def _lock(work_dir: Path, wait_s: float) -> str | None:
    # Not flock: a worker that outlives a killed rank for some seconds would still hold that.
    file = (work_dir / LOCK).open("a+", encoding="utf-8")
    end, told = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                break
        file.seek(0)
        owner = file.read().strip() or "another run"
        if time.monotonic() >= end:
            file.close()
            return f"{work_dir} is in use by {owner}; wait until it has ended, end it, or give another --work-dir"
        if not told:
            sys.stderr.write(f"tiekd: waiting for {owner} to leave {work_dir}\n")
            told = True
        time.sleep(0.2)
    file.truncate(0)
    now = datetime.now().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
    file.flush()
    _locks[work_dir] = file
    return None
