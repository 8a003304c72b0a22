"""Files of plain fp32 student weights: written whole, and the best of a run kept beside its checkpoints.

Everything loads with `weights_only`: a file of weights never runs code.
"""

import errno
import os
import pickle
from pathlib import Path

import torch

from tiekd.workdir import manifest

BEST_BEFORE = ".{}.before"


def set_aside_best(work_dir: Path) -> None:
    """Renames the best weights, whose figure is not comparable with those to come. Rank 0 only."""
    for path in work_dir.glob("best_*.pth"):
        set_aside(path)
    forget_older_best(work_dir)


def replace_best(path: Path, state_dict: dict, network_node: dict, iteration: int, **facts) -> None:
    """`write_weights` that keeps the best of the newest checkpoint until `forget_older_best`: a run that goes on from
    there takes it back. Raises OSError."""
    before = path.with_name(BEST_BEFORE.format(path.name))
    if path.exists() and not before.exists():
        os.link(path, before)
    write_weights(path, state_dict, network_node, iteration, **facts)


def forget_older_best(work_dir: Path) -> None:
    """After a checkpoint was saved, which goes with the best weights that are there. Main rank only."""
    for before in work_dir.glob(BEST_BEFORE.format("*")):
        before.unlink()


def write_weights(
    path: Path, state_dict: dict, network_node: dict, iteration: int, **facts
) -> None:
    """Student weights with the recipe node that builds their network, atomically; loads with `weights_only=True`.

    Raises OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    files = manifest.Files()
    files.save(
        {"state_dict": state_dict, "network": network_node, "iteration": iteration, **facts},
        partial,
    )
    if files.problem:
        partial.unlink(missing_ok=True)
        raise OSError(errno.ENOSPC, files.problem, str(path))
    os.replace(partial, path)


def set_aside(path: Path) -> None:
    """Gives a file or folder a name by which nobody looks for it, `abandoned_...`. Main rank only."""
    aside, count = path.with_name(f"abandoned_{path.name}"), 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"abandoned{count}_{path.name}")
    os.rename(path, aside)


def made_at(weights: Path) -> int:
    """The iteration of a file of weights; -1 where the file isn't one of ours, which nobody touches."""
    try:
        iteration = torch.load(weights, weights_only=True, map_location="cpu")["iteration"]
    except (
        OSError,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
    ):
        return -1
    return iteration if isinstance(iteration, int) else -1
