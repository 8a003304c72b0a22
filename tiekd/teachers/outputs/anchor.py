"""The robust fit that makes one relative map metric.

A relative output x is linear in y, which is depth or inverse depth: y = s x + t, with a scale s > 0
and a shift t, which are unknown and differ from image to image (t = 0 for some models; Ranftl et
al., TPAMI 2020). The anchor, sparse ground truth or a metric teacher, gives y at some pixels.

1. Candidates (Fischler and Bolles, "Random Sample Consensus", CACM 1981): NUM_DRAWS lines, each
   through two random anchor points that are far apart in x. A point's residual is r = (s x + t) / y
   - 1, in either space the relative error in depth to first order. The candidate with the least
   median of |r| gives the noise sigma = 1.4826 median |r| (Rousseeuw, "Least Median of Squares
   Regression", JASA 1984); then the candidate with the least sum of min(r^2, (CUT sigma)^2) is
   chosen (Torr and Zisserman, "MLESAC", CVIU 2000).
2. Weighted least squares, repeated: minimise sum w (y - p)^2 / p^2 over s and t, where p = s x + t
   of the round before, so that residuals are relative in depth; w is Tukey's biweight of r / sigma.
   Division by y^2 instead would make s too small, by twice the variance of the noise.
3. The uncertainty of s and t: the image is divided into TILES, the fit is repeated once for each
   tile, without its points, and the covariance of s and t is estimated from the spread of these
   fits (the delete-a-group jackknife; Kunsch, Annals of Statistics 1989). Errors that are smooth
   over a tile are counted as one error, not as many. From the covariance follows the error of depth
   over the whole image, also where there is no anchor point.

A fit that exceeds one of the limits below is not used (`Fit.is_good` is False). The limits were
chosen on images with known scale and shift, such that few of the used fits are wrong by more than 1
%.

It costs about 20 ms for 375x1242 pixels with 4 % anchor points on one core. The arithmetic is
float64 numpy: tensors are copied to the CPU. Not detected are: an anchor that is wrong by the same
factor everywhere (the fit follows it), outliers that are in the majority or no larger than the
noise, and an output that isn't linear in y where there are no anchor points.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiekd.errors import TeacherError
from tiekd.teachers.outputs.output_kind import OutputKind

NUM_DRAWS = 400
# NUM_COMPARED: the number of anchor points (pixels with a depth from the anchor) on which candidate
# fits are compared. MAX_POINTS: the largest number of points in the least-squares fit. The points
# are drawn at random.
NUM_COMPARED = 1000
MAX_POINTS = 20000
# CUT: points whose residual is below CUT sigma are inliers. BIWEIGHT: the biweight, the fit's
# weight function, is 0 above this many sigma; with 4.685 its efficiency for normal noise is 95 %.
CUT = 2.5
BIWEIGHT = 4.685
NUM_ROUNDS = 6
TILES = (4, 8)
MIN_TILES = 4
# NUM_PREDICTED: the number of depths, from an image's nearest to its farthest, at which the
# relative depth error of the fit is predicted. NUM_OUTPUTS: the largest number of pixels from which
# the range of depths is found.
NUM_PREDICTED = 33
NUM_OUTPUTS = 20000

MIN_POINTS = 100
MIN_INLIER_SHARE = 0.5
MAX_ERROR = 0.1
MAX_UNCERTAINTY = 0.007
MAX_EXTRAPOLATION = 0.05
# ERROR_OF_NOISE: if `Fit.error` is above this value, MAX_UNCERTAINTY is raised by the difference,
# since the map has errors of that size anyway. (Depths with 2 % noise give a `Fit.error` of 1.35
# %.) EXTRAPOLATION_BY_UNCERTAINTY: MAX_EXTRAPOLATION is raised by this many times the difference.
ERROR_OF_NOISE = 0.0155
EXTRAPOLATION_BY_UNCERTAINTY = 4
# INVERTED: if the rank correlation between the output and the anchor's depth (or inverse depth, by
# the output's kind) is below this value, the output falls where it should rise. Then no fit is
# tried. With 30 % outliers the correlation is -0.35 or less for such an output, and 0.35 or more
# for one that rises.
INVERTED = -0.25


@dataclass(frozen=True)
class Fit:
    """The scale and shift that make the relative output of one image metric, and their quality.

    Attributes:
        scale: The scale s > 0 of y = s x + t, where x is the output and y depth in metres or
            inverse depth in 1 / metres; None if no fit was possible.
        shift: The shift t; 0 if the output's kind has no shift, None if no fit was possible.
        num_points: The number of anchor points, i.e. pixels with both an output and a metric depth.
        inlier_share: The fraction of the anchor points whose residual is below CUT sigma (the
            inliers).
        error: The median relative depth error of the inliers.
        uncertainty: The relative depth error (2 sigma) that the errors of scale and shift are
            predicted to cause: the median over the image's range of log depth, up to max_depth_m.
            None if it can't be computed.
        extrapolation: The largest predicted error over the same range; None if it can't be
            computed.
        reason: The reason why the fit is not used; "" for a good fit.
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
        """True if the fit is good enough to be used; otherwise `reason` says why not."""
        return not self.reason


