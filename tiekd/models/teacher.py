"""Where the depth comes from that the student learns: a frozen network, cached maps, the ground truth, or a teacher
of one's own from outside the project.

Each is a callable (batch) -> (B, 1, H, W) float32 metres, 0 where not valid. A frozen network lives outside the
engine: in it, ZeRO would shard and broadcast it, `train()` would wake its BatchNorm, every checkpoint would carry it.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tiekd.config import build, load_recipe
from tiekd.data import resize as resizes
from tiekd.data.batch import Batch
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import CheckpointError, TeacherError
from tiekd.evaluation import predict
from tiekd.execution import prepare_bf16
from tiekd.models import weights
from tiekd.models.factory import build_network
from tiekd.models.network import Network

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTeacher:
    """A network in eval mode without gradients; `no_grad` because inference tensors can't be saved for backward.

    flip: average with the mirrored picture's depth, at twice the cost, as cached maps usually are.
    precision: what its convolutions and matrix products run in, whatever the student's does, "fp32", "bf16" or "fp16";
        weights, depth and what a head does in float32 stay so.
    resize: the working resolution that its weights go with. Whole pictures are brought to it before (tiekd/caching.py);
        in training it sees the student's.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        flip: bool = False,
        precision: str = "fp32",
        resize: Resize = OWN_SIZE,
    ):
        self.network = network.to(device).eval().requires_grad_(False)
        self.flip, self.precision, self.resize = flip, precision, resize
        if precision != "fp32":
            self.network.memory_format = torch.channels_last
        if precision == "bf16" and torch.device(device).type == "cpu":
            prepare_bf16(self.network)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        dtype = PRECISIONS[self.precision]
        with torch.autocast(batch.image.device.type, dtype, enabled=dtype is not None):
            depth = predict(self.network, batch.image, self.flip)
        return torch.where(batch.inside, depth.float(), 0)


class CachedMaps:
    """The maps that came with the batch; they already are 0 where rotation turned in nothing."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.teacher_depth


class GroundTruth:
    """No teacher: the student learns from what was measured."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.depth


class OutsideTeacher:
    """`teacher: {name: my_package.my_teacher, **arguments}`: what the module's `build(**arguments)` returns.

    That is a callable (batch: tiekd.data.batch.Batch) -> depth (B, 1, H, W), floating point, metres, as large as the
    batch's pictures and on their device, 0 where it knows none. It takes what it needs of the batch: `image` is
    ImageNet-normalised, `names` are the pictures' paths. It is called outside the engine, without gradients, in no
    checkpoint, and what it says where a rotation turned in what no camera saw doesn't count. An nn.Module is moved to
    the device, put into eval mode and frozen; anything else may ask for `device` in its build's signature. It loads its
    own weights. Raises TeacherError for what is no such callable, or returns something else.
    """

    def __init__(self, name: str, teacher: Callable[[Batch], Tensor], device: torch.device):
        if not callable(teacher):
            raise TeacherError(f"teacher ({name}): build made {teacher!r:.80}; it must be a callable: batch -> metres")
        self.name, self.network = name, teacher if isinstance(teacher, nn.Module) else None
        self.teacher = teacher if self.network is None else teacher.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        depth, wanted = self.teacher(batch), batch.inside
        right = isinstance(depth, Tensor) and depth.is_floating_point() and depth.device == wanted.device
        if not right or depth.shape != wanted.shape:
            got = f"{tuple(depth.shape)} {depth.dtype} on {depth.device}" if isinstance(depth, Tensor) else repr(depth)
            raise TeacherError(
                f"teacher ({self.name}): returned {got:.80}; it must be depth in metres, {tuple(wanted.shape)}, "
                f"floating point, on {wanted.device}"
            )
        return torch.where(wanted, depth.float(), 0)


