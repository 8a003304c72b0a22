"""Measures how well a teacher's sigma per pixel predicts the order and the size of its errors.

A sigma is the standard deviation that a teacher states for the error of its depth in a pixel. Three
measures say how well sigma orders the errors: its rank correlation with the errors, the same
correlation at equal depth, and sparsification, i.e. how much the mean error falls if pixels of
large sigma are dropped. Depth alone orders errors, too, since far depths have larger errors in
metres; a sigma that is a function of depth has no correlation at equal depth. These three measures
are means over images. In each range of depth, the ratio of errors to sigmas is the factor by which
sigma has to be multiplied. All results have 95 % intervals of a bootstrap over images. Images of
one scene aren't independent, so the intervals are too narrow for datasets with many images of few
scenes. Not covered: whether sigma helps a student to learn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MIN_FRAMES = 8
MIN_PIXELS = 50  # minimum number of an image's pixels with ground truth
# Of an image with more pixels, this number of pixels is chosen at random, because computing ranks
# sorts all pixels.
_MAX_PIXELS = 5000
_DRAWS = 1000  # number of resamples of the bootstrap
# Number of points of a sparsification curve. At point k, counted from 0, the fraction k / _STEPS of
# the pixels is dropped.
_STEPS = 20
_MEAN_OF_ABSOLUTE = (2 / np.pi) ** 0.5  # mean of |x| / standard deviation, for a Gaussian x
# Ends of the depth ranges, as fractions of the largest depth. The first range is narrower than that
# of `range_errors`, because most pixels are near.
_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)


class SigmaFrame(NamedTuple):
    """The pixels of an image with both ground truth and the teacher's depth and sigma.

    Attributes:
        sigma: (N,), the standard deviation that the teacher states for its error, metres.
        error: (N,), |teacher's depth - ground truth|, metres.
        depth: (N,), the teacher's depth, metres.
    """

    sigma: np.ndarray
    error: np.ndarray
    depth: np.ndarray


class MeanInterval(NamedTuple):
    """A mean over images with its 95 % interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


class RangeFactor(NamedTuple):
    """The factor by which sigmas must be multiplied to fit the errors, in one range of depth.

    Attributes:
        from_m: lower end of the range of the teacher's depth, metres.
        to_m: upper end of the range, metres.
        depth_m: median of the teacher's depths in the range, metres.
        pixels: number of pixels in the range.
        factor: the factor for sigma: the standard deviation of a Gaussian with the range's mean
            |error|, divided by the range's mean sigma.
        covered: fraction of pixels with |error| <= factor * sigma; 0.68 for Gaussian errors.
    """

    from_m: float
    to_m: float
    depth_m: float
    pixels: int
    factor: MeanInterval
    covered: float


class SigmaFigures(NamedTuple):
    """The measurements of one source of sigma, i.e. of one way to estimate a teacher's errors.

    Attributes:
        frames: number of images with enough pixels, over which the means are taken.
        correlation: rank correlation of sigma with |error| within an image, mean over images; 0 by
            chance.
        at_depth: partial rank correlation of sigma with |error| given the depth, i.e. at equal
            depth; mean over images.
        of_depth: rank correlation of the depth itself with |error|, mean over images.
        gain: (1 - a) / (1 - b), where a is the area under `curve` and b that under `oracle`, mean
            over images. It is 1 if sigma orders the pixels like their errors, 0 by chance.
        curve: (_STEPS,), sparsification curve: element k is the mean |error| after the fraction k /
            _STEPS of the pixels, those of the largest sigma, is dropped, divided by the mean
            |error| of all pixels; mean over images.
        oracle: (_STEPS,), the same curve if the pixels of the largest errors are dropped.
        ranges: one entry for each range of depth, nearest first; ranges with too few images are
            left out.
    """

    frames: int
    correlation: MeanInterval
    at_depth: MeanInterval
    of_depth: MeanInterval
    gain: MeanInterval
    curve: np.ndarray
    oracle: np.ndarray
    ranges: list[RangeFactor]

    @property
    def orders_errors(self) -> bool:
        """True if sigma is significantly correlated with |error|, overall and at equal depth."""
        return self.frames >= MIN_FRAMES and self.correlation.low > 0 and self.at_depth.low > 0


def measure(frames: Sequence[SigmaFrame], max_depth_m: float) -> SigmaFigures:
    """Measures how well sigmas order errors, and by which factor they have to be multiplied.

    Args:
        frames: one entry per image; images with fewer than MIN_PIXELS pixels are left out.
        max_depth_m: the student's largest depth in metres, where the last range ends.

    Returns:
        The measurements. If no image has enough pixels, they are NaN, and `ranges` is empty.
    """
    draw = np.random.default_rng(0)
    frames = [_subsampled(frame, draw) for frame in frames if len(frame.sigma) >= MIN_PIXELS]
    rows = np.array([_rank_correlations(frame) for frame in frames]).reshape(-1, 3)
    curves = np.array([sparsification(frame.sigma, frame.error) for frame in frames])
    oracles = np.array([sparsification(frame.error, frame.error) for frame in frames])
    curves, oracles = curves.reshape(-1, _STEPS), oracles.reshape(-1, _STEPS)
    # Set the gain to 0 for images without errors, or with equal errors everywhere, where no order
    # of the pixels is better than another.
    room = 1 - oracles.mean(1)
    gains = np.where(room > 1e-6, (1 - curves.mean(1)) / np.maximum(room, 1e-6), 0.0)
    chosen = draw.integers(0, max(1, len(frames)), (_DRAWS, len(frames)))
    return SigmaFigures(
        len(frames),
        *(_interval(column, chosen) for column in (*rows.T, gains)),
        _mean(curves),
        _mean(oracles),
        _factors(frames, max_depth_m, chosen),
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation; 0 if all values of one vector are equal.

    Equal values get the mean of their ranks. `teacher_audit.shape.rank_correlation_by_position`
    gives them different ranks, so it isn't used here: a constant sigma could correlate by chance.

    Args:
        first: (N,).
        second: (N,).
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    if (np.ptp(ranks, axis=1) == 0).any():
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])


