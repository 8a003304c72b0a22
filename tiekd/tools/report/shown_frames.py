"""Draws the worst, median and best validation frames for a report.

The frames are chosen by their abs_rel after the evaluation, and read once more, so that the
evaluation needs to keep no depth map. The colour scales are those of the evaluation's other
pictures: depth to the network's largest depth, error and excess width to an eighth of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tiekd.data import focal as focals
from tiekd.data import resize as resizes
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import NO_WORKERS, validation_batches
from tiekd.data.resize import Resize
from tiekd.data.sample import in_grey_levels
from tiekd.data.target import mean_depth
from tiekd.evaluation.agreement import Reference
from tiekd.evaluation.per_frame import FrameTable
from tiekd.evaluation.teacher_audit.observe import mirrored
from tiekd.tools.report.measure import WatchedPredictor
from tiekd.visualization import pictures, views

_EACH = 3  # number of worst, of median and of best frames
_WIDTH = 320  # largest width of a picture in pixels; 1.5 times as much for wide images
_WIDE = 2.0  # width / height from which an image counts as wide
# End of the scales of error and excess width, as a fraction of the depth scale.
LARGEST_ERROR = 1 / 8


class Chosen(NamedTuple):
    """A frame that is shown in a report.

    Attributes:
        kind: "worst", "median" or "best".
        index: The frame's index in the dataset.
        name: The frame's name.
        abs_rel: The frame's abs_rel.
    """

    kind: str
    index: int
    name: str
    abs_rel: float


class Shown(NamedTuple):
    """A frame with its pictures.

    Attributes:
        chosen: The frame.
        pictures: Title of a picture -> (H, W, 3) uint8.
        is_wide: True if the images are at least twice as wide as high, and need more of the page.
        teacher_flip: Median |log ratio| of the teacher's depth of the mirrored image to that of the
            image; None if the teacher can't predict the mirrored image, as cached maps can't.
    """

    chosen: Chosen
    pictures: dict[str, np.ndarray]
    is_wide: bool
    teacher_flip: float | None


def choose(table: FrameTable, each: int = _EACH) -> list[Chosen]:
    """Chooses the worst, the median and the best frames by abs_rel, no frame twice.

    Args:
        table: The results of all frames. Frames without an evaluated pixel are left out.
        each: Maximum number of frames of each kind.

    Returns:
        The frames: first the worst, then the median ones, then the best.
    """
    column = table.column("abs_rel")
    # Sort by abs_rel, the worst frame first. An infinite error, as of a depth that isn't finite, is
    # the worst.
    known = (~column.isnan()).nonzero()[:, 0].tolist()
    known.sort(key=lambda index: -column[index].item())
    each = min(each, -(-len(known) // 3))
    middle = max(each, (len(known) - each) // 2)
    parts = {
        "worst": known[:each],
        "median": known[middle : middle + each],
        "best": known[max(middle + each, len(known) - each) :][::-1],
    }
    return [
        Chosen(kind, index, table.names[index], column[index].item())
        for kind, indices in parts.items()
        for index in indices
    ]


@torch.no_grad()
def draw(
    chosen: Sequence[Chosen],
    frames: Dataset,
    teacher_data: tuple[Dataset, Reference] | None,
    is_agreement: bool,
    predictor: WatchedPredictor,
    resize: Resize,
    device: torch.device,
) -> list[Shown]:
    """Draws frames as image, ground truth, teacher, student, difference and confidence.

    The difference is that between the student and its target: the teacher or ground truth.

    Args:
        chosen: The frames to draw.
        frames: The dataset.
        teacher_data: The dataset in which frames have what the teacher needs, and the teacher; None
            without a teacher.
        is_agreement: True if the student's target is the teacher, not ground truth.
        predictor: The student.
        resize: How images are resized to the student's input size.
        device: The device of student and teacher.

    Returns:
        The pictures of each frame, in the order of `chosen`.

    Raises:
        UserError: A frame can't be read, or the teacher can't predict it.
    """
    if not chosen:
        return []
    indices = [each.index for each in chosen]
    batches = validation_batches(Subset(frames, indices), 1, device, resize=resize)
    teachers = [None] * len(chosen)
    if teacher_data is not None:
        teachers = _teacher_depths([each.name for each in chosen], indices, *teacher_data, device)
    found = []
    for each, (_, batch), (teacher, flip) in zip(
        chosen, batches, [pair or (None, None) for pair in teachers], strict=True
    ):
        size = tuple(batch.depth.shape[-2:])
        given = (focals.of_batch(batch, resize),) if predictor.needs_focal else ()
        student = resizes.at_own_size(predictor(batch.image, *given), resize, size, smooth=True)
        # Read the image again at its own size, since the batch has it only at the student's input
        # size.
        image = in_grey_levels(frames[each.index]).image.permute(1, 2, 0).numpy()
        excess = predictor.excess
        if excess is not None:
            excess = _on_host(resizes.at_own_size(excess, resize, size, smooth=True))
        target = "teacher" if is_agreement else "ground truth"
        maps = {"ground truth": _on_host(batch.depth), "teacher": teacher}
        drawn = _draw_pictures(
            image, maps, _on_host(student), excess, target, predictor.network.max_depth
        )
        found.append(Shown(each, _scaled(drawn), size[1] >= _WIDE * size[0], flip))
    return found


def _teacher_depths(
    names: Sequence[str],
    indices: Sequence[int],
    frames: Dataset,
    reference: Reference,
    device: torch.device,
) -> list[tuple[np.ndarray, float | None]]:
    """Returns the teacher's depth of each frame, and how much it changes if the image is mirrored.

    Args:
        names: The frames' names.
        indices: The frames' indices in the student's dataset.
        frames: The dataset in which frames have what the teacher needs. It may have more frames.
        reference: The teacher.
        device: The teacher's device.

    Returns:
        For each frame (depth, change): depth (H, W) in metres, 0 where not valid; and the median
        |log ratio| of the mirrored image's depth to it, None if that can't be predicted.
    """
    # Find the frames by name in the teacher's dataset. It also has frames without ground truth, so
    # their indices may differ.
    places = {frame.name: place for place, frame in enumerate(getattr(frames, "frames", ()))}
    own = [places.get(name, index) for name, index in zip(names, indices, strict=True)]
    subset, size = Subset(frames, own), reference.resize or resizes.OWN_SIZE
    plain = validation_batches(subset, 1, device, resize=size)
    targets = reference.targets(
        validation_batches(subset, 1, device, resize=size), subset, 1, device, NO_WORKERS, size
    )
    found = []
    for (_, batch), (_, target) in zip(plain, targets, strict=True):
        # Skip the mirrored image for cached maps and for several teachers (`resize` is None): the
        # former can't predict it.
        flip = None if reference.resize is None else _flip_change(reference, batch, target.depth)
        found.append((_on_host(target.depth), flip))
    return found


def _flip_change(reference: Reference, batch: Batch, depth: Tensor) -> float | None:
    """Returns how much a teacher's depth changes if the image is mirrored.

    It is the median |log ratio| of the mirrored image's depth, mirrored back, to `depth`.

    Args:
        reference: The teacher.
        batch: A batch of one frame, of the size that the teacher needs.
        depth: (1, 1, H, W), the teacher's depth of the image as it is, metres.

    Returns:
        The median over pixels; None if no pixel has both depths.
    """
    # Mirror the ground truth, too, since a teacher's relative depth may be fitted to it.
    other = mirrored(batch)._replace(depth=batch.depth.flip(-1))
    views_of = {reference.resize: other, None: other}
    flipped = mean_depth(reference.at_own_size(views_of)).flip(-1)
    both = (flipped > 0) & (depth > 0)
    return float((flipped[both] / depth[both]).log().abs().median()) if bool(both.any()) else None


def _draw_pictures(
    image: np.ndarray,
    known: dict[str, np.ndarray | None],
    student: np.ndarray,
    excess: np.ndarray | None,
    target: str,
    max_depth: float,
) -> dict[str, np.ndarray]:
    """Draws the pictures of a frame at the image's own size.

    Args:
        image: (H, W, 3) uint8.
        known: "ground truth" and "teacher" -> (H, W) metres, 0 where unknown; None if there is
            none.
        student: (H, W) metres.
        excess: (H, W) metres, the excess width; None if the student's head gives none.
        target: The key in `known` of the depth that the student is compared with.
        max_depth: End of the depth scale, metres.

    Returns:
        Title of a picture -> (H, W, 3) uint8, in the order in which they are shown.
    """
    largest = max_depth * LARGEST_ERROR
    # Leave out a depth map without any known pixel, such as missing ground truth.
    maps = {name: depth for name, depth in known.items() if depth is not None and (depth > 0).any()}
    drawn = {"image": image}
    for name, depth in maps.items():
        drawn[name] = pictures.colourise(views.dilated(depth), max_depth)
    drawn["student"] = pictures.colourise(student, max_depth)
    if target in maps:
        radius = views.point_radius(maps[target])
        error = pictures.error_map(student, maps[target], largest, radius)
        drawn[f"difference from {target}"] = error
    if excess is not None:
        drawn["excess width"] = pictures.paint_error(excess, largest)
    return drawn


def _scaled(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns pictures reduced to the largest width that a page shows; smaller ones are unchanged.

    Args:
        drawn: Title of a picture -> (H, W, 3) uint8.
    """
    found = {}
    for title, picture in drawn.items():
        height, width = picture.shape[:2]
        wanted = min(width, _WIDTH if width < _WIDE * height else _WIDTH * 3 // 2)
        size = wanted, max(1, round(height * wanted / width))
        found[title] = np.asarray(pictures.resized(picture, size))
    return found


def _on_host(depth: Tensor) -> np.ndarray:
    return depth[0, 0].float().cpu().numpy()
