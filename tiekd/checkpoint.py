"""Checkpoints: written beside, verified by a manifest, made current by one rename; and finding the right one again.

    checkpoints/iter_1200/      DeepSpeed's files, rank_<r>.pt (random states, hooks), student.pth (plain fp32 weights),
                                moments.pth (the optimizer's state by parameter), state.json (iteration, ranks, recipe,
                                engine config, versions), manifest.json (sizes and digests of all, tiekd/manifest.py)
    checkpoints/latest          the name of the newest whole one, for people; what counts is the manifests
    best_abs_rel.pth            plain fp32 student weights of the best evaluation

Everything loads with `weights_only`: a checkpoint never runs code. The same number of ranks, ZeRO stage and precision
go on from DeepSpeed's files, bit for bit; any others from student.pth and moments.pth.
"""

import errno
import json
import os
import pickle
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from tiekd import distributed, launch, manifest, random_states, whole_state
from tiekd.data import resize as resizes
from tiekd.durable import replace_text, sync
from tiekd.errors import CheckpointError

FOLDER, LATEST, STATE = "checkpoints", "latest", "state.json"
STUDENT, MOMENTS = "student.pth", "moments.pth"
_BEST_BEFORE = ".{}.before"


class SaveFailed(Exception):
    """A checkpoint that the disk didn't take, on every rank; what was there before is as it was."""


def work_dir_of(recipe_path: str | Path) -> Path:
    """Where a recipe's runs go when neither it nor the command line says: work_dirs/<recipe stem>."""
    return Path("work_dirs") / Path(recipe_path).stem


def save(
    engine, folder: Path, iteration: int, hook_states: dict[str, dict], recipe: dict, **facts
) -> Path:
    """Writes `<folder>/iter_<iteration>` so that it is either whole or not there. Collective.

    `hook_states` are this rank's, of plain values; `facts` go into the student's file. Returns the
    checkpoint's path; raises SaveFailed on every rank where one of them couldn't write.
    """
    final = folder / f"iter_{iteration}"
    partial = folder / f".{final.name}.partial"
    files = engine.checkpoint_files
    files.start()
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        files.make_folder(partial)
    distributed.barrier()
    write_files(engine, partial, iteration, hook_states, recipe, **facts)
    shares = distributed.gather_objects((files.written, files.problem))
    problem = next((problem for _, problem in shares if problem), None)
    if problem is None and distributed.is_main():
        written = {name: facts for share, _ in shares for name, facts in share.items()}
        problem = _make_current(partial, final, written)
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)  # it may be what filled the disk
        raise SaveFailed(f"{final} was not saved, {problem}")
    return final


def write_files(
    engine, folder: Path, iteration: int, hook_states: dict[str, dict], recipe: dict, **facts
) -> None:
    """A checkpoint's files but for its manifest, through `engine.checkpoint_files`: this rank's share. Collective."""
    files = engine.checkpoint_files
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    files.save({"random": random_states.taken(), "hooks": hook_states}, folder / f"rank_{distributed.rank()}.pt")
    weights, moments = whole_state.weights(engine), whole_state.moments(engine)
    if distributed.is_main():
        student = {"state_dict": weights, "network": recipe["network"], "iteration": iteration}
        student["resize"] = resizes.of_data(recipe.get("data", {})).node()
        files.save(student | facts, folder / STUDENT)
        files.save(moments, folder / MOMENTS)
        files.save(json.dumps(_facts(engine, iteration, recipe), indent=1).encode(), folder / STATE)


def load(engine, checkpoint: Path) -> tuple[int, dict[str, dict]]:
    """Restores engine and random states from a whole checkpoint; returns its iteration and hook states. Collective."""
    problem = distributed.broadcast_object(check(checkpoint) if distributed.is_main() else None)
    if problem:
        raise CheckpointError(f"{checkpoint}: {problem}; resume from another one, or --resume-from auto")
    try:
        state = json.loads((checkpoint / STATE).read_text())
        if state["made_by"] == _shape(engine):
            allow_engine_types()
            path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
            if path is None:
                raise KeyError("DeepSpeed found no state in it")
        else:
            weights = engine.checkpoint_files.load(checkpoint / STUDENT)["state_dict"]
            whole_state.restore(engine, weights, engine.checkpoint_files.load(checkpoint / MOMENTS))
            whole_state.set_counters(engine, state["counters"])
        rank_file = checkpoint / f"rank_{distributed.rank()}.pt"
        if not rank_file.exists():  # more ranks than at the save
            rank_file = checkpoint / "rank_0.pt"
        mine = engine.checkpoint_files.load(rank_file)
        random_states.put_back(mine["random"])
        return state["iteration"], mine["hooks"]
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint}: a file in it is no plain data and was not opened further, as it could run code "
            f"({_one_line(error)}); resume from another one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: can't be read ({error}); resume from another one") from None
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        if launch.lost_a_rank(error):
            raise
        raise CheckpointError(
            f"{checkpoint}: not of this recipe's network and optimizer ({_one_line(error)}); undo what was changed in "
            "them, or start a new run with --load-from"
        ) from None


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
    raise CheckpointError(f"{work_dir}: no checkpoint to resume from{why}; start the run with bin/train.py first")


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
    return None if not named.isdigit() or iteration == int(named) else f"it is of iteration {iteration}, not {named}"


