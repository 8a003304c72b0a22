"""Lists the checkpoints in a work dir, checks that they are complete, and removes old ones.

    checkpoints/iter_1200/   DeepSpeed's files, and:
        rank_<r>.pt          random states and hook states of rank r
        student.pth          plain fp32 weights; with the hook ema those of its moving average
        trained.pth          with the hook ema: the newest weights, from which the run resumes
        moments.pth          the optimizer's state, by parameter name
        state.json           iteration, ranks, recipe, engine config, versions
        manifest.json        sizes and digests of all files
    checkpoints/latest       name of the newest complete checkpoint, for people; no code reads it
    best_abs_rel.pth         plain fp32 student weights of the best evaluation
                             (tiekd/workdir/weights_file.py)

tiekd/engine/checkpoint.py saves and restores checkpoints.
"""

import json
import os
import shutil
from pathlib import Path

from tiekd import console
from tiekd.errors import CheckpointError
from tiekd.files import instead_of_file
from tiekd.workdir import manifest
from tiekd.workdir.weights_file import BEST_BEFORE, made_at, set_aside

FOLDER = "checkpoints"
LATEST = "latest"
STATE = "state.json"
STUDENT = "student.pth"
MOMENTS = "moments.pth"
TRAINED = "trained.pth"


def find(work_dir: Path) -> tuple[Path, list[str]]:
    """Finds the newest complete checkpoint of a work dir.

    Args:
        work_dir: The run's folder.

    Returns:
        (folder, lines): the checkpoint's folder; and one line of text for each newer checkpoint,
        with the reason why that can't be used, such as a missing file.

    Raises:
        CheckpointError: There is no complete checkpoint.
    """
    passed_over = []
    folder = work_dir / FOLDER
    for checkpoint in newest_first(folder):
        problem = check(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"Passed over {checkpoint.name}: {problem}")
    why = "".join(f"; {reason[0].lower()}{reason[1:]}" for reason in passed_over)
    remedy = f"start the run with {console.command('train')} first"
    if passed_over:
        remedy = (
            f"put their files back, or start the run again with {console.command('train')} in "
            "another --work-dir"
        )
    raise CheckpointError(f"{work_dir}: no checkpoint to resume from{why}; {remedy}")


def find_weights(folder: Path) -> Path:
    """Finds a file of student weights in a checkpoint's folder or in a work dir.

    Args:
        folder: A checkpoint's folder, or a run's folder.

    Returns:
        The path of the file. In a work dir it has the weights of the best evaluation, or those of
        the newest complete checkpoint if no best weights were saved.

    Raises:
        CheckpointError: There are no weights.
    """
    if (folder / STUDENT).is_file():
        return folder / STUDENT
    best = list(folder.glob("best_*.pth"))
    # If `evaluation.save_best` was changed, there is one file of best weights per metric. Take the
    # newest file.
    if best:
        return max(best, key=lambda path: path.stat().st_mtime)
    try:
        return find(folder)[0] / STUDENT
    except CheckpointError:
        raise CheckpointError(f"there are no weights in {folder}") from None


def check(checkpoint: Path) -> str | None:
    """Returns a message that says how a checkpoint is damaged; None if it is complete.

    A checkpoint is complete if all its files match its manifest, and if its state.json can be read
    and has the same iteration as the folder's name.

    Args:
        checkpoint: The checkpoint's folder.
    """
    problem = manifest.check(checkpoint)
    if problem is not None:
        return problem
    found = instead_of_file(checkpoint / STATE)
    if found is not None:
        return f"its {STATE} is {found}"
    try:
        iteration = json.loads((checkpoint / STATE).read_text())["iteration"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"its {STATE} can't be read"
    named = checkpoint.name.removeprefix("iter_")
    return (
        None
        if not named.isdigit() or iteration == int(named)
        else f"it is of iteration {iteration}, not {named}"
    )


def set_aside_newer(work_dir: Path, iteration: int) -> None:
    """Renames checkpoints and best weights that are newer than an iteration. Rank 0 only.

    A run that resumes from `iteration` will train the later iterations again. If the file of the
    best weights was replaced after `iteration`, the replaced file gets its name back.

    Args:
        work_dir: The run's folder.
        iteration: The iteration of the checkpoint that the run resumes from.
    """
    newer = [c for c in newest_first(work_dir / FOLDER) if iteration_of(c) > iteration]
    newer += [best for best in work_dir.glob("best_*.pth") if made_at(best) > iteration]
    for path in newer:
        set_aside(path)
    # Restore the file of the best weights that existed when the checkpoint of `iteration` was
    # saved.
    for before in work_dir.glob(BEST_BEFORE.format("*")):
        best = work_dir / before.name.removeprefix(".").removesuffix(".before")
        if not best.exists() and made_at(before) <= iteration:
            os.rename(before, best)


def prune(folder: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Removes old checkpoints, and partial ones that killed processes left. Rank 0 only.

    Args:
        folder: The work dir's `checkpoints` folder.
        keep_last: The number of newest checkpoints to keep.
        keep_every: Checkpoints whose iteration is a multiple of this number are kept, too; None to
            remove all but the newest.
    """
    _remove_leftovers(folder)
    for old in newest_first(folder)[keep_last:]:
        if keep_every is None or iteration_of(old) % keep_every:
            # Rename the folder before it is removed: if the process is killed during the removal,
            # no partial checkpoint has a checkpoint's name.
            os.rename(old, folder / f".{old.name}.partial.old")
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    for partial in folder.glob(".iter_*.partial*"):
        shutil.rmtree(partial, ignore_errors=True)


def iteration_of(checkpoint: Path) -> int:
    """Returns the iteration in a checkpoint folder's name: 1200 for `iter_1200`.

    Args:
        checkpoint: The checkpoint's folder.
    """
    return int(checkpoint.name.removeprefix("iter_"))


def newest_first(folder: Path) -> list[Path]:
    """Returns the folders of all checkpoints, complete or not, by descending iteration.

    Args:
        folder: The work dir's `checkpoints` folder.
    """
    numbered = [p for p in folder.glob("iter_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(numbered, key=iteration_of, reverse=True)