def fit(
    output: Tensor | np.ndarray,
    depth: Tensor | np.ndarray,
    output_kind: OutputKind,
    *,
    max_depth_m: float,
    min_points: int = MIN_POINTS,
) -> Fit:
    """Fits the scale and shift of one relative map to metric depth, called the anchor.

    The random numbers come from a separate generator with a fixed seed, so the result is
    reproducible.

    Args:
        output: (H, W), any real type: the teacher's relative output; NaN or infinite in pixels
            without an output.
        depth: (H, W), metres: the anchor; 0 or NaN in pixels without one. Depths of max_depth_m or
            more aren't used, since a metric teacher's depth may be clipped there.
        output_kind: The kind of `output`, a relative one.
        max_depth_m: The largest depth in metres; anchor depths from this value on aren't used.
        min_points: The smallest number of anchor points for a good fit.

    Returns:
        The fit. If none is possible or it is not good enough, its `reason` says why.
    """
    assert not output_kind.is_metric, f"{output_kind.name} is metric: output_kind.to_metres"
    output, depth = _to_numpy(output), _to_numpy(depth)
    if output.shape != depth.shape or output.ndim != 2:
        raise ValueError(
            f"output {output.shape} and depth {depth.shape} must be maps (H, W) of one size"
        )

    # Find the anchor points: pixels with an output and a metric depth. An output that has only an
    # unknown scale, and no unknown shift, must be positive as well.
    usable = np.isfinite(output) if output_kind.has_shift else np.isfinite(output) & (output > 0)
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
    if output_kind.space == "inverse":
        y = 1 / y

    # Shift and scale the output, so that the values in an image range over about 1 and sums of
    # their squares lose no digits. Find the range by quantiles of some of the pixels.
    outputs = output[usable]
    outputs = outputs[:: -(-len(outputs) // NUM_OUTPUTS)]
    outputs = np.quantile(outputs, np.linspace(0.01, 0.99, NUM_PREDICTED))
    low, middle, high = outputs[[0, NUM_PREDICTED // 2, -1]]
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return Fit(None, None, num_points, reason=f"the output is constant ({middle:g})")
    origin, unit = (middle, high - low) if output_kind.has_shift else (0.0, middle)
    x, outputs = (x - origin) / unit, (outputs - origin) / unit

    line, reason = _find_line(x, y, output_kind, generator)
    if line is None:
        return Fit(None, None, num_points, reason=reason)
    scale, shift, weights, inlier = line

    # Measure the quality of the fit, and compare it with the limits.
    predicted = scale * x[inlier] + shift
    ratio = predicted / y[inlier] if output_kind.space == "depth" else y[inlier] / predicted
    tiles = _tiles(points, output.shape)
    lines = _without_each_tile(_terms(x, y, weights), tiles, output_kind.has_shift)
    errors = _predict_errors(outputs, (scale, shift), lines, output_kind, max_depth_m)
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
    output: Tensor | np.ndarray, fit: Fit, output_kind: OutputKind, max_depth_m: float
) -> tuple[Tensor, Tensor]:
    """Converts a relative map to metric depth by its fit.

    Args:
        output: (..., H, W), any real type: the relative map x from which `fit` was computed.
        fit: The scale s and shift t of this map.
        output_kind: The kind of the map: s x + t is depth or inverse depth.
        max_depth_m: The largest depth, in metres.

    Returns:
        1. Depth, with the shape and device of `output`, float32, metres, at most max_depth_m. It is
           0 in pixels in which the output isn't finite or the depth isn't positive, and everywhere
           if the fit isn't good.
        2. A mask of the same shape, bool: True in pixels whose depth is max_depth_m or more. For
           inverse depth these are the pixels with s x + t <= 1 / max_depth_m, also those with a
           value below 0.
    """
    output = torch.as_tensor(output).float()
    if not fit.is_good:
        return torch.zeros_like(output), torch.zeros_like(output, dtype=torch.bool)
    linear, finite = fit.scale * output + fit.shift, torch.isfinite(output)
    if output_kind.space == "inverse":
        beyond = finite & (linear <= 1 / max_depth_m)
        depth = 1 / linear
    else:
        beyond = finite & (linear >= max_depth_m)
        depth = linear
    depth = torch.where(beyond, max_depth_m, depth)
    return torch.where(finite & (depth > 0), depth, 0), beyond


def _to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """Returns a copy of a tensor or array as a float64 array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.array(values, dtype=np.float64)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Returns Spearman's rank correlation of two arrays (N,), from -1 to 1.

    Equal values get different ranks by their order. The points come in random order, so this has no
    systematic effect.
    """
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (x, y)]
    return float(np.corrcoef(ranks)[0, 1])


def _find_line(
    x: np.ndarray, y: np.ndarray, output_kind: OutputKind, generator: np.random.Generator
) -> tuple[tuple[float, float, np.ndarray, np.ndarray] | None, str]:
    """Finds scale and shift by sample consensus, and refines them by least squares.

    Args:
        x: (N,) outputs at the anchor points, in random order.
        y: (N,) depth or inverse depth at these points.
        output_kind: The kind of the output.
        generator: The generator of the random candidates.

    Returns:
        1. What `_least_squares` returns: (scale, shift, weights, inlier); None if no scale above 0
           fits.
        2. The reason if the first is None; else "".
    """
    correlation = _rank_correlation(x[:NUM_COMPARED], y[:NUM_COMPARED])
    if correlation < INVERTED:
        return None, (
            f"the output falls where {output_kind.formula} rises (rank correlation "
            f"{correlation:.2f}); its kind may be {output_kind.opposite}, not {output_kind.name}"
        )
    line = _sample_consensus(x, y, output_kind.has_shift, generator)
    if line is not None:
        line = _least_squares(x, y, line, output_kind.has_shift)
    if line is None:
        return None, (
            f"no scale above 0 fits (rank correlation of output and anchor {correlation:.2f}): the "
            "anchor points have too few different outputs or depths"
        )
    return line, ""


def _sample_consensus(
    x: np.ndarray, y: np.ndarray, has_shift: bool, generator: np.random.Generator
) -> tuple[float, float, float] | None:
    """Chooses the best of NUM_DRAWS random candidates for scale and shift (MLESAC).

    Args:
        x: (N,) outputs at the anchor points, in random order.
        y: (N,) depth or inverse depth at these points.
        has_shift: True if a candidate is the line through two points; False if the shift is 0, so
            that one point gives the scale.
        generator: The generator from which the points are drawn.

    Returns:
        (scale, shift, sigma) of the best candidate, where sigma is the standard deviation of the
        relative residuals; None if the best candidate's scale isn't above 0.
    """
    x, y = x[:NUM_COMPARED], y[:NUM_COMPARED]
    count = len(x)
    first = generator.integers(count, size=NUM_DRAWS)
    if has_shift:
        # Draw pairs of points whose ranks by output differ by at least a quarter of the number of
        # points. For points with similar outputs, noise would dominate the slope.
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
    # Candidates with a negative scale are included in the comparison. Otherwise, if the output
    # falls where it should rise, a candidate with a scale near 0 would win.
    return (scales[best], shifts[best], sigma) if scales[best] > 0 else None


def _sigma(residuals: np.ndarray) -> float:
    """Estimates the standard deviation of normally distributed residuals from their median.

    Args:
        residuals: (N,), magnitudes of the residuals.

    Returns:
        The standard deviation, at least 1e-5, which is above rounding errors.
    """
    return max(1.4826 * float(np.median(residuals)), 1e-5)


def _least_squares(
    x: np.ndarray, y: np.ndarray, line: tuple[float, float, float], has_shift: bool
) -> tuple[float, float, np.ndarray, np.ndarray] | None:
    """Refines scale and shift by NUM_ROUNDS rounds of reweighted least squares.

    Args:
        x: (N,) outputs at the anchor points.
        y: (N,) depth or inverse depth at these points.
        line: The initial scale, shift and sigma (standard deviation of the relative residuals).
        has_shift: False to keep the shift at 0.

    Returns:
        The scale; the shift; the weights of the points in the fit, (N,); and a mask of the inliers,
        i.e. of the points with a residual below CUT sigma, (N,) bool. None if no scale above 0
        fits.
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
    """Computes the weights of the points for the next round of least squares.

    Args:
        x: (N,) outputs at the anchor points.
        y: (N,) depth or inverse depth at these points.
        line: The scale and shift of the previous round.
        sigma: The standard deviation of the relative residuals in the previous round.

    Returns:
        The weights, (N,); a mask of the inliers, i.e. the points with a residual below CUT *
        sigma, (N,) bool; and the new sigma, computed from the inliers.
    """
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
    """Returns for each point the terms whose sums over all points give the normal equations.

    Args:
        x: (N,) outputs at the anchor points.
        y: (N,) depth or inverse depth at these points.
        weights: (N,) the weights w of the points.

    Returns:
        (5, N): w, w x, w y, w x x, w x y.
    """
    weighted = weights * x
    return np.stack([weights, weighted, weights * y, weighted * x, weighted * y])


def _solve(sums: np.ndarray, has_shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """Solves the normal equations of least squares for scale and shift.

    Args:
        sums: (5, ...) the sums over the points of what `_terms` returns, for one or more fits.
        has_shift: False to keep the shift at 0.

    Returns:
        The scales and the shifts, each of shape (...); NaN or infinite if the points don't
        determine them.
    """
    one, x, y, xx, xy = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        if not has_shift:
            return xy / xx, np.zeros_like(xy)
        scale = (one * xy - x * y) / (one * xx - x * x)
        return scale, (y - scale * x) / one


def _tiles(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the number of the tile in which each point lies.

    The image is divided into a grid of TILES rows and columns of tiles, numbered from 0, row by
    row.

    Args:
        points: (N,) indices of pixels in the flattened image.
        shape: (H, W) of the image.

    Returns:
        (N,) the tiles' numbers.
    """
    rows, columns = np.divmod(points, shape[1])
    return rows * TILES[0] // shape[0] * TILES[1] + columns * TILES[1] // shape[1]


def _without_each_tile(terms: np.ndarray, tiles: np.ndarray, has_shift: bool) -> np.ndarray:
    """Repeats the fit of scale and shift once for each tile, without the points in that tile.

    Args:
        terms: (5, N) the terms of all points, as `_terms` returns them.
        tiles: (N,) the number of the tile in which each point lies.
        has_shift: False to keep the shift at 0.

    Returns:
        (G, 2) scale and shift of each fit, for the G tiles that have points.
    """
    of_tile = np.stack([np.bincount(tiles, term) for term in terms])
    of_tile = of_tile[:, of_tile[0] > 0]
    return np.stack(_solve(of_tile.sum(axis=1, keepdims=True) - of_tile, has_shift), axis=1)


def _predict_errors(
    ends: np.ndarray,
    line: tuple[float, float],
    lines: np.ndarray,
    output_kind: OutputKind,
    max_depth_m: float,
) -> np.ndarray:
    """Predicts the relative depth error that the uncertainty of scale and shift causes.

    Args:
        ends: (K,) outputs of the image: quantiles, in increasing order, that span its range.
        line: The scale and shift of the fit to all points.
        lines: (G, 2) the scale and shift of G further fits, each without the points of one of the
            G tiles of the image (a jackknife).
        output_kind: The kind of the output.
        max_depth_m: The largest depth at which an error is predicted, in metres.

    Returns:
        (NUM_PREDICTED,) the errors (2 sigma), at depths from the nearest to the farthest of the
        image in equal steps of log depth. All are infinite if there are too few tiles, or if a
        scale of 0 or less can't be excluded.
    """
    count, freedom = len(lines), len(lines) - 1 - output_kind.has_shift
    scale, shift = line
    linear = scale * ends + shift
    positive = linear[linear > 0]
    variance = (count - 1) / count * ((lines - line) ** 2).sum(axis=0)
    is_known = count >= MIN_TILES and scale > 3 * np.sqrt(variance[0])
    if not (is_known and len(positive)):
        return np.full(NUM_PREDICTED, np.inf)
    # Limit the range of depths to max_depth_m. A pixel that is predicted to be farther may really
    # be nearer, so its error is predicted at max_depth_m.
    farthest = 1 / max_depth_m if output_kind.space == "inverse" else max_depth_m
    clip = np.maximum if output_kind.space == "inverse" else np.minimum
    low = linear.min() if output_kind.space == "inverse" else positive.min()
    predicted = np.geomspace(clip(low, farthest), clip(positive.max(), farthest), NUM_PREDICTED)
    outputs = (predicted - shift) / scale
    spread = lines[:, :1] * outputs + lines[:, 1:] - predicted
    variance = (count - 1) / count * (spread**2).sum(axis=0)
    # The variance comes from a few fits, each of which leaves one tile out, so 2 standard
    # deviations would be too few. Use the 95 % quantile of Student's t, to first order in 1 /
    # freedom (the degrees of freedom).
    errors = np.sqrt(variance) * (2 + 2.5 / freedom) / predicted
    return np.where(np.isnan(errors), np.inf, errors)


def _poor(quality: Mapping[str, float], num_tiles: int) -> str:
    """Returns the reason why a fit isn't good enough to be used; "" if it is good.

    Args:
        quality: `inlier_share`, `error`, `uncertainty` and `extrapolation`, as in `Fit`.
        num_tiles: The number of tiles of the image that have anchor points.
    """
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
