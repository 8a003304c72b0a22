"""Writes a teacher's depth maps to files, 16-bit PNG with TIE-KD's file names.

Any number of students can then learn from these maps. The teacher predicts one frame at a time
(together with its mirror image if flip averaging is on), so a map doesn't depend on the batch or on
the number of ranks. Each map is written atomically and existing maps are kept, so a killed job,
when it is started again, continues where it stopped. Each rank encodes and writes maps in threads
while its network predicts. Maps of frames in tar shards are written as tar shards, too, unless the
folder has such maps as files already (tiekd/tools/sharded_maps.py).

If a recipe has several teachers, each has a folder of its own, and each is built after the previous
one has finished. For a teacher that gives a sigma, maps of sigma are written to the sub-folder
`sigma`.

Not covered: folders that aren't shared by all machines; and replacing maps, since the maps of
another teacher belong in another folder.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import is_overridden, load_recipe
from tiekd.config.teacher_node import MEAN, TeacherNode, errors_of
from tiekd.console import Progress
from tiekd.data import focal as focals
from tiekd.data import (
    image_io,
    learned_from,
    least_size,
    map_focals,
    read_folders,
    teacher_maps,
)
from tiekd.data import resize as resizes
from tiekd.data.build import build_dataset
from tiekd.data.datasets.shards import ShardsOptions
from tiekd.data.frames import Frames, listed_frames
from tiekd.data.loading.loader import NO_WORKERS, Loading, validation_batches
from tiekd.data.loading.sampler import ALL_BATCHES, RankShare
from tiekd.data.rank_consistency import check_same
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target
from tiekd.distributed import comm, process_group
from tiekd.errors import DataError, RecipeError, TeacherError
from tiekd.inference.predict.inputs import IMAGE_SUFFIXES
from tiekd.teachers.external import OutsideTeacher
from tiekd.teachers.network import FrozenTeacher
from tiekd.teachers.outputs import anchor_quality
from tiekd.teachers.outputs.anchoring import Quality
from tiekd.teachers.outputs.sigma import SigmaOptions
from tiekd.teachers.outputs.teacher import FoundationTeacher
from tiekd.teachers.stereo import StereoTeacher
from tiekd.teaching import build_teacher, record_of, teacher_checkpoint
from tiekd.tools import sharded_maps
from tiekd.tools.sharded_maps import ShardedMaps
from tiekd.training import teacher_audit
from tiekd.training.canonical import require_focals
from tiekd.training.settings import Recipe

TIMEOUT_MINUTES = 600.0  # minutes; the last rank may be hours behind the first if devices differ

_WRITERS = 2  # number of threads per rank that encode and write maps
_WAITING = 4  # number of maps that may wait for a writer thread
_PROBES = 3  # number of maps that are encoded to estimate the total size
_MARGIN = 1.1  # safety factor by which the estimated total size is multiplied


class TeacherSettings(NamedTuple):
    """A teacher whose depth maps are to be written, with the settings of its predictions.

    Attributes:
        teacher: the recipe's `teacher` section, with the path of the checkpoint filled in.
        flip: True to average the prediction with that for the mirrored image. If the section has a
            key `name`, such as "huggingface", this is the section's key `flip`; it is False for a
            module from outside tiekd.
        resize: how images are resized for the teacher; None for the resizing that is stored with
            its weights.
    """

    teacher: TeacherNode
    flip: bool
    resize: Resize | None = None

    @property
    def node(self) -> dict:
        """The teacher's recipe section with `flip` filled in, as `build_teacher` accepts it."""
        if self.teacher.name is not None:
            return self.teacher.own_section
        return self.teacher.own_section | {"flip": self.flip}

    def __str__(self) -> str:
        if self.teacher.name is not None:
            return self.teacher.name
        return f"{self.teacher.checkpoint}, flip averaging {'on' if self.flip else 'off'}"


def teacher_settings(
    recipe: Recipe, recipe_path: str | Path, checkpoint: str | None, overrides: Sequence[str] = ()
) -> TeacherSettings:
    """Returns the teacher of a recipe: its `teacher`, or its own network if it has no `teacher`.

    If the recipe has several teachers, the result is the first; `settings_of_teachers` returns all.

    Args:
        recipe: the recipe, with overrides applied.
        recipe_path: the recipe's file.
        checkpoint: weights file to use instead of the recipe's; None to use the recipe's.
        overrides: the arguments of `--set`. If the teacher is the recipe's own network, a
            `data.resize` among them applies to the teacher. Otherwise it applies only to the
            student, and images are resized for the teacher as is stored with the teacher's weights.

    Returns:
        The teacher's recipe section with the path of its weights, and its flip and resize settings.
        The network isn't built.

    Raises:
        TeacherError: there are no weights, or the recipe's teacher is a folder of cached maps.
    """
    return settings_of_teachers(recipe, recipe_path, checkpoint, overrides)[0]


