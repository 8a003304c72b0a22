"""Runs an experiment, or lists or reports its runs: the body of bin/experiment.py."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tiekd.distributed import hostfile, visible_devices
from tiekd.distributed.entrypoint import STOPPED_CODE
from tiekd.errors import LaunchError
from tiekd.tools.experiment import durations, launch, networks, report, runs, score, table
from tiekd.tools.experiment.launch import Launcher
from tiekd.tools.experiment.runs import PILOT_SEEDS, Job
from tiekd.tools.experiment.spec import Spec, row_of
from tiekd.workdir import workdir

FAILED_CODE = 1


def run(args: argparse.Namespace, spec: Spec | None, program: Path) -> int:
    """Runs bin/experiment.py: trains and evaluates the runs of an experiment, and writes a report.

    With --dry-run it lists the runs and estimates their time, with --report it only writes the
    report, and with --power it runs only the pilot, from which it computes the smallest detectable
    difference.

    Args:
        args: the program's parsed command line.
        spec: the experiment; None with `--score`, by which this program evaluates one run.
        program: path of bin/experiment.py.

    Returns:
        The exit code: 0 if all chosen runs are finished, 1 if one failed, 75 if the experiment was
        asked to stop.

    Raises:
        UserError: the specification or an option can't be used.
    """
    if spec is None:
        score.run(args.score)
        return 0
    # Check everything that can be checked before the first run.
    hostfile.check_options(spec.launcher)
    _check_visible_devices(spec)
    every, floors = runs.plan(spec)
    told = runs.check_scenes(every, spec)
    jobs = runs.chosen(every, args.only)
    if args.report:
        if args.latency:
            networks.measure_latency(every, spec.folder, partial(print, flush=True))
        return _report(spec, every, floors)
    runs.check_recipes(jobs, spec)
    print("\n".join(told), flush=True)
    launcher = Launcher(spec, program, num_slots=args.jobs)
    launcher.catch_signals()
    if args.dry_run:
        return _dry_run(launcher, every, jobs)
    _lock(spec.folder.absolute())
    # Run the pilot, i.e. the runs from which the smallest detectable difference is computed, and
    # print that difference before other runs begin.
    pilot = [job for job in jobs if is_pilot(spec, job)]
    ended = launcher.run(pilot)
    print("\n".join(power_lines(spec, every, floors)), flush=True)
    if not args.power and not ended.stopped:
        chosen_sets = {job.set for job in jobs}
        # Run the other jobs. A job that has failed above isn't tried again in this call.
        others = [job for job in jobs if job not in ended.failed]
        others += [job for job in floors if job.set in chosen_sets]
        later = launcher.run(others)
        ended = launch.Finished([*ended.failed, *later.failed], later.stopped)
    if ended.stopped:
        print(f"Stopped; the same command resumes the experiment in {spec.folder}", flush=True)
        return STOPPED_CODE
    # Write the report even if runs have failed; it names them.
    if not args.power:
        _report(spec, every, floors)
    for job in ended.failed:
        print(f"FAILED: {job.label}; its log is {job.log}", flush=True)
    return FAILED_CODE if ended.failed else 0


def _check_visible_devices(spec: Spec) -> None:
    """Checks that the devices of CUDA_VISIBLE_DEVICES exist, and sets variables for their use.

    CUDA_VISIBLE_DEVICES itself isn't changed, since evaluations run on the first device that it
    lists. The launcher, which would ignore the variable, gets the devices as an option
    (`launch.train_command`).

    Args:
        spec: the experiment.

    Raises:
        LaunchError: the variable names no device, or fewer than there are ranks.
    """
    try:
        _, changes = visible_devices.in_options(spec.launcher, os.environ, takes_first=True)
    except visible_devices.Refused as error:
        raise LaunchError(str(error)) from None
    os.environ.update(changes)


def _lock(folder: Path) -> None:
    """Locks the experiment's folder until this process ends.

    Two experiments in one folder would train the same run.

    Args:
        folder: the experiment's work dir, which is created if it doesn't exist.

    Raises:
        LaunchError: another experiment holds the lock, or the folder can't be written to.
    """
    try:
        workdir.lock(folder)
    except LaunchError as error:
        told = str(error).replace("--work-dir", "work_dir in the specification")
        raise LaunchError(told) from None


def is_pilot(spec: Spec, job: Job) -> bool:
    """Returns True if a run belongs to the pilot.

    The pilot is the rows of the primary comparison with the first three seeds. The smallest
    detectable difference is computed from it.

    Args:
        spec: the experiment.
        job: a run.
    """
    seeds = list(spec.seeds)[:PILOT_SEEDS]
    rows = map(row_of, spec.sets[job.set].primary)
    return len(seeds) == PILOT_SEEDS and job.seed in seeds and job.row in rows


def power_lines(spec: Spec, every: Sequence[Job], floors: Sequence[Job]) -> list[str]:
    """Returns lines of text with the smallest detectable difference for each row of each set.

    Args:
        spec: the experiment.
        every: all runs.
        floors: the jobs that evaluate baselines which don't look at the image (floors).
    """
    lines = []
    for name, each in spec.sets.items():
        figures = table.collect(spec, name, every, floors)
        least = table.smallest_detectable(spec, name, figures)
        value = f"{least:.4f}"
        if least != least:
            rows = " and ".join(each.primary)
            value = f"not known; it needs {rows} with {PILOT_SEEDS} seeds"
        lines.append(
            f"{name}: smallest detectable difference of {each.metric} with {len(spec.seeds)} seeds "
            f"(95 % intervals, found in 80 % of experiments)"
        )
        lines += [f"  {row}: {value}" for row in spec.table_rows]
    return lines


def _dry_run(launcher: Launcher, every: Sequence[Job], jobs: Sequence[Job]) -> int:
    spec = launcher.spec
    left = [job for job in jobs if runs.read_frame_errors(job, spec) is None]
    # Measure only rows without a finished run, since the duration of the others is known.
    known = {(job.set, job.row) for job in every if runs.read_frame_errors(job, spec) is not None}
    unknown = [job for job in left if (job.set, job.row) not in known]
    measured = {}
    if unknown:
        print("Measuring one training of each row and set ...", flush=True)
        measured = launch.measure(launcher, unknown)
    seconds = durations.estimates(left, every, measured, spec.steps)
    for job, each in zip(left, seconds, strict=True):
        print(f"{job.label}: {durations.as_text(each)} ({job.folder})")
    expected = durations.as_text(durations.until_all_ended(seconds, len(launcher.slots)))
    together = f" with {len(launcher.slots)} at the same time" if len(launcher.slots) > 1 else ""
    print(
        f"{len(left)} runs are left, {len(jobs) - len(left)} are finished; {expected}{together}, "
        "without the start of each program"
    )
    sys.stdout.flush()
    if launcher.received_signals:
        return STOPPED_CODE
    return FAILED_CODE if None in seconds else 0


def _report(spec: Spec, every: Sequence[Job], floors: Sequence[Job]) -> int:
    found = table.compute(spec, every, floors)
    lines = report.write(found, spec.folder)
    print(report.markdown(found))
    print("\n".join(lines), flush=True)
    return 0
