"""Writes a teacher's depth maps to files, in the published naming and encoding.

Any number of students can then learn from them. The teacher predicts one frame at a time (with its
mirror image, if flip averaging is on), so a map doesn't depend on a batch or on the number of
ranks. Each map is written atomically and existing ones are kept, so a killed job resumes where it
was. Each rank encodes and writes in threads while its network predicts.

Left out: folders that several machines don't share, and replacing maps: another teacher takes
another folder.
"""

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from tiekd.config.recipe import is_overridden, load_recipe
from tiekd.config.teacher_node import TeacherNode
from tiekd.console import Progress
from tiekd.data import image_io, teacher_maps
from tiekd.data import resize as resizes
from tiekd.data.build import build_dataset
from tiekd.data.frames import Frames
from tiekd.data.loading.loader import NO_WORKERS, Loading, validation_batches
from tiekd.data.loading.sampler import ALL_BATCHES, RankShare
from tiekd.data.rank_consistency import check_same
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.distributed import comm, process_group
from tiekd.errors import DataError, RecipeError, TeacherError
from tiekd.teachers.external import OutsideTeacher
from tiekd.teachers.network import FrozenTeacher
from tiekd.teaching import build_teacher, teacher_checkpoint
from tiekd.training.settings import Recipe

TIMEOUT_MINUTES = 600.0  # the last rank may be hours behind the first where their devices differ

_WRITERS = 2  # threads of a rank
_WAITING = 4  # maps that may wait for a thread
_PROBES = 3  # maps from whose size the size of all is estimated
_MARGIN = 1.1  # on that estimate


class Source(NamedTuple):
    """The teacher that makes the maps.

    Attributes:
        teacher: the recipe's section, with the file of its checkpoint in it.
        flip: whether flips are averaged; False for a teacher from outside the project, which
            decides that itself, and loads its own weights.
        resize: a working resolution in place of the weights' own; None keeps theirs.
    """

    teacher: TeacherNode
    flip: bool
    resize: Resize | None = None

    @property
    def node(self) -> dict:
        """The section of which the teacher is built."""
        if self.teacher.module is not None:
            return self.teacher.node
        return self.teacher.node | {"flip": self.flip}

    def __str__(self) -> str:
        if self.teacher.module is not None:
            return self.teacher.module
        return f"{self.teacher.checkpoint}, flip averaging {'on' if self.flip else 'off'}"


def teacher_of(
    recipe: Recipe, recipe_path: str | Path, checkpoint: str | None, overrides: Sequence[str] = ()
) -> Source:
    """Finds the teacher of a recipe: a student's `teacher`, or the network itself if it has none.

    Args:
        recipe: with its overrides applied.
        recipe_path: its file.
        checkpoint: weights in place of the recipe's own.
        overrides: words of `--set`. If the teacher is the recipe's own network, `data.resize` among
            them applies to the teacher. Otherwise it applies to the student, and the teacher keeps
            its own.

    Raises:
        TeacherError: there are no weights, or the recipe learns from cached maps.
    """
    resize = None
    teacher = recipe.teacher
    if teacher.module is not None:
        if checkpoint is not None:
            raise TeacherError(
                f"--checkpoint: {teacher.module} loads its own weights; give them as an argument "
                "of it"
            )
        return Source(teacher, False)
    if teacher.maps is not None:
        raise TeacherError(
            f"teacher.maps: {recipe_path} learns from cached maps, so there is no network to make "
            "any; give the teacher's own recipe"
        )
    # The recipe trains the teacher itself: its own network and weights are meant.
    if teacher.is_the_recipes_network:
        own = {"network": recipe.network, "recipe": str(recipe_path)}
        if "work_dir" in recipe.node:
            own["checkpoint"] = str(recipe.work_dir)
        teacher = TeacherNode(own | (teacher.node or {}))
        if is_overridden(("data", "resize"), recipe.node, overrides):
            resize = resizes.resize_of({}, recipe.node, overrides)
    if checkpoint is not None:
        teacher = teacher.with_checkpoint(checkpoint)
    teacher = teacher.with_checkpoint(teacher_checkpoint(teacher))
    return Source(teacher, teacher.node.get("flip", True), resize)


def default_folder(recipe: Recipe, recipe_path: str | Path, split: str) -> Path:
    """Returns `<data.root>/gt_kd_<teacher's recipe or module>`, for validation with `_val`."""
    teacher = recipe.teacher
    if teacher.module is not None:
        name = teacher.module.split(".")[-1]
    else:
        name = (teacher.recipe or Path(recipe_path)).stem
    suffix = "_val" if split == "val" else ""
    return Path(recipe.data.get("root", ".")) / f"gt_kd_{name}{suffix}"


