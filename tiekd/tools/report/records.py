"""Reads what a run has recorded: images, teachers, environment, outcome and learning curves.

Everything is read from the work dir without the data set. What is missing or damaged is left out of
the report and named in `Records.left_out`, since the rest is still of use. Costs one read of each
file; inputs.json has 3 MB for 24,000 frames.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from tiekd.data import learned_from, trained_on
from tiekd.data.learned_from import Teacher
from tiekd.data.trained_on import TrainedOn
from tiekd.errors import UserError
from tiekd.files import instead_of_file
from tiekd.models import confidence
from tiekd.models.weights import state_dicts
from tiekd.tools import plot_log
from tiekd.tools.plot_log import Run
from tiekd.training import inputs
from tiekd.workdir import launch_record, workdir
from tiekd.workdir.launch_record import LaunchRecord
from tiekd.workdir.workdir import Outcome

_HASHED_AT_ONCE = 1 << 20
_Found = TypeVar("_Found")


class Split(NamedTuple):
    """The frames of one split, as they were when the run began.

    Attributes:
        name: "train" or "val".
        count: Number of frames.
        source: The split file or folder that lists them; None if unknown.
        folders: Number of frames in each folder, which usually is a sequence.
        with_depth: Number of frames with a file of measured depth; None if unknown.
        num_bytes: Size of all image files; None if unknown.
    """

    name: str
    count: int
    source: str | None
    folders: Counter
    with_depth: int | None
    num_bytes: int | None


class Records(NamedTuple):
    """The records that a run has written into its work dir.

    Attributes:
        splits: The splits of the run's images.
        inputs: The content of inputs.json, the record of the run's images; None if there is none.
        teachers: The teachers from which the weights learned; None if the weights don't state them.
        trained_on: The frames that the weights were trained on; None if the weights don't state
            them.
        environment: Hardware and software, name -> value.
        launch: How the run was started; None if unknown.
        outcome: How the run ended; None if unknown.
        run: The run's learning curves; None without a log.
        weights: The weights file that the report is about.
        weights_digest: SHA-256 of that file.
        iteration: The iteration of the weights; None if they don't state it.
        temperature: The calibrated temperature that is stored with the weights; None without one.
        left_out: Records that couldn't be read, with the reason, one line each.
    """

    splits: list[Split]
    inputs: dict | None
    teachers: list[Teacher] | None
    trained_on: TrainedOn | None
    environment: dict[str, str]
    launch: LaunchRecord | None
    outcome: Outcome | None
    run: Run | None
    weights: Path
    weights_digest: str
    iteration: int | None
    temperature: float | None
    left_out: list[str]


def read(work_dir: Path, weights: Path) -> Records:
    """Reads the records that a run has written into its work dir.

    Args:
        work_dir: The run's folder.
        weights: The weights file that the report is about.

    Returns:
        The records. Those that are missing or damaged are None, and `left_out` names them.

    Raises:
        OSError: The weights can't be read.
    """
    left_out: list[str] = []

    def attempt(noun: str, call: Callable[[], _Found]) -> _Found | None:
        try:
            return call()
        except UserError as error:
            left_out.append(f"{noun}: {error}")
            return None

    record = attempt("The record of the images", lambda: inputs.read(work_dir))
    if record is None and not left_out:
        left_out.append(f"The record of the images: the work dir has no {inputs.NAME}")
    calibration = attempt("The temperature", lambda: confidence.read(weights))
    logs = attempt("Learning curves", lambda: plot_log.read_runs([work_dir]))
    return Records(
        [] if record is None else [_split(name, node) for name, node in record["splits"].items()],
        record,
        learned_from.read(weights),
        trained_on.read(weights),
        _environment(work_dir),
        attempt("How the run was started", lambda: launch_record.read(work_dir)),
        attempt("How the run ended", lambda: workdir.read_outcome(work_dir)),
        None if logs is None else logs[0],
        weights,
        digest_of(weights),
        _iteration(weights),
        None if calibration is None else calibration.temperature,
        left_out,
    )


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits.

    Args:
        path: The file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_HASHED_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()


def _iteration(weights: Path) -> int | None:
    content = state_dicts.read_checkpoint(weights)
    found = content.get("iteration") if isinstance(content, dict) else None
    return found if isinstance(found, int) else None


def _split(name: str, node: dict) -> Split:
    """Returns one split of inputs.json, the record of a run's images.

    Args:
        name: The split's name, "train" or "val".
        node: The split's entry in the file, which `inputs.read` has checked.
    """
    names = node.get("names", ())
    states = node.get("files", {})
    pictures, depths = (states.get(kind) for kind in inputs.KINDS[:2])
    return Split(
        name,
        node["count"],
        node.get("source"),
        Counter(os.path.dirname(each) for each in names),
        None if depths is None else sum(state is not None for state in depths),
        None if pictures is None else sum(state[0] for state in pictures if state),
    )


def _environment(work_dir: Path) -> dict[str, str]:
    path = work_dir / workdir.ENVIRONMENT
    if instead_of_file(path) is not None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(": ") for line in lines)
    return {name: value for name, separator, value in pairs if separator}
