"""Training in canonical depth (`network.canonical_focal`): the range of F / f, and the targets.

Canonical depth is depth in metres times F / f. F is `canonical_focal`, the same for all images, and
f is the focal length of the image at the network's input; both are in pixels. The cost is a read of
each image's header at the start, 0.1 ms each, and two multiplications per batch. Not covered: the
conversion of the output back to metres, which is part of the network (tiekd/models/network.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd import console
from tiekd.config.data_sets import errors_of_set
from tiekd.config.recipe import load_recipe
from tiekd.data import focal as focals
from tiekd.data.augment.augment import Augment
from tiekd.data.batch import Batch
from tiekd.data.frame_table import LARGE_DATA_SET, spaced
from tiekd.data.frames import Frames
from tiekd.data.mixed import sets_in
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target
from tiekd.distributed import comm
from tiekd.errors import DataError, RecipeError
from tiekd.models import canonical
from tiekd.models.canonical import Canonical
from tiekd.training.settings import Recipe
from tiekd.workdir import workdir

_SAMPLED = 1000  # frames of a large data set whose focal lengths are computed


class Targets:
    """Converts the target depths of a batch from metres to the depth that the network learns.

    Args:
        camera: The network's canonical camera, which has the focal length for which the network
            predicts depth; None if the network learns metres.
        resize: How images are resized to the network's input.
    """

    def __init__(self, camera: Canonical | None, resize: Resize):
        self.camera = camera
        self.resize = resize

    def __call__(
        self, batch: Batch, teacher_depth: Tensor | Target | None
    ) -> tuple[Batch, Tensor | Target | None]:
        """Converts a micro-batch's ground truth and teacher depth from metres to canonical depth.

        Args:
            batch: The micro-batch; its `depth` is in metres.
            teacher_depth: (B, 1, H, W) float32, metres, 0 in pixels that aren't valid; or a
                `Target`, whose depths and sigmas are converted. None if there is no teacher.

        Returns:
            The batch with its `depth` in canonical depth, i.e. metres times the canonical focal
            length / the image's focal length; and `teacher_depth` converted likewise. Both are
            unchanged if `camera` is None.
        """
        if self.camera is None:
            return batch, teacher_depth
        focal = focals.of_batch(batch, self.resize)
        if isinstance(teacher_depth, Target):
            one = torch.ones(len(focal), 1, 1, 1, device=batch.depth.device)
            teacher_depth = teacher_depth.scaled(self.camera.from_metres(one, focal))
        elif teacher_depth is not None:
            teacher_depth = self.camera.from_metres(teacher_depth, focal)
        return batch._replace(depth=self.camera.from_metres(batch.depth, focal)), teacher_depth


METRES = Targets(None, OWN_SIZE)


def input_focals(frames: Dataset, resize: Resize) -> list[float | None]:
    """Returns the focal lengths of frames, in pixels of the network's input.

    The focal length at the input depends on the size of the frame's image, which is read from the
    file. If there are more than LARGE_DATA_SET frames, only a part of them is read: the first frame
    of each camera, and _SAMPLED frames at equal distances.

    Args:
        frames: The frames of a data set.
        resize: The resize of images before the network gets them.

    Returns:
        The focal lengths of the frames that were read, in the order of the frames; None for a frame
        whose focal length isn't known. A frame whose image can't be read is left out.

    Raises:
        DataError: The resize changes the aspect ratio of an image too much.
    """
    found = []
    rows = range(len(frames))
    if len(frames) > LARGE_DATA_SET:
        _, firsts = np.unique(frames.frames.cameras.codes, return_index=True)
        rows = np.union1d(firsts, spaced(len(frames), _SAMPLED)).tolist()
    for index in rows:
        frame = frames.frames[index]
        if frame.camera is None:
            found.append(None)
            continue
        try:
            size = frames.image_size(index)
        except DataError:
            continue  # the loader reports or skips an unreadable image
        try:
            found.append(focals.of_camera(frame.camera, size, resize))
        except DataError as error:
            raise DataError(f"{frame.name}: {error}", error.kind) from None
    return found


def require_focals(frames: Dataset, resize: Resize, split: str) -> list[float]:
    """Returns focal lengths of a split's frames; raises an error if one isn't known.

    Args:
        frames: The dataset of the split.
        resize: How images are resized to the network's input.
        split: The name of the split, for the error message: "training" or "validation".

    Returns:
        The focal lengths in pixels of the network's input. For a large split they are those of some
        of the frames (see `input_focals`). The list is empty for a dataset from outside the
        project, whose images are checked later, when they are read.

    Raises:
        DataError: A frame's focal length isn't known, or `resize` changes the aspect ratio of an
            image too much.
    """
    if not isinstance(frames, Frames):
        return []
    found = input_focals(frames, resize)
    unknown = np.flatnonzero(~frames.frames.cameras.are_known)
    if len(unknown):
        name = frames.frames.names[unknown[0]]
        raise DataError(
            f"network.canonical_focal: {len(unknown)} of {len(frames)} {split} frames have no "
            f"focal length, such as {name}; give data.intrinsics (a file, numbers or exif), list "
            "other frames, or set network.canonical_focal=null"
        )
    return found


def with_factors(
    recipe: Recipe, datasets: Mapping[str, Dataset], *, resuming: bool
) -> tuple[Recipe, list[str]]:
    """Sets `network.canonical_factors`, the range of F / f over all frames. Collective.

    F is `network.canonical_focal`, and f is the focal length of a frame at the network's input.

    Args:
        recipe: The run's recipe.
        datasets: The datasets of the splits, "training" and, if the run validates, "validation".
        resuming: True if the run in the work dir is resumed; it keeps the factors with which it was
            started.

    Returns:
        (recipe, messages): the recipe with `network.canonical_factors`, [smallest, largest], and
        messages for the log. A recipe without `network.canonical_focal` is returned unchanged.

    Raises:
        RecipeError: A setting is wrong, or the factors can't be computed from the frames.
        DataError: A frame's focal length isn't known, or resizing changes an image's aspect ratio
            too much.
    """
    node = recipe.network or {}
    canonical.check_focal(node)
    focal = node.get("canonical_focal")
    if focal is None:
        return recipe, []
    # Find the range of F / f, canonical focal length / focal length of a frame, over all frames.
    # Augmentation zooms training images, which multiplies their focal length by the zoom.
    ratios, told = [], []
    for split, dataset in datasets.items():
        low, high = recipe.augment.zoom_range if split == "training" else (1.0, 1.0)
        for name, frames in sets_in(dataset):
            if isinstance(frames, Frames) and len(frames) > LARGE_DATA_SET:
                told.append(f"F / f is that of all cameras and of {_SAMPLED} more {split} frames")
            with errors_of_set(name):
                known = require_focals(frames, recipe.resize, split)
            ratios += [focal / f / zoom for f in known for zoom in (low, high)]
    seen = comm.broadcast_object((min(ratios), max(ratios)) if ratios else None)
    # Use the range of F / f from the recipe, else the one with which the resumed run was started,
    # else the one computed from the frames.
    factors = node.get("canonical_factors") or (_started_with(recipe) if resuming else None)
    if factors is None and seen is None:
        raise RecipeError(
            "network.canonical_factors: needed, for the frames of a data set from outside the "
            "project aren't listed; give [smallest, largest] of canonical_focal / focal length of "
            "the network's input"
        )
    factors = list(seen if factors is None else factors)
    if seen is not None and (seen[0] < factors[0] * 0.999 or seen[1] > factors[1] * 1.001):
        wider = f"{seen[0]:.4g} to {seen[1]:.4g}"
        if not resuming:
            raise RecipeError(
                f"network.canonical_factors: got {factors}, but F / f of the frames is {wider}; "
                "widen it, or leave it out"
            )
        told.append(
            f"Warning: F / f of the frames is {wider} now; depths beyond the range are clamped"
        )
    network = {**node, "canonical_factors": factors}
    return Recipe(recipe.node | {"network": network}), [*_about(network), *told]


def check_weights(network: Mapping, state: Mapping, path: Path) -> list[str]:
    """Warns if initial weights were trained with other settings of canonical depth than this run.

    Args:
        network: The section `network` of this run's recipe.
        state: The content of the weights file; in a file written by tiekd, its entry `network` is
            the network section of the training run.
        path: The weights file, for the warning.

    Returns:
        The warning in a list; an empty list if `canonical_focal` and `canonical_factors` agree, or
        if the file doesn't state them.
    """
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
        f"{theirs[1]}, but this run has {ours[0]} and {ours[1]}, so the same output of the head "
        "stands for another depth; to keep its depths, set both keys of network as in that file"
    ]


def check_zoom(augment: Augment, network: Mapping, *, is_blind_teacher: bool) -> None:
    """Raises RecipeError if the target depth would be wrong for images that augmentation zooms.

    A zoom multiplies the focal length of an image. The depth stays right only if the network uses
    the focal length (`network.canonical_focal`), or if depth is divided by the zoom
    (`data.augment.zoom_depth: divide`). A recipe has to choose exactly one of the two.

    Args:
        augment: The settings of the augmentation.
        network: The section `network` of the recipe, which describes the student.
        is_blind_teacher: True if the teacher is a network that runs during training and doesn't use
            the focal length of an image.
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
            f"{console.command('cache_teacher')}, or leave out the zoom"
        )


def _started_with(recipe: Recipe) -> Sequence[float] | None:
    """Returns the `canonical_factors` with which the run in a work dir was started.

    Args:
        recipe: The recipe, whose `work_dir` is the folder of that run.

    Returns:
        [smallest, largest]; None if the run had none, or had another `canonical_focal`.
    """
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
