"""Charts of a pixel's two distributions over the bins: the target's and the student's output.

It is for networks with a DPM head. A rule that depends on the frame's depths alone chooses the
pixels, so a frame shows the same ones at every evaluation: one near, one of middle depth, one far
and one at the edge of an object. A panel takes some 100 ms on the CPU. Left out: heads whose bins
move with the image.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tiekd.kernels.reference import cell_target
from tiekd.kernels.target import bin_centres
from tiekd.models.heads.dpm import Dpm
from tiekd.visualization.charts import Curve, Mark, chart, legend
from tiekd.visualization.pictures import BACKGROUND, FAINT_INK, INK, resized

# Of the pixels whose depth is within _SAME of these quantiles of the frame's depths, the one
# nearest to the middle column is chosen.
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
_SHOWN_MASS = 0.995  # the share of each distribution that a chart's range includes


class Pixel(NamedTuple):
    """A pixel of an image, with its two distributions over the same bins.

    Attributes:
        name: "near", "middle", "far" or "edge".
        row: Its row.
        column: Its column.
        truth: Metres, 0 where not measured.
        target: (K,) probabilities that the student learns from.
        student: (K,) probabilities that it predicts.
        centres: (K,) metres, the bins' centres.
    """

    name: str
    row: int
    column: int
    truth: float
    target: np.ndarray
    student: np.ndarray
    centres: np.ndarray


def choose_pixels(truth: np.ndarray, target: np.ndarray) -> list[tuple[str, int, int]]:
    """Chooses up to four pixels of a frame.

    They lie where both depths are known, or the target if there is no truth, and keep away from the
    border and each other.

    Args:
        truth: (H, W) metres, not above 0 where unknown.
        target: (H, W) metres, not above 0 where unknown.

    Returns:
        (name, row, column) of each.
    """
    height, width = target.shape
    # Candidates: known pixels away from the border, thinned to a bounded number.
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
    # Edges are chosen first, since they have the fewest candidates, and listed last.
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
    """Returns the chosen pixels of one frame with their distributions.

    The target's distribution is that of the pixel's cell of the head, as in the divergence. A pixel
    that the head ignores, or at which the student's numbers are not finite, is left out.

    Args:
        head: The student's head.
        features: (1, C, h, w), the head's input.
        truth: (H, W) metres, 0 where unknown.
        target: (H, W) metres, 0 where unknown.
    """
    found = []
    for name, row, column in choose_pixels(truth, target):
        # The target's distribution in the pixel's cell.
        top, left = (place // head.stride * head.stride for place in (row, column))
        patch = torch.from_numpy(
            target[top : top + head.stride, left : left + head.stride].copy()
        ).to(head.edges)
        if head.stride == 1 or not (patch > 0).any():
            # A head at full resolution, or a cell without a target, takes the pixel's own depth.
            patch = patch.new_full((head.stride, head.stride), float(target[row, column]))
        q, valid = cell_target(
            patch[None, None], head.sigma, None, head.edges, head.target, head.beyond, head.stride
        )
        # The student's, at the pixel's feature. A decoder's output can be larger than a size that
        # its strides don't divide.
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
        images: (H, W, 3) uint8 images of one frame by their titles.
        pixels: The pixels, of which four are shown.
        target_name: Where the target comes from.

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
    # Images at the left, with marked pixels.
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
    # Legend at the top.
    x: float = left
    for colour, name, dashed in (
        (_TARGET, f"learns from the {target_name}", False),
        (_TARGET, "its expectation", True),
        (_STUDENT, "student says", False),
        (_STUDENT, "its expectation", True),
        (_TRUTH, "ground truth", True),
    ):
        x = legend(draw, (x, 18), font, colour, name, dashed)
    # Charts at the right, two by two.
    for i, pixel in enumerate(pixels[:4]):
        place = (left + i % 2 * (_CHART[0] + _GAP), top + i // 2 * (_CHART[1] + _GAP))
        canvas.paste(Image.fromarray(_chart(i + 1, pixel)), place)
    if not pixels:
        draw.text((left, top + 20), "no pixel with a known depth", font=font, fill=FAINT_INK)
    return np.asarray(canvas)


def _chart(number: int, pixel: Pixel) -> np.ndarray:
    expected = [float(p @ pixel.centres) for p in (pixel.target, pixel.student)]
    marks = [Mark(expected[0], _TARGET), Mark(expected[1], _STUDENT)]
    if pixel.truth:
        marks.append(Mark(pixel.truth, _TRUTH))
    truth = f"truth {pixel.truth:.2f}, " if pixel.truth else ""
    percents = pixel.target * 100, pixel.student * 100
    return chart(
        [Curve(pixel.centres, percents[0], _TARGET), Curve(pixel.centres, percents[1], _STUDENT)],
        _CHART,
        title=(
            f"{number} {pixel.name}: {truth}target {expected[0]:.2f}, student {expected[1]:.2f} m"
        ),
        x_label="depth in metres; upwards % in each bin",
        marks=marks,
        x_range=_range(pixel, [mark.x for mark in marks]),
        y_range=(0.0, 1.08 * max(float(p.max()) for p in percents)),
    )


def _range(pixel: Pixel, xs: list[float]) -> tuple[float, float]:
    """Returns metres that include the marks and nearly all of both distributions.

    There is some room at both sides, within the bins.
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
    """Draws a ring around each pixel with its number, white on black to show on any background."""
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
    """Returns (N,) ratios of the farthest to the nearest known depth around each pixel."""
    nearest, farthest = np.full(len(rows), np.inf), np.zeros(len(rows))
    steps = range(-_EDGE_RADIUS, _EDGE_RADIUS + 1)
    for i, j in ((i, j) for i in steps for j in steps):
        at = rows + i, columns + j
        nearest = np.where(known[at], np.minimum(nearest, target[at]), nearest)
        farthest = np.where(known[at], np.maximum(farthest, target[at]), farthest)
    return farthest / nearest
