"""Floors: baselines that ignore the image, which any useful network outperforms.

- the best constant: the single depth with the smallest abs_rel on the evaluated frames themselves,
  so that no other constant is better;
- the training median: the median of all training depths, for every pixel;
- the median map: for each cell of a grid of 48 x 64 cells over the image, the median of the
  training depths in that cell, resized bilinearly to each image.

The abs_rel of the best constant is a mean of scene means: it is averaged over the frames of each
scene, i.e. of each recorded place, and then over the scenes. The grid has the same number of cells
for any image size, because frames may differ in size, and sparse ground truth has few values at a
single pixel.

If the evaluation compares with the teacher, the teacher's depth takes the place of ground truth, in
training frames, too. Then the median map is what a student would have learned that can't see.

Medians are computed from histograms with logarithmic bins of 0.34 %, and are accurate to 0.2 %. So
memory is 50 MB for any number of frames, and 16 KB for each scene. Cost: one pass over the depths
of the training frames and one over those of the evaluated frames. If no training frame has ground
truth, there is neither a training median nor a median map.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple, TextIO

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset, Subset

from tiekd.console import Progress
from tiekd.data.loading.loader import NO_WORKERS, validation_batches
from tiekd.data.resize import OWN_SIZE
from tiekd.errors import DataError, UserError
from tiekd.evaluation import metrics
from tiekd.evaluation.agreement import Reference
from tiekd.evaluation.compare import EvaluatedPredictor
from tiekd.evaluation.evaluate import EvaluationProtocol

GRID = (48, 64)
NAMES = ("best constant", "training median", "median map")
_BINS = 2048
_NEAREST = 1e-3  # lower edge of the first bin, as a fraction of the cap; nearer depths count in it


class Baselines(NamedTuple):
    """The baselines that ignore the image, for one set of evaluated frames.

    Attributes:
        predictors: name of the baseline, one of NAMES -> predictor, in the order of NAMES.
        left_out: name of a baseline that can't be computed -> the reason in one line.
    """

    predictors: dict[str, EvaluatedPredictor]
    left_out: dict[str, str]


def build(
    training: Callable[[], Dataset],
    evaluated: Dataset,
    protocol: EvaluationProtocol,
    scene_of: Callable[[str], str],
    device: torch.device,
    out: TextIO | None = None,
    reference_of: Callable[[Dataset], Reference] | None = None,
    skips_errors: bool = False,
) -> Baselines:
    """Computes the baselines that ignore the image (floors) for one set of evaluated frames.

    It isn't collective: each rank that calls it reads all frames.

    Args:
        training: function that builds the data set of the training frames, whose `depth` is (1, H,
            W) metres, 0 where not measured. If it or reading the frames raises a UserError, e.g.
            because no training frame has ground truth, the two baselines that need training depths
            are left out.
        evaluated: the evaluated frames.
        protocol: the depth range and the crop of the evaluation, and the teacher that takes the
            place of ground truth, if any.
        scene_of: the function from a frame's name to its scene.
        device: the device of the predictors' depth, and of the teacher.
        out: text stream that receives the progress if it is a terminal; None for no progress.
        reference_of: function from the training frames to the teacher that takes the place of their
            ground truth; None for ground truth.
        skips_errors: True to skip training frames that can't be read.

    Returns:
        The predictors by name, and the reasons for those that can't be computed.

    Raises:
        DataError: no evaluated frame has ground truth between the protocol's min_depth and cap.
    """
    truths = target_depths(evaluated, protocol.reference, device, "evaluated frames", out)
    maps = {NAMES[0]: _uniform_map(best_constant(truths, protocol, scene_of))}
    left_out = {}
    try:
        frames = training()
        reference = None if reference_of is None else reference_of(frames)
        depths = target_depths(frames, reference, device, "training frames", out, skips_errors)
        median, cells = measure(depths, protocol.min_depth, protocol.cap)
        maps |= {NAMES[1]: _uniform_map(median), NAMES[2]: cells}
    except UserError as error:
        left_out = dict.fromkeys(NAMES[1:], str(error))
    predictors = {
        name: EvaluatedPredictor(ConstantMap(depth.to(device))) for name, depth in maps.items()
    }
    return Baselines(predictors, left_out)


def _uniform_map(depth: float) -> Tensor:
    return torch.full((1, 1, 1, 1), depth)


class ConstantMap:
    """A predictor that returns the same depth map for every image, resized to the image's size.

    Args:
        depth: (1, 1, h, w) float32, the map, metres.
    """

    def __init__(self, depth: Tensor):
        self.depth = depth

    def __call__(self, image: Tensor) -> Tensor:
        """Returns the map resized bilinearly to the images' size, (B, 1, H, W) metres.

        Args:
            image: (B, ..., H, W); only its size is used.
        """
        size = tuple(image.shape[-2:])
        depth = interpolate(self.depth, size, mode="bilinear", align_corners=False)
        return depth.expand(len(image), -1, -1, -1)


def best_constant(
    depths: Iterable[tuple[str, Tensor]],
    protocol: EvaluationProtocol,
    scene_of: Callable[[str], str],
) -> float:
    """Returns the constant depth with the least abs_rel on the evaluated frames, metres.

    Here abs_rel is the mean over scenes of the mean over each scene's frames.

    Args:
        depths: the name and the true depth, (H, W) metres, of each evaluated frame.
        protocol: the depth range and the crop of the evaluation.
        scene_of: the function from a frame's name to its scene.

    Raises:
        DataError: no frame has ground truth in the range.
    """
    bins = _Bins(protocol.cap)
    # Collect for each scene a histogram of its depths, each with a weight, and the number of its
    # frames with ground truth.
    scenes: dict[str, tuple[Tensor, int]] = {}
    for name, depth in depths:
        rows, columns = metrics.crop_box(protocol.settings.crop, *depth.shape)
        depth = depth[rows, columns]
        values = depth[(depth > protocol.min_depth) & (depth < protocol.cap)].double()
        if not len(values):
            continue
        # Weight each depth t of a frame with n depths by 1 / (t n). The weighted median c minimises
        # the mean over frames of the frame's mean |c - t| / t.
        shares = torch.bincount(bins.of(values), 1 / (values * len(values)), minlength=_BINS)
        weights, count = scenes.get(scene_of(name), (0, 0))
        scenes[scene_of(name)] = (weights + shares, count + 1)
    # Divide each scene's weights by its number of frames, so that all scenes have the same
    # influence.
    weights = sum((weights / count for weights, count in scenes.values()), torch.zeros(_BINS))
    _check_any(weights, "evaluated", protocol.min_depth, protocol.cap)
    return float(_medians(weights, bins.edges))


def measure(
    depths: Iterable[tuple[str, Tensor]], min_depth: float, cap: float
) -> tuple[float, Tensor]:
    """Computes the median of all training depths, and that in each cell of a grid over the image.

    Args:
        depths: the name and the true depth of each training frame, (H, W) metres, 0 where not
            measured.
        min_depth: exclusive lower bound of the depths that are used, metres.
        cap: exclusive upper bound of the depths that are used, metres.

    Returns:
        (median, map): the median of all depths, metres; and the median in each of 48 x 64 cells
        over the image, (1, 1, 48, 64) float32, metres. A cell without a depth has the median of its
        row of cells, or of all depths.

    Raises:
        DataError: no training frame has ground truth between the bounds.
    """
    bins = _Bins(cap)
    counts = torch.zeros(GRID[0] * GRID[1] * _BINS, dtype=torch.int32)
    for _, depth in depths:
        valid = (depth > min_depth) & (depth < cap)
        rows, columns = valid.nonzero(as_tuple=True)
        cells = (rows * GRID[0] // depth.shape[0]) * GRID[1] + columns * GRID[1] // depth.shape[1]
        places = cells * _BINS + bins.of(depth[valid].double())
        counts.index_add_(0, places, torch.ones(len(places), dtype=torch.int32))
    counts = counts.view(*GRID, _BINS).double()
    everywhere = counts.sum((0, 1))
    _check_any(everywhere, "training", min_depth, cap)
    # Give a cell without any depth the median of its row of cells, and a row without any the median
    # of all depths.
    median = _medians(everywhere, bins.edges)
    row_medians = _medians(counts.sum(1), bins.edges)
    row_medians = torch.where(row_medians.isnan(), median, row_medians)
    cells = _medians(counts, bins.edges)
    cells = torch.where(cells.isnan(), row_medians[:, None], cells)
    return float(median), cells.float()[None, None]


def target_depths(
    frames: Dataset,
    reference: Reference | None,
    device: torch.device,
    noun: str,
    out: TextIO | None,
    skips_errors: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and the true depth of each frame, (H, W) metres, and shows the progress.

    Frames without ground truth are skipped.

    Args:
        frames: the frames.
        reference: the teacher whose depth takes the place of ground truth; None for ground truth.
        device: the teacher's device.
        noun: what the frames are called in the progress, e.g. "training frames".
        out: text stream that receives the progress if it is a terminal; None for no progress.
        skips_errors: True to skip frames that can't be read, too, as `data.on_error: skip` says.

    Raises:
        DataError: a frame can't be read.
    """
    seen = 0
    total = len(frames)
    shown = nullcontext() if out is None else Progress(noun, total, lambda: seen, out, False)
    with shown as progress:
        for index in range(total):
            try:
                name, depth = _true_depth(frames, index, reference, device)
            except DataError:
                if not skips_errors:
                    raise
                depth = None
            if depth is not None:
                yield name, depth[0]
            seen += 1
            if progress is not None:
                progress.update()


