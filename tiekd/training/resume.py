"""Resumes a run: chooses a checkpoint, restores engine and hooks, sets newer checkpoints aside."""

from pathlib import Path

import torch

from tiekd import console
from tiekd.data import learned_from, trained_on
from tiekd.distributed import comm
from tiekd.engine import checkpoint
from tiekd.errors import CheckpointError, RecipeError, UserError
from tiekd.kernels import layouts
from tiekd.training import inputs
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hook import Hook
from tiekd.training.hooks.checkpoint import keyed
from tiekd.training.hooks.early_stop import EarlyStop
from tiekd.training.hooks.text_log import TextLog
from tiekd.training.state import TrainState
from tiekd.workdir import checkpoints, weights_file


def checkpoint_path(work_dir: Path, resume_from: str | None) -> tuple[Path | None, list[str]]:
    """Chooses the checkpoint to resume from. Collective: rank 0 chooses for all ranks.

    Args:
        work_dir: The folder of the run.
        resume_from: A checkpoint's folder, "auto" for the newest intact one, or None for a new run.
            If the work dir has no checkpoint, "auto" starts a new run, so that one command can
            start and restart a job.

    Returns:
        1. The checkpoint's folder, or None for a new run.
        2. Messages for the log: one about each newer checkpoint that is damaged, or one if there is
           no checkpoint.

    Raises:
        CheckpointError: With "auto" there are checkpoints, but none is intact; or `resume_from`
            isn't a folder.
    """
    if resume_from is None:
        return None, []
    # Let only rank 0 look for the newest checkpoint, so that all ranks use the same one or raise
    # the same error.
    if resume_from == "auto":
        found = None
        if comm.is_main():
            try:
                if checkpoints.newest_first(work_dir / checkpoints.FOLDER):
                    found = checkpoints.find(work_dir)
                else:
                    found = None, ["There was no checkpoint to resume from; the run begins"]
            except CheckpointError as error:
                found = error
        found = comm.broadcast_object(found)
        if isinstance(found, CheckpointError):
            raise found
        return found
    # Check that the folder that the user names exists; it is verified when it is loaded.
    path = Path(resume_from)
    if not path.is_dir():
        raise CheckpointError(
            f"--resume-from {path}: no such checkpoint folder; give .../checkpoints/iter_N or auto"
        )
    return path, []


def inputs_at_start(path: Path | None) -> dict | None:
    """Reads the record of the input files with which a checkpoint's run was started. Collective.

    Args:
        path: The checkpoint's folder; None for a new run.

    Returns:
        The record as a dict (tiekd/training/inputs.py) on rank 0, or None if there is none; None on
        all other ranks.

    Raises:
        CheckpointError: The file that rank 0 reads is damaged; raised on all ranks.
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
    """Sets the memory layouts in which all ranks compute convolutions on a CPU. Collective.

    A resumed run uses the layouts that it recorded at its start. A new run uses those that the
    table in tiekd/kernels/layouts.py gives for rank 0's CPU. All ranks use the same layouts.

    Args:
        work_dir: The folder of the run.
        device: The device of this rank; on a GPU nothing is set.
        checkpoint_path: The folder of the checkpoint to resume from, which may be in another work
            dir; None for a new run.

    Returns:
        1. The record of the layouts, a dict to be written to the work dir; None on a GPU.
        2. Messages for the log.
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
    # Make every convolution in this process use the recorded memory layouts.
    record, lines = found
    layouts.set_settings(record["choices"])
    return record, lines


def restore(state: TrainState, path: Path | None, log: TextLog) -> None:
    """Restores engine, state and hooks of a run from a checkpoint. Collective.

    Newer checkpoints in the work dir are set aside, since their iterations will be trained again.

    Args:
        state: The state of the run; changed in place.
        path: The checkpoint's folder; None for a new run, which restores nothing.
        log: The text log. Its .log.json rows about later iterations are deleted.

    Raises:
        RecipeError: The recipe's last iteration is before the checkpoint's iteration. Then no file
            has been changed.
        CheckpointError: The checkpoint can't be loaded.
    """
    if path is not None:
        # Restore the engine first, because the following checks and hooks need the checkpoint's
        # iteration.
        state.iteration, hook_states = checkpoint.load(state.engine, path)
        state.resumed_from = path
        _check_end(state, path)
        if comm.is_main():
            student = path / checkpoints.STUDENT
            state.trained_on = trained_on.union(state.trained_on, trained_on.read(student))
            state.teachers = learned_from.union(state.teachers, learned_from.read(student))
        for key, hook in keyed(state.hooks).items():
            if key in hook_states:
                _load(hook, hook_states[key], path)
    # Set aside checkpoints and log rows of later iterations, since these will be trained again.
    if comm.is_main():
        checkpoints.set_aside_newer(state.work_dir, state.iteration)
    log.drop_rows(state.work_dir)


def forget_other_best(
    state: TrainState, started: dict | None, now: dict | None, accepted: bool
) -> None:
    """Forgets the best metric if the data on which it was measured have changed. Collective.

    The hook Evaluation has a best metric, by which it chooses the best weights, and so has the hook
    early_stop; both are forgotten.

    Args:
        state: The state of the run, after it was restored.
        started: The record of the input files when the run was started (tiekd/training/inputs.py),
            on rank 0; None if there is none, and on other ranks.
        now: The record of the present input files, on rank 0; None on other ranks. Its key
            `best_from` is set to the last iteration whose metrics can't be compared with those of
            this run.
        accepted: True if the input files have changed and the user accepts this by an option. Rank
            0 then also sets the files of the best weights aside.
    """
    if comm.is_main():
        now["best_from"] = state.iteration if accepted else (started or now)["best_from"]
        if accepted:
            weights_file.set_aside_best(state.work_dir)
    best_from = comm.broadcast_object(now and now["best_from"])
    # Forget the best metric if the checkpoint was saved before the data changed, since later
    # metrics can't be compared with it. `best_from` is saved, so every later resume from such a
    # checkpoint does the same.
    if state.iteration <= best_from:
        for hook in state.hooks:
            if isinstance(hook, Evaluation):
                hook.best = None
            elif isinstance(hook, EarlyStop):
                hook.forget_best()


def _check_end(state: TrainState, path: Path) -> None:
    """Raises RecipeError if the recipe's last iteration is before the iteration of a checkpoint.

    Args:
        state: The state of the run; its `iteration` is already the checkpoint's.
        path: The checkpoint's folder, for the error message.
    """
    if state.iteration <= state.total_iterations:
        return
    key, unit = "train.iterations", 1
    if state.by_epoch:
        key, unit = "train.epochs", state.iterations_per_epoch
    raise RecipeError(
        f"{key}: {state.total_iterations // unit} means {state.total_iterations} iterations in "
        f"all, but {path} is of iteration {state.iteration}; give {key} of "
        f"{-(-state.iteration // unit)} or more, or resume from an earlier checkpoint with "
        f"{console.command('train')} --resume-from"
    )


def _load(hook: Hook, hook_state: dict, path: Path) -> None:
    try:
        hook.load_state_dict(hook_state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its state of {type(hook).__name__} is of another version "
            f"({type(error).__name__}: {error}); resume from another checkpoint, or start a new "
            "run with --load-from"
        ) from None
