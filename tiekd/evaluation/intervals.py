"""Confidence intervals for the difference of two networks' errors: over seeds, and over scenes.

A recipe is trained with several seeds, and each network is evaluated on several frames of each of
several scenes. The resulting errors form a row of a results table. The row's error is the mean of
scene means: the frames of a scene are averaged first, so that a scene with many frames weighs no
more than another. Two rows are compared on the same seeds and frames, by their paired differences:

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

Pure functions of NumPy arrays, without torch. A comparison of 7 scenes and 41 frames takes about 10
ms, and one of 30 scenes and 800 frames 0.3 s. Not covered: intervals without the pairing, and
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
    """The difference between two rows' errors, ours - theirs, with its confidence intervals.

    A row of a results table has one error per training seed and evaluated frame; the frames belong
    to scenes.

    Attributes:
        difference: the difference per frame, averaged over each scene's frames, then over scenes,
            then over seeds; NaN if no frame has an error in both rows.
        over_seeds: paired t interval, for which the seeds are the sample.
        over_scenes: bootstrap-t interval, for which the scenes are the sample.
        over_both: t interval whose variance is the sum of those over seeds and over scenes.
        over_frames: t interval for which all frames are an independent sample. It is too narrow,
            because the frames of a scene aren't independent. A report mentions it only as a
            warning, if it excludes 0 although `over_scenes` doesn't.
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
        """The p-value of a difference of 0: the largest one of three intervals.

        These are `over_seeds`, `over_scenes` and `over_both`.
        """
        return max(self.over_seeds.p, self.over_scenes.p, self.over_both.p)

    @property
    def is_significant(self) -> bool:
        """True if the difference is significant: three intervals exclude 0.

        These are `over_seeds`, `over_scenes` and `over_both`.
        """
        required = (self.over_seeds, self.over_scenes, self.over_both)
        return all(interval.excludes_zero for interval in required)

    @property
    def significant_over_frames_only(self) -> bool:
        """True if the difference is significant only if frames are taken as independent.

        The interval `over_frames` then excludes 0, but `over_scenes` doesn't.
        """
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
    # Add the further terms of the series: those in cos^3, cos^5, ... for an odd number of degrees
    # of freedom, and those in cos^2, cos^4, ... for an even one.
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
    """Returns the 95 % t interval of a mean, with the p-value of the hypothesis that it is 0.

    Args:
        centre: the mean.
        error: its standard error, 0 or more.
        freedom: degrees of freedom.

    Returns:
        The interval; NO_INTERVAL for less than one degree of freedom or if a number isn't finite.
    """
    if freedom < 1 or not math.isfinite(centre) or not math.isfinite(error):
        return NO_INTERVAL
    # With a standard error of 0 the interval is a point. The hypothesis of a mean of 0 then has a
    # p-value of 0, or of 1 if the mean is 0.
    if error == 0:
        return Interval(centre, centre, 0.0 if centre else 1.0)
    reach = t_quantile(LEVEL, freedom) * error
    return Interval(centre - reach, centre + reach, 1 - t_probability(centre / error, freedom))


def over_seeds(differences: Sequence[float]) -> Interval:
    """Returns the 95 % t interval of a difference between two rows, with seeds as the sample.

    Args:
        differences: for each seed the difference between the two rows' errors, averaged over frames
            and scenes.

    Returns:
        The interval; NO_INTERVAL for fewer than two seeds.
    """
    count = len(differences)
    if count < 2:
        return NO_INTERVAL
    values = np.asarray(differences, np.float64)
    return t_interval(float(values.mean()), _error(values), count - 1)


