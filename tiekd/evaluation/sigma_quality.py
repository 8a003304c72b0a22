"""Measures if a teacher's sigma per pixel orders its actual errors, and how much it has to grow.

A sigma is the standard deviation that a teacher states for the error of its depth in a pixel. Three
figures say how well it orders the errors: its rank correlation with them, the same at equal depth,
and sparsification. Depth alone orders errors, too, since far depths have larger errors in metres;
a source that is nothing but depth has no correlation at equal depth. The ratio of errors and sigmas
in each range of depth is the factor by which sigma has to be multiplied. All figures are means over
images, with 95 % intervals of a bootstrap over images. Images of one scene aren't independent, so
the intervals are too narrow for data sets with many images of few scenes. Left out: whether a
student learns better with the sigma.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MIN_FRAMES = 8
MIN_PIXELS = 50  # minimum number of an image's pixels with ground truth
_MAX_PIXELS = 5000  # of an image, chosen at random, since ranks need sorting
_DRAWS = 1000  # of the bootstrap
_STEPS = 20  # of a sparsification curve: the k-th has dropped k / _STEPS of the pixels
_MEAN_OF_ABSOLUTE = (2 / np.pi) ** 0.5  # mean of |x| / standard deviation, for a Gaussian x
# Ends of the depth ranges, as fractions of the largest depth. They begin narrower than those of
# `range_errors`, because most pixels are near.
_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)


class SigmaFrame(NamedTuple):
    """The pixels of an image with both ground truth and the teacher's depth and sigma.

    Attributes:
        sigma: (N,), metres.
        error: (N,), |teacher's depth - ground truth|, metres.
        depth: (N,), the teacher's depth, metres.
    """

    sigma: np.ndarray
    error: np.ndarray
    depth: np.ndarray


class Interval(NamedTuple):
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
    """The factor between sigmas and errors in one range of the teacher's depth.

    Attributes:
        from_m: lower end of the range, metres.
        to_m: upper end of the range, metres.
        depth_m: median of the depths in the range, metres.
        pixels: number of pixels in the range.
        factor: the standard deviation that the mean |error| corresponds to, by the mean sigma.
        covered: fraction of pixels with |error| <= factor * sigma; 0.68 for Gaussian errors.
    """

    from_m: float
    to_m: float
    depth_m: float
    pixels: int
    factor: Interval
    covered: float


class SigmaFigures(NamedTuple):
    """The figures of one source of sigma.

    Attributes:
        frames: number of images that count.
        correlation: rank correlation of sigma with |error| in an image; 0 by chance.
        at_depth: the same at equal depth, i.e. the partial rank correlation given the depth.
        of_depth: rank correlation of the depth itself with |error|.
        gain: (1 - a) / (1 - b), with the area a under the sparsification curve, and b that of an
            oracle: 1 if pixels are dropped in the order of their errors, 0 by chance.
        curve: mean |error| of the pixels that are left after those of the largest sigma have been
            dropped, divided by that of all pixels; (_STEPS,), in equal steps from none dropped.
        oracle: the same after those of the largest errors have been dropped.
        ranges: the factors by range of depth; ranges with few pixels are left out.
    """

    frames: int
    correlation: Interval
    at_depth: Interval
    of_depth: Interval
    gain: Interval
    curve: np.ndarray
    oracle: np.ndarray
    ranges: list[RangeFactor]

    @property
    def orders_errors(self) -> bool:
        """True if the source orders errors better than chance, also at equal depth."""
        return self.frames >= MIN_FRAMES and self.correlation.low > 0 and self.at_depth.low > 0


def measure(frames: Sequence[SigmaFrame], max_depth_m: float) -> SigmaFigures:
    """Measures how well sigmas order errors, and by which factor they have to be multiplied.

    Args:
        frames: one entry per image; those with less than MIN_PIXELS pixels are left out.
        max_depth_m: the student's largest depth in metres, where the last range ends.

    Returns:
        The figures; NaN if no image counts.
    """
    draw = np.random.default_rng(0)
    frames = [_thinned(frame, draw) for frame in frames if len(frame.sigma) >= MIN_PIXELS]
    rows = np.array([_orders(frame) for frame in frames]).reshape(-1, 3)
    curves = np.array([sparsification(frame.sigma, frame.error) for frame in frames])
    oracles = np.array([sparsification(frame.error, frame.error) for frame in frames])
    curves, oracles = curves.reshape(-1, _STEPS), oracles.reshape(-1, _STEPS)
    # Without errors, or with equal errors everywhere, there is nothing to order.
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

    Equal values get the mean of their ranks. `teacher_audit.shape.rank_correlation` ranks them by
    their positions, so that a constant sigma could correlate by chance.

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
    """Returns the mean error of the pixels that are left as more and more are dropped.

    Args:
        order: (N,), pixels of large values are dropped first; equal values in random order.
        error: (N,), not negative.

    Returns:
        (_STEPS,), the k-th after k / _STEPS of the pixels are dropped, divided by the mean error of
        all pixels; ones if that is 0.
    """
    shuffled = np.random.default_rng(0).permutation(len(order))
    dropped_last = shuffled[np.argsort(order[shuffled], kind="stable")]
    means = np.cumsum(error[dropped_last]) / np.arange(1, len(error) + 1)
    left = np.ceil(len(error) * (1 - np.arange(_STEPS) / _STEPS)).astype(int)
    return means[left - 1] / means[-1] if means[-1] > 0 else np.ones(_STEPS)


def _orders(frame: SigmaFrame) -> tuple[float, float, float]:
    of_sigma = rank_correlation(frame.sigma, frame.error)
    of_depth = rank_correlation(frame.depth, frame.error)
    both = rank_correlation(frame.sigma, frame.depth)
    return of_sigma, correlation_at_depth(of_sigma, of_depth, both), of_depth


def _factors(
    frames: Sequence[SigmaFrame], max_depth_m: float, chosen: np.ndarray
) -> list[RangeFactor]:
    """Fits the factor of each depth range.

    Args:
        frames: N images.
        max_depth_m: end of the last range, metres.
        chosen: (draws, N), indices of the images in each draw of the bootstrap.
    """
    found = []
    for start, end in zip(_SHARES[:-1], _SHARES[1:], strict=True):
        low, high = start * max_depth_m, end * max_depth_m
        inside = [(frame.depth > low) & (frame.depth <= high) for frame in frames]
        parts = [
            SigmaFrame(*(values[here] for values in frame))
            for frame, here in zip(frames, inside, strict=True)
        ]
        # A factor of few images would be that of a few objects.
        if sum(len(part.sigma) >= MIN_PIXELS for part in parts) < MIN_FRAMES:
            continue
        sums = np.array([(part.error.sum(), part.sigma.sum()) for part in parts])
        # A source that is 0 everywhere has no factor.
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
                Interval(factor, *map(float, np.quantile(factors, (0.025, 0.975)))),
                float((error <= factor * sigma).mean()),
            )
        )
    return found


def _thinned(frame: SigmaFrame, draw: np.random.Generator) -> SigmaFrame:
    frame = SigmaFrame(*(np.asarray(values, np.float64) for values in frame))
    if len(frame.sigma) <= _MAX_PIXELS:
        return frame
    kept = draw.choice(len(frame.sigma), _MAX_PIXELS, replace=False)
    return SigmaFrame(*(values[kept] for values in frame))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def _interval(values: np.ndarray, chosen: np.ndarray) -> Interval:
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(values[chosen].mean(1), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def _mean(curves: np.ndarray) -> np.ndarray:
    return curves.mean(0) if len(curves) else np.full(_STEPS, np.nan)
