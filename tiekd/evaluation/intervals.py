"""Confidence intervals for the difference of two networks' errors: over seeds, and over scenes.

A row of a table of results has one error per training seed, scene and frame. The row's error is the
mean of scene means: the frames of a scene are averaged first, so that a scene with many frames
weighs no more than another. Two rows are compared on the same seeds and frames, by their paired
differences:

- over seeds: a paired t interval, which covers the difference that other seeds would give on these
  scenes.
- over scenes: a bootstrap-t interval (Efron and Tibshirani 1993, chapter 12; symmetric, Hall 1988)
  that resamples scenes and, within each, frames. It covers the difference that other scenes would
  give with these seeds. The percentile bootstrap isn't used: with 5 to 8 scenes its intervals
  contain the true difference in 84 to 88 % of cases instead of 95 %, because it takes the spread of
  the few scenes as known.
- over both: a t interval with the sum of the two variances. Each of the first two intervals holds
  the other source of chance fixed, so both may exclude 0 too often when many seeds and scenes make
  both narrow.

Pure functions of NumPy arrays, without torch. A comparison of 7 scenes and 41 frames takes about
10 ms, and one of 30 scenes and 800 frames 0.3 s. Left out: intervals without the pairing, and
weights of scenes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # confidence level of all intervals
POWER = 0.8  # probability with which the smallest detectable difference is found
MIN_SCENES = 4  # with fewer, resampling gives too few different sets of scenes for a 95 % interval
RESAMPLES = 2000
_RESAMPLING_SEED = 20240314  # constant, so that the same errors always give the same interval
_AT_ONCE = 4_000_000  # largest number of resampled frames held in memory at a time


class Interval(NamedTuple):
    """A confidence interval of a difference, with the p-value of the hypothesis that it is 0.

    Attributes:
        low: lower end; NaN if there is too little data for an interval.
        high: upper end; NaN if there is too little data for an interval.
        p: two-sided p-value, 0 to 1; 1 if there is too little data.
    """

    low: float
    high: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        """True if both ends are above 0 or both below; False if there is no interval (NaN)."""
        return self.low > 0 or self.high < 0


NO_INTERVAL = Interval(math.nan, math.nan, 1.0)


class Comparison(NamedTuple):
    """The difference of the errors of two rows, ours - theirs, with its intervals.

    Attributes:
        difference: mean over seeds of the mean of scene means; NaN if the rows have no frame in
            common.
        over_seeds: paired t interval over the seeds.
        over_scenes: bootstrap-t interval over the scenes.
        over_both: t interval with the sum of the variances over seeds and over scenes.
        over_frames: t interval that treats all frames as independent, which those of a scene
            aren't. It is reported only as a warning, where it alone excludes 0.
        seeds: number of seeds.
        scenes: number of scenes.
    """

    difference: float
    over_seeds: Interval
    over_scenes: Interval
    over_both: Interval
    over_frames: Interval
    seeds: int
    scenes: int

    @property
    def p(self) -> float:
        """The largest of the p-values of the intervals over seeds, over scenes and over both."""
        return max(self.over_seeds.p, self.over_scenes.p, self.over_both.p)

    @property
    def is_resolved(self) -> bool:
        """True if the intervals over seeds, over scenes and over both all exclude 0."""
        required = (self.over_seeds, self.over_scenes, self.over_both)
        return all(interval.excludes_zero for interval in required)

    @property
    def only_frames(self) -> bool:
        """True if only the interval over frames excludes 0, and not that over scenes."""
        return self.over_frames.excludes_zero and not self.over_scenes.excludes_zero


def t_probability(t: float, freedom: int) -> float:
    """Returns the probability that |T| is below |t| for Student's t distribution.

    It is computed by the finite series of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, which are
    exact for whole degrees of freedom.

    Args:
        t: the bound; may be infinite.
        freedom: degrees of freedom, 1 or more.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = cosine if freedom % 2 else 1.0
    # Add the terms in cos^3, cos^5, ... for an odd number of degrees of freedom, and those in
    # cos^2, cos^4, ... for an even one.
    for power in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    if freedom % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


def t_quantile(probability: float, freedom: int) -> float:
    """Returns t such that |T| is below t with the given probability, for Student's t distribution.

    Args:
        probability: two-sided probability, from 0 to below 1; 0.95 gives the factor of a 95 %
            interval.
        freedom: degrees of freedom, 1 or more.
    """
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
        )
    return (low + high) / 2