def over_scenes(scenes: Sequence[np.ndarray], resamples: int = RESAMPLES) -> Interval:
    """Returns the 95 % bootstrap-t interval of a difference that is a mean of scene means.

    Each resample draws as many scenes as there are, with replacement, and as many frames in each
    drawn scene as it has. The interval is symmetric: its half width is the standard error times the
    95 % quantile over the resamples of |t*|, i.e. of the deviation of a resample's mean from the
    mean, divided by the resample's standard error.

    Args:
        scenes: for each scene an array (frames,) float64: the difference between two networks'
            errors in each of its frames.
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
    """Resamples scenes with replacement, and within each the frames, and returns the scene means.

    Args:
        scenes: for each of S scenes an array with one value per frame.
        resamples: number of resamples.

    Returns:
        (resamples, S), the means of the S scenes that each resample draws.
    """
    random = np.random.default_rng(_RESAMPLING_SEED)
    count = len(scenes)
    picked = random.integers(0, count, (resamples, count))
    means = np.empty((resamples, count))
    for index, frames in enumerate(scenes):
        here = np.nonzero(picked == index)
        # Resample the frames of this scene for each time that it was drawn. Process a limited
        # number of these draws together, which bounds the memory.
        part = max(1, _AT_ONCE // len(frames))
        for start in range(0, len(here[0]), part):
            rows, columns = (axis[start : start + part] for axis in here)
            draws = random.integers(0, len(frames), (len(rows), len(frames)))
            means[rows, columns] = frames[draws].mean(1)
    return means


def compare(ours: np.ndarray, theirs: np.ndarray, scenes: Sequence[str]) -> Comparison:
    """Compares two rows of a results table, which have one error per seed and frame.

    A frame whose error is NaN in either row, i.e. a frame without ground truth, is left out.

    Args:
        ours: (seeds, frames), the errors of the first row; its seeds are those of `theirs`, in the
            same order.
        theirs: (seeds, frames), the errors of the second row.
        scenes: name of the scene of each frame.

    Returns:
        The difference `ours` - `theirs` with its intervals. If an error is infinite, as for a
        network that predicts non-finite depth, the difference is NaN, and all intervals are
        NO_INTERVAL.
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
        # An error is infinite. The difference is then infinite too, or NaN if both errors are
        # infinite.
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
    """Returns the mean over scenes of the mean over each scene's frames, without frames of NaN.

    Args:
        values: (frames,), the error of each frame; NaN for a frame without ground truth.
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
    """Returns the t interval of a difference, with the sum of its variances over seeds and scenes.

    Args:
        centre: the mean difference between two rows of a results table.
        by_seed: (seeds,), the difference for each seed, averaged over frames and scenes.
        by_scene: (scenes,), the difference in each scene, averaged over frames and seeds.

    Returns:
        The interval; NO_INTERVAL for fewer than two seeds or scenes.
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

    Returns:
        (standard error, degrees of freedom); the latter are at least 1.
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
    for rank, index in enumerate(order):
        # A corrected value must not be smaller than that of a smaller p-value, so take the largest
        # so far.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def smallest_detectable(by_seed: np.ndarray, by_scene: np.ndarray, seeds: int) -> float:
    """Returns the smallest true difference between two recipes that 80 % of experiments detect.

    An experiment detects a difference if its 95 % interval over seeds and scenes excludes 0. The
    result is (t for 95 % + t for 80 %) times the standard error over seeds and scenes. The standard
    error is estimated from a pilot experiment, in which both recipes were trained with a few seeds.

    Args:
        by_seed: for each seed of the pilot, the difference between the two recipes' errors.
        by_scene: for each scene, the difference between the two recipes' errors, averaged over the
            pilot's seeds.
        seeds: number of seeds of the planned experiment.

    Returns:
        The difference, in the unit of the errors; NaN if the pilot has fewer than two seeds or
        scenes, or `seeds` is below 2.
    """
    if len(by_seed) < 2 or len(by_scene) < 2 or seeds < 2:
        return math.nan
    # Compute the standard error over the planned number of seeds. Its degrees of freedom follow
    # from the pilot's number of seeds, because the spread is estimated from the pilot.
    over_planned = float(np.std(by_seed, ddof=1)) / math.sqrt(seeds)
    error, freedom = _joint_error([(over_planned, len(by_seed)), (_error(by_scene), len(by_scene))])
    one_sided_power = 2 * POWER - 1  # P(T < t) is 0.8 if P(|T| < t) is 0.6
    return (t_quantile(LEVEL, freedom) + t_quantile(one_sided_power, freedom)) * error
