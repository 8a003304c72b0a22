"""The robust fit that makes one relative map metric.

A relative output x is linear in y, which is depth or inverse depth: y = s x + t, with a scale s > 0
and a shift t that nobody knows and that differ from image to image (t = 0 for some models; Ranftl
et al., TPAMI 2020). The anchor, sparse ground truth or a metric teacher, gives y at some pixels.

1. Candidates (Fischler and Bolles, "Random Sample Consensus", CACM 1981): NUM_DRAWS times the line
   through two anchor points, which are far apart in x. A point's residual is r = (s x + t) / y - 1,
   in either space the relative error in depth to first order. The candidate with the least median
   of |r| gives the noise sigma = 1.4826 median |r| (Rousseeuw, "Least Median of Squares
   Regression", JASA 1984); then the least sum of min(r^2, (CUT sigma)^2) chooses (Torr and
   Zisserman, "MLESAC", CVIU 2000).
2. Weighted least squares, repeated: minimise sum w (y - p)^2 / p^2 over s and t, where p = s x + t
   of the round before, so that residuals are relative in depth; w is Tukey's biweight of r / sigma.
   Weights of 1 / y^2 would make s too small by two variances of the noise.
3. How far s and t can be trusted: the image is cut into TILES, the fit is repeated without each of
   them, and the spread of these fits is the fit's covariance (the delete-a-group jackknife; Kunsch,
   Annals of Statistics 1989). Errors that are smooth over a tile are counted as one error, not as
   many. Over the outputs of the whole image it
   predicts the error of depth, also where no anchor point is.

An image is left out (`Fit.is_good` is False) by the limits below, which were set on planted scales
and shifts, so that few kept images are wrong by more than 1 %.

It costs about 20 ms for 375x1242 pixels with 4 % anchor points on one core. The arithmetic is
float64 numpy: tensors are copied to the CPU. What it can't see: an anchor that is wrong by a factor
everywhere (the fit follows it), outliers that are a majority or within the noise, and an output
that bends where no anchor point is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.meaning import Meaning

NUM_DRAWS = 400
# Points that candidates are compared on, and at most in the fit; drawn from all anchor points.
NUM_COMPARED = 1000
MAX_POINTS = 20000
# Residuals below CUT sigma are inliers; the biweight is 0 from 4.685 sigma (95 % efficiency).
CUT = 2.5
BIWEIGHT = 4.685
NUM_ROUNDS = 6
TILES = (4, 8)
MIN_TILES = 4
# Points of the image's range at which the error is predicted.
NUM_PREDICTED = 33
NUM_OUTPUTS = 20000

MIN_POINTS = 100
MIN_INLIER_SHARE = 0.5
MAX_ERROR = 0.1
MAX_UNCERTAINTY = 0.007
MAX_EXTRAPOLATION = 0.05
# With noise of 2 % `Fit.error` is 1.35 %. A map that deviates more from the anchor may be more
# uncertain, by what it deviates more: little is added to an error that it has anyway.
ERROR_OF_NOISE = 0.0155
EXTRAPOLATION_BY_UNCERTAINTY = 4
# Rank correlation of output and anchor below which the output falls where it should rise. With 30 %
# outliers it is -0.35 or less then, and 0.35 or more where the output rises.
INVERTED = -0.25


@dataclass(frozen=True)
class Fit:
    """Scale and shift of one image, and how well they are known; JSON by `dataclasses.asdict`.

    Attributes:
        scale: s > 0, None where there is no fit.
        shift: t, 0 for a meaning without a shift, None where there is no fit.
        num_points: Anchor points that can be used.
        inlier_share: Share of them that agree with the fit within CUT sigma.
        error: Median relative depth error on the inliers.
        uncertainty: Predicted relative depth error of scale and shift, 2 sigma, median over the
            range of log depth of the whole image within max_depth_m. None if it can't be
            told.
        extrapolation: The largest over that range.
        reason: Why the image is left out; "" for a good fit.
    """

    scale: float | None
    shift: float | None
    num_points: int
    inlier_share: float | None = None
    error: float | None = None
    uncertainty: float | None = None
    extrapolation: float | None = None
    reason: str = ""

    @property
    def is_good(self) -> bool:
        """True unless the image is left out."""
        return not self.reason


def fit(
    output: Tensor | np.ndarray,
    depth: Tensor | np.ndarray,
    meaning: Meaning,
    *,
    max_depth_m: float,
    min_points: int = MIN_POINTS,
) -> Fit:
    """Fits scale and shift of one relative map to an anchor; draws from no global RNG.

    Args:
        output: (H, W), any real type: the teacher's output. Not finite where it has none.
        depth: (H, W), metres: the anchor. 0 or NaN where it has none; points at or beyond
            max_depth_m aren't used, since a metric teacher's may be cut off there.
        meaning: A relative one.
        max_depth_m: Largest depth that counts, metres.
        min_points: Fewest anchor points of a good fit.
    """
    assert not meaning.is_metric, f"{meaning.name} is metric: meaning.to_metres"
    output, depth = _to_numpy(output), _to_numpy(depth)
    if output.shape != depth.shape or output.ndim != 2:
        raise ValueError(
            f"output {output.shape} and depth {depth.shape} must be maps (H, W) of one size"
        )

    # Which pixels are anchor points. Without a shift only a positive output can be a depth.
    usable = np.isfinite(output) if meaning.has_shift else np.isfinite(output) & (output > 0)
    points = np.flatnonzero(usable & (depth > 0) & (depth < max_depth_m))
    num_points = len(points)
    if min_points < MIN_TILES:
        raise TeacherError(
            f"teacher.anchor: min_points {min_points} is too few; use {MIN_TILES} or more"
        )
    if num_points < min_points:
        return Fit(
            None, None, num_points, reason=f"{num_points} anchor points; {min_points} needed"
        )
    generator = np.random.default_rng(0)
    points = generator.permutation(points)[:MAX_POINTS]
    x, y = output.ravel()[points], depth.ravel()[points]
    if meaning.space == "inverse":
        y = 1 / y

    # The output in units of its own spread, so that sums of squares lose no digits.
    outputs = output[usable]
    outputs = outputs[:: -(-len(outputs) // NUM_OUTPUTS)]
    outputs = np.quantile(outputs, np.linspace(0.01, 0.99, NUM_PREDICTED))
    low, middle, high = outputs[[0, NUM_PREDICTED // 2, -1]]
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return Fit(None, None, num_points, reason=f"the output is constant ({middle:g})")
    origin, unit = (middle, high - low) if meaning.has_shift else (0.0, middle)
    x, outputs = (x - origin) / unit, (outputs - origin) / unit

    line, reason = _find_line(x, y, meaning, generator)
    if line is None:
        return Fit(None, None, num_points, reason=reason)
    scale, shift, weights, inlier = line

    # Quality, and the limits that leave an image out.
    predicted = scale * x[inlier] + shift
    ratio = predicted / y[inlier] if meaning.space == "depth" else y[inlier] / predicted
    tiles = _tiles(points, output.shape)
    lines = _without_each_tile(_terms(x, y, weights), tiles, meaning.has_shift)
    errors = _predict_errors(outputs, (scale, shift), lines, meaning, max_depth_m)
    quality = {
        "inlier_share": float(inlier.mean()),
        "error": float(np.median(np.abs(ratio - 1))),
        "uncertainty": float(np.median(errors)),
        "extrapolation": float(errors.max()),
    }
    reason = _poor(quality, len(lines))
    if reason:
        near, far = np.quantile(depth.ravel()[points][inlier], (0.01, 0.99))
        reason += f" (anchor points that agree are at {near:.3g} to {far:.3g} m)"
    scale, shift = scale / unit, shift - scale * origin / unit
    known = {key: value if np.isfinite(value) else None for key, value in quality.items()}
    return Fit(float(scale), float(shift), num_points, **known, reason=reason)


def apply(
    output: Tensor | np.ndarray, fit: Fit, meaning: Meaning, max_depth_m: float
) -> tuple[Tensor, Tensor]:
    """Returns the metric map of a fit.

    Args:
        output: (..., H, W), any real type: the map that `fit` was made of.
        fit: Of this image.
        meaning: That of the fit.
        max_depth_m: Largest depth, metres.

    Returns:
        depth: Shape and device of the output, float32, metres. max_depth_m where it is beyond; 0
            where the output isn't finite or the depth not positive, and everywhere for a poor fit.
        beyond: bool: depth is max_depth_m or more. In inverse space that is s x + t <= 1 /
            max_depth_m, which includes values below 0: beyond infinity.
    """
    output = torch.as_tensor(output).float()
    if not fit.is_good:
        return torch.zeros_like(output), torch.zeros_like(output, dtype=torch.bool)
    linear, finite = fit.scale * output + fit.shift, torch.isfinite(output)
    if meaning.space == "inverse":
        beyond = finite & (linear <= 1 / max_depth_m)
        depth = 1 / linear
    else:
        beyond = finite & (linear >= max_depth_m)
        depth = linear
    depth = torch.where(beyond, max_depth_m, depth)
    return torch.where(finite & (depth > 0), depth, 0), beyond


def _to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """Returns a float64 copy on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.array(values, dtype=np.float64)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; the points come in random order, so ties fall either way."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (x, y)]
    return float(np.corrcoef(ranks)[0, 1])