def settings_of_teachers(
    recipe: Recipe, recipe_path: str | Path, checkpoint: str | None, overrides: Sequence[str] = ()
) -> list[TeacherSettings]:
    """Returns the recipe section and settings of each teacher of a recipe that is a network.

    Teachers that are folders of cached maps are left out, since no maps can be made with them.

    Args:
        recipe: the recipe, with overrides applied.
        recipe_path: the recipe's file.
        checkpoint: weights file to use instead of the recipe's, allowed for a single teacher only;
            None to use the recipe's.
        overrides: the arguments of `--set`, as for `teacher_settings`.

    Returns:
        One entry per teacher, in the recipe's order. No network is built.

    Raises:
        TeacherError: there are no weights, or all of the recipe's teachers are folders of cached
            maps.
    """
    teachers = recipe.teachers
    if checkpoint is not None and len(teachers.nodes) > 1:
        raise TeacherError(
            f"--checkpoint: {recipe_path} has {len(teachers.nodes)} teachers; give each its "
            f"checkpoint in {teachers.several}"
        )
    nodes = [node for node in teachers.nodes if node.maps is None]
    if teachers.is_given and not nodes:
        options = ", ".join(teachers.maps)
        raise TeacherError(
            f"{options}: {recipe_path} learns from cached maps, so there is no network to make "
            "any; give the teacher's own recipe"
        )
    found = []
    for node in nodes or [TeacherNode(None)]:
        with errors_of(node.where):
            found.append(_settings_of(node, recipe, recipe_path, checkpoint, overrides))
    return found


def _settings_of(
    teacher: TeacherNode,
    recipe: Recipe,
    recipe_path: str | Path,
    checkpoint: str | None,
    overrides: Sequence[str],
) -> TeacherSettings:
    """Returns the recipe section of one teacher with the path of its weights, and its settings.

    Args:
        teacher: the teacher's section in the recipe.
        recipe: the recipe, with overrides applied.
        recipe_path: the recipe's file.
        checkpoint: weights file to use instead of the recipe's; None to use the recipe's.
        overrides: the arguments of `--set`, as for `teacher_settings`.

    Raises:
        TeacherError: there are no weights, or `checkpoint` is given for a teacher that loads its
            own weights.
    """
    resize = None
    if teacher.name is not None:
        if checkpoint is not None:
            raise TeacherError(
                f"--checkpoint: {teacher.name} loads its own weights; give them as an argument "
                "of it"
            )
        return TeacherSettings(teacher, teacher.kind is not None and bool(teacher.node.get("flip")))
    # Use the recipe's own network and the weights that were trained with it if the teacher is this
    # network.
    if teacher.is_the_recipes_network:
        own = {"network": recipe.network, "recipe": str(recipe_path)}
        if "work_dir" in recipe.node:
            own["checkpoint"] = str(recipe.work_dir)
        teacher = replace(teacher, node=own | (teacher.node or {}))
        if is_overridden(("data", "resize"), recipe.node, overrides):
            resize = resizes.resize_of({}, recipe.node, overrides)
    if checkpoint is not None:
        teacher = teacher.with_checkpoint(checkpoint)
    teacher = teacher.with_checkpoint(teacher_checkpoint(teacher))
    return TeacherSettings(teacher, teacher.node.get("flip", True), resize)


def folders_of(
    recipe: Recipe,
    all_settings: Sequence[TeacherSettings],
    recipe_path: str | Path,
    split: str,
    out: Path | None = None,
) -> list[Path]:
    """Returns the folder of each teacher's maps, in the order of `all_settings`.

    Args:
        recipe: the recipe, with overrides applied.
        all_settings: the recipe's teachers, as `settings_of_teachers` returns them.
        recipe_path: the recipe's file.
        split: "train" or "val".
        out: the folder that the user gives: for one teacher the folder of the maps, for several
            teachers the folder that contains their folders; None for the default folders.
    """
    if recipe.teachers.several is None:
        return [out or default_folder(recipe, recipe_path, split)]
    folders = [default_folder(recipe, recipe_path, split, each.teacher) for each in all_settings]
    if out is not None:
        folders = [out / folder.name for folder in folders]
    # Number the folders of teachers that would otherwise share one, such as two settings of one
    # model.
    return [
        folder if folders.count(folder) == 1 else folder.with_name(f"{folder.name}_{place}")
        for place, folder in enumerate(folders)
    ]


