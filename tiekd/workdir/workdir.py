"""Locks a work dir for one run, and writes the run's files other than logs and checkpoints.

    config.yaml      the resolved recipe
    ds_config.json   the resolved engine config; this file and config.yaml suffice to repeat the run
    launch.json      how the run was started (tiekd/workdir/launch_record.py)
    hostfile         the machines of a run on several machines
    environment.txt  the hardware and software
    inputs.json      the input files, with sizes and checksums (tiekd/training/inputs.py)
    layouts.json     how convolutions run on a CPU (tiekd/kernels/layouts.py); kept on resume
    outcome.json     running, finished, stopped early, stopped, orphaned or failed; stays "running"
                     after a kill
    .lock            locked by rank 0 while its process runs, so that no other run can use it

Each file except the lock is replaced atomically.
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

from tiekd import console
from tiekd.config.recipe import dump_recipe, load_recipe
from tiekd.distributed import comm
from tiekd.errors import LaunchError
from tiekd.files import check_readable, instead_of_file, replace_text
from tiekd.workdir import checkpoints, launch_record
from tiekd.workdir.environment import environment

RECIPE = "config.yaml"
ENGINE_CONFIG = "ds_config.json"
ENVIRONMENT = "environment.txt"
OUTCOME = "outcome.json"
LOCK = ".lock"
# The outcomes of complete runs.
FINISHED, STOPPED_EARLY = "finished", "stopped early"
# The number of seconds that a resume waits for the lock, since a run that is about to end may still
# be saving.
_ENDING_RUN_LEAVES_S = 30.0
# Keys of a recipe that don't affect the trained weights, given by their beginnings.
NOT_LEARNED_FROM = (
    "work_dir",
    "train.timeout_minutes",
    "data.workers",
    "data.timeout_s",
    "data.decoded",  # the same pixels, decoded before
    "checkpoint.",
    "log.",
    "tensorboard.",
)
# The number of seconds that a rank waits until it sees a file that rank 0 has written. (A network
# file system may cache for some time that the file doesn't exist.)
_SHARED_FILES_APPEAR_S = 10.0


_locks: dict[Path, TextIOWrapper] = {}


@dataclass(frozen=True)
class Outcome:
    """The content of outcome.json: how a run ended, or that it is still running.

    Attributes:
        outcome: running, finished, stopped early (complete, since its metric no longer improved),
            failed, stopped (on request) or orphaned (stopped because its launcher died).
        iteration: The last finished iteration.
        total_iterations: The number of iterations that the recipe asks for.
        reason: Why the run stopped or failed; None otherwise.
        time: The local time at which outcome.json was written, as ISO 8601 text.
    """

    outcome: str
    iteration: int
    total_iterations: int
    reason: str | None
    time: str

    @property
    def is_complete(self) -> bool:
        """True if the run needn't be resumed: it has finished or was stopped early."""
        return self.outcome in (FINISHED, STOPPED_EARLY)


@contextlib.contextmanager
def outcome_of(state) -> Iterator[None]:
    """Writes outcome.json at the start and at the end of a `with` block. Only rank 0 writes.

    An exception in the block is recorded as "failed" and raised again.

    Args:
        state: The run's TrainState; its work dir, iteration and reason to stop are written.
    """

    def write_down(outcome: str, reason: str | None = None) -> None:
        now = datetime.now().isoformat(timespec="seconds")
        facts = asdict(Outcome(outcome, state.iteration, state.total_iterations, reason, now))
        if comm.is_main():
            # An error such as a full disk must not end the run, so outcome.json isn't written in
            # that case.
            with contextlib.suppress(OSError):
                replace_text(state.work_dir / OUTCOME, json.dumps(facts, indent=1) + "\n")

    # Write "running" first: if the run is killed, it can't write another outcome, so this one
    # stays.
    write_down("running")
    try:
        yield
    except BaseException as error:
        write_down("failed", " ".join(f"{type(error).__name__}: {error}".split()))
        raise
    ended = FINISHED if state.stop_reason is None else "stopped"
    if state.stopped_early:
        ended = STOPPED_EARLY
    if state.orphaned:
        ended = "orphaned"
    write_down(ended, state.stop_reason)