def _true_depth(
    frames: Dataset, index: int, reference: Reference | None, device: torch.device
) -> tuple[str, Tensor | None]:
    """Returns a frame's name and its true depth, (1, H, W) metres, or None if it has none.

    Args:
        frames: the frames.
        index: the frame's index.
        reference: the teacher whose depth takes the place of ground truth; None for ground truth.
        device: the teacher's device.
    """
    if reference is None:
        sample = frames[index]
        return sample.name, sample.depth
    frame = Subset(frames, [index])
    batches = reference.targets(
        validation_batches(frame, 1, device), frame, 1, device, NO_WORKERS, OWN_SIZE
    )
    ((_, batch),) = batches
    return batch.names[0], batch.depth[0].cpu()


def _check_any(weights: Tensor, noun: str, min_depth: float, cap: float) -> None:
    if not bool(weights.any()):
        raise DataError(
            f"no {noun} frame has depth between {min_depth} and {cap} m, from which the floors are "
            "computed; give other frames"
        )


class _Bins:
    """_BINS depth bins of equal width in the logarithm of depth, from cap * _NEAREST to `cap`.

    Args:
        cap: upper edge of the last bin, metres.

    Attributes:
        edges: (_BINS + 1,) float64, the bins' edges in increasing order, metres.
    """

    def __init__(self, cap: float):
        self._lowest = cap * _NEAREST
        self._width = -math.log(_NEAREST) / _BINS
        steps = torch.arange(_BINS + 1, dtype=torch.float64)
        self.edges = self._lowest * torch.exp(self._width * steps)

    def of(self, depths: Tensor) -> Tensor:
        """Returns the index of the bin that contains each depth, (N,) int64.

        Depths beyond the bins are assigned to the first or the last bin.

        Args:
            depths: (N,) float64, metres.
        """
        logs = (depths.clamp(min=self._lowest) / self._lowest).log()
        return (logs / self._width).long().clamp(max=_BINS - 1)


def _medians(weights: Tensor, edges: Tensor) -> Tensor:
    """Returns weighted medians along the last dimension, interpolated within their bin.

    Args:
        weights: (..., bins), the sum of the weights of the values in each bin.
        edges: (bins + 1,), the bins' edges.

    Returns:
        (...), in the unit of `edges`; NaN where all weights are 0.
    """
    sums = weights.cumsum(-1)
    half = sums[..., -1:] / 2
    index = torch.searchsorted(sums, half).clamp(max=weights.shape[-1] - 1)
    within = weights.gather(-1, index)
    before = sums.gather(-1, index) - within
    share = ((half - before) / within)[..., 0]
    index = index[..., 0]
    return edges[index] + share * (edges[index + 1] - edges[index])
