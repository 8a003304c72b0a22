"""Implements bin/distill.py: checks the inputs, then runs the stages of a distillation.

This code chooses settings and records finished stages. The work itself is done by other programs of
bin/ on recipes that are written to the folder of --out, so the user can repeat each stage by hand.
"""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from tiekd.config.teacher_node import TeacherList, errors_of
from tiekd.distributed.entrypoint import STOPPED_CODE
from tiekd.errors import LaunchError
from tiekd.teaching import teacher_checkpoint
from tiekd.tools.distill import (
    dry_run,
    family,
    images,
    options,
    plan,
    stages,
    summary,
    teacher,
)
from tiekd.tools.distill.commands import Commands, wait_for_leftovers
from tiekd.tools.distill.work import Stopped, Work
from tiekd.workdir import workdir

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run(args: argparse.Namespace) -> int:
    """Runs the stages that aren't finished, or with --dry-run estimates what each stage needs.

    Args:
        args: The command line, as `options.check` leaves it.

    Returns:
        The exit code: 0 on success, 75 if a signal asked the process to stop, otherwise that of the
        program that failed.

    Raises:
        UserError: The command line contradicts the plan of an earlier call, or an input can't be
            used.
    """
    out = args.out
    _check_out(out)
    section = None if args.teacher is None else teacher.parse(args.teacher, args.teacher_set)
    requested = plan.values_of_arguments(args, section)
    kept = plan.read(out)
    if kept is None:
        kept = plan.new(requested, plan.threads_of_rank(requested.get("ranks", 1)))
        _check_inputs(kept, out)
    plan.update_unused(kept, requested, has_begun=stages.Records(out).training_key is not None)
    plan.check_agreement(kept, requested, out)
    commands = Commands(out, kept.ranks, kept.rank_threads, args.launcher, _print_line)
    commands.launcher_options()  # refuses wrong devices now, and not when the training begins
    if args.dry_run:
        return dry_run.run(kept, out, args.launcher, _print_line)
    _lock(out)
    wait_for_leftovers(out, _print_line)
    # Write the plan before any stage runs, so that the next call finds it even if this process is
    # killed.
    plan.write(kept, out)
    _catch_signals(commands)
    work = Work(kept, out, commands, _print_line)
    try:
        stages.run(work.stages(), stages.Records(out), _print_line, args.until)
        if args.until in (None, options.STAGES[-1]):
            _print_line("\n".join(summary.lines(kept, out)))
    except Stopped as stopped:
        _print_line(str(stopped))
        return STOPPED_CODE if commands.received_signals else stopped.code
    return 0


def _catch_signals(commands: Commands) -> None:
    """Installs handlers of the signals that ask this process to stop.

    A signal is recorded in `commands.received_signals`. If a program is running, `commands`
    forwards the signal to it; otherwise the handler raises Stopped.

    Args:
        commands: The object that runs the programs of the stages.
    """

    def ask(number: int, _frame: FrameType | None) -> None:
        commands.received_signals.append(number)
        if not commands.is_running:
            raise Stopped("Stopped; the same command continues", STOPPED_CODE)

    for number in _SIGNALS:
        signal.signal(number, ask)


def _check_out(out: Path) -> None:
    """Raises LaunchError if the folder of --out has files of another kind, i.e. files but no plan.

    Args:
        out: The folder of --out.

    Raises:
        LaunchError: The folder has other files.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if plan.FILE in names:
        return
    # Ignore the lock file and partly written plans, which a call leaves if it is killed before its
    # plan is complete.
    other = sorted(name for name in names if name != workdir.LOCK and plan.FILE not in name)
    if other:
        raise LaunchError(f"--out {out}: holds {other[0]}, but no {plan.FILE}; give a new folder")


def _check_inputs(new: plan.Plan, out: Path) -> None:
    """Checks that the inputs of a new plan exist, before anything is written.

    Args:
        new: The plan.
        out: The folder of --out, whose images aren't counted.

    Raises:
        UserError: There are no images, no depth map belongs to an image, or weights of the student
            or the teacher are missing.
    """
    depth = [Path(new.depth)] if new.depth else []
    found = images.find(Path(new.images), [out, *depth])
    for folder in depth:
        images.check_depth(folder, found)
    if new.init is None:
        family.check_weights(new.student)
    # Check the weights of teachers that are networks of tiekd. Models of other projects are checked
    # when the audit loads them.
    for node in TeacherList.of(new.teacher).nodes:
        if node.name is None and node.maps is None:
            with errors_of(node.where):
                teacher_checkpoint(node)


def _lock(out: Path) -> None:
    """Locks the folder of --out until this process ends.

    Args:
        out: The folder, which is created if it doesn't exist.

    Raises:
        LaunchError: Another process holds the lock, or the folder can't be created.
    """
    try:
        workdir.lock(out)
    except LaunchError as error:
        raise LaunchError(str(error).replace("--work-dir", "--out")) from None


def _print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
