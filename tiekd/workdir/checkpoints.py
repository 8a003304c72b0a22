"""Checkpoints in a work dir: which there are, which of them are whole, and which are kept.

    checkpoints/iter_1200/      DeepSpeed's files, rank_<r>.pt (random states, hooks), student.pth (plain fp32 weights),
                                moments.pth (the optimizer's state by parameter), state.json (iteration, ranks, recipe,
                                engine config, versions), manifest.json (sizes and digests of all files)
    checkpoints/latest          the name of the newest whole one, for people; what counts is the manifests
    best_abs_rel.pth            plain fp32 student weights of the best evaluation (tiekd/workdir/weights_file.py)

tiekd/engine/checkpoint.py writes and restores them.
"""

import json
import os
import shutil
from pathlib import Path

from tiekd.errors import CheckpointError
from tiekd.workdir import manifest
from tiekd.workdir.weights_file import BEST_BEFORE, made_at, set_aside

FOLDER, LATEST, STATE = "checkpoints", "latest", "state.json"
STUDENT, MOMENTS = "student.pth", "moments.pth"


def find(work_dir: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a work dir, and what was passed over and why, a line each.

    Raises CheckpointError when there is none.
    """
    passed_over = []
    folder = work_dir / FOLDER
    for checkpoint in newest_first(folder):
        problem = check(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"Passed over {checkpoint.name}: {problem}")
    why = "".join(f"; {reason[0].lower()}{reason[1:]}" for reason in passed_over)
    raise CheckpointError(
        f"{work_dir}: no checkpoint to resume from{why}; start the run with bin/train.py first"
    )


def find_weights(folder: Path) -> Path:
    """The student weights of a checkpoint's folder, or of a work dir: the best evaluation's, else the newest ones.

    Raises CheckpointError where there are none.
    """
    if (folder / STUDENT).is_file():
        return folder / STUDENT
    best = list(folder.glob("best_*.pth"))
    if best:  # more than one after a change of evaluation.save_best
        return max(best, key=lambda path: path.stat().st_mtime)
    try:
        return find(folder)[0] / STUDENT
    except CheckpointError:
        raise CheckpointError(f"there are no weights in {folder}") from None


def check(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there with the size and digest of its manifest."""
    problem = manifest.check(checkpoint)
    if problem is not None:
        return problem
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
    """Renames the checkpoints and best weights from after `iteration`, from where a run goes on: they are another
    future. Main rank only."""
    newer = [c for c in newest_first(work_dir / FOLDER) if iteration_of(c) > iteration]
    newer += [best for best in work_dir.glob("best_*.pth") if made_at(best) > iteration]
    for path in newer:
        set_aside(path)
    for before in work_dir.glob(BEST_BEFORE.format("*")):
        best = work_dir / before.name.removeprefix(".").removesuffix(".before")
        if not best.exists() and made_at(before) <= iteration:
            os.rename(before, best)


def prune(folder: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Removes checkpoints but for the newest `keep_last` and those of every `keep_every`th iteration, and what killed
    saves left behind. Main rank only."""
    _remove_leftovers(folder)
    for old in newest_first(folder)[keep_last:]:
        if keep_every is None or iteration_of(old) % keep_every:
            # A kill in the middle leaves none that is half there.
            os.rename(old, folder / f".{old.name}.partial.old")
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    for partial in folder.glob(".iter_*.partial*"):
        shutil.rmtree(partial, ignore_errors=True)


def iteration_of(checkpoint: Path) -> int:
    """What a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("iter_"))


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not."""
    numbered = [p for p in folder.glob("iter_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(numbered, key=iteration_of, reverse=True)