def build_teacher(
    node: dict | None, device: torch.device, resize: Resize | None = None
) -> FrozenTeacher | CachedMaps | GroundTruth | OutsideTeacher:
    """The teacher of `recipe["teacher"]`; None makes the ground truth one.

    name: a module outside the project, see OutsideTeacher; all other keys are its build's then. Otherwise:
    checkpoint: a file of weights, a checkpoint's folder or a work dir; without it, that recipe's work dir. A work dir
    means its best, else its latest, weights. flip, precision: see FrozenTeacher. resize: the working resolution, in
    place of the weights' or recipe's. Raises TeacherError when there are no weights or they belong to another network.
    """
    if node is None:
        return GroundTruth()
    if is_outside(node):
        return OutsideTeacher(node["name"], build(node, "", "teacher", device=device), device)
    if "maps" in node:
        if "recipe" in node or "checkpoint" in node:
            raise TeacherError("teacher: has both maps and a recipe; give `maps` (cached) or `recipe` + `checkpoint`")
        for key in ("flip", "precision"):
            if key in node:
                raise TeacherError(
                    f"teacher.{key}: cached maps stay as they were made; leave it out, or make others with it"
                )
        return CachedMaps()
    if not node.get("network"):
        raise TeacherError("teacher: give `recipe` (and `checkpoint`) for a network, or `maps` for cached maps")
    precision = node.get("precision", "fp32")
    if precision not in PRECISIONS:
        raise TeacherError(f"teacher.precision: got {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise TeacherError("teacher.precision: fp16 is not for CPUs, which compute it slowly; set bf16 or fp32")
    path = teacher_checkpoint(node)
    network = build_network(node["network"], "teacher.network")
    try:
        state = weights.read_checkpoint(path)
        tensors = weights.named_tensors(state)
    except CheckpointError as error:
        raise TeacherError(f"teacher.checkpoint: {error}") from None
    try:
        weights.load_into(network, tensors)
    except CheckpointError as error:
        raise TeacherError(f"teacher.checkpoint: {path}: {error}") from None
    if resize is None:
        resize = resizes.resize_of(state, _recipe_file(node))
    return FrozenTeacher(network, device, node.get("flip", False), precision, resize)


def _recipe_file(node: dict) -> dict | None:
    """The teacher's recipe, where its file is there: it says the working resolution of weights that don't."""
    path = Path(node["recipe"]) if "recipe" in node else None
    return load_recipe(path) if path is not None and path.is_file() else None


def is_outside(node: dict | None) -> bool:
    """Whether a teacher's node names a module, whose arguments all its other keys are."""
    return bool(node) and "name" in node


def teacher_checkpoint(node: dict) -> Path:
    """The file of weights that a teacher node means; TeacherError when there is none. See `build_teacher`."""
    path = Path(node["checkpoint"]) if "checkpoint" in node else default_checkpoint(node)
    if path.is_dir():
        path = _weights_in(path, node, "teacher.checkpoint: ")
    if not path.is_file():
        raise TeacherError(
            f"teacher.checkpoint: no file at {path}; train one with bin/train.py {_recipe_of(node)}, "
            "or use cached maps (teacher.maps)"
        )
    return path


def default_checkpoint(node: dict) -> Path:
    """The weights that a teacher node without `checkpoint` means: best, else latest, of its recipe's work dir."""
    from tiekd.checkpoint import work_dir_of

    if "recipe" not in node:
        raise TeacherError("teacher.checkpoint: needed beside teacher.network; give a file of weights")
    path = Path(node["recipe"])
    # The recipe's file may be gone when a run is repeated from its saved recipe, which has the network but not this.
    work_dir = load_recipe(path).get("work_dir") if path.is_file() else None
    return _weights_in(Path(work_dir or work_dir_of(path)), node, "teacher.checkpoint: not given, and ")


def _weights_in(work_dir: Path, node: dict, beginning: str) -> Path:
    from tiekd.checkpoint import find_weights

    try:
        return find_weights(work_dir)
    except CheckpointError as error:
        raise TeacherError(f"{beginning}{error}; train the teacher with bin/train.py {_recipe_of(node)}") from None


def _recipe_of(node: dict) -> str:
    """As a word for the shell."""
    return shlex.quote(node["recipe"]) if "recipe" in node else "RECIPE"
