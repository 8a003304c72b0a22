"""Checkpoints: written beside, verified by a manifest, made current by one rename; and finding the right one again.

    checkpoints/iter_1200/      DeepSpeed's files, rank_<r>.pt (random states, hooks), state.json (iteration, ranks),
                                student.pth (plain fp32 weights), moments.pth (the optimizer's state by parameter),
                                manifest.json (sizes and digests of all of them)
    checkpoints/latest          the name of the newest whole one
    best_abs_rel.pth            plain fp32 student weights of the best evaluation

Everything loads with `weights_only`: a checkpoint never runs code. The same number of ranks, ZeRO stage and precision
go on from DeepSpeed's files, bit for bit; any others from student.pth and moments.pth.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from tiekd import distributed, whole_state
from tiekd.errors import CheckpointError

FOLDER, LATEST, MANIFEST, STATE = "checkpoints", "latest", "manifest.json", "state.json"
STUDENT, MOMENTS = "student.pth", "moments.pth"


def work_dir_of(recipe_path: str | Path) -> Path:
    """Where a recipe's runs go when neither it nor the command line says: work_dirs/<recipe stem>."""
    return Path("work_dirs") / Path(recipe_path).stem


def save(engine, folder: Path, iteration: int, hook_states: dict[str, dict], network_node: dict) -> Path:
    """Writes `<folder>/iter_<iteration>` so that it is either whole or not there. Collective.

    `hook_states` are this rank's, of plain values. Returns the checkpoint's path.
    """
    final = folder / f"iter_{iteration}"
    partial = folder / f".{final.name}.partial"
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    torch.save({"random": _random_states(), "hooks": hook_states}, partial / f"rank_{distributed.rank()}.pt")
    weights, moments = whole_state.weights(engine), whole_state.moments(engine)
    if distributed.is_main():
        write_weights(partial / STUDENT, weights, network_node, iteration)
        torch.save(moments, partial / MOMENTS)
        state = {"iteration": iteration, "made_by": _shape(engine), "counters": whole_state.counters(engine)}
        (partial / STATE).write_text(json.dumps(state, indent=1))
    distributed.barrier()
    if distributed.is_main():
        _write_manifest(partial)
        if final.exists():  # saved by a run that was killed before it had removed it, or by two hooks
            os.rename(final, folder / f".{final.name}.partial.old")
        os.rename(partial, final)
        replace_text(folder / LATEST, final.name)
    distributed.barrier()
    return final


def load(engine, checkpoint: Path) -> tuple[int, dict[str, dict]]:
    """Restores engine and random states from a whole checkpoint; returns its iteration and hook states. Collective."""
    problem = distributed.broadcast_object(check(checkpoint) if distributed.is_main() else None)
    if problem:
        raise CheckpointError(f"{checkpoint}: {problem}; resume from another one, or --resume-from auto")
    state = json.loads((checkpoint / STATE).read_text())
    try:
        if state["made_by"] == _shape(engine):
            allow_engine_types()
            path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
            if path is None:
                raise CheckpointError(f"{checkpoint}: DeepSpeed found no state in it; resume from another one")
        else:
            weights = torch.load(checkpoint / STUDENT, weights_only=True, map_location="cpu")["state_dict"]
            moments = torch.load(checkpoint / MOMENTS, weights_only=True, map_location="cpu")
            whole_state.restore(engine, weights, moments)
            whole_state.set_counters(engine, state["counters"])
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint}: not of this recipe's network ({_one_line(error)})") from None
    rank_file = checkpoint / f"rank_{distributed.rank()}.pt"
    if not rank_file.exists():  # more ranks than at the save
        rank_file = checkpoint / "rank_0.pt"
    mine = torch.load(rank_file, weights_only=True, map_location="cpu")
    _set_random_states(mine["random"])
    return state["iteration"], mine["hooks"]


def find(work_dir: Path) -> Path:
    """The newest whole checkpoint of a work dir. Raises CheckpointError when there is none."""
    passed_over = []
    for checkpoint in _newest_first(work_dir / FOLDER):
        problem = check(checkpoint)
        if problem is None:
            return checkpoint
        passed_over.append(f"{checkpoint.name}: {problem}")
    why = f"; passed over {'; '.join(passed_over)}" if passed_over else ""
    raise CheckpointError(f"{work_dir}: no checkpoint to resume from{why}; start the run with bin/train.py first")


def find_weights(work_dir: Path) -> Path:
    """The student weights of a work dir: the best evaluation's, else the newest checkpoint's."""
    best = list(work_dir.glob("best_*.pth"))
    if best:  # more than one after a change of evaluation.save_best
        return max(best, key=lambda path: path.stat().st_mtime)
    try:
        return find(work_dir) / STUDENT
    except CheckpointError:
        raise CheckpointError(f"there are no weights in {work_dir}") from None


def check(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there with the size and digest of its manifest."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        files = None
    if not files or not isinstance(files, dict):
        return "no manifest that can be read (a save that never ended)"
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _digest(path) != digest:
            return f"{name} has changed since it was written"
    return None


def set_aside_newer(work_dir: Path, iteration: int) -> None:
    """Renames the checkpoints and best weights from after `iteration`, from where a run goes on: they are another
    future. Main rank only."""
    newer = [c for c in _newest_first(work_dir / FOLDER) if int(c.name[5:]) > iteration]
    for best in work_dir.glob("best_*.pth"):
        made_at = torch.load(best, weights_only=True, map_location="cpu", mmap=True)["iteration"]
        newer += [best] if made_at > iteration else []
    for path in newer:
        aside, count = path.with_name(f"abandoned_{path.name}"), 1
        while aside.exists():
            count += 1
            aside = path.with_name(f"abandoned{count}_{path.name}")
        os.rename(path, aside)


def prune(folder: Path, keep_last: int) -> None:
    """Removes all but the newest `keep_last` checkpoints, and what killed saves left behind. Main rank only."""
    for old in list(_newest_first(folder))[keep_last:]:
        shutil.rmtree(old)
    for partial in folder.glob(".iter_*.partial*"):
        shutil.rmtree(partial)


def write_weights(path: Path, state_dict: dict, network_node: dict, iteration: int, **facts) -> None:
    """Student weights with the recipe node that builds their network, atomically; loads with `weights_only=True`."""
    partial = path.with_name(f".{path.name}.partial")
    torch.save({"state_dict": state_dict, "network": network_node, "iteration": iteration, **facts}, partial)
    os.replace(partial, path)


def allow_engine_types() -> None:
    """Makes DeepSpeed's loading weights-only, with the three types of its own that its files contain."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([ZeroStageEnum, fragment_address, LossScaler, DynamicLossScaler])


def _shape(engine) -> dict:
    """What DeepSpeed's files ask to be the same."""
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    stage = engine.zero_optimization_stage()
    return {"world_size": distributed.world_size(), "zero_stage": stage, "precision": precision}


def _random_states() -> dict:
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict) -> None:
    torch.set_rng_state(states["torch"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _newest_first(folder: Path) -> Iterable[Path]:
    numbered = [p for p in folder.glob("iter_*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(numbered, key=lambda p: -int(p.name[5:]))


def _write_manifest(checkpoint: Path) -> None:
    files = {}
    for path in sorted(checkpoint.iterdir()):
        files[path.name] = [path.stat().st_size, _digest(path)]
        _sync(path)
    (checkpoint / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    _sync(checkpoint / MANIFEST)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that there is always a whole one, the old or the new."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