def read_outcome(work_dir: Path) -> Outcome | None:
    """Reads from outcome.json how the run of a work dir ended.

    Args:
        work_dir: The run's folder.

    Returns:
        An `Outcome`; None if there is no outcome.json or it can't be parsed.

    Raises:
        LaunchError: The file outcome.json is a folder or a pipe.
    """
    check_readable(work_dir / OUTCOME, "record of a run's end", LaunchError)
    try:
        return Outcome(**json.loads((work_dir / OUTCOME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def lock(work_dir: Path, resuming: bool = False) -> None:
    """Locks a work dir for this run until the process of rank 0 ends. Collective.

    If the file system has no locks, the run continues without a lock.

    Args:
        work_dir: The run's folder; created if it doesn't exist and `resuming` is False.
        resuming: True to wait up to 30 s if another run holds the lock, since that run may be
            about to end.

    Raises:
        LaunchError: Another run holds the lock, or the work dir can't be written to.
    """
    problem = None
    if comm.is_main() and work_dir not in _locks and (work_dir.is_dir() or not resuming):
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            problem = _lock(work_dir, _ENDING_RUN_LEAVES_S if resuming else 0.0)
        except OSError as error:
            problem = f"{work_dir}: can't be written to ({error.strerror}); give another --work-dir"
            if work_dir.is_symlink() and not work_dir.exists():
                problem = (
                    f"{work_dir}: is a link to {os.readlink(work_dir)}, which isn't there; make "
                    "that folder, or give another --work-dir"
                )
    problem = comm.broadcast_object(problem)
    if problem:
        raise LaunchError(problem)


def is_in_use(work_dir: Path) -> bool:
    """Returns True if another process holds the lock of a work dir, i.e. a run is using it.

    Args:
        work_dir: The work dir.
    """
    if not work_dir.is_dir():
        return False
    in_use = _lock(work_dir, 0.0) is not None
    if not in_use:
        _locks.pop(work_dir).close()
    return in_use


def pid_of_rank_0(work_dir: Path) -> int | None:
    """Returns the process ID of a run's rank 0, if that process is alive on this machine.

    Args:
        work_dir: The run's folder, whose lock file names the process.

    Returns:
        The process ID; None if the process has ended or is on another machine.
    """
    if instead_of_file(work_dir / LOCK):
        return None
    try:
        owner = re.match(r"process (\d+) on (\S+),", (work_dir / LOCK).read_text())
    except OSError:
        return None
    is_alive_here = owner is not None and owner[2] == socket.gethostname() and is_in_use(work_dir)
    return int(owner[1]) if is_alive_here else None


def check(work_dir: Path, recipe_path: Path, resuming: bool) -> None:
    """Refuses a work dir that belongs to another recipe or run. Collective.

    Args:
        work_dir: The folder that this run is to use.
        recipe_path: The path of this run's recipe.
        resuming: True if this run resumes the one in the work dir.

    Raises:
        LaunchError: The work dir belongs to another recipe or run; the message names it.
    """
    problem = comm.broadcast_object(_problem(work_dir, recipe_path, resuming))
    if problem:
        raise LaunchError(problem)


def check_shared(work_dir: Path) -> None:
    """Refuses a work dir that a rank on another machine doesn't see. Collective.

    Each rank compares the content of the work dir's lock file with what rank 0 wrote to it.

    Args:
        work_dir: The run's folder, which rank 0 has locked.

    Raises:
        LaunchError: A rank reads another content or none; the message names the rank's machine.
    """
    written = None
    if comm.is_main():
        # Read through the handle that holds the lock: opening the file again and closing it would
        # release the lock.
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
    """Writes config.yaml, ds_config.json, environment.txt and launch.json. Rank 0 only.

    It is called after all checks, when nothing can refuse the run any more.

    Args:
        work_dir: The run's folder.
        recipe: The recipe as `load_recipe` returned it, with bases and overrides merged.
        recipe_path: The path of the user's recipe.
        engine_config: The engine config with which DeepSpeed is started.
    """
    # Remove the outcome of an earlier start: a finished run that is extended is no longer finished.
    (work_dir / OUTCOME).unlink(missing_ok=True)
    replace_text(work_dir / RECIPE, dump_recipe(recipe))
    replace_text(work_dir / ENGINE_CONFIG, json.dumps(engine_config, indent=2) + "\n")
    facts = "".join(f"{name}: {value}\n" for name, value in environment().items())
    replace_text(work_dir / ENVIRONMENT, facts)
    launch_record.write(work_dir, recipe_path)


def changed_keys(work_dir: Path, recipe: dict) -> list[str]:
    """Returns the names of the values in a recipe that have changed since a run was last started.

    Args:
        work_dir: The run's folder, whose config.yaml has the earlier recipe.
        recipe: The recipe of this start, with bases and overrides merged.

    Returns:
        Dotted names, such as `train.epochs`. Values that don't affect the trained weights
        (NOT_LEARNED_FROM) are left out. Empty if no run was started in the work dir.
    """
    if not (work_dir / RECIPE).is_file():
        return []
    return [
        key
        for key in differences(load_recipe(work_dir / RECIPE), recipe)
        if not key.startswith(NOT_LEARNED_FROM)
    ]


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Returns the names of the values that differ between two nested dicts, in alphabetical order.

    Args:
        old: One dict, such as a recipe or an engine config.
        new: The other dict.
        prefix: Text that is put before each name; set in recursive calls.

    Returns:
        The keys that lead to a value, joined by dots, such as `train.epochs`. A key that only one
        of the dicts has is included. If both dicts have a list of teachers, or of data sets, and
        the lists are equally long, their entries are compared one by one, and a name is like
        `teachers[1].checkpoint`.
    """
    changed = []
    for key in sorted(old.keys() | new.keys()):
        a = old.get(key)
        b = new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += differences(a, b, f"{prefix}{key}.")
        elif key in ("teachers", "data") and _are_equally_long(a, b):
            for place, (one, other) in enumerate(zip(a, b, strict=True)):
                changed += differences(one, other, f"{prefix}{key}[{place}].")
        elif a != b:
            changed.append(prefix + key)
    return changed


def _are_equally_long(old: object, new: object) -> bool:
    """Returns True if both values are lists of dicts, with the same number of dicts.

    Args:
        old: Any value.
        new: Any other value.
    """
    both = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    return both and all(isinstance(each, dict) for each in [*old, *new])


def _problem(work_dir: Path, recipe_path: Path, resuming: bool) -> str | None:
    if (work_dir / launch_record.RECORD).exists():
        maker = launch_record.read(work_dir).recipe
        if maker != str(recipe_path):
            return f"{work_dir} belongs to {maker}; give this run another --work-dir"
    elif (work_dir / RECIPE).exists() and not (work_dir / LOCK).exists():
        # A run creates the lock file before any other file. Without a lock file, no run has written
        # this config.yaml.
        return f"{work_dir} holds a config.yaml that no run made; give this run another --work-dir"
    held = [*(work_dir / checkpoints.FOLDER).glob("iter_*"), *work_dir.glob("best_*.pth")]
    if held and not resuming:
        return (
            f"{work_dir} already holds a run ({held[0].name}); resume it with "
            f"{console.command('resume')} {shlex.quote(str(work_dir))}, or start again in another "
            "--work-dir"
        )
    return None


def _sees(work_dir: Path, written: str) -> bool:
    try:
        return (work_dir / LOCK).read_text() == written
    except OSError:
        return False


def _lock(work_dir: Path, wait_s: float) -> str | None:
    found = instead_of_file(work_dir / LOCK)
    if found is not None:
        return f"{work_dir / LOCK}: {found}, no lock; remove it"
    # Use lockf, not flock: data workers inherit a flock, and would hold it for some seconds after
    # their rank was killed.
    file = (work_dir / LOCK).open("a+", encoding="utf-8")
    end = time.monotonic() + wait_s
    is_announced = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            # EACCES and EAGAIN mean that another process holds the lock. Other errors mean that the
            # file system has no locks; then continue without a lock.
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                break
        file.seek(0)
        owner = file.read().strip() or "another run"
        if time.monotonic() >= end:
            file.close()
            return (
                f"{work_dir} is in use by {owner}; wait until it has ended, end it, or give "
                "another --work-dir"
            )
        if not is_announced:
            sys.stderr.write(f"tiekd: waiting for {owner} to leave {work_dir}\n")
            is_announced = True
        time.sleep(0.2)
    # Write the owner's name into the lock file, for other runs' messages. The lock itself is held
    # by the kernel and doesn't depend on this text.
    file.truncate(0)
    now = datetime.now().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
    file.flush()
    _locks[work_dir] = file
    return None