def _find_line(
    x: np.ndarray, y: np.ndarray, meaning: Meaning, generator: np.random.Generator
) -> tuple[tuple[float, float, np.ndarray, np.ndarray] | None, str]:
    """Returns what `_least_squares` does and "", or None and why no scale above 0 fits."""
    correlation = _rank_correlation(x[:NUM_COMPARED], y[:NUM_COMPARED])
    if correlation < INVERTED:
        return None, (
            f"the output falls where {meaning.formula} rises (rank correlation "
            f"{correlation:.2f}); its meaning may be {meaning.opposite}, not {meaning.name}"
        )
    line = _sample_consensus(x, y, meaning.has_shift, generator)
    if line is not None:
        line = _least_squares(x, y, line, meaning.has_shift)
    if line is None:
        return None, (
            f"no scale above 0 fits (rank correlation of output and anchor {correlation:.2f}): the "
            "anchor points have too few different outputs or depths"
        )
    return line, ""


def _sample_consensus(
    x: np.ndarray, y: np.ndarray, has_shift: bool, generator: np.random.Generator
) -> tuple[float, float, float] | None:
    """Returns (scale, shift, sigma) of the best candidate; None if its scale isn't above 0.

    Args:
        x: (N,) outputs, in random order.
        y: (N,) depth or inverse depth.
        has_shift: False for candidates of one point instead of two.
        generator: Draws the points.
    """
    x, y = x[:NUM_COMPARED], y[:NUM_COMPARED]
    count = len(x)
    first = generator.integers(count, size=NUM_DRAWS)
    if has_shift:
        # A quarter of all ranks or more apart, since the noise of close points hides the slope.
        by_output = np.argsort(x)
        apart = generator.integers(count // 4, count - count // 4 + 1, size=NUM_DRAWS)
        first, second = by_output[first], by_output[(first + apart) % count]
        run = x[second] - x[first]
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = (y[second] - y[first]) / run
        shifts = y[first] - scales * x[first]
    else:
        scales = y[first] / x[first]
        shifts = np.zeros(NUM_DRAWS)
    allowed = np.isfinite(scales)
    if not allowed.any():
        return None
    scales, shifts = scales[allowed], shifts[allowed]

    residuals = np.abs((scales[:, None] * x + shifts[:, None]) / y - 1)
    sigma = _sigma(residuals[np.argmin(np.median(residuals, axis=1))])
    best = np.argmin((np.minimum(residuals, CUT * sigma) ** 2).sum(axis=1))
    # Falling candidates take part, so that a flat one doesn't win where the output falls.
    return (scales[best], shifts[best], sigma) if scales[best] > 0 else None


def _sigma(residuals: np.ndarray) -> float:
    """Standard deviation of normal noise from the median of |residual|, above rounding errors."""
    return max(1.4826 * float(np.median(residuals)), 1e-5)


def _least_squares(
    x: np.ndarray, y: np.ndarray, line: tuple[float, float, float], has_shift: bool
) -> tuple[float, float, np.ndarray, np.ndarray] | None:
    """Returns (scale, shift, weights, inlier) of the reweighted fit; None if no scale above 0 fits.

    Args:
        x: (N,) outputs.
        y: (N,) depth or inverse depth.
        line: Scale, shift and sigma to begin with.
        has_shift: False keeps the shift at 0.
    """
    scale, shift, sigma = line
    for _ in range(NUM_ROUNDS):
        weights, _, sigma = _weigh(x, y, (scale, shift), sigma)
        scale, shift = _solve(_terms(x, y, weights).sum(axis=1), has_shift)
        if not scale > 0:
            return None
    weights, inlier, _ = _weigh(x, y, (scale, shift), sigma)
    return (scale, shift, weights, inlier) if inlier.any() else None


def _weigh(
    x: np.ndarray, y: np.ndarray, line: tuple[float, float], sigma: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns weights (N,), inlier (N,) bool by the sigma given, and the sigma of these inliers."""
    predicted = line[0] * x + line[1]
    positive = predicted > 0
    divisor = np.where(positive, predicted, 1)
    residuals = np.where(positive, np.abs(y - predicted) / divisor, np.inf)
    inlier = residuals < CUT * sigma
    if inlier.any():
        sigma = _sigma(residuals[inlier])
    weights = (1 - np.minimum(residuals / (BIWEIGHT * sigma), 1) ** 2) ** 2 / divisor**2
    return weights, inlier, sigma


def _terms(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns what the normal equations sum, (5, N): w, w x, w y, w x x, w x y."""
    weighted = weights * x
    return np.stack([weights, weighted, weights * y, weighted * x, weighted * y])


def _solve(sums: np.ndarray, has_shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and shift of sums (5, ...), each of shape (...); NaN where undetermined."""
    one, x, y, xx, xy = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        if not has_shift:
            return xy / xx, np.zeros_like(xy)
        scale = (one * xy - x * y) / (one * xx - x * x)
        return scale, (y - scale * x) / one


def _tiles(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the tile, 0 and up, of each flat index of a pixel."""
    rows, columns = np.divmod(points, shape[1])
    return rows * TILES[0] // shape[0] * TILES[1] + columns * TILES[1] // shape[1]


def _without_each_tile(terms: np.ndarray, tiles: np.ndarray, has_shift: bool) -> np.ndarray:
    """Returns scale and shift of the fits without each tile that has points, (num tiles, 2).

    Args:
        terms: (5, N) of `_terms`.
        tiles: (N,) each point's tile.
        has_shift: False keeps the shift at 0.
    """
    of_tile = np.stack([np.bincount(tiles, term) for term in terms])
    of_tile = of_tile[:, of_tile[0] > 0]
    return np.stack(_solve(of_tile.sum(axis=1, keepdims=True) - of_tile, has_shift), axis=1)


def _predict_errors(
    ends: np.ndarray,
    line: tuple[float, float],
    lines: np.ndarray,
    meaning: Meaning,
    max_depth_m: float,
) -> np.ndarray:
    """Returns relative depth errors, 2 sigma, at steps of log depth over the image's range.

    Args:
        ends: (K,) outputs over the range of the image.
        line: Scale and shift of the fit.
        lines: (G, 2) of the fits without each tile.
        meaning: Of the output.
        max_depth_m: End of the range.

    Returns:
        (NUM_PREDICTED,), inf where there are too few tiles, or the scale isn't known to be above 0.
    """
    count, freedom = len(lines), len(lines) - 1 - meaning.has_shift
    scale, shift = line
    linear = scale * ends + shift
    positive = linear[linear > 0]
    variance = (count - 1) / count * ((lines - line) ** 2).sum(axis=0)
    is_known = count >= MIN_TILES and scale > 3 * np.sqrt(variance[0])
    if not (is_known and len(positive)):
        return np.full(NUM_PREDICTED, np.inf)
    # What is predicted beyond might be within, so the range ends at the largest depth then.
    farthest = 1 / max_depth_m if meaning.space == "inverse" else max_depth_m
    clip = np.maximum if meaning.space == "inverse" else np.minimum
    low = linear.min() if meaning.space == "inverse" else positive.min()
    predicted = np.geomspace(clip(low, farthest), clip(positive.max(), farthest), NUM_PREDICTED)
    outputs = (predicted - shift) / scale
    spread = lines[:, :1] * outputs + lines[:, 1:] - predicted
    variance = (count - 1) / count * (spread**2).sum(axis=0)
    # Student's t in the place of 2 sigma (the first term of its expansion by degrees of freedom).
    errors = np.sqrt(variance) * (2 + 2.5 / freedom) / predicted
    return np.where(np.isnan(errors), np.inf, errors)


def _poor(quality: Mapping[str, float], num_tiles: int) -> str:
    """The reason for leaving an image out by its quality; "" for none."""
    share = quality["inlier_share"]
    if share < MIN_INLIER_SHARE:
        return f"{share:.0%} of the anchor points agree with a fit; {MIN_INLIER_SHARE:.0%} needed"
    if not np.isfinite(quality["uncertainty"]):
        tiles = f"{num_tiles} of {TILES[0] * TILES[1]} tiles of the image"
        return f"the anchor points, which lie in {tiles}, don't determine the scale"
    more = max(quality["error"] - ERROR_OF_NOISE, 0)
    uncertainty = MAX_UNCERTAINTY + more
    extrapolation = MAX_EXTRAPOLATION + EXTRAPOLATION_BY_UNCERTAINTY * more
    limits = {
        "error": (MAX_ERROR, "median relative error on the anchor points that agree"),
        "uncertainty": (uncertainty, "median predicted error over the image's range"),
        "extrapolation": (extrapolation, "largest predicted error over the image's range"),
    }
    for key, (limit, name) in limits.items():
        if not quality[key] <= limit:
            return f"{name} {quality[key]:.1%}; at most {limit:.1%} allowed"
    return ""
