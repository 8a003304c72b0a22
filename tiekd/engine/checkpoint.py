"""Saves an engine's checkpoint atomically, and restores an engine from a checkpoint.

A checkpoint is written to a temporary folder with a manifest of its files. One rename then gives
the folder its final name. tiekd/workdir/checkpoints.py lists the files. All loading uses
`weights_only`, so that a checkpoint can't run code. With the same number of ranks, ZeRO stage and
precision a run resumes from DeepSpeed's files, bit for bit; otherwise it resumes from student.pth
(trained.pth if the weights were averaged) and moments.pth.
"""

import json
import os
import pickle
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from tiekd.data import resize as resizes
from tiekd.distributed import comm, entrypoint
from tiekd.engine import full_state, patches, rng_state
from tiekd.engine.moving_average import MovingAverage
from tiekd.errors import CheckpointError
from tiekd.files import cause_of, replace_text, sync
from tiekd.workdir import manifest
from tiekd.workdir.checkpoints import LATEST, MOMENTS, STATE, STUDENT, TRAINED, check
from tiekd.workdir.weights_file import AVERAGED


class SaveFailed(Exception):
    """Raised on every rank if a checkpoint couldn't be saved; older checkpoints are unchanged."""


def save(
    engine,
    folder: Path,
    iteration: int,
    hook_states: dict[str, dict],
    recipe: dict,
    average: MovingAverage | None = None,
    **facts,
) -> Path:
    """Writes the checkpoint `<folder>/iter_<iteration>` atomically. Collective.

    Args:
        engine: The DeepSpeed engine.
        folder: The folder of the run's checkpoints.
        iteration: The number of finished iterations.
        hook_states: The states of this rank's hooks, dicts of plain values, by the hooks' keys.
        recipe: The run's recipe.
        average: The moving average of the weights, which student.pth then has; None without one.
        facts: Further entries of student.pth, the file of the student's weights, by name.

    Returns:
        The path of the checkpoint's folder.

    Raises:
        SaveFailed: One of the ranks couldn't write its files; raised on all ranks.
    """
    final = folder / f"iter_{iteration}"
    partial = folder / f".{final.name}.partial"
    files = engine.checkpoint_files
    files.start()
    if comm.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        files.make_folder(partial)
    comm.barrier()
    write_files(engine, partial, iteration, hook_states, recipe, average, **facts)
    # Gather from all ranks which files they have written. If one rank couldn't write, the save
    # fails on all.
    shares = comm.gather_objects((files.written, files.problem))
    problem = next((problem for _, problem in shares if problem), None)
    if problem is None and comm.is_main():
        written = {name: facts for share, _ in shares for name, facts in share.items()}
        problem = _make_current(partial, final, written)
    # Broadcast rank 0's error, if it couldn't rename the folder, so that all ranks raise.
    problem = comm.broadcast_object(problem)
    if problem is not None:
        if comm.is_main():
            # Remove the partial checkpoint, which may have filled the disk.
            shutil.rmtree(partial, ignore_errors=True)
        raise SaveFailed(f"{final} was not saved, {problem}")
    return final


def write_files(
    engine,
    folder: Path,
    iteration: int,
    hook_states: dict[str, dict],
    recipe: dict,
    average: MovingAverage | None = None,
    **facts,
) -> None:
    """Writes this rank's files of a checkpoint; the manifest is written later. Collective.

    All files are written by `engine.checkpoint_files`, which records their digests and errors.

    Args:
        engine: The DeepSpeed engine.
        folder: The checkpoint's own folder.
        iteration: The number of finished iterations.
        hook_states: The states of this rank's hooks, dicts of plain values, by the hooks' keys.
        recipe: The run's recipe.
        average: The moving average of the weights, which student.pth then has; None without one.
        facts: Further entries of student.pth, the file of the student's weights, by name.
    """
    files = engine.checkpoint_files
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    files.save(
        {"random": rng_state.states(), "hooks": hook_states}, folder / f"rank_{comm.rank()}.pt"
    )
    weights, moments = full_state.weights(engine), full_state.moments(engine)
    averaged = None if average is None else average.weights()
    if comm.is_main():
        student = {
            "state_dict": weights if average is None else averaged,
            "network": recipe["network"],
            "iteration": iteration,
            **facts,
        }
        student["resize"] = resizes.of_data(recipe.get("data", {})).node()
        if average is not None:
            files.save(student | {"state_dict": weights}, folder / TRAINED)
            student[AVERAGED] = average.description()
        files.save(student, folder / STUDENT)
        files.save(moments, folder / MOMENTS)
        files.save(json.dumps(_facts(engine, iteration, recipe), indent=1).encode(), folder / STATE)


