"""Training with `network.canonical_focal`: the range of F / f, and canonical targets.

Costs a read of each image's header at the start, 0.1 ms; two multiplications a batch. Left out: the
output's metres, which the network gives by f (tiekd/models/network.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from tiekd.config.recipe import load_recipe
from tiekd.data import focal as focals
from tiekd.data.augment.augment import Augment
from tiekd.data.batch import Batch
from tiekd.data.frames import Frames
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.distributed import comm
from tiekd.errors import DataError, RecipeError
from tiekd.models import canonical
from tiekd.models.canonical import Canonical
from tiekd.training.settings import Recipe
from tiekd.workdir import workdir


class Targets:
    """Converts a batch's targets to what the network learns.

    Args:
        camera: The network's canonical camera; None leaves targets in metres.
        resize: The working resolution.
    """

    def __init__(self, camera: Canonical | None, resize: Resize):
        self.camera = camera
        self.resize = resize

    def __call__(self, batch: Batch, teacher_depth: Tensor | None) -> tuple[Batch, Tensor | None]:
        """Returns the batch and the teacher's depth with canonical depths; metres without a camera.

        Args:
            batch: The micro-batch, depth in metres.
            teacher_depth: (B, 1, H, W) float32, metres, 0 where invalid; None without a target.
        """
        if self.camera is None:
            return batch, teacher_depth
        focal = focals.of_batch(batch, self.resize)
        if teacher_depth is not None:
            teacher_depth = self.camera.from_metres(teacher_depth, focal)
        return batch._replace(depth=self.camera.from_metres(batch.depth, focal)), teacher_depth


METRES = Targets(None, OWN_SIZE)


def input_focals(frames: Dataset, resize: Resize) -> list[float | None]:
    """Returns f of each frame at the network's input, in pixels; None where it isn't known.

    Raises:
        DataError: The working resolution changes the aspect ratio of an image too much.
    """
    found = []
    for index, frame in enumerate(frames.frames):
        if frame.camera is None:
            found.append(None)
            continue
        try:
            size = frames.image_size(index)
        except DataError:
            continue  # reading the image reports it, or skips it
        try:
            found.append(focals.of_camera(frame.camera, size, resize))
        except DataError as error:
            raise DataError(f"{frame.name}: {error}", error.kind) from None
    return found


def require_focals(frames: Dataset, resize: Resize, split: str) -> list[float]:
    """Returns f of all frames of a split at the network's input.

    Args:
        frames: The data set. One from outside the project is checked image by image, as it is read.
        resize: The working resolution.
        split: What the frames are for, for the message.

    Raises:
        DataError: A frame's focal length isn't known, or the working resolution changes the aspect
            ratio of an image too much.
    """
    if not isinstance(frames, Frames):
        return []
    found = input_focals(frames, resize)
    unknown = sum(focal is None for focal in found)
    if unknown:
        name = next(frame.name for frame in frames.frames if frame.camera is None)
        raise DataError(
            f"network.canonical_focal: {unknown} of {len(frames)} {split} frames have no focal "
            f"length, such as {name}; give data.intrinsics (a file, numbers or exif), list other "
            "frames, or set network.canonical_focal=null"
        )
    return found


def with_factors(
    recipe: Recipe, datasets: Mapping[str, Dataset], *, resuming: bool
) -> tuple[Recipe, list[str]]:
    """Returns the recipe with `network.canonical_factors`, and lines for the log. Collective.

    Args:
        recipe: The run's; without `canonical_focal` it is returned as it is.
        datasets: The frames by what they are for, "training" and "validation".
        resuming: True if the work dir's run is resumed, whose factors stay.

    Raises:
        RecipeError: A setting is wrong, or the factors can't be computed from the frames.
        DataError: See `require_focals`.
    """
    node = recipe.network or {}
    canonical.check_focal(node)
    focal = node.get("canonical_focal")
    if focal is None:
        return recipe, []
    # f of all frames; training images are zoomed.
    ratios = []
    for split, frames in datasets.items():
        low, high = recipe.augment.zoom_range if split == "training" else (1.0, 1.0)
        known = require_focals(frames, recipe.resize, split)
        ratios += [focal / f / zoom for f in known for zoom in (low, high)]
    seen = comm.broadcast_object((min(ratios), max(ratios)) if ratios else None)
    # The run's own, the recipe's, or those of the frames.
    factors = node.get("canonical_factors") or (_started_with(recipe) if resuming else None)
    if factors is None and seen is None:
        raise RecipeError(
            "network.canonical_factors: needed, for the frames of a data set from outside the "
            "project aren't listed; give [smallest, largest] of canonical_focal / focal length of "
            "the network's input"
        )
    factors = list(seen if factors is None else factors)
    told = []
    if seen is not None and (seen[0] < factors[0] * 0.999 or seen[1] > factors[1] * 1.001):
        wider = f"{seen[0]:.4g} to {seen[1]:.4g}"
        if not resuming:
            raise RecipeError(
                f"network.canonical_factors: got {factors}, but F / f of the frames is {wider}; "
                "widen it, or leave it out"
            )
        told = [f"Warning: F / f of the frames is {wider} now; depths beyond the range are clamped"]
    network = {**node, "canonical_factors": factors}
    return Recipe(recipe.node | {"network": network}), [*_about(network), *told]


def check_weights(network: Mapping, state: Mapping, path: Path) -> list[str]:
    """Returns a warning where weights to start from have other canonical depths than the run."""
    trained = state.get("network") if isinstance(state, Mapping) else None
    if not isinstance(trained, Mapping):
        return []
    ours, theirs = (
        (node.get("canonical_focal"), list(node.get("canonical_factors") or ()))
        for node in (network, trained)
    )
    if ours == theirs:
        return []
    return [
        f"Warning: {path} was trained with canonical_focal {theirs[0]} and canonical_factors "
        f"{theirs[1]}, this run has {ours[0]} and {ours[1]}: its head's depths mean others here"
    ]


def check_zoom(augment: Augment, network: Mapping, *, is_blind_teacher: bool) -> None:
    """Raises RecipeError if zoomed images would have targets that aren't theirs.

    Args:
        augment: The augmentation.
        network: The student's node.
        is_blind_teacher: True if a network that doesn't know the focal length teaches online.
    """
    has_camera = network.get("canonical_focal") is not None
    if augment.zoom is None:
        if augment.zoom_depth is not None:
            raise RecipeError("data.augment.zoom_depth: got no zoom to go with; leave it out")
        return
    if has_camera and augment.zoom_depth is not None:
        raise RecipeError(
            f"data.augment.zoom_depth: got {augment.zoom_depth} with network.canonical_focal, "
            "where the focal length changes with the zoom and depth stays; leave it out"
        )
    if not has_camera and augment.zoom_depth is None:
        raise RecipeError(
            "data.augment.zoom: a zoomed image has another focal length, which this network "
            "doesn't know; set network.canonical_focal, or data.augment.zoom_depth=divide, which "
            "takes it for a nearer scene and divides depth by the zoom"
        )
    if has_camera and is_blind_teacher:
        raise RecipeError(
            "data.augment.zoom: the teacher's network doesn't know the focal length, so its metres "
            "on zoomed images would be wrong; cache its maps of whole images with "
            "bin/cache_teacher.py, or leave out the zoom"
        )


def _started_with(recipe: Recipe) -> Sequence[float] | None:
    """Returns the factors that the work dir's run was started with; None if it had none."""
    path = recipe.work_dir / workdir.RECIPE
    if not path.is_file():
        return None
    network = load_recipe(path).get("network") or {}
    same = network.get("canonical_focal") == recipe.network["canonical_focal"]
    return network.get("canonical_factors") if same else None


def _about(network: Mapping) -> list[str]:
    low, high = network["canonical_factors"]
    least, most = network["min_depth"] * low, network["max_depth"] * high
    told = [
        f"Canonical focal length: F = {network['canonical_focal']:g} pixels; F / f of the frames "
        f"is {low:.4g} to {high:.4g}, so the head's range is {least:.4g} to {most:.4g} m of "
        f"canonical depth; the output is clamped to {network['max_depth']:g} m"
    ]
    head = network.get("head") or {}
    if head.get("name") == "dpm" and head.get("spacing", "uniform") == "uniform":
        told.append(
            "Canonical bins are spaced uniformly; network.head.spacing=log is preferred, whose "
            "bins have the same relative width for every camera"
        )
    return told
