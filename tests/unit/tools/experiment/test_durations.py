"""How long the jobs of an experiment are expected to take."""

import pytest
from support import small_experiment

from tiekd.tools.experiment import durations, runs, states


def test_estimates_are_means_of_equal_rows(tmp_path, scenes):
    """A run takes as long as finished ones of its row, else as measured, else as all others."""
    planned, _ = runs.plan(small_experiment.write(tmp_path, scenes))
    for job, seconds in zip(planned[:3], (10.0, 60.0, 20.0), strict=True):
        job.folder.mkdir(parents=True)
        states.write(job, states.State(job.label, job.key, seconds, is_finished=True))
    left = planned[3:]
    assert durations.estimates(left, planned, {}, 4) == [60.0, 15.0, 60.0]
    measured = {("streets", "old"): 7.0}
    assert durations.estimates(planned, planned, measured, 4) == [7.0] * 6
    assert durations.estimates(planned, planned, {}, 4) == [None] * 6
    # A run that was interrupted at 3 of 4 iterations needs a quarter of the time, and its own time
    # so far is no example.
    (left[0].train_dir / "checkpoints" / "iter_3").mkdir(parents=True)
    states.write(left[0], states.State(left[0].label, left[0].key, 500.0))
    assert durations.estimates(left, planned, {}, 4) == [15.0, 15.0, 60.0]
    assert durations.estimates(left[1:], planned, {}, 4) == [15.0, 60.0]


def test_until_all_ended_is_at_least_the_longest_job():
    """Jobs share the slots, and need at least as long as the longest one."""
    assert durations.as_text(durations.until_all_ended([60.0, 15.0], 1)) == "about 0:01:15"
    assert durations.until_all_ended([60.0, 15.0, 45.0], 2) == 60.0
    assert durations.until_all_ended([100.0, 1.0], 2) == 100.0
    assert durations.until_all_ended([], 2) == 0
    assert durations.as_text(durations.until_all_ended([60.0, None], 2)) == "not known yet"


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("x\nETA: 12.3 s for training and evaluations\n", 12.3),
        ("ETA: 1:02:03 for training and evaluations", 3723.0),
        ("ETA: 1 day, 1:00:00 for training and evaluations", 90000.0),
        ("ETA: 2 days, 0:00:01 for training and evaluations", 172801.0),
        ("RecipeError: no", None),
    ],
)
def test_seconds_in_report_reads_dry_run(told, seconds):
    """The time that a dry run reports is read in every form that it has."""
    assert durations.seconds_in_report(told) == seconds