def default_folder(
    recipe: Recipe, recipe_path: str | Path, split: str, teacher: TeacherNode | None = None
) -> Path:
    """Returns the folder of the maps if none is given: `<data.root>/gt_kd_<teacher>`.

    In the folder's name, a teacher is named by its recipe, its module, or its kind and its model.

    Args:
        recipe: the recipe, with overrides applied.
        recipe_path: the recipe's file.
        split: "train" or "val", for which `_val` is appended.
        teacher: one of several teachers; None for the recipe's only one.
    """
    teacher = teacher or next(iter(recipe.teachers.nodes), TeacherNode(None))
    if teacher.kind is not None:
        model = teacher.node.get("model", teacher.node.get("file", ""))
        name = f"{teacher.kind}_{Path(str(model)).name}" if model else teacher.kind
    elif teacher.module is not None:
        name = teacher.module.split(".")[-1]
    else:
        name = (teacher.recipe or Path(recipe_path)).stem
    suffix = "_val" if split == "val" else ""
    return Path(recipe.data.get("root", ".")) / f"gt_kd_{name}{suffix}"


def frames_of(recipe: Recipe, split: str) -> Dataset:
    """Builds the dataset of a split's frames that need teacher maps.

    The training split includes frames without ground truth, and those that would be held out for
    validation, because a run without validation trains on them too. It doesn't include those that
    `data.val_shards` or `data.val_prefix` name.

    Args:
        recipe: the recipe, with overrides applied.
        split: "train" or "val".

    Raises:
        RecipeError: the dataset doesn't define the file names of its frames' maps.
    """
    # Include frames without ground truth, which a dataset with `has_teacher` does.
    taught = replace(recipe.dataset, maps={}, has_teacher=True)
    held_out = () if split == "train" else None
    frames = build_dataset(taught, split, as_evaluated=True, held_out=held_out)
    if not hasattr(frames, "map_name"):
        raise RecipeError(
            f"data.name: {recipe.data['name']} has no map_name(index) that says what a frame's "
            "map is called; give it one, or let the teacher run in training"
        )
    return frames