def t_interval(centre: float, error: float, freedom: int) -> Interval:
    """Returns the t interval of a mean.

    Args:
        centre: the mean.
        error: its standard error, 0 or more.
        freedom: degrees of freedom; below 1 there is no interval.
    """
    if freedom < 1 or not math.isfinite(centre) or not math.isfinite(error):
        return NO_INTERVAL
    # Without any spread the interval is a point, and its p-value is 0, or 1 for equal rows.
    if error == 0:
        return Interval(centre, centre, 0.0 if centre else 1.0)
    reach = t_quantile(LEVEL, freedom) * error
    return Interval(centre - reach, centre + reach, 1 - t_probability(centre / error, freedom))


def over_seeds(differences: Sequence[float]) -> Interval:
    """Returns the paired t interval over seeds.

    Args:
        differences: for each seed the difference of the two rows' figures.
    """
    count = len(differences)
    if count < 2:
        return NO_INTERVAL
    values = np.asarray(differences, np.float64)
    return t_interval(float(values.mean()), _error(values), count - 1)


def over_scenes(scenes: Sequence[np.ndarray], resamples: int = RESAMPLES) -> Interval:
    """Returns the bootstrap-t interval of a difference that is the mean of scene means.

    Each resample draws as many scenes as there are, with replacement, and as many frames in each
    drawn scene as it has. The interval is symmetric: its half width is the standard error times the
    95 % quantile over the resamples of |t*|, i.e. of the deviation of a resample's mean from the
    mean, divided by the resample's standard error.

    Args:
        scenes: for each scene the differences of the two rows' errors in its frames, (frames,)
            float64.
        resamples: number of resamples.

    Returns:
        The interval; NO_INTERVAL if there are fewer than MIN_SCENES scenes.
    """
    count = len(scenes)
    if count < MIN_SCENES:
        return NO_INTERVAL
    means = np.array([scene.mean() for scene in scenes])
    if not np.isfinite(means).all():
        return NO_INTERVAL
    centre, error = float(means.mean()), _error(means)
    if error == 0:
        return Interval(centre, centre, 0.0 if centre else 1.0)
    resampled = _resampled_means(scenes, resamples)
    errors = resampled.std(1, ddof=1) / math.sqrt(count)
    # A resample whose scene means are all equal has no standard error. Its |t*| counts as infinite,
    # which widens the interval.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(resampled.mean(1) - centre) / errors
    t[np.isnan(t)] = np.inf
    factor = float(np.quantile(t, LEVEL, method="higher"))
    p = (1 + np.count_nonzero(t >= abs(centre) / error)) / (1 + resamples)
    reach = factor * error
    return Interval(centre - reach, centre + reach, float(p))


