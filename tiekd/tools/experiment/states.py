"""The progress of an experiment's jobs: a file run.json in the folder of each job."""

import json
from dataclasses import dataclass, replace

from tiekd.files import replace_text
from tiekd.tools.experiment.runs import Job

_FILE = "run.json"


@dataclass(frozen=True)
class State:
    """The progress of a job, stored in run.json in the job's folder.

    A job is a run, or the evaluation of floors, i.e. of baselines that don't look at the image.

    Attributes:
        label: the job's name for the user.
        key: the job's key, a digest of its inputs.
        seconds: wall time of all attempts so far, also of stopped and killed ones.
        failure: why the last attempt failed, in one line; None if it didn't.
        is_finished: True if the last attempt has finished the job.
        began: when the present attempt began, in seconds since the epoch; None if none runs.
    """

    label: str
    key: str
    seconds: float = 0.0
    failure: str | None = None
    is_finished: bool = False
    began: float | None = None


def read(job: Job) -> State:
    """Reads the state of a job from run.json in the job's folder.

    If the file is missing, damaged or of another job, the result is the state of a job that hasn't
    begun. An attempt that was killed couldn't record its duration; it is taken to have lasted from
    its start to the last write to its log.

    Args:
        job: the job.
    """
    try:
        found = State(**json.loads((job.folder / _FILE).read_text(encoding="utf-8")))
        if found.key != job.key:
            return State(job.label, job.key)
        if found.began is None:
            return found
        last_sign = job.log.stat().st_mtime if job.log.exists() else found.began
        seconds = found.seconds + max(0.0, last_sign - found.began)
        return replace(found, seconds=seconds, began=None)
    except (OSError, ValueError, TypeError):
        return State(job.label, job.key)


def write(job: Job, state: State) -> None:
    """Writes a job's state to run.json in the job's folder, completely or not at all.

    Args:
        job: the job.
        state: its state.
    """
    replace_text(job.folder / _FILE, json.dumps(vars(state), indent=1) + "\n")
