"""Runs a distillation: the body of bin/distill.py.

It decides and keeps the books; the work is done by the programs of bin/, with recipes that it has
written, so that each stage can be repeated by hand.
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
    family,
    images,
    options,
    plan,
    rehearsal,
    stages,
    summary,
    teacher,
)
from tiekd.tools.distill.commands import Commands, wait_for_leftovers
from tiekd.tools.distill.work import Stopped, Work
from tiekd.workdir import workdir

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def run(args: argparse.Namespace) -> int:
    """Runs the stages that aren't finished, or with --dry-run estimates all.

    Args:
        args: The checked command line.

    Returns:
        The exit code: 0 if all went well, 75 if it was asked to stop, otherwise that of the program
        that failed.

    Raises:
        UserError: The command line contradicts the plan, or an input can't be used.
    """
    out = args.out
    _check_out(out)
    section = None if args.teacher is None else teacher.parse(args.teacher, args.teacher_set)
    asked = plan.given(args, section)
    kept = plan.read(out)
    if kept is None:
        kept = plan.new(asked, plan.threads_of_rank(asked.get("ranks", 1)))
        _check_inputs(kept, out)
    plan.update_open(kept, asked, has_begun=stages.Records(out).begun is not None)
    plan.agree(kept, asked, out)
    if args.dry_run:
        return rehearsal.run(kept, out, args.launcher, _tell)
    _lock(out)
    wait_for_leftovers(out, _tell)
    # Write the plan before anything else, so that a call that is killed at once is remembered.
    plan.write(kept, out)
    commands = Commands(out, kept.ranks, kept.rank_threads, args.launcher, _tell)
    _catch_signals(commands)
    work = Work(kept, out, commands, _tell)
    try:
        stages.run(work.stages(), stages.Records(out), _tell, args.until)
        if args.until in (None, options.STAGES[-1]):
            _tell("\n".join(summary.lines(kept, out)))
    except Stopped as stopped:
        _tell(str(stopped))
        return STOPPED_CODE if commands.asked else stopped.code
    return 0


def _catch_signals(commands: Commands) -> None:
    """Lets signals that ask this process to stop reach the program that runs, or end the stage.

    Args:
        commands: Starts programs, and forwards the signals that it is given.
    """

    def ask(number: int, _frame: FrameType | None) -> None:
        commands.asked.append(number)
        if not commands.is_running:
            raise Stopped("Stopped; the same command continues", STOPPED_CODE)

    for number in _SIGNALS:
        signal.signal(number, ask)


def _check_out(out: Path) -> None:
    """Refuses a folder that has files but no plan.

    Args:
        out: The folder of --out.

    Raises:
        LaunchError: It holds something else.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if plan.FILE in names:
        return
    # A call that was killed before its plan was written has left the lock, or a part of the plan.
    # A lock alone says nothing: the work dir of a training has one, too.
    other = sorted(name for name in names if name != workdir.LOCK and plan.FILE not in name)
    if other:
        raise LaunchError(f"--out {out}: holds {other[0]}, but no {plan.FILE}; give a new folder")


def _check_inputs(new: plan.Plan, out: Path) -> None:
    """Checks what a new plan needs, before anything is written.

    Args:
        new: The plan.
        out: The folder of --out.

    Raises:
        UserError: There are no images, no depth map belongs to one, or there are no weights.
    """
    depth = [Path(new.depth)] if new.depth else []
    found = images.find(Path(new.images), [out, *depth])
    for folder in depth:
        images.check_depth(folder, found)
    if new.init is None:
        family.check_weights(new.student)
    # Models of other projects are looked for when they are loaded, by the audit.
    for node in TeacherList.of(new.teacher).nodes:
        if node.name is None and node.maps is None:
            with errors_of(node.where):
                teacher_checkpoint(node)


def _lock(out: Path) -> None:
    """Locks the folder of --out until this process ends.

    Args:
        out: The folder, which is made if it isn't there.

    Raises:
        LaunchError: Another process holds the lock, or the folder can't be made.
    """
    try:
        workdir.lock(out)
    except LaunchError as error:
        raise LaunchError(str(error).replace("--work-dir", "--out")) from None


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
