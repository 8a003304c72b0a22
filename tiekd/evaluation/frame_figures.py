"""The errors of each frame, by which experiments compare networks.

They are abs_rel, silog, the sums of errors by depth range, abs_rel after median alignment and,
where ground truth is dense, the fraction of predicted points at depth edges that are in mid-air
between the near and the far surface. Median alignment multiplies a frame's predicted depth by the
ratio of the medians of true and predicted depth, so that a wrong global scale costs nothing.
`AlignedFigures` is passed to `evaluate.evaluate` as a watcher. It costs two medians per frame and,
with dense ground truth, some ten max-pools; each frame is a host sync, which an evaluation can
afford. Not covered: alignment by scale and shift, after which depth isn't metric any more.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.evaluation import metrics
from tiekd.evaluation.edge_metric import mid_air
from tiekd.evaluation.per_frame import FrameTable

# A frame's ground truth is called dense if at least this fraction of the evaluated pixels has it.
DENSE_SHARE = 0.5
FIGURES = ("abs_rel", "abs_rel_aligned", "silog", "edge")  # for all of them, smaller is better


@dataclass(frozen=True)
class FrameFigures:
    """The errors of one frame; NaN where an error isn't defined.

    Attributes:
        name: the frame's name in its dataset.
        pixels: number of pixels with valid ground truth.
        abs_rel: mean of |prediction - truth| / truth.
        abs_rel_aligned: abs_rel after the prediction is multiplied by the ratio of the medians of
            truth and prediction.
        silog: scale-invariant logarithmic error, percent.
        edge: fraction of the pixels near depth edges whose predicted depth is between the edge's
            two sides, 0 to 1.
        ranges: for each depth range, nearest first: the number of pixels, and the sums of errors
            that `range_errors.range_sums` returns.
    """

    name: str
    pixels: int
    abs_rel: float
    abs_rel_aligned: float
    silog: float
    edge: float
    ranges: list[list[float]]

    def as_json(self) -> dict:
        """Returns the attributes as a dict of values for JSON: NaN becomes None, infinity "inf"."""
        plain = asdict(self)
        for key in FIGURES:
            value = plain[key]
            plain[key] = None if math.isnan(value) else value if math.isfinite(value) else "inf"
        plain["ranges"] = [
            [value if math.isfinite(value) else "inf" for value in sums] for sums in self.ranges
        ]
        return plain

    @classmethod
    def from_json(cls, plain: dict) -> "FrameFigures":
        """Restores the errors of a frame from the plain values that `as_json` returned.

        Args:
            plain: the values of one frame, as read from JSON.
        """
        values = dict(plain)
        for key in FIGURES:
            values[key] = math.nan if plain[key] is None else float(plain[key])
        values["ranges"] = [[float(value) for value in sums] for sums in plain["ranges"]]
        return cls(**values)


class AlignedFigures:
    """Collects the errors `abs_rel_aligned` and `edge` of `FrameFigures` for frames of one rank.

    `abs_rel_aligned` is abs_rel after the prediction is multiplied by the ratio of the medians of
    truth and prediction. `edge` is the fraction of pixels near depth edges whose predicted depth is
    between the two sides; it is NaN for frames without dense ground truth. An instance is passed to
    `evaluate.evaluate` as a watcher, i.e. it is called after each batch.

    Args:
        min_depth: exclusive lower bound of valid ground truth, metres.
        cap: exclusive upper bound of valid ground truth, metres.
        crop: name of the evaluated part of an image, as for `metrics.crop_box`.
    """

    def __init__(self, min_depth: float, cap: float, crop: str):
        self.min_depth = min_depth
        self.cap = cap
        self.crop = crop
        self._by_index: dict[int, tuple[float, float]] = {}

    def __call__(self, indices: list[int], batch: Batch, depth: Tensor, _rows: Tensor) -> None:
        """Computes and stores the errors of a batch of B frames.

        Args:
            indices: the frames' indices in the dataset.
            batch: the batch, with the ground truth.
            depth: (B, 1, H, W), predicted depth, metres.
            _rows: (B, 9), the metrics of each frame; not used.
        """
        rows, columns = metrics.crop_box(self.crop, *depth.shape[-2:])
        for position, index in enumerate(indices):
            predicted = depth[position : position + 1, :, rows, columns].float()
            truth = batch.depth[position : position + 1, :, rows, columns].float()
            aligned = self._aligned_abs_rel(predicted, truth)
            self._by_index[index] = (aligned, self._edge_error(predicted, truth))

    def _aligned_abs_rel(self, predicted: Tensor, truth: Tensor) -> float:
        valid = (truth > self.min_depth) & (truth < self.cap)
        if not bool(valid.any()):
            return math.nan
        true_depths, depths = truth[valid].double(), predicted[valid].double()
        # A predicted depth that isn't finite or isn't above 0 makes the error infinite, not NaN, as
        # in `metrics.depth_metrics`.
        if not bool((torch.isfinite(depths) & (depths > 0)).all()):
            return math.inf
        scale = true_depths.median() / depths.median()
        return float(((scale * depths - true_depths).abs() / true_depths).mean())

    def _edge_error(self, predicted: Tensor, truth: Tensor) -> float:
        known = (truth > self.min_depth) & (truth < self.cap)
        if float(known.float().mean()) < DENSE_SHARE:
            return math.nan
        return mid_air(predicted, torch.where(known, truth, 0.0)).share

    def figures(self, table: FrameTable) -> list[FrameFigures]:
        """Returns the errors of each frame as a list, in the dataset's order.

        Args:
            table: the metrics per frame of the same evaluation, of which abs_rel, silog and `sums`
                are used; in the dataset's order.
        """
        assert len(self._by_index) == len(table.names)
        columns = (table.column("abs_rel").tolist(), table.column("silog").tolist())
        found = []
        for index, name in enumerate(table.names):
            aligned, edge = self._by_index[index]
            found.append(
                FrameFigures(
                    name,
                    table.pixels[index],
                    columns[0][index],
                    aligned,
                    columns[1][index],
                    edge,
                    table.sums[index].tolist(),
                )
            )
        return found
