"""Fills the cache of decoded frames (tiekd/data/decoded_cache.py) that `data.decoded` reads.

A frame is an image with its depth maps. The cache holds each of them, decoded, as an array in a
file of its own. Arrays are written atomically, and existing arrays whose source (the original file)
is unchanged are kept. So a killed job, when it is started again, continues where it stopped, and a
repeated job decodes only changed files. Several processes decode in parallel. Decoding a KITTI
frame takes about 25 ms plus the write, verifying one about 3 ms.

Not covered: several machines that fill one folder at the same time.
"""

import argparse
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from torch import Tensor

from tiekd import console, paths
from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import load_recipe
from tiekd.console import Progress, printable
from tiekd.data import image_io, read_folders
from tiekd.data.build import build_dataset
from tiekd.data.decoded_cache import Decoded, refuse_shards
from tiekd.data.frames import Frames
from tiekd.data.loading import workers
from tiekd.errors import DataError, RecipeError
from tiekd.files import instead_of_file
from tiekd.training.settings import Recipe

_LOCK = ".lock"
_FILES_A_BATCH = 4
_BLOCK = 4096  # bytes; file systems allocate whole blocks

Sources = dict[Path, Callable[[Path], Tensor]]


def sources_of(recipe: Recipe, splits: tuple[str, ...], out: TextIO | None = None) -> Sources:
    """Returns the files that are decoded for some splits.

    Args:
        recipe: the recipe, with overrides applied.
        splits: names of the splits, "train" and "val".
        out: text stream that receives the dataset's warnings about how the files were found; None
            for no warnings.

    Returns:
        path -> the function that decodes the file.

    Raises:
        RecipeError: the dataset has no files to decode.
    """
    sources = {}
    notes: dict[str, None] = {}  # an ordered set, because both splits may have the same notes
    for split in splits:
        frames = build_dataset(recipe.dataset.from_files(), split)
        if not isinstance(frames, Frames):
            raise RecipeError(
                f"data.name: {recipe.data['name']} has no files to decode; kitti, nyu and "
                "folder have"
            )
        refuse_shards(frames)
        # Collect the files in a dict, which keeps each file once, because splits may share files.
        notes |= dict.fromkeys(frames.notes)
        for index in range(len(frames)):
            sources |= {
                path: how
                for path, how in frames.files(index).values()
                if image_io.needs_decoding(path)
            }
    for note in notes if out is not None else ():
        _print_line(out, f"Warning: {note}")
    return sources


def fill(
    recipe: Recipe, sources: Sources, folder: Path, num_workers: int, verify: bool, out: TextIO
) -> None:
    """Decodes the files that the cache doesn't contain yet, and writes them to the cache.

    Args:
        recipe: the recipe, with overrides applied.
        sources: the files, as `sources_of` returns them.
        folder: the folder of the cache.
        num_workers: number of processes that decode.
        verify: True to also verify the checksums of existing arrays, and rewrite damaged ones.
        out: text stream that receives the progress.

    Raises:
        DataError: the arrays don't fit on the disk (raised before any is written); an array can't
            be written (raised immediately); or some files can't be decoded (raised once all other
            files are decoded).
    """
    cache = Decoded(folder, recipe.dataset.root)
    process_files = partial(
        _process_files, num_workers=num_workers, timeout_s=recipe.loading.timeout_s, out=out
    )
    with _locked(folder):
        # Find the files whose array in the cache is missing or out of date, and with `verify` also
        # those whose array is damaged.

        if verify:
            whole = list(
                process_files("verified", list(sources), partial(cache.holds, thoroughly=True))
            )
        else:
            whole = map(cache.holds, sources)
        missing = [source for source, is_whole in zip(sources, whole, strict=True) if not is_whole]
        there = len(sources) - len(missing)
        _print_line(
            out,
            f"Decoded: {len(sources)} files, {there} there already, {len(missing)} to make in "
            f"{folder}",
        )
        _check_disk(folder, [(source, sources[source]) for source in missing], out)
        # Decode the missing files. If a file is corrupt, continue and report it at the end; if an
        # array can't be written, end the job.
        problems = []
        with closing(
            process_files("files", missing, partial(_write, cache, sources), there=there)
        ) as written:
            for problem in written:
                if problem is not None and problem.kind == "disk":
                    raise problem
                if problem is not None:
                    problems.append(problem)
    for problem in problems:
        _print_line(out, printable(str(problem)))
    if problems:
        raise DataError(
            f"{len(problems)} of {len(sources)} files can't be decoded; all others are. "
            f"{console.command('check_data')} says what is wrong and writes a split without them"
        )


def _write(cache: Decoded, sources: Sources, source: Path) -> DataError | None:
    """Decodes a file and writes its array to the cache.

    Args:
        cache: the cache of decoded frames.
        sources: path -> the function that decodes the file.
        source: the file's path.

    Returns:
        The error if the file can't be decoded or its array can't be written; else None.
    """
    try:
        cache.write(source, sources[source])
    except DataError as error:
        return error
    return None


