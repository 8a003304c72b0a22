"""Estimates how long the jobs of an experiment will take.

Expected times come from finished jobs, and before there are any, from the dry runs of trainings.
"""

import re
from collections.abc import Sequence
from datetime import timedelta

from tiekd.tools.experiment import states
from tiekd.tools.experiment.runs import Job
from tiekd.workdir import checkpoints


def estimates(
    left: Sequence[Job],
    every: Sequence[Job],
    measured: dict[tuple[str, str | None], float],
    steps: int,
) -> list[float | None]:
    """Estimates the remaining seconds of jobs from those that finished jobs took.

    A job is expected to take the mean time of the finished jobs with the same row (a recipe with
    overrides) on the same set of data. If there are none, it is the mean over all rows. Iterations
    up to a run's newest checkpoint are subtracted.

    Args:
        left: the jobs to estimate.
        every: all jobs of the experiment, of which the finished ones are used.
        measured: (set, row) -> seconds measured by a dry run, for rows of which no run is finished.
        steps: iterations of a run.

    Returns:
        For each job of `left` its seconds; None if no time is known.
    """
    # Collect the times of finished jobs by row and set.
    waiting = {job.folder for job in left}
    took: dict[tuple[str, str | None], list[float]] = {}
    for job in every:
        state = states.read(job)
        # Use finished jobs only, since interrupted and failed ones took a part of the time.
        if job.folder not in waiting and state.is_finished and state.seconds:
            took.setdefault((job.set, job.row), []).append(state.seconds)
    means = measured | {of: sum(values) / len(values) for of, values in took.items()}
    known = list(means.values())
    # Estimate a row without a finished run by the mean of the other rows.
    fallback = sum(known) / len(known) if known else None
    whole = [means.get((job.set, job.row), fallback) for job in left]
    return [
        seconds and seconds * (1 - min(1.0, _newest_iteration(job) / steps))
        for seconds, job in zip(whole, left, strict=True)
    ]


def _newest_iteration(job: Job) -> int:
    found = checkpoints.newest_first(job.train_dir / checkpoints.FOLDER)
    return max(map(checkpoints.iteration_of, found), default=0)


def until_all_ended(seconds: Sequence[float | None], num_slots: int) -> float | None:
    """Returns the least seconds in which all jobs can end; None if an estimate is None.

    They take at least as long as the longest job, and as an even share of all of them.

    Args:
        seconds: the estimates, one per job.
        num_slots: number of jobs that run at the same time.
    """
    if None in seconds:
        return None
    return max(sum(seconds) / num_slots, max(seconds, default=0.0))


def as_text(seconds: float | None) -> str:
    """Returns a duration as text, such as "about 0:12:00"; "not known yet" for None.

    Args:
        seconds: the duration; None if unknown.
    """
    return "not known yet" if seconds is None else f"about {timedelta(seconds=round(seconds))}"


def seconds_in_report(report: str) -> float | None:
    """Reads the seconds of training and evaluations together from the report of a dry run.

    Args:
        report: the report of `bin/train.py --dry-run`.

    Returns:
        The seconds; None if the report doesn't state them.
    """
    match = re.search(
        r"^ETA: (?:(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)|([\d.]+) s) for training", report, re.M
    )
    if match is None:
        return None
    # Convert the text to seconds: below a minute the report has seconds, otherwise days, hours,
    # minutes and seconds.
    if match[5] is not None:
        return float(match[5])
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