def cache_maps(
    recipe: Recipe,
    settings: TeacherSettings,
    frames: Dataset,
    folder: Path,
    device: torch.device,
    out: TextIO,
    later: Dataset | None = None,
) -> None:
    """Writes the maps that the folder doesn't contain yet.

    Collective: all ranks must call it, and each writes some of the maps. Before a new folder is
    filled, the teacher is audited on some frames, i.e. its depth is checked for a wrong scale and
    similar mistakes.

    Args:
        recipe: the recipe, with overrides applied.
        settings: the teacher.
        frames: the frames, as `frames_of` builds them.
        folder: the folder of the maps and their manifest.
        device: this rank's device.
        out: text stream to which rank 0 writes the progress.
        later: further frames whose maps will be written to the same folder; None without any.

    Raises:
        TeacherError: the folder's manifest describes another teacher or other settings, or the
            audit is certain that the teacher's depth is wrong.
        DataError: the maps don't fit on the disk.
    """
    # Build the teacher, and the manifest, which records how the maps are made.
    where = settings.teacher.where
    with errors_of(where):
        teacher = build_teacher(settings.node, device, settings.resize, recipe.max_depth_m)
        described, resize = settings.node, {}
        record = record_of(teacher, settings.teacher)
        lines = [f"Teacher: {learned_from.describe(each)}" for each in record]
        if isinstance(teacher, FoundationTeacher | StereoTeacher):
            described = teacher.description
            lines += teacher.check_frames(listed_frames(frames))
        elif settings.teacher.module is None:
            described, resize = settings.teacher.network, teacher.resize.node()
    largest_m = getattr(teacher, "max_depth_m", None)
    if isinstance(teacher, StereoTeacher) and later is not None:
        # The largest depth depends on the focal lengths of the frames, and all maps of a folder
        # have one full scale.
        largest_m = max(largest_m, teacher.largest_depth_m(listed_frames(later)))
    manifest = teacher_maps.make_manifest(
        recipe.max_depth_m,
        recipe.data.get("kb_crop"),
        described,
        record[0]["digest"],
        settings.flip,
        resize,
        largest_m,
    )
    found = teacher_maps.read_manifest(folder)
    if isinstance(teacher, StereoTeacher) and found is not None:
        # Keep the folder's full scale if no depth of these frames exceeds it.
        manifest["full_scale_m"] = max(manifest["full_scale_m"], found["full_scale_m"])
    manifest[learned_from.KEY] = record
    cameras = {}
    if getattr(teacher, "uses_focal", False):
        cameras = map_focals.of_frames(frames)
        manifest[map_focals.SOURCE] = str(recipe.data.get("intrinsics", "the data set's own"))
    check_same({"map": frames})
    if _gives_sigma(teacher, frames, device, where):
        manifest[teacher_maps.SIGMA_SCALE] = manifest["full_scale_m"]
    stated = getattr(teacher, "sigma", None)
    if isinstance(stated, SigmaOptions) and stated.source is None:
        lines.append(
            f"Teacher: its constant sigma isn't in the maps; set teacher.sigma={stated.constant:g} "
            "beside teacher.maps"
        )
    elif isinstance(stated, SigmaOptions):
        manifest[teacher_maps.SIGMA] = stated.description
        lines.append(stated.note())
    if settings.teacher.name is None:
        least = least_size.least_side(teacher.network)
        least_size.check_frames(frames, teacher.resize, least, "the teacher's data.resize")
    if getattr(teacher, "needs_focal", False):
        require_focals(frames, teacher.resize, "map")
    if comm.broadcast_object(found is None):
        # `teacher.audit: off` of a mean of teachers holds for all of them.
        audited = [teacher_audit.OFF]
        if recipe.teachers.is_audited:
            audited = teacher_audit.audit(
                settings.teacher,
                teacher,
                frames,
                max_depth_m=recipe.max_depth_m,
                device=device,
                resize=getattr(teacher, "resize", OWN_SIZE),
            )
        if comm.is_main():
            out.writelines(f"{note}\n" for note in audited)
    found = found or manifest
    if teacher_maps.ORIENTATION not in found and not _any_turned(frames):
        # Leave the entry about EXIF rotation out if the manifest of an older folder lacks it and no
        # frame is rotated: the maps are the same without it, so the job can continue in that
        # folder.
        del manifest[teacher_maps.ORIENTATION]
    # Write the missing maps.
    index_by_name = {frames.map_name(index): index for index in range(len(frames))}
    encoding = _Encoding(manifest["full_scale_m"], manifest.get(teacher_maps.SIGMA_SCALE))
    known = None if found is manifest else found
    pattern = recipe.data.get("shards", ShardsOptions.shards)
    shards = sharded_maps.for_job(frames, folder, encoding.sigma_m is not None, known, pattern)
    if shards is not None:
        manifest[teacher_maps.SHARDS] = True
    job = _Job(teacher, frames, index_by_name, folder, encoding, device, out, shards)
    for line in lines:
        job.print_line(line)
    for note in getattr(frames, "notes", ()):
        job.print_line(f"Warning: {note}")
    with _locked(folder, manifest, cameras):
        missing = job.missing()
        total = len(index_by_name)
        place = folder if shards is None else f"{len(shards.shards)} tar shards in {folder}"
        job.print_line(
            f"Maps: {total} frames, {total - len(missing)} there already, {len(missing)} to make "
            f"in {place}"
        )
        if missing:
            job.check_disk(missing)
            job.make(missing, recipe.loading)
        comm.barrier()
        if comm.is_main() and getattr(teacher, "anchor", None) is not None:
            job.print_line(anchor_quality.merge(folder, list(index_by_name)))


def _any_turned(frames: Dataset) -> bool:
    return isinstance(frames, Frames) and any(map(frames.is_turned, range(len(frames))))


def _gives_sigma(teacher, frames: Dataset, device: torch.device, where: str) -> bool:
    """Returns True if maps of sigma have to be cached beside those of depth. Collective.

    tiekd's own teachers state their source of sigma, if they have one. A teacher from outside the
    project is called for the first frame to find out.

    Args:
        teacher: the teacher.
        frames: the dataset.
        device: this rank's device.
        where: the teacher's key in the recipe, for the error message.

    Raises:
        TeacherError: the teacher gives several depths for a pixel, which no map can hold.
    """
    stated = getattr(teacher, "sigma", None) is not None
    if not stated and not isinstance(teacher, OutsideTeacher):
        return False
    resize = getattr(teacher, "resize", OWN_SIZE)
    first = validation_batches(Subset(frames, [0]), 1, device, resize=resize)
    with errors_of(where):
        found = [teacher(batch) for _, batch in first][0]
    if not isinstance(found, Target):
        return False
    if found.depth.shape[1] > 1:
        raise TeacherError(
            f"{where}: gives {found.depth.shape[1]} depths for a pixel, and a map has one; let it "
            "run in training"
        )
    return found.sigma is not None