def frames_of(recipe: Recipe, split: str) -> Dataset:
    """Builds the frames of a split that need teacher maps, cropped as they are read.

    Training frames include those without ground truth, and those that only a run without validation
    trains on.

    Raises:
        RecipeError: the data set doesn't name its frames' maps.
    """
    # With a teacher in the recipe, frames without ground truth are included.
    taught = replace(recipe.dataset, maps=None, has_teacher=True)
    held_out = () if split == "train" else None
    frames = build_dataset(taught, split, as_evaluated=True, held_out=held_out)
    if not hasattr(frames, "map_name"):
        raise RecipeError(
            f"data.name: {recipe.data['name']} has no map_name(index) that says what a frame's "
            "map is called; give it one, or let the teacher run in training"
        )
    return frames


def cache_maps(
    recipe: Recipe, source: Source, frames: Dataset, folder: Path, device: torch.device, out: TextIO
) -> None:
    """Writes the maps that the folder doesn't have yet. Collective.

    Args:
        recipe: with its overrides applied.
        source: the teacher.
        frames: as `frames_of` builds them.
        folder: for the maps and their manifest.
        device: of this rank.
        out: gets the progress, from rank 0.

    Raises:
        TeacherError: the folder holds maps of another kind.
        DataError: the maps don't fit on the disk.
    """
    # The teacher, and the manifest that says what its maps are made with.
    teacher = build_teacher(source.node, device, source.resize)
    digest = None if teacher.network is None else digest_of(teacher.network)
    described, resize = source.node, {}
    if source.teacher.module is None:
        described, resize = source.teacher.network, teacher.resize.node()
    manifest = teacher_maps.make_manifest(
        recipe.max_depth_m, recipe.data.get("kb_crop"), described, digest, source.flip, resize
    )
    check_same({"map": frames})
    found = teacher_maps.read_manifest(folder) or manifest
    if teacher_maps.ORIENTATION not in found and not _any_turned(frames):
        # An older folder has no entry about EXIF rotation. If no frame is rotated, its maps are the
        # same, and the job resumes in it.
        del manifest[teacher_maps.ORIENTATION]
    # Write the maps that aren't there yet.
    index_by_name = {frames.map_name(index): index for index in range(len(frames))}
    job = _Job(teacher, frames, index_by_name, folder, manifest["full_scale_m"], device, out)
    for note in getattr(frames, "notes", ()):
        job.tell(f"Warning: {note}")
    with _claimed(folder, manifest):
        missing = job.missing()
        total = len(index_by_name)
        job.tell(
            f"Maps: {total} frames, {total - len(missing)} there already, {len(missing)} to make "
            f"in {folder}"
        )
        if missing:
            job.check_disk(missing)
            job.make(missing, recipe.loading)
        comm.barrier()


def _any_turned(frames: Dataset) -> bool:
    return isinstance(frames, Frames) and any(map(frames.is_turned, range(len(frames))))


