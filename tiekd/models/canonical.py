"""`network.canonical_focal`, F: a network learns depth * F / f for images of focal length f.

A single image doesn't determine depth: an object at twice the distance, seen with twice the focal
length, looks the same. A network that sees several cameras therefore learns canonical depth, i.e.
the depth at which a camera of focal length F would give the same image. f is the focal length of
the network's input in pixels (tiekd/data/focal.py), by which canonical depth is converted to
metres. The head's depth bins, depth range and sigma are those of canonical depth.

The recipe's `min_depth` and `max_depth` remain in metres, and the network's output is clamped to
them. The head's range begins at `min_depth` times the smallest F / f of the training frames, and
ends at `max_depth` times the largest. These two factors are stored with the weights as
`canonical_factors`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from tiekd.config.schema import check_value
from tiekd.errors import CheckpointError, RecipeError

KEYS = ("canonical_focal", "canonical_factors")


class Canonical(NamedTuple):
    """The camera of one fixed focal length F for which a network predicts depth.

    Its depth, called canonical, is depth in metres times F / f for an image of focal length f.

    Attributes:
        focal: F, pixels.
        smallest: Smallest F / f of the training frames.
        largest: Largest F / f of the training frames.
    """

    focal: float
    smallest: float
    largest: float

    def from_metres(self, depth: Tensor, focal: Tensor) -> Tensor:
        """Converts depth in metres to canonical depth: multiplies it by `self.focal` / `focal`.

        Args:
            depth: (B, 1, H, W), metres, 0 where invalid.
            focal: (B,), focal length f of each image in pixels of the network's input.

        Returns:
            (B, 1, H, W), in the dtype of `depth`.
        """
        return depth * (self.focal / focal).to(depth.dtype).view(-1, 1, 1, 1)

    def to_metres(self, depth: Tensor, focal: Tensor | None) -> Tensor:
        """Converts canonical depth to depth in metres: multiplies it by `focal` / `self.focal`.

        Args:
            depth: (B, 1, H, W), canonical depth.
            focal: (B,), focal length f of each image in pixels of the network's input.

        Returns:
            (B, 1, H, W), metres, in the dtype of `depth`.

        Raises:
            RecipeError: `focal` is None.
        """
        if focal is None:
            raise RecipeError(
                "network.canonical_focal: this network needs the focal length of each image, in "
                "pixels; give it (load_student(...)(image, focal=F), --focal, --intrinsics or "
                "data.intrinsics)"
            )
        return depth * (focal.to(depth) / self.focal).view(-1, 1, 1, 1)


def of_node(node: Mapping, where: str = "network") -> Canonical | None:
    """Returns focal length and factors of a network's canonical camera, or None if it has none.

    Args:
        node: The recipe's network node.
        where: Path of the node in the recipe, for error messages.

    Raises:
        RecipeError: `canonical_focal` or `canonical_factors` isn't valid, or there is a
            `canonical_focal` without `canonical_factors`.
    """
    check_focal(node, where)
    if node.get("canonical_focal") is None:
        return None
    factors = node.get("canonical_factors")
    if factors is None:
        raise RecipeError(
            f"{where}.canonical_factors: not known; training computes the smallest and largest "
            "F / f of its frames and stores them with the weights, so give weights of a run with "
            "canonical_focal, or [smallest, largest]"
        )
    return Canonical(float(node["canonical_focal"]), *map(float, factors))


def check_focal(node: Mapping, where: str = "network") -> None:
    """Checks `canonical_focal` and `canonical_factors`, if a network node has them.

    Args:
        node: The recipe's network node.
        where: Path of the node in the recipe, for error messages.

    Raises:
        RecipeError: A value isn't valid, or there are factors without a focal length.
    """
    focal, factors = (node.get(key) for key in KEYS)
    if focal is None:
        if factors is not None:
            raise RecipeError(
                f"{where}.canonical_factors: got {factors!r:.80} without canonical_focal; give "
                "both, or leave it out"
            )
        return
    check_value(focal, float, f"{where}.canonical_focal")
    if not 0 < focal < math.inf:
        raise RecipeError(
            f"{where}.canonical_focal: got {focal}; it must be a focal length in pixels above 0, "
            "such as 500, or null"
        )
    if factors is not None:
        check_value(factors, tuple[float, float], f"{where}.canonical_factors")
        if not 0 < factors[0] <= factors[1] < math.inf:
            raise RecipeError(
                f"{where}.canonical_factors: got {list(factors)}; it must be [smallest, largest] "
                "of F / f, above 0"
            )


def with_stored_factors(node: dict, state: Mapping, source: object) -> dict:
    """Returns a copy of a network node, with the `canonical_factors` stored in its weights file.

    The node itself is returned if it has no `canonical_focal`, or if the weights are published
    ones, which store no network node.

    Args:
        node: The recipe's network node.
        state: The content of the weights file; in a file written by tiekd, its entry `network` is
            the network node of the training run.
        source: The weights file, for error messages.

    Raises:
        CheckpointError: The `canonical_focal` of the training run differs from that of `node`; one
            of them may have none.
    """
    trained = state.get("network") if isinstance(state, Mapping) else None
    if not isinstance(trained, Mapping):
        return node  # published weights don't state their canonical_focal
    ours, theirs = node.get("canonical_focal"), trained.get("canonical_focal")
    if ours != theirs:
        words = ["none" if value is None else f"{value}" for value in (ours, theirs)]
        raise CheckpointError(
            f"{source}: trained with canonical_focal {words[1]}, but the recipe has "
            f"{words[0]}, so depths would be wrong; set network.canonical_focal="
            f"{'null' if theirs is None else theirs}"
        )
    if ours is None:
        return node
    return node | {"canonical_factors": trained.get("canonical_factors")}
