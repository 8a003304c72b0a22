"""Fits the temperature of a DPM student's confidence, and measures its calibration.

The temperature T divides the logits of the distribution over depth bins (temperature scaling; Guo
et al. 2017, arXiv 1706.04599). The fit minimises the mean negative log-likelihood of the bin that
contains the reference, i.e. the true depth, or the teacher's depth in its place. This mean is
convex in 1/T, so it has one minimum, which golden-section search over log T finds in float64.
References beyond the bins are assigned to the first or the last bin, as in training.

`measure_calibration` measures how well sigma and confidence (tiekd/models/confidence.py) agree with
the errors of the predicted depth. Confidence is the predicted probability that the reference is
within 10 % of the predicted depth.

- expected calibration error of confidence (ECE; Guo et al. 2017): pixels are grouped by confidence
  into 15 ranges of equal width. In each, the mean confidence is compared with the fraction of
  pixels whose reference is within 10 % of the predicted depth. The absolute difference is averaged
  over all pixels;
- calibration error of sigma (ENCE; Levi et al. 2019, arXiv 1905.11659): pixels are sorted by sigma
  and divided into ten groups of equal size. In each, the root mean square of sigma is compared with
  that of the errors. The absolute difference, divided by the former, is averaged over the groups;
- fractions of errors within one and two sigma, 0.683 and 0.954 if errors are Gaussian;
- sparsification (tiekd/evaluation/sigma_quality.py): the mean error of the pixels that are left
  after those of the largest sigma are dropped. The area under this curve is 1 if pixels are dropped
  in random order, and smallest if they are dropped in the order of their errors.

One temperature for all pixels hardly changes their order, and so hardly the sparsification. Pixels
of a frame aren't independent, so with few frames the results are less certain than the number of
pixels suggests. Not covered: several temperatures, and confidence intervals.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd.errors import DataError
from tiekd.evaluation.sigma_quality import MIN_PIXELS, sparsification

CRITERION = "mean negative log-likelihood of the reference's bin under the tempered distribution"
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3  # the range of temperatures that is searched
CONFIDENCE_RANGES = 15
SIGMA_GROUPS = 10
_DIGITS = 4  # of the temperature; more aren't known, and rounding hides the order of summation
_TOLERANCE = 1e-4  # of log T
_ROWS = 4096  # pixels whose distributions are float64 at once


class Pixels(NamedTuple):
    """Measurements at N pixels, which were sampled from a number of frames, for one temperature.

    The reference is the true depth, or the teacher's depth in its place.

    Attributes:
        frame: (N,) int64, number of the frame that the pixel belongs to.
        error: (N,) float64, |predicted depth - reference|, metres.
        within: (N,) bool, True if the error is at most `models.confidence.RELATIVE_TOLERANCE` times
            the predicted depth.
        confidence: (N,) float64, 0 to 1, the predicted probability that `within` is True.
        sigma: (N,) float64, the predicted standard deviation of the error, metres.
        nll: (N,) float64, negative log-likelihood of the depth bin that contains the reference,
            nats.
    """

    frame: np.ndarray
    error: np.ndarray
    within: np.ndarray
    confidence: np.ndarray
    sigma: np.ndarray
    nll: np.ndarray


def likelihood_loss(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """Returns the negative log-likelihood of one bin per pixel, given logits and a temperature.

    Args:
        logits: (N, K) float32, the logits of the K depth bins at N pixels; they are divided by T.
        bins: (N,) int64, index of the bin that contains the reference depth of each pixel.
        temperature: T, above 0.

    Returns:
        (N,) float64, nats.
    """
    parts = []
    for some, own in zip(logits.split(_ROWS), bins.split(_ROWS), strict=True):
        logs = (some.double() / temperature).log_softmax(1)
        parts.append(-logs.gather(1, own[:, None])[:, 0])
    return torch.cat(parts)


def fit_temperature(logits: Tensor, bins: Tensor) -> float:
    """Returns the temperature that minimises the mean negative log-likelihood of the given bins.

    Args:
        logits: (N, K) float32, the logits of the K depth bins at N pixels.
        bins: (N,) int64, index of the bin that contains the reference depth of each pixel.

    Returns:
        The temperature, rounded to four digits.

    Raises:
        DataError: The logits aren't finite, or there is no minimum between MIN_TEMPERATURE and
            MAX_TEMPERATURE.
    """
    if not bool(torch.isfinite(logits).all()):
        raise DataError("the network's output isn't finite (nan or inf), so nothing can be fitted")

    def loss(log_t: float) -> float:
        return likelihood_loss(logits, bins, math.exp(log_t)).mean().item()

    # Golden-section search: each step keeps the part of the interval that contains the minimum, and
    # one of the two inner points, `left` or `right`.
    shrink = (5**0.5 - 1) / 2
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    left, right = high - shrink * (high - low), low + shrink * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > _TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - shrink * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + shrink * (high - low)
            at_right = loss(right)
    found = math.exp((low + high) / 2)
    if not MIN_TEMPERATURE * 1.001 < found < MAX_TEMPERATURE / 1.001:
        raise DataError(
            f"no temperature between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g} has the least "
            f"negative log-likelihood (it still falls at T = {found:.3g}), as with an untrained "
            "student or a constant reference; train longer, or look at the reference"
        )
    return float(f"{found:.{_DIGITS}g}")


def measure_calibration(pixels: Pixels) -> dict:
    """Returns measures of how well confidence and sigma agree with the errors, as values for JSON.

    Args:
        pixels: The measurements at one pixel or more.

    Returns:
        A dict. `nll` is the mean negative log-likelihood, nats. For confidence:
        `calibration_error`, `mean_confidence`, `share_within` (fraction of True in `within`), and
        the list `reliability_of_confidence`, as `_reliability_of_confidence` returns it. For sigma:
        `sigma_error` (its calibration error), `mean_sigma_m`, `rms_error_m`, the fractions of
        errors `within_1_sigma` and `within_2_sigma`, and the list `reliability_of_sigma`, as
        `_reliability_of_sigma` returns it. `sparsification` is the dict of `_sparsification`.
    """
    error = pixels.error
    ranges = _reliability_of_confidence(pixels)
    groups = _reliability_of_sigma(pixels)
    gaps = [abs(each["confidence"] - each["share_within"]) * each["pixels"] for each in ranges]
    ratios = [abs(each["sigma_m"] - each["rms_error_m"]) / each["sigma_m"] for each in groups]
    return {
        "nll": float(pixels.nll.mean()),
        "calibration_error": float(sum(gaps) / len(error)),
        "mean_confidence": float(pixels.confidence.mean()),
        "share_within": float(pixels.within.mean()),
        "sigma_error": float(np.mean(ratios)),
        "mean_sigma_m": float(pixels.sigma.mean()),
        "rms_error_m": _rms(error),
        "within_1_sigma": float((error <= pixels.sigma).mean()),
        "within_2_sigma": float((error <= 2 * pixels.sigma).mean()),
        "reliability_of_confidence": ranges,
        "reliability_of_sigma": groups,
        "sparsification": _sparsification(pixels),
    }


def _reliability_of_confidence(pixels: Pixels) -> list[dict]:
    """Groups pixels by confidence into CONFIDENCE_RANGES ranges of equal width.

    Returns:
        For each range with pixels, in ascending order: `confidence` and `share_within`, the means
        of confidence and of `within`, and `pixels`, their number.
    """
    range_index = np.minimum(
        (pixels.confidence * CONFIDENCE_RANGES).astype(int), CONFIDENCE_RANGES - 1
    )
    return [
        {
            "confidence": float(pixels.confidence[range_index == each].mean()),
            "share_within": float(pixels.within[range_index == each].mean()),
            "pixels": int((range_index == each).sum()),
        }
        for each in np.unique(range_index)
    ]


def _reliability_of_sigma(pixels: Pixels) -> list[dict]:
    """Sorts pixels by sigma, and divides them into SIGMA_GROUPS groups of equal size.

    Returns:
        For each group with pixels, in ascending order of sigma: `sigma_m` and `rms_error_m`, the
        root mean squares of sigma and of the error in metres, and `pixels`, their number.
    """
    order = np.argsort(pixels.sigma, kind="stable")
    return [
        {
            "sigma_m": _rms(pixels.sigma[some]),
            "rms_error_m": _rms(pixels.error[some]),
            "pixels": len(some),
        }
        for some in np.array_split(order, SIGMA_GROUPS)
        if len(some)
    ]


def _sparsification(pixels: Pixels) -> dict:
    """Computes sparsification curves, averaged over the frames with MIN_PIXELS pixels or more.

    A curve is the mean error of the pixels that are left after a fraction of them is dropped,
    divided by the mean error of all pixels (`sigma_quality.sparsification`).

    Returns:
        A dict of `dropped`, the fractions of dropped pixels; the curves `by_sigma`, `by_confidence`
        and `oracle`, for dropping pixels of the largest sigma, the smallest confidence or the
        largest error first; the area under each, e.g. `area_by_sigma`; `area_random`, which is 1;
        and `gain`, (1 - area_by_sigma) / (1 - area_oracle). All values are None if no frame has
        MIN_PIXELS pixels.
    """
    curves = []
    for frame in np.unique(pixels.frame):
        own = pixels.frame == frame
        if own.sum() < MIN_PIXELS:
            continue
        error = pixels.error[own]
        orders = (pixels.sigma[own], -pixels.confidence[own], error)
        curves.append([sparsification(order, error) for order in orders])
    names = ("by_sigma", "by_confidence", "oracle")
    if not curves:
        areas = (*(f"area_{name}" for name in names), "area_random", "gain")
        return dict.fromkeys(("dropped", *names, *areas))
    means = dict(zip(names, np.mean(curves, axis=0), strict=True))
    steps = len(means["oracle"])
    areas = {f"area_{name}": float(curve.mean()) for name, curve in means.items()}
    room = 1 - areas["area_oracle"]
    return {
        "dropped": [step / steps for step in range(steps)],
        **{name: curve.tolist() for name, curve in means.items()},
        **areas,
        "area_random": 1.0,
        "gain": (1 - areas["area_by_sigma"]) / room if room > 0 else 0.0,
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