class _Encoding(NamedTuple):
    """The depth and the sigma in metres that the largest value in a map's file stands for.

    Attributes:
        depth_m: depth in metres.
        sigma_m: sigma in metres; None if no maps of sigma are made.
    """

    depth_m: float
    sigma_m: float | None


class _Map(NamedTuple):
    """A teacher's output for a frame, at the frame's own size.

    Attributes:
        depth: (H, W) float32, metres.
        sigma: (H, W) float32, metres; None without sigma.
        quality: for a teacher of relative depth, the quality of the fit that makes its output
            metric; otherwise None.
    """

    depth: np.ndarray
    sigma: np.ndarray | None
    quality: Quality | None


@dataclass(frozen=True)
class _Job:
    """Fills one folder with maps: the work of `cache_maps` once the folder is locked.

    Attributes:
        teacher: the teacher.
        frames: all frames that need a map.
        index_by_name: file name of a frame's map -> the frame's index.
        folder: the folder of the maps.
        encoding: the depth and the sigma that the largest value in a map's file stands for.
        device: this rank's device.
        out: text stream to which rank 0 writes the progress.
        shards: the tar shards of the maps; None if each map is a file.
    """

    teacher: FrozenTeacher | OutsideTeacher | FoundationTeacher | StereoTeacher
    frames: Dataset
    index_by_name: dict[str, int]
    folder: Path
    encoding: _Encoding
    device: torch.device
    out: TextIO
    shards: ShardedMaps | None = None

    def print_line(self, line: str) -> None:
        """Writes a line to `out` on rank 0; does nothing on other ranks.

        Args:
            line: the line, without a newline.
        """
        if comm.is_main():
            self.out.write(f"{line}\n")
            self.out.flush()

    def missing(self) -> list[str]:
        """Returns the names of maps that are missing or incomplete. Collective.

        Each rank checks some of the files; all ranks return the same list.
        """
        if self.shards is not None:
            self.shards.remove_partial()
            return self.shards.missing()
        mine = list(self.index_by_name)[comm.rank() :: comm.world_size()]
        missing = [
            name for name in mine if not all(map(image_io.is_whole_depth_png, self._files(name)))
        ]
        lost = {name for part in comm.gather_objects(missing) for name in part}
        return [name for name in self.index_by_name if name in lost]

    def check_disk(self, missing: list[str]) -> None:
        """Checks that the missing maps fit on the disk. Collective.

        Their total size is estimated from a few maps.

        Args:
            missing: file names of the missing maps.

        Raises:
            DataError: the free space is too small.
        """
        problem = None
        if comm.is_main():
            # Estimate the size from maps spread over all frames, because a map's bytes depend on
            # its content.
            probes = sorted(
                {missing[round(i * (len(missing) - 1) / (_PROBES - 1))] for i in range(_PROBES)}
            )
            sizes = [
                sum(map(len, self._encode(found)))
                for _, found in self._predict(probes, ALL_BATCHES, NO_WORKERS)
            ]
            needed = _MARGIN * len(missing) * sum(sizes) / len(sizes)
            free = shutil.disk_usage(self.folder).free
            self.print_line(f"Disk: {_size(needed)} needed, {_size(free)} free")
            if needed > free:
                problem = (
                    f"{self.folder}: {len(missing)} maps need {_size(needed)}, {_size(free)} is "
                    "free; free some space, or give --out on another disk"
                )
        problem = comm.broadcast_object(problem)
        if problem:
            raise DataError(problem)

    def make(self, missing: list[str], loading: Loading) -> None:
        """Predicts and writes this rank's share of the missing maps. Collective.

        Args:
            missing: file names of the missing maps of all ranks.
            loading: how many workers read frames, and how long to wait for them.
        """
        bar, empty = nullcontext(), []
        if comm.is_main():
            bar = Progress("maps", len(self.index_by_name), self._count, self.out)
        with bar as progress:
            with ThreadPoolExecutor(_WRITERS) as pool:
                if self.shards is None:
                    share = RankShare(comm.rank(), comm.world_size())
                    found = self._observed(self._predict(missing, share, loading), progress, empty)
                    for _ in _in_threads(pool, self._write, found):
                        pass
                else:
                    mine = self.shards.share(missing)
                    made = self._predict(mine, ALL_BATCHES, loading) if mine else iter(())
                    found = self._observed(made, progress, empty)
                    encoded = _in_threads(pool, lambda _, found: self._encode(found), found)
                    self.shards.write(missing, (each[::-1] for each in encoded))
            comm.barrier()
        empty = [name for part in comm.gather_objects(empty) for name in part]
        # Warn about empty maps, unless the teacher's relative depth is fitted to metric depth
        # (anchor): then the summary of the fits counts them.
        if empty and getattr(self.teacher, "anchor", None) is None:
            self.print_line(
                f"Warning: {len(empty)} of {len(missing)} maps are empty, as the teacher gave no "
                f"depth above 0 for their images, such as for {empty[0]}"
            )

    def _observed(
        self, made: Iterator[tuple[str, _Map]], progress: Progress | None, empty: list[str]
    ) -> Iterator[tuple[str, _Map]]:
        """Yields maps unchanged, records their quality, and shows the progress.

        Args:
            made: (file name of the map, the teacher's output for its frame) of each map.
            progress: the progress, which is updated with each map; None to show none.
            empty: list to which the names of maps without any depth are appended.
        """
        for name, found in made:
            if found.quality is not None:
                # Record how well this relative map was fitted to metric depth. Do so before the
                # map itself is written, so that no map lacks its record.
                anchor_quality.add(self.folder, comm.rank(), name, found.quality)
            if not (found.depth > 0).any():
                empty.append(name)
            yield name, found
            if progress:
                progress.update()

    def _predict(
        self, names: list[str], share: RankShare, loading: Loading
    ) -> Iterator[tuple[str, _Map]]:
        """Calls the teacher for this rank's share of some frames, and yields the resulting maps.

        Args:
            names: file names of the frames' maps.
            share: this rank's share of the frames.
            loading: how many workers read frames, and how long to wait for them.

        Yields:
            The map's file name, and the teacher's output for the frame.
        """
        frames = Subset(self.frames, [self.index_by_name[name] for name in names])
        resize = getattr(self.teacher, "resize", OWN_SIZE)
        batches = validation_batches(
            frames, 1, self.device, share=share, loading=loading, resize=resize
        )
        for (place,), batch in batches:
            if getattr(self.teacher, "needs_focal", False):
                focals.check_known(focals.of_batch(batch, resize), batch.names)
            found, size, sigma = self.teacher(batch), tuple(batch.depth.shape[-2:]), None
            if isinstance(found, Target):
                # Resize sigma without interpolation, which would mix a sigma with 0, i.e. with an
                # unknown one.
                if self.encoding.sigma_m is not None:
                    sigma = resizes.at_own_size(found.sigma, resize, size, smooth=False)
                    sigma = sigma[0, 0].cpu().numpy()
                found = found.depth
            depth = resizes.at_own_size(found, resize, size, smooth=True)[0, 0].cpu().numpy()
            fits = getattr(self.teacher, "qualities", ())
            yield names[place], _Map(depth, sigma, next(iter(fits), None))

    def _files(self, name: str) -> list[Path]:
        """Returns the paths of a frame's map files, the depth map's last.

        Args:
            name: the file name that the frame's maps have.
        """
        sigma = [self.folder / teacher_maps.SIGMA / name]
        return [*(sigma if self.encoding.sigma_m is not None else ()), self.folder / name]

    def _write(self, name: str, found: _Map) -> None:
        for path, content in zip(self._files(name), self._encode(found), strict=True):
            image_io.write_durably(path, content)

    def _encode(self, found: _Map) -> list[bytes]:
        """Returns the PNG bytes of a frame's map files in the order of `_files`: [sigma,] depth.

        Args:
            found: the teacher's output for the frame.
        """
        depth = image_io.encode_teacher_map(found.depth, self.encoding.depth_m)
        if self.encoding.sigma_m is None:
            return [depth]
        return [image_io.encode_teacher_map(found.sigma, self.encoding.sigma_m), depth]

    def _count(self) -> int:
        if self.shards is not None:
            return self.shards.count()
        return len(self.index_by_name.keys() & set(os.listdir(self.folder)))


