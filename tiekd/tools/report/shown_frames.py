"""Draws the worst, median and best validation frames for a report.

The frames are chosen by their figures after the evaluation and read once more, so that the pass
over all frames keeps no map. Each map is drawn with the scales that the evaluation's other pictures
have: depth to the network's largest depth, error and excess width to an eighth of it.
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

_EACH = 3  # frames of each kind
_WIDTH = 320  # largest width of a picture, pixels; of wide images half as much again
_WIDE = 2.0  # ratio of width to height from which images are wide
LARGEST_ERROR = 1 / 8  # end of the scales of error and width, as a fraction of the depth scale


class Chosen(NamedTuple):
    """A frame that is shown.

    Attributes:
        kind: "worst", "median" or "best".
        index: Its index in the dataset.
        name: Its name.
        abs_rel: Its figure.
    """

    kind: str
    index: int
    name: str
    abs_rel: float


class Shown(NamedTuple):
    """A frame with its pictures.

    Attributes:
        chosen: The frame.
        cells: Title -> (H, W, 3) uint8.
        is_wide: True for images that need more of the page's width.
        teacher_flip: Median |log ratio| of the teacher's depth of the mirrored image to that of the
            image; None if it can't be asked.
    """

    chosen: Chosen
    cells: dict[str, np.ndarray]
    is_wide: bool
    teacher_flip: float | None


def choose(table: FrameTable, each: int = _EACH) -> list[Chosen]:
    """Returns the worst, the median and the best frames by abs_rel, no frame twice.

    Args:
        table: The results of all frames. Those without a pixel that counts are left out.
        each: Maximum number of frames of each kind.
    """
    column = table.column("abs_rel")
    # An infinite error, of a prediction that is no depth, is the worst.
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
    taught: tuple[Dataset, Reference] | None,
    is_agreement: bool,
    predictor: WatchedPredictor,
    resize: Resize,
    device: torch.device,
) -> list[Shown]:
    """Draws frames as image, ground truth, teacher, student, difference and confidence.

    The difference is that of the student from what it is compared with.

    Args:
        chosen: The frames to draw.
        frames: The dataset.
        taught: The dataset in which frames have what the teacher needs, and the teacher; None
            without a teacher.
        is_agreement: True if figures compare with the teacher, not with the ground truth.
        predictor: The student.
        resize: The student's working resolution.
        device: The device of student and teacher.

    Raises:
        UserError: A frame can't be read, or the teacher can't take it.
    """
    if not chosen:
        return []
    indices = [each.index for each in chosen]
    batches = validation_batches(Subset(frames, indices), 1, device, resize=resize)
    teachers = [None] * len(chosen)
    if taught is not None:
        teachers = _teacher_depths([each.name for each in chosen], indices, *taught, device)
    found = []
    for each, (_, batch), (teacher, flip) in zip(
        chosen, batches, [pair or (None, None) for pair in teachers], strict=True
    ):
        size = tuple(batch.depth.shape[-2:])
        given = (focals.of_batch(batch, resize),) if predictor.needs_focal else ()
        student = resizes.restored(predictor(batch.image, *given), resize, size, smooth=True)
        # The batch has the image at the working resolution only.
        image = in_grey_levels(frames[each.index]).image.permute(1, 2, 0).numpy()
        excess = predictor.excess
        if excess is not None:
            excess = _on_host(resizes.restored(excess, resize, size, smooth=True))
        target = "teacher" if is_agreement else "ground truth"
        maps = {"ground truth": _on_host(batch.depth), "teacher": teacher}
        cells = _cells(image, maps, _on_host(student), excess, target, predictor.network.max_depth)
        found.append(Shown(each, _scaled(cells), size[1] >= _WIDE * size[0], flip))
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
        indices: Their indices in the student's dataset.
        frames: The dataset in which frames have what the teacher needs. It may have more frames.
        reference: The teacher.
        device: The teacher's device.
    """
    # Frames without ground truth are in the teacher's dataset only, so indices may differ.
    places = {frame.name: place for place, frame in enumerate(getattr(frames, "frames", ()))}
    own = [places.get(name, index) for name, index in zip(names, indices, strict=True)]
    subset, size = Subset(frames, own), reference.resize or resizes.OWN_SIZE
    plain = validation_batches(subset, 1, device, resize=size)
    targets = reference.targets(
        validation_batches(subset, 1, device, resize=size), subset, 1, device, NO_WORKERS, size
    )
    found = []
    for (_, batch), (_, target) in zip(plain, targets, strict=True):
        # Stored maps can't be asked for another image; neither are several teachers at once.
        flip = None if reference.resize is None else _flip_change(reference, batch, target.depth)
        found.append((_on_host(target.depth), flip))
    return found


def _flip_change(reference: Reference, batch: Batch, depth: Tensor) -> float | None:
    """Returns the median |log ratio| of the teacher's depth of a mirrored image to that of it.

    Args:
        reference: The teacher.
        batch: A batch of one frame, of the size that the teacher needs.
        depth: (1, 1, H, W), the teacher's depth of the image as it is.
    """
    # A relative teacher may be fitted to the ground truth, so that is mirrored too.
    other = mirrored(batch)._replace(depth=batch.depth.flip(-1))
    views_of = {reference.resize: other, None: other}
    flipped = mean_depth(reference.at_own_size(views_of)).flip(-1)
    both = (flipped > 0) & (depth > 0)
    return float((flipped[both] / depth[both]).log().abs().median()) if bool(both.any()) else None


def _cells(
    image: np.ndarray,
    known: dict[str, np.ndarray | None],
    student: np.ndarray,
    excess: np.ndarray | None,
    target: str,
    max_depth: float,
) -> dict[str, np.ndarray]:
    """Returns the pictures of a frame at its own size, by title.

    Args:
        image: (H, W, 3) uint8.
        known: "ground truth" and "teacher": (H, W) metres, 0 where unknown; None without any.
        student: (H, W) metres.
        excess: (H, W) metres, the excess width; None if the student's head gives none.
        target: The key in `known` of what the student is compared with.
        max_depth: End of the depth scale, metres.
    """
    largest = max_depth * LARGEST_ERROR
    # A frame without any measured pixel has no picture of its ground truth.
    maps = {name: depth for name, depth in known.items() if depth is not None and (depth > 0).any()}
    cells = {"image": image}
    for name, depth in maps.items():
        cells[name] = pictures.colourise(views.grown(depth), max_depth)
    cells["student"] = pictures.colourise(student, max_depth)
    if target in maps:
        radius = views.point_radius(maps[target])
        error = pictures.error_map(student, maps[target], largest, radius)
        cells[f"difference from {target}"] = error
    if excess is not None:
        cells["excess width"] = pictures.paint_error(excess, largest)
    return cells


def _scaled(cells: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns pictures of at most the width that a page shows.

    Args:
        cells: Title -> (H, W, 3) uint8.
    """
    found = {}
    for title, cell in cells.items():
        height, width = cell.shape[:2]
        wanted = min(width, _WIDTH if width < _WIDE * height else _WIDTH * 3 // 2)
        size = wanted, max(1, round(height * wanted / width))
        found[title] = np.asarray(pictures.resized(cell, size))
    return found


def _on_host(depth: Tensor) -> np.ndarray:
    return depth[0, 0].float().cpu().numpy()