def load(engine, checkpoint: Path) -> tuple[int, dict[str, dict]]:
    """Verifies a checkpoint, and restores the engine and the random states. Collective.

    Args:
        engine: The DeepSpeed engine.
        checkpoint: The checkpoint's folder.

    Returns:
        (iteration, hook_states): the iteration at which the checkpoint was saved; and a dict of the
        states of this rank's hooks, by the hooks' keys. A rank that the saved run didn't have gets
        those of rank 0.

    Raises:
        CheckpointError: The checkpoint is damaged, or of another network or optimizer.
    """
    # Rank 0 alone verifies the checkpoint: it compares all files with the manifest.
    problem = comm.broadcast_object(check(checkpoint) if comm.is_main() else None)
    if problem:
        raise CheckpointError(
            f"{checkpoint}: {problem}; resume from another checkpoint, or with --resume-from auto"
        )
    try:
        state = json.loads((checkpoint / STATE).read_text())
        # DeepSpeed's files can be loaded only with the same world size, ZeRO stage and precision as
        # at the save. Otherwise restore the plain fp32 weights and moments.
        if state["made_by"] == _shape(engine):
            patches.load_plain_data_only()
            path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
            if path is None:
                raise KeyError("DeepSpeed found no state in it")
        else:
            # If the run has a moving average, student.pth contains the average, and trained.pth the
            # weights.
            trained = checkpoint / TRAINED
            path = trained if trained.is_file() else checkpoint / STUDENT
            weights = engine.checkpoint_files.load(path)["state_dict"]
            full_state.restore(engine, weights, engine.checkpoint_files.load(checkpoint / MOMENTS))
            full_state.set_counters(engine, state["counters"])
        rank_file = checkpoint / f"rank_{comm.rank()}.pt"
        # A rank that the saved run didn't have has no random states and hook states, so it loads
        # those of rank 0.
        if not rank_file.exists():
            rank_file = checkpoint / "rank_0.pt"
        mine = engine.checkpoint_files.load(rank_file)
        rng_state.restore(mine["random"])
        return state["iteration"], mine["hooks"]
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint}: a file in it is no plain data and was not opened further, as it could "
            f"run code ({_one_line(error)}); resume from another checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint}: can't be read ({error}); resume from another checkpoint"
        ) from None
    # If memory runs out, re-raise the error: the checkpoint may be intact, so don't report it as
    # damaged. The same holds for the error of a lost rank below.
    except torch.cuda.OutOfMemoryError:
        raise
    except (
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        if entrypoint.lost_a_rank(error):
            raise
        raise CheckpointError(
            f"{checkpoint}: not of this recipe's network and optimizer ({_one_line(error)}); undo "
            "what was changed in them, or start a new run with --load-from"
        ) from None


def _make_current(partial: Path, final: Path, files: dict[str, list]) -> str | None:
    """Writes a checkpoint's manifest, and gives its folder the final name. Called on rank 0 only.

    Args:
        partial: The temporary folder with the files of all ranks.
        final: The checkpoint's final path.
        files: A dict from file name to [size in bytes, sha256].

    Returns:
        The message of an error because of which the checkpoint isn't complete; None if it is.
    """
    try:
        manifest.write(partial, files)
        sync(partial)
        # A checkpoint of this iteration may exist already, from a run that was killed or from a
        # second Checkpoint hook. Rename it out of the way.
        if final.exists():
            os.rename(final, final.with_name(f".{final.name}.partial.old"))
        os.rename(partial, final)
        sync(final.parent)
        replace_text(final.parent / LATEST, final.name)
    except OSError as error:
        return (
            f"{error.filename or partial}: {cause_of(error)}"
            if not (final / manifest.NAME).is_file()
            else None
        )
    return None


def _facts(engine, iteration: int, recipe: dict) -> dict:
    """Returns the content of a checkpoint's state.json.

    A resume reads only `iteration`, `made_by` (world size, ZeRO stage and precision) and
    `counters`; the other values are for people.

    Args:
        engine: The DeepSpeed engine.
        iteration: The number of finished iterations.
        recipe: The run's recipe.

    Returns:
        A dict with these keys and with `versions` (of torch and DeepSpeed), `recipe` and
        `engine_config`.
    """
    return {
        "iteration": iteration,
        "made_by": _shape(engine),
        "counters": full_state.counters(engine),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "recipe": recipe,
        "engine_config": engine.config,
    }


def _shape(engine) -> dict:
    """Returns the properties of an engine that must not change for DeepSpeed to load its files.

    Args:
        engine: The DeepSpeed engine.

    Returns:
        A dict with the keys `world_size`, `zero_stage` (0 to 3) and `precision` ("fp32", "bf16" or
        "fp16").
    """
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    stage = engine.zero_optimization_stage()
    return {"world_size": comm.world_size(), "zero_stage": stage, "precision": precision}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
