"""Evaluates a run's student for its report, in one pass over the validation frames.

The metrics are those of bin/evaluate.py, from the same code. The same pass also measures how much
each depth changes if the image is mirrored, and how well the excess width of the student's
distribution over depth bins (tiekd/models/spread.py) agrees with its errors. Excess width isn't the
sigma of predictions and exported files (tiekd/models/confidence.py), which bin/calibrate.py
measures. Excess width and error are those of the image as it is, without flip averaging. Memory:
metrics per frame, and at most _MAX_FRAMES x _MAX_PIXELS pixels with their excess widths, some 6 MB;
no depth map is kept.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tiekd.data import frame_table
from tiekd.data import resize as resizes
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import Loading
from tiekd.data.resize import Resize
from tiekd.evaluation import compare, metrics, sigma_quality
from tiekd.evaluation.compare import EvaluatedPredictor, Result
from tiekd.evaluation.evaluate import EvaluationProtocol
from tiekd.evaluation.floors import ConstantMap
from tiekd.evaluation.frame_figures import AlignedFigures, FrameFigures
from tiekd.evaluation.sigma_quality import SigmaFigures, SigmaFrame
from tiekd.models.network import Network
from tiekd.models.spread import Spread

_MAX_FRAMES = 256  # largest number of frames of which pixels are sampled
_MAX_PIXELS = 2000  # largest number of sampled pixels per frame
# Probabilities p of the intervals depth +- z(p) * sigma; the report shows the fraction of errors
# within each.
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Standard deviation of a Gaussian / mean of its absolute value.
_STD_OF_MEAN = math.sqrt(math.pi / 2)


class Reliability(NamedTuple):
    """The agreement of the excess widths of a student's distributions with its errors.

    Attributes:
        observed: For each probability p in LEVELS the fraction of pixels whose error is within the
            interval around the predicted depth that would hold a fraction p if errors were Gaussian
            with the excess width as standard deviation.
        factor: The factor by which excess widths have to be multiplied to agree with the errors on
            average. If it is above 1, they are too small, i.e. the student is over-confident.
    """

    observed: list[float]
    factor: float


class Measured(NamedTuple):
    """The evaluation of a student on some frames.

    Attributes:
        result: The metrics of bin/evaluate.py.
        frames: The errors of each frame.
        relative_bias: Mean of (prediction - target) / target over all evaluated pixels.
        flip: Median over frames of the median |log ratio| of the depth of the mirrored image to
            that of the image; None if the evaluation has no flip averaging.
        sizes: (height, width) in pixels -> number of images of this size.
        excess: How well pixels with larger errors have a larger excess width; None for a head
            without a distribution.
        reliability: How large the excess width is compared with the errors; None for a head without
            a distribution, or if no pixel was evaluated.
        pixels: The sampled pixels of some frames, with the excess width as sigma.
        floor: The metrics of a depth map that ignores the image, on the same frames; None if no map
            was given.
    """

    result: Result
    frames: list[FrameFigures]
    relative_bias: float
    flip: float | None
    sizes: Counter
    excess: SigmaFigures | None
    reliability: Reliability | None
    pixels: list[SigmaFrame]
    floor: dict[str, float] | None = None


class WatchedPredictor:
    """A network as a function from images to depth, which keeps maps of the last batch.

    Each call sets the attributes, for its batch.

    Attributes:
        depth: (B, 1, H, W) metres, of the images as they are.
        excess: (B, 1, H, W) metres, the excess width; None for a head without a distribution over
            depth bins.
        change: (B,) median |log ratio| of the mirrored image's depth to `depth`; None without flip.

    Args:
        network: The network, in eval mode.
        flip: True to return the mean of the depths of the image and its mirror image.
    """

    def __init__(self, network: Network, flip: bool):
        self.network, self.flip = network, flip
        self.spread = Spread(network.head) if Spread.supports(network.head) else None
        self.depth: Tensor | None = None
        self.excess: Tensor | None = None
        self.change: Tensor | None = None

    @property
    def needs_focal(self) -> bool:
        """True if the network predicts depth for one canonical focal length.

        Then each image's focal length is needed as the second argument.
        """
        return self.network.canonical is not None

    @torch.no_grad()
    def __call__(self, image: Tensor, focal: Tensor | None = None) -> Tensor:
        """Predicts depth like `tiekd.models.flip.predict`; sets `depth`, `excess` and `change`.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
            focal: (B,), focal length of each image in pixels of `image`; None if the network
                doesn't need it (`needs_focal`).

        Returns:
            (B, 1, H, W) float32, metres.
        """
        size = tuple(image.shape[-2:])
        features = self.network.features(image)
        self.depth = self.network.read(features, size, focal=focal).depth
        if self.spread is not None:
            self.excess = self.spread(features, size).sigma
            if self.network.canonical is not None:
                self.excess = self.network.canonical.to_metres(self.excess, focal)
        if not self.flip:
            return self.depth
        mirrored = self.network(image.flip(-1), **({} if focal is None else {"focal": focal}))
        mirrored = mirrored.depth.flip(-1)
        ratio = (mirrored / self.depth).log().abs()
        self.change = ratio.flatten(1).median(1).values
        return (self.depth + mirrored) / 2


class _Pixels:
    """A callback of an evaluation that samples pixels with their excess width, error and depth.

    It also sums relative errors, and counts images by size.

    Args:
        predictor: The predictor that is evaluated, which keeps depth and excess width of its
            last batch.
        protocol: The evaluation's crop and depth range, which select the pixels.
        resize: How images are resized to the network's input size.
        total: Number of frames of the evaluation.
    """

    def __init__(
        self, predictor: WatchedPredictor, protocol: EvaluationProtocol, resize: Resize, total: int
    ):
        self.predictor, self.protocol, self.resize = predictor, protocol, resize
        self.every = -(-total // _MAX_FRAMES)
        self.kept: dict[int, SigmaFrame] = {}
        self.changes: list[float] = []
        self.sizes: Counter = Counter()
        self.relative, self.count = 0.0, 0

    def __call__(self, indices: list[int], batch: Batch, depth: Tensor, _rows: Tensor) -> None:
        """Adds a batch that has just been evaluated.

        Args:
            indices: The frames' indices.
            batch: The batch, whose `depth` is the target.
            depth: (B, 1, H, W), predicted depth, metres.
            _rows: Not used.
        """
        size = tuple(batch.depth.shape[-2:])
        self.sizes[size] += len(indices)
        if self.predictor.change is not None:
            self.changes += self.predictor.change.tolist()
        box = (..., *metrics.crop_box(self.protocol.settings.crop, *size))
        truth = batch.depth[box]
        counts = (truth > self.protocol.min_depth) & (truth < self.protocol.cap)
        relative = (depth[box].double() - truth) / truth.double()
        self.relative += float(torch.where(counts, relative, 0.0).sum())
        self.count += int(counts.sum())
        if self.predictor.excess is None:
            return
        plain, excess = (
            resizes.at_own_size(values, self.resize, size, smooth=True)[box]
            for values in (self.predictor.depth, self.predictor.excess)
        )
        for place, index in enumerate(indices):
            if index % self.every == 0:
                here = counts[place]
                maps = excess[place][here], plain[place][here], truth[place][here]
                self.kept[index] = _sample(*(each.cpu().numpy() for each in maps), index)


class _Floor:
    """A callback of an evaluation that computes the metrics of one depth map on the same frames.

    Args:
        predictor: The map as a predictor.
        protocol: The evaluation's crop and depth range.
    """

    def __init__(self, predictor: ConstantMap, protocol: EvaluationProtocol):
        self.predictor, self.protocol = predictor, protocol
        self.rows: list[Tensor] = []

    def __call__(self, _indices: list[int], batch: Batch, depth: Tensor, _rows: Tensor) -> None:
        """Adds a batch that has just been evaluated.

        Args:
            _indices: Not used.
            batch: The batch, whose `depth` is the target.
            depth: (B, 1, H, W), the student's depth; only its size is used.
            _rows: Not used.
        """
        protocol = self.protocol
        self.rows.append(
            metrics.depth_metrics(
                self.predictor(depth),
                batch.depth,
                protocol.min_depth,
                protocol.cap,
                protocol.settings.crop,
            )
        )

    def figures(self) -> dict[str, float]:
        """Returns name -> mean over the frames, for each of METRIC_NAMES."""
        return metrics.aggregate(torch.cat(self.rows).cpu().double())


def evaluate(
    student: EvaluatedPredictor,
    frames: Dataset,
    protocol: EvaluationProtocol,
    device: torch.device,
    loading: Loading,
    stream: TextIO,
    floor: ConstantMap | None = None,
) -> Measured:
    """Evaluates a student on all frames of a dataset.

    Args:
        student: The student, as `compare.load_networks` returns it.
        frames: The dataset.
        protocol: The evaluation's crop, depth range, flip averaging and reference.
        device: The student's device.
        loading: Number and timeout of data workers.
        stream: Text stream that receives the progress.
        floor: A depth map that ignores the image, to be evaluated in the same pass; None for none.

    Returns:
        The metrics and other measurements.

    Raises:
        DataError: A frame can't be read.
    """
    predictor = WatchedPredictor(student.predict.network, student.predict.flip)
    pixels = _Pixels(predictor, protocol, student.resize, len(frames))
    aligned = AlignedFigures(protocol.min_depth, protocol.cap, protocol.settings.crop)
    watched = student._replace(predict=predictor)
    baseline = None if floor is None else _Floor(floor, protocol)
    watchers = [aligned, pixels, *([] if baseline is None else [baseline])]
    result = compare.evaluate(watched, frames, protocol, device, loading, stream, watchers)
    kept = [pixels.kept[index] for index in sorted(pixels.kept)]
    has_excess = predictor.spread is not None
    return Measured(
        result,
        aligned.figures(result.frames),
        pixels.relative / pixels.count if pixels.count else math.nan,
        float(np.median(pixels.changes)) if pixels.changes else None,
        pixels.sizes,
        sigma_quality.measure(kept, protocol.max_depth) if has_excess else None,
        reliability(kept) if has_excess else None,
        kept,
        None if baseline is None else baseline.figures(),
    )


def reliability(frames: Sequence[SigmaFrame], factor: float = 1.0) -> Reliability | None:
    """Compares sigmas (the student's estimates of its errors) with errors, over all pixels.

    Args:
        frames: Sigma, error and depth of the pixels of each frame.
        factor: The factor by which sigmas are multiplied first.

    Returns:
        The fractions of errors within intervals of several probabilities, and the factor by which
        sigmas have to be multiplied to agree with the errors on average. None if no pixel has a
        sigma above 0.
    """
    if not frames:
        return None
    sigma = np.concatenate([frame.sigma for frame in frames]).astype(np.float64) * factor
    error = np.concatenate([frame.error for frame in frames]).astype(np.float64)
    if not sigma.sum() > 0:
        return None
    observed = [float((error <= _quantile(level) * sigma).mean()) for level in LEVELS]
    return Reliability(observed, _STD_OF_MEAN * float(error.sum() / sigma.sum()))


def spaced(frames: Dataset, count: int) -> Subset:
    """Returns a Subset of evenly spaced frames of a dataset, at most `count`.

    Args:
        frames: The dataset.
        count: Maximum number of frames.
    """
    return Subset(frames, frame_table.spaced(len(frames), count).tolist())


def one_by_one(protocol: EvaluationProtocol) -> EvaluationProtocol:
    """Returns an evaluation protocol with batches of one image.

    It is used for a Subset of a dataset, which doesn't state its images' sizes, so larger batches
    could have images of different sizes.

    Args:
        protocol: The protocol to copy.
    """
    return replace(protocol, settings=replace(protocol.settings, batch_size=1))


def _sample(sigma: np.ndarray, plain: np.ndarray, truth: np.ndarray, index: int) -> SigmaFrame:
    """Returns sigma, error and predicted depth of at most _MAX_PIXELS random pixels of a frame.

    The same frame always gives the same pixels.

    Args:
        sigma: (N,), the student's estimate of each pixel's error, metres.
        plain: (N,), predicted depth, metres.
        truth: (N,), ground truth or the teacher's depth, metres.
        index: The frame's index, which seeds the random generator.
    """
    chosen = slice(None)
    if len(sigma) > _MAX_PIXELS:
        draw = np.random.default_rng(index)
        chosen = draw.choice(len(sigma), _MAX_PIXELS, replace=False)
    return SigmaFrame(sigma[chosen], np.abs(plain - truth)[chosen], plain[chosen])


def _quantile(level: float) -> float:
    """Returns z such that a Gaussian is within z standard deviations with probability `level`.

    Args:
        level: The probability, from 0 to 1.
    """
    return float(torch.erfinv(torch.tensor(level, dtype=torch.float64))) * math.sqrt(2)
