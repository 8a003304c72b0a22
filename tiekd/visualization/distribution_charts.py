"""Draws charts of single pixels' distributions over depth bins: the target's and the student's.

The network must have a DPM head, which predicts such a distribution for each pixel. The pixels are
chosen by the frame's depths alone, so that a frame shows the same pixels at every evaluation: one
near, one at middle depth, one far, and one at an object edge. A panel of images and charts takes
some 100 ms on the CPU. Not covered: heads with adaptive bins, i.e. bins that depend on the image.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tiekd.kernels.reference import cell_target
from tiekd.kernels.target import bin_centres
from tiekd.models.heads.dpm import Dpm
from tiekd.visualization.charts import Curve, VerticalLine, chart, legend
from tiekd.visualization.pictures import BACKGROUND, FAINT_INK, INK, resized

# Quantiles of a frame's depths at which pixels are chosen for the charts. Among the pixels whose
# log depth differs from the quantile's by less than _SAME, the one nearest to the middle column is
# chosen.
_QUANTILES = {"near": 0.1, "middle": 0.5, "far": 0.9}
_SAME = 0.05
_EDGE_RADIUS = 2
_MAX_CANDIDATES = 20_000
_TARGET = (230, 159, 0)
_STUDENT = (86, 180, 233)
_TRUTH = (245, 245, 245)
_GAP = 8
_MARGIN = 14
_CHART = (400, 250)
# A chart shows the depths between the quantiles 1 - _SHOWN_MASS and _SHOWN_MASS of its
# distributions.
_SHOWN_MASS = 0.995


class Pixel(NamedTuple):
    """A pixel of an image, with its two distributions over the same bins.

    Attributes:
        name: The reason why the pixel was chosen: "near", "middle", "far" or "edge".
        row: Row of the pixel in the image.
        column: Column of the pixel in the image.
        truth: Measured depth of the pixel in metres; 0 if not measured.
        target: (K,) target probabilities of the K depth bins, with which the loss compares the
            student's.
        student: (K,) probabilities that the student predicts.
        centres: (K,) centres of the bins in metres.
    """

    name: str
    row: int
    column: int
    truth: float
    target: np.ndarray
    student: np.ndarray
    centres: np.ndarray


def choose_pixels(truth: np.ndarray, target: np.ndarray) -> list[tuple[str, int, int]]:
    """Chooses up to four pixels of a frame: near, middle, far and at an object edge.

    They are chosen among the pixels with both a measured and a target depth; if there are none,
    among those with a target depth. Chosen pixels keep a distance from the border and from each
    other.

    Args:
        truth: (H, W) measured depth in metres, 0 or below where unknown.
        target: (H, W) target depth in metres, 0 or below where unknown.

    Returns:
        A list with (name, row, column) of each chosen pixel.
    """
    height, width = target.shape
    # Collect the pixels among which to choose: those of known depth away from the border, evenly
    # thinned out to about _MAX_CANDIDATES.
    known = np.isfinite(target) & (target > 0)
    both = known & (truth > 0)
    border = max(min(height, width) // 25, _EDGE_RADIUS)
    inner = (slice(border, -border),) * 2
    rows, columns = np.nonzero((both if both[inner].any() else known)[inner])
    every = max(len(rows) // _MAX_CANDIDATES, 1)
    rows, columns = rows[::every] + border, columns[::every] + border
    if not len(rows):
        return []
    logs = np.log(target[rows, columns])
    off_middle = np.abs(columns - width / 2) / width
    # Rank the collected pixels for each choice: edge, near, middle and far; the lowest value is the
    # best. Choose the edge pixel first, since few pixels are at an edge.
    ranks = {"edge": -_spread(target, known, rows, columns)}
    for name, log in zip(_QUANTILES, np.quantile(logs, list(_QUANTILES.values())), strict=True):
        away = np.abs(logs - log)
        ranks[name] = np.where(away < _SAME, off_middle, 1 + away)
    chosen = []
    free = np.ones(len(rows), dtype=bool)
    for name, rank in ranks.items():
        if free.any():
            best = int(np.where(free, rank, np.inf).argmin())
            chosen.append((name, int(rows[best]), int(columns[best])))
            free &= np.hypot(rows - rows[best], columns - columns[best]) > width / 10
    return [*chosen[1:], chosen[0]]


@torch.no_grad()
def pixel_distributions(
    head: Dpm, features: Tensor, truth: np.ndarray, target: np.ndarray
) -> list[Pixel]:
    """Returns up to four pixels of a frame with the target's and the student's distributions.

    The pixels are chosen by `choose_pixels`. If the head has a lower resolution than the image, one
    distribution belongs to a square of head.stride x head.stride pixels. As in the loss, the target
    distribution is then that of the square. A pixel is left out if its square has no valid target,
    or if the student's output is not finite.

    Args:
        head: The student's head.
        features: (1, C, h, w), the head's input.
        truth: (H, W) measured depth in metres, 0 where unknown.
        target: (H, W) target depth in metres, 0 where unknown.

    Returns:
        A list of `Pixel` objects, which may be empty.
    """
    found = []
    for name, row, column in choose_pixels(truth, target):
        # Compute the target distribution of the square of pixels that one pixel of the head's
        # output covers.
        top, left = (place // head.stride * head.stride for place in (row, column))
        patch = torch.from_numpy(
            target[top : top + head.stride, left : left + head.stride].copy()
        ).to(head.edges)
        if head.stride == 1 or not (patch > 0).any():
            # Use the target depth of the chosen pixel alone if the head's output has the image's
            # resolution, or if the square has no target depth.
            patch = patch.new_full((head.stride, head.stride), float(target[row, column]))
        q, valid = cell_target(
            patch[None, None], head.sigma, None, head.edges, head.target, head.beyond, head.stride
        )
        # Compute the student's distribution at the pixel. Scale the pixel's indices by the ratio of
        # the sizes, because the features' size times the stride can exceed an image whose size
        # isn't a multiple of the stride.
        i = row * features.shape[2] // truth.shape[0]
        j = column * features.shape[3] // truth.shape[1]
        p = head.probabilities(features[:, :, i : i + 1, j : j + 1])
        q, p, centres = (
            values.float().flatten().cpu().numpy() for values in (q, p, bin_centres(head.edges))
        )
        if valid.all() and np.isfinite(p).all():
            found.append(
                Pixel(name, row, column, max(float(truth[row, column]), 0.0), q, p, centres)
            )
    return found


def distribution_panel(
    images: dict[str, np.ndarray], pixels: list[Pixel], target_name: str
) -> np.ndarray:
    """Draws a panel of a frame's images with marked pixels, and a chart per pixel.

    Args:
        images: A dict from title to an (H, W, 3) uint8 image of the frame, all of one size.
        pixels: The pixels, of which the first four get a chart.
        target_name: Name of the target's source in the legend, "teacher" or "ground truth".

    Returns:
        (height, width, 3) uint8.
    """
    height, width = next(iter(images.values())).shape[:2]
    charts_height = 2 * _CHART[1] + _GAP
    cell_height = min(
        (charts_height - 24 * len(images)) // len(images), round(560 * height / width)
    )
    cell = (round(cell_height * width / height), cell_height)
    top, left = 34, _MARGIN + cell[0] + 2 * _GAP
    canvas = Image.new(
        "RGB", (left + 2 * _CHART[0] + _GAP + _MARGIN, top + charts_height + _MARGIN), BACKGROUND
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    y = top
    # Draw the images at the left, with the pixels marked.
    for title, image in images.items():
        draw.text(
            (_MARGIN + cell[0] / 2, y + 10),
            title,
            font=ImageFont.load_default(14),
            fill=INK,
            anchor="mm",
        )
        canvas.paste(_marked(resized(image, cell), pixels, cell[1] / height), (_MARGIN, y + 22))
        y += cell[1] + 24
    # Draw the legend at the top.
    x: float = left
    for colour, name, dashed in (
        (_TARGET, f"learns from the {target_name}", False),
        (_TARGET, "its expectation", True),
        (_STUDENT, "student says", False),
        (_STUDENT, "its expectation", True),
        (_TRUTH, "ground truth", True),
    ):
        x = legend(draw, (x, 18), font, colour, name, dashed)
    # Draw the charts at the right, in two rows and two columns.
    for i, pixel in enumerate(pixels[:4]):
        place = (left + i % 2 * (_CHART[0] + _GAP), top + i // 2 * (_CHART[1] + _GAP))
        canvas.paste(Image.fromarray(_chart(i + 1, pixel)), place)
    if not pixels:
        draw.text((left, top + 20), "no pixel with a known depth", font=font, fill=FAINT_INK)
    return np.asarray(canvas)


def _chart(number: int, pixel: Pixel) -> np.ndarray:
    expected = [float(p @ pixel.centres) for p in (pixel.target, pixel.student)]
    lines = [VerticalLine(expected[0], _TARGET), VerticalLine(expected[1], _STUDENT)]
    if pixel.truth:
        lines.append(VerticalLine(pixel.truth, _TRUTH))
    truth = f"truth {pixel.truth:.2f}, " if pixel.truth else ""
    percents = pixel.target * 100, pixel.student * 100
    return chart(
        [Curve(pixel.centres, percents[0], _TARGET), Curve(pixel.centres, percents[1], _STUDENT)],
        _CHART,
        title=(
            f"{number} {pixel.name}: {truth}target {expected[0]:.2f}, student {expected[1]:.2f} m"
        ),
        x_label="depth in metres; upwards % in each bin",
        lines=lines,
        x_range=_range(pixel, [line.x for line in lines]),
        y_range=(0.0, 1.08 * max(float(p.max()) for p in percents)),
    )


def _range(pixel: Pixel, xs: list[float]) -> tuple[float, float]:
    """Returns the lower and upper end of the depth axis of a pixel's chart, in metres.

    The range includes all of `xs` and nearly all of both distributions. A margin is added at both
    sides, but not below 0 nor above the last bin.

    Args:
        pixel: The pixel.
        xs: Depths in metres at which the chart has vertical lines.
    """
    ends = list(xs)
    for p in (pixel.target, pixel.student):
        bins = np.searchsorted(p.cumsum() / p.sum(), [1 - _SHOWN_MASS, _SHOWN_MASS])
        ends += pixel.centres[np.minimum(bins, len(p) - 1)].tolist()
    low, high = min(ends), max(ends)
    room = max(0.06 * (high - low), 2 * float(np.diff(pixel.centres).max()))
    last = pixel.centres[-1] + (pixel.centres[-1] - pixel.centres[-2]) / 2
    return max(low - room, 0.0), min(high + room, max(last, *xs))


def _marked(image: Image.Image, pixels: list[Pixel], scale: float) -> Image.Image:
    """Draws a numbered ring around each pixel, and returns `image`.

    Rings and numbers are white on black, to be visible on any background.

    Args:
        image: The image to draw on, which is changed.
        pixels: The pixels; the first has number 1.
        scale: The image's size divided by the size of the frame, in whose pixels rows and columns
            are counted.
    """
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)
    for number, pixel in enumerate(pixels, start=1):
        x, y = (pixel.column + 0.5) * scale, (pixel.row + 0.5) * scale
        for radius, colour, width in ((6, (0, 0, 0), 3), (5, (255, 255, 255), 1)):
            draw.ellipse(
                [x - radius, y - radius, x + radius, y + radius], outline=colour, width=width
            )
        side = -1 if x > image.width - 24 else 1
        draw.text(
            (x + side * 13, y),
            str(number),
            font=font,
            fill=(255, 255, 255),
            anchor="mm",
            stroke_width=2,
            stroke_fill=0,
        )
    return image


def _spread(
    target: np.ndarray, known: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Returns the ratio of the largest to the smallest known depth around each of N pixels, (N,).

    A large ratio means an object edge.

    Args:
        target: (H, W) depth in metres.
        known: (H, W) bool, mask of the pixels with a depth.
        rows: (N,) rows of the pixels, at least _EDGE_RADIUS away from the border.
        columns: (N,) columns of the pixels, also at least _EDGE_RADIUS away from the border.
    """
    nearest, farthest = np.full(len(rows), np.inf), np.zeros(len(rows))
    steps = range(-_EDGE_RADIUS, _EDGE_RADIUS + 1)
    for i, j in ((i, j) for i in steps for j in steps):
        at = rows + i, columns + j
        nearest = np.where(known[at], np.minimum(nearest, target[at]), nearest)
        farthest = np.where(known[at], np.maximum(farthest, target[at]), farthest)
    return farthest / nearest