def digest_of(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's parameters and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    """One folder of maps that is being filled.

    Attributes:
        index_by_name: the file name of each frame's map -> the frame's index.
        full_scale_m: metres of the largest value of a map.
    """

    teacher: FrozenTeacher | OutsideTeacher
    frames: Dataset
    index_by_name: dict[str, int]
    folder: Path
    full_scale_m: float
    device: torch.device
    out: TextIO

    def tell(self, line: str) -> None:
        """Writes a line on rank 0."""
        if comm.is_main():
            self.out.write(f"{line}\n")
            self.out.flush()

    def missing(self) -> list[str]:
        """Returns the names of maps that are missing or incomplete. Collective.

        Each rank checks a share.
        """
        mine = list(self.index_by_name)[comm.rank() :: comm.world_size()]
        missing = [name for name in mine if not image_io.is_whole_depth_png(self.folder / name)]
        lost = {name for part in comm.gather_objects(missing) for name in part}
        return [name for name in self.index_by_name if name in lost]

    def check_disk(self, missing: list[str]) -> None:
        """Compares the space that the maps need with the free space. Collective.

        The size of all is estimated from a few.

        Raises:
            DataError: the space isn't enough.
        """
        problem = None
        if comm.is_main():
            # A map's size depends on what it shows, so the probes are spread over the frames.
            probes = sorted(
                {missing[round(i * (len(missing) - 1) / (_PROBES - 1))] for i in range(_PROBES)}
            )
            sizes = [
                len(self._encoded(depth))
                for _, depth in self._depths(probes, ALL_BATCHES, NO_WORKERS)
            ]
            needed = _MARGIN * len(missing) * sum(sizes) / len(sizes)
            free = shutil.disk_usage(self.folder).free
            self.tell(f"Disk: {_size(needed)} needed, {_size(free)} free")
            if needed > free:
                problem = (
                    f"{self.folder}: {len(missing)} maps need {_size(needed)}, {_size(free)} is "
                    "free; free some space, or give --out on another disk"
                )
        problem = comm.broadcast_object(problem)
        if problem:
            raise DataError(problem)

    def make(self, missing: list[str], loading: Loading) -> None:
        """Predicts and writes this rank's share of the missing maps. Collective."""
        bar = nullcontext()
        if comm.is_main():
            bar = Progress("maps", len(self.index_by_name), self._count, self.out)
        with bar as progress:
            with ThreadPoolExecutor(_WRITERS) as pool:
                # The queue is short, so that a slow disk holds the network up, not the memory.
                waiting = deque()
                share = RankShare(comm.rank(), comm.world_size())
                for name, depth in self._depths(missing, share, loading):
                    waiting.append(pool.submit(self._write, name, depth))
                    while len(waiting) > _WAITING:
                        waiting.popleft().result()
                    if progress:
                        progress.update()
                for write in waiting:
                    write.result()
            comm.barrier()

    def _depths(
        self, names: list[str], share: RankShare, loading: Loading
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Predicts a rank's share of the frames, at each frame's own size.

        Yields:
            The map's name, and depth (H, W) float32, metres.
        """
        frames = Subset(self.frames, [self.index_by_name[name] for name in names])
        resize = getattr(self.teacher, "resize", OWN_SIZE)
        batches = validation_batches(
            frames, 1, self.device, share=share, loading=loading, resize=resize
        )
        for (place,), batch in batches:
            depth = resizes.restored(
                self.teacher(batch), resize, tuple(batch.depth.shape[-2:]), smooth=True
            )
            yield names[place], depth[0, 0].cpu().numpy()

    def _write(self, name: str, depth: np.ndarray) -> None:
        image_io.write_durably(self.folder / name, self._encoded(depth))

    def _encoded(self, depth: np.ndarray) -> bytes:
        return image_io.encode_teacher_map(depth, self.full_scale_m)

    def _count(self) -> int:
        return len(self.index_by_name.keys() & set(os.listdir(self.folder)))


@contextmanager
def _claimed(folder: Path, manifest: dict) -> Iterator[None]:
    """Locks the folder for this job; creates it and its manifest if it is new. Collective."""
    lock, problem = _claim(folder, manifest) if comm.is_main() else (None, None)
    problem = comm.broadcast_object(problem)
    if problem:
        raise TeacherError(problem)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _claim(folder: Path, manifest: dict) -> tuple[TextIO | None, str | None]:
    """Returns the locked manifest, or the reason why there is none. Rank 0 only.

    The lock ends with the process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Maps that are there are kept only if the manifest says that they are of this kind.
        found = teacher_maps.read_manifest(folder)
        if found is None and any(name.endswith(".png") for name in os.listdir(folder)):
            return (
                None,
                f"{folder}: holds maps of nobody knows which teacher (no manifest); give another "
                "--out",
            )
        if found is None:
            teacher_maps.write_manifest(folder, manifest)
        elif found != manifest:
            other = ", ".join(key for key in manifest if found.get(key) != manifest[key])
            return (
                None,
                f"{folder}: holds maps of another kind (they differ in {other}); give another "
                "--out",
            )
        # One job a folder: the second one is refused while the first one runs.
        lock = (folder / teacher_maps.MANIFEST).open("r+")
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino != os.stat(lock.name).st_ino:
            # Another job that started at the same time has replaced our manifest by its own.
            raise BlockingIOError
    except BlockingIOError:
        return (
            None,
            f"{folder}: another job is writing maps there; wait until it ends, or give another "
            "--out",
        )
    except OSError as error:
        return None, f"{folder}: can't be written to ({error.strerror}); give another --out"
    for partial in folder.glob(".*.png.*"):  # of a job that was killed while it wrote
        partial.unlink(missing_ok=True)
    return lock, None


def _size(num_bytes: float) -> str:
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.1f} kB"


def run(args: argparse.Namespace) -> None:
    """Runs bin/cache_teacher.py with its arguments; prints, and raises UserErrors."""
    recipe = Recipe(load_recipe(args.recipe, args.overrides))
    device = process_group.start_rank(TIMEOUT_MINUTES)
    frames = frames_of(recipe, args.split)
    source = teacher_of(recipe, args.recipe, args.checkpoint, args.overrides)
    folder = args.out or default_folder(recipe, args.recipe, args.split)
    if comm.is_main():
        print(f"Teacher: {source}, on {comm.world_size()} rank(s)")
    cache_maps(recipe, source, frames, folder, device, sys.stdout)
    if comm.is_main() and args.split == "train":
        print(
            "Learn from them with --set teacher=null "
            f"{shlex.quote(f'teacher.maps={folder.resolve()}')}"
        )
