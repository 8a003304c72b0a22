"""The teachers of several data sets: each image of a batch is taught by the teacher of its set.

A batch is split by the teachers of its images' sets, each teacher is called once for its images,
and the results are put together in the order of the batch. Sets that learn from one network share
it, so that it is called once for all of their images. Images of a set without a teacher have depth
0, i.e. no valid pixel. Costs: a copy of the batch's images and of the results; no host sync, since
the sets of a batch are known on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.config.data_sets import errors_of_set
from tiekd.data.batch import Batch
from tiekd.data.target import Target
from tiekd.kernels.target import sigma_maps
from tiekd.teachers.mixture import Teacher


class SetTeacher(NamedTuple):
    """The teacher of one data set.

    Attributes:
        name: The data set's name in the recipe.
        teacher: The teacher of this data set; None if it has none.
        num_maps: The number of cached depth maps that a sample of this data set has, one for each
            of its teachers with cached maps.
        has_sigma_maps: True if a sample also has cached maps of sigma, the standard deviation of
            the depth's error.
    """

    name: str
    teacher: Teacher | None
    num_maps: int = 0
    has_sigma_maps: bool = False

    @property
    def needs_focal(self) -> bool:
        """True if the teacher needs the focal length of each image."""
        return getattr(self.teacher, "needs_focal", False)


class PerSet:
    """A teacher that calls for each image of a batch the teacher of the image's data set.

    Args:
        sets: The teacher of each data set, in the order of the recipe.

    Attributes:
        sets: As the argument, as a tuple.
    """

    def __init__(self, sets: Sequence[SetTeacher]):
        self.sets = tuple(sets)

    def __call__(self, batch: Batch) -> Tensor | Target:
        """Returns the target depth of a batch from several data sets.

        Args:
            batch: The batch, whose `data_sets` says from which set each image is.

        Returns:
            Depth, (B, 1, H, W) float32, metres, 0 where not valid and in images of a data set
            without a teacher. If a teacher returns a `Target`, a `Target` of all images: an image
            with fewer depths than others has 0 (not valid) in their place, and a depth without a
            sigma has the sigma 0 (unknown).

        Raises:
            UserError: A teacher failed; the message names the data set.
        """
        # Group the images by their teacher and by the number and kind of their cached maps.
        groups: dict[tuple, list[int]] = {}
        for row, number in enumerate(batch.data_sets):
            chosen = self.sets[number]
            if chosen.teacher is not None:
                key = id(chosen.teacher), chosen.num_maps, chosen.has_sigma_maps
                groups.setdefault(key, []).append(row)
        parts = []
        for rows in groups.values():
            chosen = self.sets[batch.data_sets[rows[0]]]
            with errors_of_set(chosen.name):
                found = chosen.teacher(_part_of(batch, rows, chosen))
            parts.append((rows, found))
        if len(parts) == 1 and len(parts[0][0]) == len(batch.names):
            return parts[0][1]
        if all(isinstance(found, Tensor) for _, found in parts):
            return _in_order(batch, [(rows, found) for rows, found in parts], 1)
        return _target(batch, [(rows, _as_target(found)) for rows, found in parts])


def _part_of(batch: Batch, rows: Sequence[int], chosen: SetTeacher) -> Batch:
    """Returns a batch with some of the images of a batch, which all have the same teacher.

    Args:
        batch: The batch, with images of several data sets.
        rows: The indices of the images in `batch`.
        chosen: The teacher of the images. Its `num_maps` and `has_sigma_maps` determine which
            cached maps of the images the result has.
    """

    def part(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or len(rows) == len(tensor):
            return tensor
        # Don't index by the list `rows`, which would copy the list to the device.
        return torch.stack([tensor[row] for row in rows])

    depth, sigma = None, None
    if chosen.num_maps:
        depth = part(batch.teacher_depth)[:, : chosen.num_maps]
        if chosen.has_sigma_maps:
            sigma = part(batch.teacher_sigma)[:, : chosen.num_maps]
    return Batch(
        image=part(batch.image),
        depth=part(batch.depth),
        inside=part(batch.inside),
        teacher_depth=depth,
        intrinsics=part(batch.intrinsics),
        names=[batch.names[row] for row in rows],
        counted=part(batch.counted),
        teacher_sigma=sigma,
    )


def _in_order(batch: Batch, parts: Sequence[tuple], num_planes: int) -> Tensor:
    """Puts maps that were computed for groups of images into the order of the batch.

    Args:
        batch: The batch.
        parts: For each group, the indices of its images in the batch, and their maps (N, P, H, W),
            or None if the group has no maps. P may differ between groups.
        num_planes: The number of maps per image in the result, at least the largest P.

    Returns:
        (B, num_planes, H, W) float32; 0 in place of missing maps.
    """
    nothing = torch.zeros_like(batch.depth[0]).expand(num_planes, -1, -1)
    planes = [nothing] * len(batch.names)
    for rows, maps in parts:
        if maps is None:
            continue
        missing = num_planes - maps.shape[1]
        for row, own in zip(rows, maps, strict=True):
            planes[row] = torch.cat([own, nothing[:missing]]) if missing else own
    return torch.stack(planes)


def _as_target(found: Tensor | Target) -> Target:
    return found if isinstance(found, Target) else Target(found)


def _target(batch: Batch, parts: Sequence[tuple[list[int], Target]]) -> Target:
    """Joins the targets of groups of images into one `Target` for the whole batch.

    Args:
        batch: The batch.
        parts: For each group, the indices of its images in the batch, and their target.
    """
    most = max(target.depth.shape[1] for _, target in parts)
    depth = _in_order(batch, [(rows, target.depth) for rows, target in parts], most)
    weights = [target.weight for _, target in parts]
    weight = weights[0]
    if any(each is not weight for each in weights) or (weight is not None and weight.ndim > 1):
        of_parts = [
            (rows, _expanded(target.component_weight(), target.depth)) for rows, target in parts
        ]
        weight = _in_order(batch, of_parts, most)
    # Prefer sigmas as one number per teacher, since a head computes its target much faster from
    # numbers than from maps. That is possible only if the numbers are the same for all images.
    constants = {target.constants for _, target in parts}
    same = constants.pop() if len(constants) == 1 else None
    if same is not None and len(same) == most:
        return Target(depth, None, weight, same)
    sigma = None
    sigmas = [(rows, _sigma(target)) for rows, target in parts]
    if any(each is not None for _, each in sigmas):
        sigma = _in_order(batch, sigmas, most)
    return Target(depth, sigma, weight)


def _sigma(target: Target) -> Tensor | None:
    if target.constants is not None:
        return sigma_maps(target.constants, target.depth)
    return target.sigma


def _expanded(weight: Tensor | None, depth: Tensor) -> Tensor:
    return torch.ones_like(depth) if weight is None else weight.to(depth.dtype)


build = PerSet