def _in_threads(
    pool: ThreadPoolExecutor, function: Callable, maps: Iterator[tuple[str, _Map]]
) -> Iterator:
    """Yields the results of a function of each map, which threads compute, in the maps' order.

    Args:
        pool: the threads.
        function: function of a map's file name and the teacher's output for its frame.
        maps: (file name, teacher's output) of each map.
    """
    # Limit the queue of maps to be written: a slow disk then stalls the network instead of filling
    # the memory with maps.
    waiting = deque()
    for name, found in maps:
        waiting.append(pool.submit(function, name, found))
        while len(waiting) > _WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _locked(folder: Path, manifest: dict, cameras: map_focals.Focals) -> Iterator[None]:
    """Context manager that locks a folder of maps for this job. Collective.

    A new folder and its manifest are created.

    Args:
        folder: the folder.
        manifest: the manifest of this job's maps.
        cameras: the focal lengths with which the maps are made; empty if the teacher's depth
            doesn't depend on them.

    Raises:
        TeacherError: another job holds the lock, or the folder has maps of another teacher or other
            settings, or images, or can't be written to; raised on all ranks.
    """
    lock, problem = _lock(folder, manifest, cameras) if comm.is_main() else (None, None)
    problem = comm.broadcast_object(problem)
    if problem:
        raise TeacherError(problem)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _lock(
    folder: Path, manifest: dict, cameras: map_focals.Focals
) -> tuple[TextIO | None, str | None]:
    """Locks a folder of maps for this job, on rank 0 only.

    A new folder and its manifest are created. The kernel releases the lock when the process ends,
    even if it is killed.

    Args:
        folder: the folder.
        manifest: the manifest of this job's maps, which an existing manifest in the folder must
            equal.
        cameras: the focal lengths of this job's frames, which must equal those recorded in the
            folder.

    Returns:
        (the open, locked manifest file, None); or (None, reason) if the folder can't be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Use a folder with maps only if its manifest equals this job's.
        found = teacher_maps.read_manifest(folder)
        names = os.listdir(folder) if found is None else []
        if any(name.endswith(".png") for name in names):
            return (
                None,
                f"{folder}: holds maps of nobody knows which teacher (no manifest); give another "
                "--out",
            )
        # Refuse a folder with images, since maps of the same names would make a dataset's list of
        # frames ambiguous.
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        if images:
            return None, f"{folder}: holds images ({min(images)}, ...); give another --out"
        if found is None:
            teacher_maps.write_manifest(folder, manifest)
        elif other := teacher_maps.differing(found, manifest):
            return None, (
                f"{folder}: holds maps of another kind (they differ in {', '.join(other)}); give "
                "another --out"
            )
        if teacher_maps.SIGMA_SCALE in manifest and teacher_maps.SHARDS not in manifest:
            (folder / teacher_maps.SIGMA).mkdir(exist_ok=True)
        # Lock the manifest, so that only one job at a time fills the folder.
        lock = (folder / teacher_maps.MANIFEST).open("r+")
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino != os.stat(lock.name).st_ino:
            # Give up if the inode differs: another job that started at the same time has replaced
            # this job's manifest by its own.
            raise BlockingIOError
        problem = map_focals.add(folder, cameras, found or manifest) if cameras else None
        if problem is not None:
            lock.close()
            return None, problem
    except BlockingIOError:
        return (
            None,
            f"{folder}: another job is writing maps there; wait until it ends, or give another "
            "--out",
        )
    except OSError as error:
        return None, f"{folder}: can't be written to ({error.strerror}); give another --out"
    # Remove partial files of a job that was killed during a write.
    for place in (folder, folder / teacher_maps.SIGMA):
        for partial in place.glob(".*.png.*"):
            partial.unlink(missing_ok=True)
    return lock, None


def _size(num_bytes: float) -> str:
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.1f} kB"


def run(args: argparse.Namespace) -> None:
    """Runs bin/cache_teacher.py: writes the maps of a recipe's teachers, and prints the progress.

    They are written to the folder of --out, or by default to a folder in the recipe's `data.root`.

    Args:
        args: the program's parsed command line.

    Raises:
        UserError: the recipe is invalid, or maps can't be made or written.
    """
    recipe = Recipe(load_recipe(args.recipe, args.overrides))
    device = process_group.start_rank(TIMEOUT_MINUTES)
    sets = recipe.sets_named(args.data_set)
    if recipe.is_mixed and args.data_set is None:
        sets = [own for own in sets if _has_network(own.recipe)]
        if not sets:
            raise TeacherError(
                f"teacher: {args.recipe} has no data set with a teacher that isn't cached maps"
            )
        if len(sets) > 1 and args.out is not None:
            # Refuse one folder for several data sets, since it would mix their maps.
            named = ", ".join(own.name for own in sets)
            raise TeacherError(
                f"--out: {args.recipe} has maps to make for {len(sets)} data sets ({named}); give "
                "--data-set, too, or leave --out out"
            )
    printed = []
    for name, _, own in sets:
        if name and not own.teachers.is_given:
            raise TeacherError(f"--data-set: {name} has no teacher in {args.recipe}")
        if name and comm.is_main():
            print(f"Data set {name}:")
        with errors_of_set(name):
            printed += _cache_set(own, args, device, name)
    if comm.is_main() and args.split == "train":
        print(f"Learn from them with --set {shlex.join(printed)}")


def _has_network(recipe: Recipe) -> bool:
    """Returns True if one of a recipe's teachers is a network, not a folder of cached maps.

    Args:
        recipe: the recipe.
    """
    return any(node.maps is None for node in recipe.teachers.nodes)


def _cache_set(
    recipe: Recipe, args: argparse.Namespace, device: torch.device, name: str
) -> list[str]:
    """Writes the depth maps of all teachers of one data set, each teacher's to a folder of its own.

    Args:
        recipe: the recipe with this data set as its only one.
        args: the program's parsed command line.
        device: this rank's device.
        name: the data set's name; empty if the recipe has only one set.

    Returns:
        Overrides of the recipe, each as for `--set`, which make a student learn from these maps.
    """
    frames = frames_of(recipe, args.split)
    all_settings = settings_of_teachers(recipe, args.recipe, args.checkpoint, args.overrides)
    folders = folders_of(recipe, all_settings, args.recipe, args.split, args.out)
    if name and args.out is None:
        # Put the data set's name into the default folder's name. Sets may share `data.root` and
        # have frames of equal names, so their maps could overwrite each other.
        folders = [folder.with_name(f"{folder.name}_{name}") for folder in folders]
    for folder in folders:
        read_folders.refuse("--out", folder, (".png",), recipe.data)
    for settings, folder in zip(all_settings, folders, strict=True):
        if comm.is_main():
            named = "Teacher" if recipe.teachers.several is None else settings.teacher.where
            print(f"{named}: {settings}, on {comm.world_size()} rank(s)")
        # Make maps of the validation frames, too, if evaluations compare with the teacher: a run
        # then reads them.
        later = None
        if args.split == "train" and recipe.scores_teacher and recipe.validates:
            later = frames_of(recipe, "val")
        cache_maps(recipe, settings, frames, folder, device, sys.stdout, later)
        if later is not None:
            cache_maps(recipe, settings, later, folder, device, sys.stdout)
    map_folders = {
        settings.teacher.where: folder.resolve()
        for settings, folder in zip(all_settings, folders, strict=True)
    }
    override = override_for_maps(recipe, map_folders)
    if not name:
        return ["teacher=null", override]
    # Replace the teacher of this data set by its maps: null removes the section, and the second
    # override adds one with the maps.
    place = f"data.{name}."
    removed = "teachers" if recipe.teachers.several == "teachers" else "teacher"
    return [f"{place}{removed}=null", f"{place}{override}"]


def override_for_maps(recipe: Recipe, map_folders: Mapping[str, Path]) -> str:
    """Returns an override of the recipe, as for `--set`, that makes a student learn from maps.

    Args:
        recipe: the recipe, with overrides applied.
        map_folders: key of a teacher in the recipe, such as "teacher" or "teachers.0" -> the folder
            of its maps.
    """
    teachers = recipe.teachers
    if teachers.several is None:
        return f"teacher.maps={next(iter(map_folders.values()))}"
    entries = []
    for node in teachers.nodes:
        entry = {"maps": str(map_folders.get(node.where, node.maps)), "weight": node.weight}
        entries.append(entry if node.sigma is None else entry | {"sigma": node.sigma})
    # Write lists and dicts as JSON, which YAML parsers accept, so that they fit on a command line.
    if teachers.several == "teachers":
        return f"teachers={json.dumps(entries)}"
    mean = {"name": MEAN, "weights": teachers.weights, "teachers": entries}
    # The sigma of the mean isn't that of a teacher, so no maps hold it: the student still needs it.
    if teachers.sigma is not None:
        mean["sigma"] = teachers.sigma
    return f"teacher={json.dumps(mean)}"