def correlation_at_depth(of_sigma: float, of_depth: float, both: float) -> float:
    """Returns the partial rank correlation of sigma and error, given the depth.

    Args:
        of_sigma: rank correlation of sigma and error.
        of_depth: rank correlation of depth and error.
        both: rank correlation of sigma and depth.

    Returns:
        -1 to 1; 0 if sigma is a function of depth.
    """
    left = (1 - of_depth**2) * (1 - both**2)
    return (of_sigma - of_depth * both) / left**0.5 if left > 1e-6 else 0.0


def sparsification(order: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Returns the mean error of the pixels that are left after fractions of the pixels are dropped.

    Args:
        order: (N,), e.g. sigmas: pixels with the largest values are dropped first, those with equal
            values in random order.
        error: (N,), the error of each pixel, not negative.

    Returns:
        (_STEPS,). Element k, counted from 0, is the mean error after k / _STEPS of the pixels are
        dropped, divided by the mean error of all pixels. All elements are 1 if that is 0.
    """
    shuffled = np.random.default_rng(0).permutation(len(order))
    dropped_last = shuffled[np.argsort(order[shuffled], kind="stable")]
    means = np.cumsum(error[dropped_last]) / np.arange(1, len(error) + 1)
    left = np.ceil(len(error) * (1 - np.arange(_STEPS) / _STEPS)).astype(int)
    return means[left - 1] / means[-1] if means[-1] > 0 else np.ones(_STEPS)


def _rank_correlations(frame: SigmaFrame) -> tuple[float, float, float]:
    of_sigma = rank_correlation(frame.sigma, frame.error)
    of_depth = rank_correlation(frame.depth, frame.error)
    both = rank_correlation(frame.sigma, frame.depth)
    return of_sigma, correlation_at_depth(of_sigma, of_depth, both), of_depth


def _factors(
    frames: Sequence[SigmaFrame], max_depth_m: float, chosen: np.ndarray
) -> list[RangeFactor]:
    """Computes the factor by which sigmas must be multiplied to fit the errors, per depth range.

    Args:
        frames: the pixels of N images.
        max_depth_m: end of the last range, metres.
        chosen: (draws, N), indices of the images in each resample of the bootstrap.

    Returns:
        One entry for each range, nearest first, without ranges that have too few images or no sigma
        above 0.
    """
    found = []
    for start, end in zip(_SHARES[:-1], _SHARES[1:], strict=True):
        low, high = start * max_depth_m, end * max_depth_m
        inside = [(frame.depth > low) & (frame.depth <= high) for frame in frames]
        parts = [
            SigmaFrame(*(values[here] for values in frame))
            for frame, here in zip(frames, inside, strict=True)
        ]
        # Skip the range if fewer than MIN_FRAMES images have enough pixels in it: a factor
        # estimated from few images would reflect only the few objects in them.
        if sum(len(part.sigma) >= MIN_PIXELS for part in parts) < MIN_FRAMES:
            continue
        sums = np.array([(part.error.sum(), part.sigma.sum()) for part in parts])
        # Skip the range if all sigmas in it are 0, since no factor makes them fit the errors.
        if not sums[:, 1].sum() > 0:
            continue
        drawn = sums[chosen].sum(1)
        factors = drawn[:, 0] / np.maximum(drawn[:, 1], 1e-12) / _MEAN_OF_ABSOLUTE
        factor = float(sums[:, 0].sum() / sums[:, 1].sum() / _MEAN_OF_ABSOLUTE)
        sigma, error, depth = (np.concatenate(each) for each in zip(*parts, strict=True))
        found.append(
            RangeFactor(
                low,
                high,
                float(np.median(depth)),
                len(sigma),
                MeanInterval(factor, *map(float, np.quantile(factors, (0.025, 0.975)))),
                float((error <= factor * sigma).mean()),
            )
        )
    return found


def _subsampled(frame: SigmaFrame, draw: np.random.Generator) -> SigmaFrame:
    frame = SigmaFrame(*(np.asarray(values, np.float64) for values in frame))
    if len(frame.sigma) <= _MAX_PIXELS:
        return frame
    kept = draw.choice(len(frame.sigma), _MAX_PIXELS, replace=False)
    return SigmaFrame(*(values[kept] for values in frame))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _interval(values: np.ndarray, chosen: np.ndarray) -> MeanInterval:
    if not len(values):
        return MeanInterval(np.nan, np.nan, np.nan)
    low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
    return MeanInterval(float(values.mean()), float(low), float(high))


def _mean(curves: np.ndarray) -> np.ndarray:
    return curves.mean(0) if len(curves) else np.full(_STEPS, np.nan)
