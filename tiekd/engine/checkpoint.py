"""Saves an engine's checkpoint, whole or not at all, and restores it.

A checkpoint is written beside its place, verified by a manifest and made current by one rename.
tiekd/workdir/checkpoints.py says which files it has. Everything loads with `weights_only`: a
checkpoint never runs code. With the same number of ranks, ZeRO stage and precision a run resumes
from DeepSpeed's files, bit for bit; with any others from student.pth and moments.pth.
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
from tiekd.errors import CheckpointError
from tiekd.files import replace_text, sync
from tiekd.workdir import manifest
from tiekd.workdir.checkpoints import LATEST, MOMENTS, STATE, STUDENT, check


class SaveFailed(Exception):
    """Saving a checkpoint failed; raised on every rank. Older checkpoints are unchanged."""


def save(
    engine, folder: Path, iteration: int, hook_states: dict[str, dict], recipe: dict, **facts
) -> Path:
    """Writes `<folder>/iter_<iteration>` so that it is either whole or not there. Collective.

    Args:
        engine: The DeepSpeed engine.
        folder: Where the run's checkpoints are.
        iteration: Finished iterations.
        hook_states: This rank's hook states by hook, of plain values.
        recipe: The run's recipe.
        facts: Further entries of the student's weights file.

    Returns:
        The checkpoint's path.

    Raises:
        SaveFailed: One of the ranks couldn't write; raised on all.
    """
    final = folder / f"iter_{iteration}"
    partial = folder / f".{final.name}.partial"
    files = engine.checkpoint_files
    files.start()
    if comm.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        files.make_folder(partial)
    comm.barrier()
    write_files(engine, partial, iteration, hook_states, recipe, **facts)
    # One rank that couldn't write makes the save fail on all of them.
    shares = comm.gather_objects((files.written, files.problem))
    problem = next((problem for _, problem in shares if problem), None)
    if problem is None and comm.is_main():
        written = {name: facts for share, _ in shares for name, facts in share.items()}
        problem = _make_current(partial, final, written)
    # Rank 0 has renamed the folder, or broadcasts why it couldn't, so that all ranks raise.
    problem = comm.broadcast_object(problem)
    if problem is not None:
        if comm.is_main():
            shutil.rmtree(partial, ignore_errors=True)  # it may have filled the disk
        raise SaveFailed(f"{final} was not saved, {problem}")
    return final


def write_files(
    engine, folder: Path, iteration: int, hook_states: dict[str, dict], recipe: dict, **facts
) -> None:
    """Writes this rank's share of a checkpoint's files, but for the manifest. Collective.

    They go through `engine.checkpoint_files`. Arguments are those of `save`; `folder` is the
    checkpoint's own.
    """
    files = engine.checkpoint_files
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    files.save(
        {"random": rng_state.taken(), "hooks": hook_states}, folder / f"rank_{comm.rank()}.pt"
    )
    weights, moments = full_state.weights(engine), full_state.moments(engine)
    if comm.is_main():
        student = {
            "state_dict": weights,
            "network": recipe["network"],
            "iteration": iteration,
            **facts,
        }
        student["resize"] = resizes.of_data(recipe.get("data", {})).node()
        files.save(student, folder / STUDENT)
        files.save(moments, folder / MOMENTS)
        files.save(json.dumps(_facts(engine, iteration, recipe), indent=1).encode(), folder / STATE)


def load(engine, checkpoint: Path) -> tuple[int, dict[str, dict]]:
    """Restores engine and random states from a whole checkpoint. Collective.

    Returns:
        The checkpoint's iteration, and this rank's hook states.

    Raises:
        CheckpointError: The checkpoint is corrupt, or of another network or optimizer.
    """
    # Rank 0 verifies the digests of all ranks' files.
    problem = comm.broadcast_object(check(checkpoint) if comm.is_main() else None)
    if problem:
        raise CheckpointError(
            f"{checkpoint}: {problem}; resume from another one, or --resume-from auto"
        )
    try:
        state = json.loads((checkpoint / STATE).read_text())
        # DeepSpeed's files load only with the same world size, ZeRO stage and precision; otherwise
        # load the plain weights and moments.
        if state["made_by"] == _shape(engine):
            patches.load_plain_data_only()
            path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
            if path is None:
                raise KeyError("DeepSpeed found no state in it")
        else:
            weights = engine.checkpoint_files.load(checkpoint / STUDENT)["state_dict"]
            full_state.restore(engine, weights, engine.checkpoint_files.load(checkpoint / MOMENTS))
            full_state.set_counters(engine, state["counters"])
        rank_file = checkpoint / f"rank_{comm.rank()}.pt"
        if not rank_file.exists():  # this rank has no file: the world size was smaller at the save
            rank_file = checkpoint / "rank_0.pt"
        mine = engine.checkpoint_files.load(rank_file)
        rng_state.put_back(mine["random"])
        return state["iteration"], mine["hooks"]
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint}: a file in it is no plain data and was not opened further, as it could "
            f"run code ({_one_line(error)}); resume from another one"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint}: can't be read ({error}); resume from another one"
        ) from None
    # Out of memory or a lost rank: re-raise, since the checkpoint itself may be fine.
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
    """Writes the manifest and renames the folder, on rank 0; returns the error, or None."""
    try:
        manifest.write(partial, files)
        sync(partial)
        if (
            final.exists()
        ):  # saved by a run that was killed before it had removed it, or by two hooks
            os.rename(final, final.with_name(f".{final.name}.partial.old"))
        os.rename(partial, final)
        sync(final.parent)
        replace_text(final.parent / LATEST, final.name)
    except OSError as error:
        return (
            f"{error.filename or partial}: {error.strerror}"
            if not (final / manifest.NAME).is_file()
            else None
        )
    return None


def _facts(engine, iteration: int, recipe: dict) -> dict:
    """Returns the content of state.json.

    A resume reads iteration, made_by and counters; the rest is for people.
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
    """Returns the values that must match between save and load for DeepSpeed's own files."""
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    stage = engine.zero_optimization_stage()
    return {"world_size": comm.world_size(), "zero_stage": stage, "precision": precision}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