def set_aside_newer(work_dir: Path, iteration: int) -> None:
    """Renames the checkpoints and best weights from after `iteration`, from where a run goes on: they are another
    future. Main rank only."""
    newer = [c for c in newest_first(work_dir / FOLDER) if iteration_of(c) > iteration]
    newer += [best for best in work_dir.glob("best_*.pth") if _made_at(best) > iteration]
    for path in newer:
        _set_aside(path)
    for before in work_dir.glob(_BEST_BEFORE.format("*")):
        best = work_dir / before.name.removeprefix(".").removesuffix(".before")
        if not best.exists() and _made_at(before) <= iteration:
            os.rename(before, best)


def set_aside_best(work_dir: Path) -> None:
    """Renames the best weights, whose figure is not comparable with those to come. Rank 0 only."""
    for path in work_dir.glob("best_*.pth"):
        _set_aside(path)
    forget_older_best(work_dir)


def replace_best(path: Path, state_dict: dict, network_node: dict, iteration: int, **facts) -> None:
    """`write_weights` that keeps the best of the newest checkpoint until `forget_older_best`: a run that goes on from
    there takes it back. Raises OSError."""
    before = path.with_name(_BEST_BEFORE.format(path.name))
    if path.exists() and not before.exists():
        os.link(path, before)
    write_weights(path, state_dict, network_node, iteration, **facts)


def forget_older_best(work_dir: Path) -> None:
    """After a checkpoint was saved, which goes with the best weights that are there. Main rank only."""
    for before in work_dir.glob(_BEST_BEFORE.format("*")):
        before.unlink()


def prune(folder: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Removes checkpoints but for the newest `keep_last` and those of every `keep_every`th iteration, and what killed
    saves left behind. Main rank only."""
    _remove_leftovers(folder)
    for old in newest_first(folder)[keep_last:]:
        if keep_every is None or iteration_of(old) % keep_every:
            os.rename(old, folder / f".{old.name}.partial.old")  # a kill in the middle leaves none that is half there
    _remove_leftovers(folder)


def write_weights(path: Path, state_dict: dict, network_node: dict, iteration: int, **facts) -> None:
    """Student weights with the recipe node that builds their network, atomically; loads with `weights_only=True`.

    Raises OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    files = manifest.Files()
    files.save({"state_dict": state_dict, "network": network_node, "iteration": iteration, **facts}, partial)
    if files.problem:
        partial.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, files.problem, str(path))
    os.replace(partial, path)


def allow_engine_types() -> None:
    """Makes DeepSpeed's loading weights-only, with the three types of its own that its files contain."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([ZeroStageEnum, fragment_address, LossScaler, DynamicLossScaler])


def _set_aside(path: Path) -> None:
    aside, count = path.with_name(f"abandoned_{path.name}"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"abandoned{count}_{path.name}")
    os.rename(path, aside)


def _remove_leftovers(folder: Path) -> None:
    for partial in folder.glob(".iter_*.partial*"):
        shutil.rmtree(partial, ignore_errors=True)


def _made_at(weights: Path) -> int:
    """The iteration of a file of weights; -1 where the file isn't one of ours, which nobody touches."""
    try:
        iteration = torch.load(weights, weights_only=True, map_location="cpu")["iteration"]
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError):
        return -1
    return iteration if isinstance(iteration, int) else -1


def _make_current(partial: Path, final: Path, files: dict[str, list]) -> str | None:
    """The last steps of a save, on the main rank: its manifest, and its name. Returns what went wrong."""
    try:
        manifest.write(partial, files)
        sync(partial)
        if final.exists():  # saved by a run that was killed before it had removed it, or by two hooks
            os.rename(final, final.with_name(f".{final.name}.partial.old"))
        os.rename(partial, final)
        sync(final.parent)
        replace_text(final.parent / LATEST, final.name)
    except OSError as error:
        return f"{error.filename or partial}: {error.strerror}" if not (final / manifest.NAME).is_file() else None
    return None


def _facts(engine, iteration: int, recipe: dict) -> dict:
    """What state.json says; of it a resume reads iteration, made_by and counters, the rest is for people."""
    return {
        "iteration": iteration,
        "made_by": _shape(engine),
        "counters": whole_state.counters(engine),
        "versions": {name: version(name) for name in ("torch", "deepspeed")},
        "recipe": recipe,
        "engine_config": engine.config,
    }


def _shape(engine) -> dict:
    """What DeepSpeed's files ask to be the same."""
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    stage = engine.zero_optimization_stage()
    return {"world_size": distributed.world_size(), "zero_stage": stage, "precision": precision}


def iteration_of(checkpoint: Path) -> int:
    """What a checkpoint's name says."""
    return int(checkpoint.name.removeprefix("iter_"))


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder, whole or not."""
    numbered = [p for p in folder.glob("iter_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(numbered, key=iteration_of, reverse=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
