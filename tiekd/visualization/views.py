"""Views of frames on the host, from which images are drawn.

A view has a frame's image, its depths, the student's entropy and explained pixels. `views` runs a
student on a few images of a batch, in eval mode as it will be used, on this rank alone; its
statistics, random numbers and gradients are not touched. Costs a forward of those images, and up to
20,000 distributions of a DPM head at once, 21 MB of 257 bins. Left out: entropies of heads whose
bins move with the image.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.models.readout import entropy
from tiekd.visualization import pictures
from tiekd.visualization.distribution_charts import Pixel, distribution_panel, pixel_distributions

_MAX_DISTRIBUTIONS = 20_000
_CELL_WIDTH = 400


class View(NamedTuple):
    """One frame. Depths: (H, W) float32, metres, not above 0 where unknown.

    Attributes:
        image: (H, W, 3) uint8.
        truth: Measured depth.
        teacher: The teacher's depth; None without one.
        student: The student's depth.
        entropy: (h, w) nats of a sample of the pixels; None if the head has no distribution.
        max_entropy: Nats of a uniform distribution; None if the head has no distribution.
        pixels: Explained pixels; empty if there are none.
    """

    image: np.ndarray
    truth: np.ndarray
    teacher: np.ndarray | None
    student: np.ndarray
    entropy: np.ndarray | None = None
    max_entropy: float | None = None
    pixels: Sequence[Pixel] = ()


@torch.no_grad()
def views(
    student: Network | Tensor,
    images: Tensor,
    truths: Tensor,
    teachers: Tensor | None,
    explained: int,
) -> list[View]:
    """Returns a View of each image.

    Args:
        student: The network, or its depths (B, 1, H, W) if it can't be run.
        images: (B, 3, H, W), normalised.
        truths: (B, 1, H, W) metres, 0 where unknown.
        teachers: (B, 1, H, W) metres, 0 where unknown; None without a teacher.
        explained: How many views get `pixels`.
    """
    # NaN means unknown in these maps; in the student's it is an error and stays visible.
    on_host = [
        np.nan_to_num(_on_host(t), nan=0.0)
        for t in (truths, truths if teachers is None else teachers)
    ]
    # Only a network can give more than depth.
    if isinstance(student, Tensor):
        found = [{}] * len(images)
        depths = student
    else:
        # One forward gives depth, entropies and explanations.
        with _eval_mode(student):
            features = student.features(images)
            depths = student.read(features, (images.shape[2], images.shape[3])).depth
        found = [{} for _ in images]
        if isinstance(student.head, Dpm):
            for i, (truth, target) in enumerate(zip(*on_host, strict=True)):
                one = features[i : i + 1]
                found[i] = {
                    "entropy": _entropy(student.head, one),
                    "max_entropy": math.log(len(student.head.bias)),
                }
                if i < explained:
                    found[i]["pixels"] = pixel_distributions(student.head, one, truth, target)
    return [
        View(
            pictures.denormalise(image), truth, None if teachers is None else teacher, depth, **more
        )
        for image, truth, teacher, depth, more in zip(
            images.float().cpu().numpy(), *on_host, _on_host(depths), found, strict=True
        )
    ]


def overview(view: View, max_depth: float, against: str) -> np.ndarray:
    """Draws a sheet of image, ground truth, teacher, student, error and entropy, as available.

    Args:
        view: The view.
        max_depth: End of the depth scale in metres.
        against: "teacher" or "ground truth", which the error refers to.

    Returns:
        (height, width, 3) uint8. Measured points are grown so that they are visible.
    """
    max_error = max_depth / 10
    cells = {"image": view.image, "ground truth": pictures.colourise(grown(view.truth), max_depth)}
    if view.teacher is not None:
        cells["teacher"] = pictures.colourise(view.teacher, max_depth)
    cells["student"] = pictures.colourise(view.student, max_depth)
    # Errors against sparse truth are grown like the truth.
    target, radius = (
        (view.teacher, 0) if against == "teacher" else (view.truth, _radius(view.truth))
    )
    cells[f"|student - {against}|"] = pictures.error_map(view.student, target, max_error, radius)
    if view.entropy is not None:
        cells["student's entropy, nats"] = pictures.entropy_map(view.entropy, view.max_entropy)
    return pictures.sheet(cells, max_depth, max_error, view.max_entropy, _CELL_WIDTH)


def why(view: View, max_depth: float) -> np.ndarray | None:
    """Draws the explanation of a view; None if there is nothing to explain.

    Args:
        view: The view.
        max_depth: End of the depth scale in metres.

    Returns:
        (height, width, 3) uint8, or None.
    """
    if not view.pixels:
        return None
    target_name = "ground truth" if view.teacher is None else "teacher"
    target = grown(view.truth) if view.teacher is None else view.teacher
    shown = {
        "image": view.image,
        target_name: pictures.colourise(target, max_depth),
        "student": pictures.colourise(view.student, max_depth),
    }
    return distribution_panel(shown, list(view.pixels), target_name)


def grown(truth: np.ndarray) -> np.ndarray:
    """Returns measured depth with points grown to be visible in a panel; dense depth unchanged."""
    return pictures.dilate(truth, _radius(truth)) if _radius(truth) else truth


def _radius(truth: np.ndarray) -> int:
    """Returns the pixels to grow by: 0 for dense depth; sparse points become three pixels wide."""
    if (truth > 0).mean() > 0.5:
        return 0
    return max(1, round(1.5 * truth.shape[1] / _CELL_WIDTH))


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Sets eval mode, and restores every module's mode at the end."""
    was_training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _entropy(head: Dpm, features: Tensor) -> np.ndarray:
    """Returns (h, w) nats of every n-th pixel of the features (1, C, H, W)."""
    step = max(1, math.ceil(math.sqrt(features.shape[2] * features.shape[3] / _MAX_DISTRIBUTIONS)))
    return entropy(head.probabilities(features[:, :, ::step, ::step]))[0, 0].cpu().numpy()


def _on_host(depths: Tensor) -> np.ndarray:
    """Converts (B, 1, H, W) to (B, H, W) float32."""
    return depths.detach()[:, 0].float().cpu().numpy()