def _resampled_means(scenes: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    """Resamples scenes, and frames within them, and returns each resampled scene's mean.

    Args:
        scenes: for each scene the values of its frames.
        resamples: number of resamples.

    Returns:
        (resamples, scenes).
    """
    random = np.random.default_rng(_RESAMPLING_SEED)
    count = len(scenes)
    picked = random.integers(0, count, (resamples, count))
    means = np.empty((resamples, count))
    for index, frames in enumerate(scenes):
        here = np.nonzero(picked == index)
        # Draw frames for a part of the places at a time, which bounds the memory.
        part = max(1, _AT_ONCE // len(frames))
        for start in range(0, len(here[0]), part):
            rows, columns = (axis[start : start + part] for axis in here)
            draws = random.integers(0, len(frames), (len(rows), len(frames)))
            means[rows, columns] = frames[draws].mean(1)
    return means


def compare(ours: np.ndarray, theirs: np.ndarray, scenes: Sequence[str]) -> Comparison:
    """Compares two rows on the same seeds and frames.

    A frame that is NaN in either row, i.e. without ground truth, is left out.

    Args:
        ours: (seeds, frames), the errors of the first row; its seeds are those of `theirs`, in the
            same order.
        theirs: (seeds, frames), the errors of the second row.
        scenes: name of the scene of each frame.

    Returns:
        The comparison of the first row with the second. If an error is infinite, as for a network
        that predicts non-finite depth, there are no intervals.
    """
    if ours.shape != theirs.shape or ours.shape[1] != len(scenes):
        raise ValueError(f"compare: got {ours.shape}, {theirs.shape} and {len(scenes)} scenes")
    known = ~(np.isnan(ours).any(0) | np.isnan(theirs).any(0))
    kept = [scene for scene, is_known in zip(scenes, known, strict=True) if is_known]
    num_scenes = len(set(kept))
    if not kept or not len(ours):
        return Comparison(math.nan, *[NO_INTERVAL] * 4, len(ours), num_scenes)
    with np.errstate(invalid="ignore"):
        differences = ours[:, known] - theirs[:, known]
    if not np.isfinite(differences).all():
        # The difference isn't finite if an error is infinite: infinite in one row, or NaN as inf -
        # inf.
        return Comparison(math.nan, *[NO_INTERVAL] * 4, len(ours), num_scenes)
    by_seed = [mean_of_scene_means(row, kept) for row in differences]
    frames = differences.mean(0)
    by_scene = list(_grouped(frames, kept).values())
    scene_means = np.array([values.mean() for values in by_scene])
    centre = float(np.mean(by_seed))
    return Comparison(
        centre,
        over_seeds(by_seed),
        over_scenes(by_scene),
        _over_both(centre, np.asarray(by_seed), scene_means),
        t_interval(float(frames.mean()), _error(frames), len(frames) - 1),
        len(by_seed),
        num_scenes,
    )


def mean_of_scene_means(values: np.ndarray, scenes: Sequence[str]) -> float:
    """Returns the mean over scenes of the mean over each scene's frames; NaN frames are left out.

    Args:
        values: (frames,), an error of each frame.
        scenes: name of the scene of each frame.
    """
    known = ~np.isnan(values)
    kept = [scene for scene, is_known in zip(scenes, known, strict=True) if is_known]
    groups = _grouped(values[known], kept)
    return float(np.mean([group.mean() for group in groups.values()])) if groups else math.nan


def _grouped(values: np.ndarray, scenes: Sequence[str]) -> Mapping[str, np.ndarray]:
    groups: dict[str, list[float]] = {}
    for value, scene in zip(values.tolist(), scenes, strict=True):
        groups.setdefault(scene, []).append(value)
    # Sort the scenes, so that the order of the frames doesn't change what the bootstrap resamples.
    return {scene: np.array(groups[scene]) for scene in sorted(groups)}


def _over_both(centre: float, by_seed: np.ndarray, by_scene: np.ndarray) -> Interval:
    """Returns the t interval whose variance is the sum of those over seeds and over scenes.

    Args:
        centre: the mean difference of the two rows.
        by_seed: (seeds,), the difference for each seed.
        by_scene: (scenes,), the difference in each scene.
    """
    if len(by_seed) < 2 or len(by_scene) < 2:
        return NO_INTERVAL
    error, freedom = _joint_error([(_error(v), len(v)) for v in (by_seed, by_scene)])
    return t_interval(centre, error, freedom)


def _joint_error(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Returns the standard error of a sum of independent means, and its degrees of freedom.

    The degrees of freedom are those of Welch and Satterthwaite (Welch 1947), rounded down.

    Args:
        parts: for each mean, its standard error and the number of values it was computed from.
    """
    variance = sum(error**2 for error, _ in parts)
    below = sum(error**4 / (count - 1) for error, count in parts)
    freedom = int(variance**2 / below) if below else min(count for _, count in parts) - 1
    return math.sqrt(variance), max(1, freedom)


def _error(values: np.ndarray) -> float:
    """Returns the standard error of a mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for the number of comparisons (Holm 1979).

    Args:
        p_values: the p-values of one family of comparisons.

    Returns:
        The corrected values in the same order; a comparison is significant at the 5 % level if its
        corrected value is below 0.05.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        # Corrected values keep the order of the p-values, so none is below that of a smaller
        # p-value.
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def smallest_detectable(by_seed: np.ndarray, by_scene: np.ndarray, seeds: int) -> float:
    """Returns the smallest true difference that a comparison finds in 80 % of experiments.

    It is (t for 95 % + t for 80 %) times the standard error over seeds and scenes. The standard
    error is estimated from a pilot experiment, two rows with a few seeds.

    Args:
        by_seed: paired differences of the pilot's rows, one per seed of the pilot.
        by_scene: the differences in each scene, averaged over the pilot's seeds.
        seeds: number of seeds of the planned comparison.

    Returns:
        The difference, in the metric's unit; NaN if the pilot has fewer than two seeds or scenes.
    """
    if len(by_seed) < 2 or len(by_scene) < 2 or seeds < 2:
        return math.nan
    # The spread over seeds is estimated from the pilot's seeds, so its degrees of freedom are
    # theirs, not those of the planned seeds.
    over_planned = float(np.std(by_seed, ddof=1)) / math.sqrt(seeds)
    error, freedom = _joint_error([(over_planned, len(by_seed)), (_error(by_scene), len(by_scene))])
    one_sided_power = 2 * POWER - 1  # P(T < t) is 0.8 if P(|T| < t) is 0.6
    return (t_quantile(LEVEL, freedom) + t_quantile(one_sided_power, freedom)) * error