def _process_files(
    noun: str,
    paths: list[Path],
    act: Callable,
    num_workers: int,
    timeout_s: float,
    out: TextIO,
    *,
    there: int = 0,
) -> Iterator:
    """Yields act(path) for each file, in order, computed by several processes.

    Args:
        noun: plural noun for the progress line, such as "files".
        paths: the files.
        act: function of a file's path.
        num_workers: number of processes.
        timeout_s: seconds to wait for the results of a few files before an error is raised.
        out: text stream that receives the progress.
        there: number of further files that are done already, which the progress line includes.

    Raises:
        DataError: a process dies or doesn't answer in time.
    """
    done = there
    progress = Progress(noun, there + len(paths), lambda: done, out)
    batches = [
        paths[start : start + _FILES_A_BATCH] for start in range(0, len(paths), _FILES_A_BATCH)
    ]

    def act_on(batch: list[Path]) -> list:
        return [act(path) for path in batch]

    for found in workers.read(act_on, batches, num_workers, _names, timeout_s):
        yield from found
        done += len(found)
        progress.update()
    progress.finish()


def _check_disk(folder: Path, missing: list[tuple[Path, Callable]], out: TextIO) -> None:
    needed = sum(_bytes(*source) for source in missing)
    free = shutil.disk_usage(folder).free
    _print_line(out, f"Disk: {needed / 1e9:.3f} GB needed, {free / 1e9:.3f} GB free")
    # Compare needed and free space before the first write. Otherwise the disk could get full hours
    # later, with an incomplete cache.
    if needed > free:
        raise DataError(
            f"{folder}: {len(missing)} decoded files need {needed / 1e9:.3f} GB, {free / 1e9:.3f} "
            "GB is free; free some space, or give a folder on another disk (data.decoded)"
        )


def _bytes(source: Path, decode: Callable) -> int:
    """Returns the bytes that a decoded file will need on the disk.

    The result is 0 if the file can't be read, which is reported when the file is decoded.

    Args:
        source: the file's path.
        decode: the function that decodes the file; for `read_image` a pixel takes three bytes, for
            depth maps two.
    """
    try:
        height, width = image_io.read_image_size(source)
    except DataError:
        return 0
    content = height * width * (3 if decode is image_io.read_image else 2)
    # Round the size up to whole blocks, and add one block for header and metadata.
    return (content // _BLOCK + 2) * _BLOCK


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Context manager that locks the cache's folder for this job.

    It first removes partial files of killed jobs.

    Args:
        folder: the cache's folder, which is created if it doesn't exist.

    Raises:
        DataError: another job holds the lock, or the folder can't be written to.
    """
    found = instead_of_file(folder / _LOCK)
    if found is not None:
        raise DataError(f"{folder / _LOCK}: {found}, no lock; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Lock a file in the folder. The lock needn't be removed after a kill, because the kernel
        # releases it when the process ends.
        lock = (folder / _LOCK).open("w")
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{folder}: another job is writing there; wait until it ends") from None
    except OSError as error:
        raise DataError(
            f"{folder}: can't be written to ({error.strerror}); give another folder"
        ) from None
    with lock:
        for place, _, files in os.walk(folder, onerror=_raise):
            for name in files:
                if name.startswith(".") and name.endswith(".partial"):
                    (Path(place) / name).unlink(missing_ok=True)
        yield


def _raise(error: OSError) -> None:
    raise error


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _print_line(out: TextIO, line: str) -> None:
    out.write(f"{line}\n")
    out.flush()


def run(args: argparse.Namespace) -> None:
    """Runs bin/cache_frames.py: fills the cache of a recipe's dataset, and prints the progress.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the recipe is invalid, or files can't be decoded or written.
    """
    recipe = Recipe(load_recipe(args.recipe, args.overrides))
    given = []
    for name, _, own in recipe.sets_named(args.data_set):
        if name:
            _print_line(sys.stdout, f"Data set {name}:")
        with errors_of_set(name):
            folder = _fill_set(own, args)
        option = f"data.{name}.decoded" if name else "data.decoded"
        given.append(f"{option}={folder.resolve()}")
    print(f"Read from them with --set {shlex.join(given)}")


def _fill_set(recipe: Recipe, args: argparse.Namespace) -> Path:
    """Fills the cache of decoded frames of one data set, and prints the progress.

    Args:
        recipe: the recipe with this data set as its only one.
        args: the program's parsed command line.

    Returns:
        The folder of the cache.
    """
    sources = sources_of(recipe, recipe.splits(args.split), sys.stdout)
    folder = recipe.dataset.decoded_folder or recipe.dataset.root / "decoded"
    paths.refuse_unfilled(folder, "data.decoded")
    own = read_folders.DECODED
    read_folders.refuse(own, folder, (".npy",), recipe.data, recipe.dataset.maps, own=own)
    fill(recipe, sources, folder, args.workers, args.verify, sys.stdout)
    return folder
