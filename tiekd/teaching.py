"""Builds the teacher of a recipe: where the depth comes from that the student learns.

It is a frozen network, cached maps, the ground truth, or a teacher of the user's own from outside
the project, all in tiekd/teachers/. Each is a callable (batch) -> (B, 1, H, W) float32, metres, 0
where not valid. A frozen network lives outside the engine: in it, ZeRO would shard and broadcast
it, `train()` would wake its BatchNorm, and every checkpoint would carry it.
"""

import shlex
from pathlib import Path

import torch

from tiekd.config.build import build
from tiekd.config.recipe import load_recipe, work_dir_of
from tiekd.config.teacher_node import TeacherNode
from tiekd.data import resize as resizes
from tiekd.data.resize import Resize
from tiekd.errors import CheckpointError, TeacherError
from tiekd.files import check_readable
from tiekd.models.build import build_network
from tiekd.models.weights import state_dicts
from tiekd.teachers.external import OutsideTeacher
from tiekd.teachers.ground_truth import GroundTruth
from tiekd.teachers.maps import CachedMaps
from tiekd.teachers.network import PRECISIONS, FrozenTeacher
from tiekd.workdir import workdir
from tiekd.workdir.checkpoints import find_weights


def build_teacher(
    node: dict | None, device: torch.device, resize: Resize | None = None
) -> FrozenTeacher | CachedMaps | GroundTruth | OutsideTeacher:
    """Builds the teacher of a recipe's `teacher` section.

    The keys of the node: `name` is a module outside the project, and all other keys are then its
    build's. Otherwise `maps` are cached ones, or `checkpoint` is a file of weights, a checkpoint's
    folder or a work dir (its best, else its latest weights); without it, the work dir of `recipe`.
    For `flip` and `precision` see FrozenTeacher.

    Args:
        node: The section; None makes the ground truth the teacher.
        device: Of the teacher's network.
        resize: The working resolution, in place of the weights' or recipe's.

    Raises:
        TeacherError: There are no weights, or they are of another network.
    """
    if node is None:
        return GroundTruth()
    teacher = TeacherNode(node)
    # A module from outside the project interprets all other keys itself.
    if teacher.module is not None:
        return OutsideTeacher(teacher.module, build(node, "", "teacher", device=device), device)
    # Cached maps were made already, so no key may say how.
    if teacher.maps is not None:
        if teacher.recipe is not None or teacher.checkpoint is not None:
            raise TeacherError(
                "teacher: has both maps and a recipe; give `maps` (cached) or `recipe` + "
                "`checkpoint`"
            )
        for key in ("flip", "precision"):
            if key in node:
                raise TeacherError(
                    f"teacher.{key}: cached maps stay as they were made; leave it out, or make "
                    "others with it"
                )
        return CachedMaps()
    if not teacher.network:
        raise TeacherError(
            "teacher: give `recipe` (and `checkpoint`) for a network, or `maps` for cached maps"
        )
    # A network, in the precision that is asked for.
    precision = node.get("precision", "fp32")
    if precision not in PRECISIONS:
        raise TeacherError(
            f"teacher.precision: got {precision!r}; allowed: {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and device.type == "cpu":
        raise TeacherError(
            "teacher.precision: fp16 is not for CPUs, which compute it slowly; set bf16 or fp32"
        )
    # Its weights, which must be those of this very network.
    path = teacher_checkpoint(teacher)
    network = build_network(teacher.network, "teacher.network")
    try:
        state = state_dicts.read_checkpoint(path)
        tensors = state_dicts.named_tensors(state)
    except CheckpointError as error:
        raise TeacherError(f"teacher.checkpoint: {error}") from None
    try:
        state_dicts.load_into(network, tensors)
    except CheckpointError as error:
        raise TeacherError(f"teacher.checkpoint: {path}: {error}") from None
    # It sees images at the resolution that it learned from.
    if resize is None:
        resize = resizes.resize_of(state, _recipe_file(teacher))
    return FrozenTeacher(network, device, node.get("flip", False), precision, resize)


def _recipe_file(teacher: TeacherNode) -> dict | None:
    """Returns the teacher's recipe, where its file is there.

    It has the working resolution of weights that don't record it.
    """
    path = teacher.recipe
    return load_recipe(path) if path is not None and path.exists() else None


def with_teachers_file(recipe: dict, resuming: bool) -> dict:
    """Returns the recipe with the teacher's file of weights named.

    The best weights of a work dir may be others tomorrow. A resumed run takes the file that it was
    started with.
    """
    teacher = TeacherNode.of(recipe)
    if teacher.network is None:
        return recipe
    work_dir = Path(recipe["work_dir"])
    # The run's own record says which file it was started with.
    if resuming and teacher.checkpoint is None and (work_dir / workdir.RECIPE).is_file():
        started_with = TeacherNode.of(load_recipe(work_dir / workdir.RECIPE))
        if started_with.recipe == teacher.recipe and started_with.checkpoint is not None:
            teacher = teacher.with_checkpoint(started_with.checkpoint)
    named = teacher.with_checkpoint(teacher_checkpoint(teacher).resolve())
    return recipe | {"teacher": named.node}


def teacher_checkpoint(teacher: TeacherNode) -> Path:
    """Returns the file of weights that a teacher's section means; see `build_teacher`.

    Raises:
        TeacherError: There is none.
    """
    path = teacher.checkpoint
    if path is None:
        path = default_checkpoint(teacher)
    if path.is_dir():
        path = _weights_in(path, teacher, "teacher.checkpoint: ")
    check_readable(path, "checkpoint", TeacherError, "teacher.checkpoint: ")
    if not path.is_file():
        raise TeacherError(
            f"teacher.checkpoint: no file at {path}; train one with bin/train.py "
            f"{_recipe_of(teacher)}, or use cached maps (teacher.maps)"
        )
    return path


def default_checkpoint(teacher: TeacherNode) -> Path:
    """Returns the weights of a section without `checkpoint`: those of its recipe's work dir.

    The best ones, else the latest.

    Raises:
        TeacherError: There are none.
    """
    path = teacher.recipe
    if path is None:
        raise TeacherError(
            "teacher.checkpoint: needed beside teacher.network; give a file of weights"
        )
    # The recipe's file may be gone when a run is repeated from its saved recipe, which has the
    # network but not this.
    work_dir = load_recipe(path).get("work_dir") if path.exists() else None
    return _weights_in(
        Path(work_dir or work_dir_of(path)), teacher, "teacher.checkpoint: not given, and "
    )


def _weights_in(work_dir: Path, teacher: TeacherNode, beginning: str) -> Path:
    try:
        return find_weights(work_dir)
    except CheckpointError as error:
        raise TeacherError(
            f"{beginning}{error}; train the teacher with bin/train.py {_recipe_of(teacher)}"
        ) from None


def _recipe_of(teacher: TeacherNode) -> str:
    """Returns the teacher's recipe as a word for the shell."""
    return "RECIPE" if teacher.recipe is None else shlex.quote(str(teacher.recipe))
