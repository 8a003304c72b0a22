"""Resume: choose a checkpoint, restore engine and hooks, set newer checkpoints aside."""

from pathlib import Path

import torch

from tiekd.data import trained_on
from tiekd.distributed import comm
from tiekd.engine import checkpoint
from tiekd.errors import CheckpointError, RecipeError, UserError
from tiekd.kernels import layouts
from tiekd.training import inputs
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hook import Hook
from tiekd.training.hooks.checkpoint import keyed
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.state import TrainState
from tiekd.workdir import checkpoints, weights_file


def checkpoint_path(work_dir: Path, resume_from: str | None) -> tuple[Path | None, list[str]]:
    """Chooses the checkpoint to resume from. Collective: rank 0 looks, and all take the same.

    Args:
        work_dir: The folder of the run.
        resume_from: A checkpoint's folder, "auto" for the newest whole one, or None to begin.
            "auto" begins where there is no checkpoint at all, so that a job may be started by one
            command again and again.

    Returns:
        The checkpoint, None to begin; and lines on it and on newer ones that are passed over.

    Raises:
        CheckpointError: There is none that can be taken.
    """
    if resume_from is None:
        return None, []
    # Rank 0 alone looks: all ranks must take the same checkpoint, or all raise.
    if resume_from == "auto":
        found = None
        if comm.is_main():
            try:
                if checkpoints.newest_first(work_dir / checkpoints.FOLDER):
                    found = checkpoints.find(work_dir)
                else:
                    found = None, ["There was no checkpoint to go on from; the run begins"]
            except CheckpointError as error:
                found = error
        found = comm.broadcast_object(found)
        if isinstance(found, CheckpointError):
            raise found
        return found
    # A folder that is named is checked when it is loaded.
    path = Path(resume_from)
    if not path.is_dir():
        raise CheckpointError(
            f"--resume-from {path}: no such checkpoint folder; give .../checkpoints/iter_N or auto"
        )
    return path, []


def inputs_at_start(path: Path | None) -> dict | None:
    """Reads the record of the inputs at the start of a checkpoint's run. Collective.

    Returns:
        The record on rank 0, None on other ranks and where there is none.

    Raises:
        CheckpointError: On all ranks, where rank 0's file is damaged.
    """
    started, problem = None, None
    if comm.is_main():
        try:
            started = inputs.of_checkpoint(path)
        except CheckpointError as error:
            problem = error
    problem = comm.broadcast_object(problem)
    if problem is not None:
        raise problem
    return started


def set_layouts(
    work_dir: Path, device: torch.device, checkpoint_path: Path | None
) -> tuple[dict | None, list[str]]:
    """Makes the run's layouts (tiekd/kernels/layouts.py) hold in all ranks. Collective.

    Rank 0's CPU and file decide for all.

    Args:
        work_dir: The folder of the run.
        device: Of the ranks; a GPU needs no layouts.
        checkpoint_path: What the run resumes from, also another work dir's; None where it begins.

    Returns:
        The layouts' record, and lines for the log.
    """
    if device.type != "cpu":
        return None, []
    found = None
    if comm.is_main():
        try:
            folders = (
                []
                if checkpoint_path is None
                else [*checkpoint_path.resolve().parents[1:2], work_dir]
            )
            found = layouts.record_of_run(folders)
        except UserError as error:
            found = error
    found = comm.broadcast_object(found)
    if isinstance(found, UserError):
        raise found
    # From here on every convolution of this process follows the record.
    record, lines = found
    layouts.set_choices(record["choices"])
    return record, lines


def restore(state: TrainState, path: Path | None, log: TextLog) -> None:
    """Restores a run's state and hooks from a checkpoint, and sets newer ones aside. Collective.

    Args:
        state: Where the run stands; changed in place.
        path: The checkpoint; None where the run begins anew.
        log: The text log, whose later rows are dropped.

    Raises:
        RecipeError: The recipe ends before the checkpoint; nothing was written then.
        CheckpointError: It can't be loaded.
    """
    if path is not None:
        # The engine first: what follows needs to know the iteration.
        state.iteration, hook_states = checkpoint.load(state.engine, path)
        _check_end(state, path)
        if comm.is_main():
            before = trained_on.read(path / checkpoints.STUDENT)
            state.trained_on = trained_on.union(state.trained_on, before)
        for key, hook in keyed(state.hooks).items():
            if key in hook_states:
                _load(hook, hook_states[key], path)
    # Newer checkpoints and rows are of the run that is not resumed.
    if comm.is_main():
        checkpoints.set_aside_newer(state.work_dir, state.iteration)
    log.drop_rows(state.work_dir)


def forget_other_best(
    state: TrainState, started: dict | None, now: dict | None, accepted: bool
) -> None:
    """Makes evaluations begin anew with their best where what they compare has changed. Collective.

    Args:
        state: Where the run stands.
        started: The record of the inputs at the start (tiekd/training/inputs.py), on rank 0.
        now: The record of the inputs as they are now, on rank 0; its `best_from` is filled in.
        accepted: True if the run resumes with other inputs; rank 0 sets the best weights from
            before aside.
    """
    if comm.is_main():
        now["best_from"] = state.iteration if accepted else (started or now)["best_from"]
        if accepted:
            weights_file.set_aside_best(state.work_dir)
    best_from = comm.broadcast_object(now and now["best_from"])
    # A checkpoint from before an accepted change has a best that isn't comparable at any resume.
    if state.iteration <= best_from:
        for hook in state.hooks:
            if isinstance(hook, Evaluation):
                hook.best = None


def _check_end(state: TrainState, path: Path) -> None:
    """Raises RecipeError where the run would end before the checkpoint that it resumes from."""
    if state.iteration <= state.total_iterations:
        return
    key, unit = "train.iterations", 1
    if state.by_epoch:
        key, unit = "train.epochs", state.iterations_per_epoch
    raise RecipeError(
        f"{key}: {state.total_iterations // unit} means {state.total_iterations} iterations in "
        f"all, but {path} is of iteration {state.iteration}; give {key} of "
        f"{-(-state.iteration // unit)} or more, or resume from an earlier checkpoint with "
        "bin/train.py --resume-from"
    )


def _load(hook: Hook, hook_state: dict, path: Path) -> None:
    try:
        hook.load_state_dict(hook_state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its state of {type(hook).__name__} is of another version "
            f"({type(error).__name__}: {error}); resume from another one, or start a new run with "
            "--load-from"
        ) from None
