"""Computes views: all data of a frame, on the host, from which its images are drawn.

A view has a frame's image, its depth maps, the student's entropy, and some pixels with their
distributions, of which charts are drawn. `views` runs a student in eval mode on a few images, on
the calling rank only. It doesn't change the network's running statistics, random number generators
or gradients. The cost is a forward pass of those images, and memory for up to 20,000 distributions
of a DPM head (21 MB for 257 bins). Not covered: the entropy of heads with adaptive bins, i.e. bins
that depend on the image.
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
    """The data of one frame from which its images are drawn.

    Depth maps are (H, W) float32 in metres, 0 or below where unknown.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        truth: Measured depth.
        teacher: The teacher's depth; None without a teacher.
        student: The student's depth.
        entropy: (h, w) entropies in nats of the student's distributions at evenly spaced pixels of
            the head's output; None unless the head is a DPM head.
        max_entropy: Entropy of a uniform distribution in nats; None unless the head is a DPM head.
        pixels: Some pixels with their target and student distributions, of which the function
            `draw_distributions` draws charts; empty if there are none.
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
    num_with_pixels: int,
    focal: Tensor | None = None,
) -> list[View]:
    """Predicts images with the student, and returns a View of each image.

    Args:
        student: The network; or its depth (B, 1, H, W) in metres, if the network can't be run here.
        images: (B, 3, H, W) float, normalised.
        truths: (B, 1, H, W), measured depth in metres, 0 where unknown.
        teachers: (B, 1, H, W), the teacher's depth in metres, 0 where unknown; None if there is no
            teacher.
        num_with_pixels: The number of views, counted from the first, that get some pixels with
            their distributions (`View.pixels`).
        focal: (B,) focal length of each image in pixels of `images`, for a network with a canonical
            camera, whose pixels' distributions are over canonical depth; None for other networks.

    Returns:
        B views, in the order of `images`.
    """
    # Replace NaN by 0 in truth and teacher, where it means unknown. Keep it in the student's depth,
    # where it is an error.
    on_host = [
        np.nan_to_num(_on_host(t), nan=0.0)
        for t in (truths, truths if teachers is None else teachers)
    ]
    # Make views without entropy and without pixels' distributions if only the student's depth is
    # given.
    if isinstance(student, Tensor):
        found = [{}] * len(images)
        depths = student
    else:
        # Compute the features once, for the depth, the entropies and the pixels' distributions.
        with _eval_mode(student):
            features = student.features(images)
            size = images.shape[2], images.shape[3]
            depths = student.read(features, size, focal=focal).depth
        found = [{} for _ in images]
        if isinstance(student.head, Dpm):
            for i, (truth, target) in enumerate(zip(*on_host, strict=True)):
                one = features[i : i + 1]
                found[i] = {
                    "entropy": _entropy(student.head, one),
                    "max_entropy": math.log(len(student.head.bias)),
                }
                if i < num_with_pixels:
                    scale = 1.0
                    if student.canonical is not None:
                        scale = student.canonical.focal / float(focal[i])
                    found[i]["pixels"] = pixel_distributions(
                        student.head, one, truth * scale, target * scale
                    )
    return [
        View(
            pictures.denormalise(image), truth, None if teachers is None else teacher, depth, **more
        )
        for image, truth, teacher, depth, more in zip(
            images.float().cpu().numpy(), *on_host, _on_host(depths), found, strict=True
        )
    ]


def overview(view: View, max_depth: float, against: str) -> np.ndarray:
    """Draws a sheet with a view's image, ground truth, teacher, student, error and entropy.

    An image is left out if the view doesn't have its data. Sparse measured points are dilated so
    that they are visible.

    Args:
        view: The view to draw.
        max_depth: End of the depth scale in metres; the error scale ends at a tenth of it.
        against: The reference of the error, "teacher" or "ground truth".

    Returns:
        (height, width, 3) uint8.
    """
    max_error = max_depth / 10
    cells = {
        "image": view.image,
        "ground truth": pictures.colourise(dilated(view.truth), max_depth),
    }
    if view.teacher is not None:
        cells["teacher"] = pictures.colourise(view.teacher, max_depth)
    cells["student"] = pictures.colourise(view.student, max_depth)
    # Dilate errors at sparse ground truth by the radius by which the ground truth itself is
    # dilated.
    target, radius = (
        (view.teacher, 0) if against == "teacher" else (view.truth, point_radius(view.truth))
    )
    cells[f"|student - {against}|"] = pictures.error_map(view.student, target, max_error, radius)
    if view.entropy is not None:
        cells["student's entropy, nats"] = pictures.entropy_map(view.entropy, view.max_entropy)
    return pictures.sheet(cells, max_depth, max_error, view.max_entropy, _CELL_WIDTH)


def draw_distributions(view: View, max_depth: float) -> np.ndarray | None:
    """Draws charts of the target's and the student's distributions at some pixels of a view.

    Args:
        view: The view to draw, with the pixels in `view.pixels`.
        max_depth: End of the depth scale in metres.

    Returns:
        (height, width, 3) uint8; None if `view.pixels` is empty.
    """
    if not view.pixels:
        return None
    target_name = "ground truth" if view.teacher is None else "teacher"
    target = dilated(view.truth) if view.teacher is None else view.teacher
    shown = {
        "image": view.image,
        target_name: pictures.colourise(target, max_depth),
        "student": pictures.colourise(view.student, max_depth),
    }
    return distribution_panel(shown, list(view.pixels), target_name)


def dilated(truth: np.ndarray) -> np.ndarray:
    """Dilates sparse measured depth so that its points are visible in a panel.

    Args:
        truth: (H, W) metres, 0 where not measured. Dense depth is returned unchanged.

    Returns:
        (H, W) metres, 0 outside the dilated points.
    """
    return pictures.dilate(truth, point_radius(truth)) if point_radius(truth) else truth


def point_radius(truth: np.ndarray) -> int:
    """Returns the radius in pixels by which measured points are dilated; 0 for dense depth.

    A point of sparse depth becomes about three pixels wide after the map is resized for a sheet.

    Args:
        truth: (H, W) metres, 0 where not measured.
    """
    if (truth > 0).mean() > 0.5:
        return 0
    return max(1, round(1.5 * truth.shape[1] / _CELL_WIDTH))


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Context manager that sets a network to eval mode.

    At the end it restores every module's mode.

    Args:
        network: The network.
    """
    was_training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _entropy(head: Dpm, features: Tensor) -> np.ndarray:
    """Returns the entropy of the head's distributions at every n-th row and column of its input.

    n is chosen such that at most about _MAX_DISTRIBUTIONS entropies are computed.

    Args:
        head: The student's DPM head.
        features: (1, C, H, W), the head's input.

    Returns:
        (h, w) entropies in nats.
    """
    step = max(1, math.ceil(math.sqrt(features.shape[2] * features.shape[3] / _MAX_DISTRIBUTIONS)))
    return entropy(head.probabilities(features[:, :, ::step, ::step]))[0, 0].cpu().numpy()


def _on_host(depths: Tensor) -> np.ndarray:
    """Converts depth maps on any device to a NumPy array.

    Args:
        depths: (B, 1, H, W).

    Returns:
        (B, H, W) float32.
    """
    return depths.detach()[:, 0].float().cpu().numpy()
