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
# The key under which a file of averaged weights stores how they were averaged: a dict with the
# decay and the number of updates.
AVERAGED = "averaged"


def set_aside_best(work_dir: Path) -> None:
    """Renames the files of a run's best weights, so that later weights aren't compared with them.

    It is called when the data have changed, since new metrics then can't be compared with old ones.
    Rank 0 only.

    Args:
        work_dir: The run's folder.
    """
    for path in work_dir.glob("best_*.pth"):
        set_aside(path)
    forget_older_best(work_dir)


def replace_best(path: Path, state_dict: dict, network_node: dict, iteration: int, **facts) -> None:
    """Replaces the file of the best weights, and keeps the former file for a resume.

    The former file is kept, under another name, only at the first replacement after a checkpoint
    was saved. A run that resumes from this checkpoint restores the file. After the next checkpoint
    is saved, `forget_older_best` removes it.

    Args:
        path: The file of the best weights.
        state_dict: The student's parameters and buffers by name, float32.
        network_node: The recipe's section `network`, which describes the network.
        iteration: The number of iterations after which the network had these weights.
        **facts: Further entries of the file, by name.

    Raises:
        OSError: The file can't be written.
    """
    before = path.with_name(BEST_BEFORE.format(path.name))
    # Keep the old file only at the first replacement after a checkpoint: a run that resumes from
    # this checkpoint needs it. Later replacements replace files that are newer than the checkpoint.
    if path.exists() and not before.exists():
        os.link(path, before)
    write_weights(path, state_dict, network_node, iteration, **facts)


def forget_older_best(work_dir: Path) -> None:
    """Removes the replaced best weights that `replace_best` has kept for the previous checkpoint.

    It is called after a new checkpoint was saved, since a run that resumes from the new checkpoint
    uses the current best weights. Rank 0 only.

    Args:
        work_dir: The run's folder.
    """
    for before in work_dir.glob(BEST_BEFORE.format("*")):
        before.unlink()


def write_weights(
    path: Path, state_dict: dict, network_node: dict, iteration: int, **facts
) -> None:
    """Writes a file of student weights atomically.

    torch.load can read the file with `weights_only=True`.

    Args:
        path: The file; an existing one is replaced.
        state_dict: The student's parameters and buffers by name, float32.
        network_node: The recipe's section `network`, which describes the network.
        iteration: The number of iterations after which the network had these weights.
        **facts: Further entries of the file, by name.

    Raises:
        OSError: The file can't be written.
    """
    _write(
        path,
        {"state_dict": state_dict, "network": network_node, "iteration": iteration, **facts},
    )


def write_with(path: Path, content: dict, out: Path, **facts) -> None:
    """Writes a weights file again, with further entries or with other values of some entries.

    All other entries stay as they are, in their order, so that the same call writes the same bytes.
    The new file gets the time of the old one, by which `checkpoints.find_weights` chooses among a
    work dir's best weights.

    Args:
        path: The weights file.
        content: The file's content, a dict.
        out: The file to write, atomically; it may be `path`.
        **facts: The further entries, by name. They replace entries of the same name.

    Raises:
        OSError: The file can't be written.
    """
    before = path.stat()
    _write(out, {**content, **facts}, (before.st_atime_ns, before.st_mtime_ns))


def _write(path: Path, content: dict, times_ns: tuple[int, int] | None = None) -> None:
    # Write under another name and rename the file then, so that a reader always finds a complete
    # file: the old or the new one.
    partial = path.with_name(f".{path.name}.partial")
    files = manifest.Files()
    try:
        files.save(content, partial)
        if files.problem:
            raise OSError(files.errno, files.problem, str(path))
        if times_ns is not None:
            os.utime(partial, ns=times_ns)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames a file or folder from `NAME` to `abandoned_NAME`, so that no code uses it any more.

    If that name exists, the new name is `abandoned2_NAME`, and so on. Rank 0 only.

    Args:
        path: The file or folder.

    Returns:
        The new path.
    """
    aside = path.with_name(f"abandoned_{path.name}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"abandoned{count}_{path.name}")
    os.rename(path, aside)
    return aside


def made_at(weights: Path) -> int:
    """Returns the iteration that is stored in a file of student weights.

    Args:
        weights: The file.

    Returns:
        The iteration; -1 if the file can't be read or stores no iteration.
    """
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
