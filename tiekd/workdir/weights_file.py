"""Writes files of plain fp32 student weights, and manages a run's best weights.

A file is written atomically. All loading uses `weights_only`, so that a file can't run code.
"""

import os
import pickle
from pathlib import Path

import torch

from tiekd.files import instead_of_file
from tiekd.workdir import manifest

BEST_BEFORE = ".{}.before"


def set_aside_best(work_dir: Path) -> None:
    """Renames the files of a run's best weights, so that the search for the best begins again.

    It is called when new metrics can't be compared with the old ones, because the data have
    changed. Rank 0 only.

    Args:
        work_dir: the run's folder.
    """
    for path in work_dir.glob("best_*.pth"):
        set_aside(path)
    forget_older_best(work_dir)


def replace_best(path: Path, state_dict: dict, network_node: dict, iteration: int, **facts) -> None:
    """Writes new best weights, and keeps a copy of the best weights at the newest checkpoint.

    A run that resumes from that checkpoint restores the copy. After the next checkpoint is saved,
    `forget_older_best` removes the copy.

    Args:
        path: the file of the best weights, which is replaced.
        state_dict: the student's parameters and buffers by name, float32.
        network_node: the recipe's node that describes the network.
        iteration: the iteration of the weights.
        **facts: further entries of the file.

    Raises:
        OSError: the file can't be written.
    """
    before = path.with_name(BEST_BEFORE.format(path.name))
    # Keep the old file only at the first replacement after a checkpoint: later replacements replace
    # weights that are newer than the checkpoint.
    if path.exists() and not before.exists():
        os.link(path, before)
    write_weights(path, state_dict, network_node, iteration, **facts)


def forget_older_best(work_dir: Path) -> None:
    """Removes the copy of the best weights that `replace_best` keeps for the checkpoint before.

    It is called after a new checkpoint was saved: a run that resumes from that uses the present
    best weights. Rank 0 only.

    Args:
        work_dir: the run's folder.
    """
    for before in work_dir.glob(BEST_BEFORE.format("*")):
        before.unlink()


def write_weights(
    path: Path, state_dict: dict, network_node: dict, iteration: int, **facts
) -> None:
    """Writes student weights atomically; the file loads with `weights_only=True`.

    Args:
        path: the file, which is replaced.
        state_dict: the student's parameters and buffers by name, float32.
        network_node: the recipe's node that describes the network.
        iteration: the iteration of the weights.
        **facts: further entries of the file.

    Raises:
        OSError: the file can't be written.
    """
    # Write the file under another name and rename it then, so that a reader always finds a complete
    # file, the old or the new one.
    partial = path.with_name(f".{path.name}.partial")
    files = manifest.Files()
    try:
        files.save(
            {"state_dict": state_dict, "network": network_node, "iteration": iteration, **facts},
            partial,
        )
        if files.problem:
            raise OSError(files.errno, files.problem, str(path))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Renames a file or folder to `abandoned_NAME`, which no code looks for. Rank 0 only."""
    aside = path.with_name(f"abandoned_{path.name}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"abandoned{count}_{path.name}")
    os.rename(path, aside)


def made_at(weights: Path) -> int:
    """Returns the iteration that a weights file states; -1 if it isn't a weights file of tiekd."""
    if instead_of_file(weights):
        return -1
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
