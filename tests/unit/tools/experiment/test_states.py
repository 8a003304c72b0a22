"""The file run.json with the progress of a job."""

import pytest
from support import small_experiment

from tiekd.tools.experiment import runs, states


@pytest.fixture
def job(tmp_path, scenes) -> runs.Job:
    """A run that hasn't begun, with its folder."""
    job = runs.plan(small_experiment.write(tmp_path, scenes))[0][0]
    job.folder.mkdir(parents=True)
    return job


def test_state_is_read_as_written(job):
    """A job that hasn't begun has no time; a written state is read again."""
    assert states.read(job) == states.State(job.label, job.key)
    state = states.State(job.label, job.key, 12.0, failure="no memory")
    states.write(job, state)
    assert states.read(job) == state


@pytest.mark.parametrize("content", ["", "[]", '{"label": "x"}', '{"seconds": 1.0, "other": 2}'])
def test_damaged_state_is_of_a_job_that_has_not_begun(job, content):
    """A damaged file, and one of another job, count as no file."""
    (job.folder / "run.json").write_text(content)
    assert states.read(job) == states.State(job.label, job.key)
    states.write(job, states.State(job.label, "other key", 12.0, is_finished=True))
    assert states.read(job) == states.State(job.label, job.key)
