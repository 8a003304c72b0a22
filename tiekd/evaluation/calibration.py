"""Fits the temperature of a DPM student's confidence, and measures its calibration.

The criterion is the mean negative log-likelihood of the reference's bin under the tempered
distribution (temperature scaling; Guo et al. 2017, arXiv 1706.04599). It is convex in 1/T, so that
it has one minimum, which golden-section search over log T finds in float64. Depths beyond the bins
count as in the first or last one, as in the training target.

The figures say how a sigma and a confidence fit the errors of the depth:

- the expected calibration error of confidence (ECE; Guo et al. 2017): pixels are grouped by
  confidence into 15 ranges of equal width, and the difference between the mean confidence and the
  share of depths within the band is averaged over the pixels;
- the calibration error of sigma (ENCE; Levi et al. 2019, arXiv 1905.11659): ten groups of as many
  pixels by sigma, of each |root mean square of sigma - of the error|, divided by the former; the
  share of errors within one and two sigma, 0.683 and 0.954 if errors are Gaussian;
- sparsification (`sigma_quality`): the mean error that is left after pixels of the largest sigma
  are dropped. The area under the curve is 1 for a random order, and least for an oracle.

One temperature for all pixels hardly changes their order, and so hardly the sparsification. Pixels
of a frame aren't independent; with few frames the figures are uncertain by more than their digits
show. Left out: several temperatures, and intervals.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiekd.errors import DataError
from tiekd.evaluation.sigma_quality import MIN_PIXELS, sparsification

CRITERION = "mean negative log-likelihood of the reference's bin under the tempered distribution"
LEAST, MOST = 1e-3, 1e3  # the range of temperatures that is searched
CONFIDENCE_RANGES = 15
SIGMA_GROUPS = 10
_DIGITS = 4  # of the temperature; more aren't known, and rounding hides the order of summation
_TOLERANCE = 1e-4  # of log T
_ROWS = 4096  # pixels whose distributions are float64 at once


class Pixels(NamedTuple):
    """Sampled pixels of the frames that are reported, with one temperature.

    Attributes:
        frame: (N,) int64, the frame of each pixel.
        error: (N,) float64, |returned depth - reference|, metres.
        within: (N,) bool, True where the reference is within the band around the returned depth.
        confidence: (N,) float64, 0 to 1.
        sigma: (N,) float64, metres.
        nll: (N,) float64, negative log-likelihood of the reference's bin, nats.
    """

    frame: np.ndarray
    error: np.ndarray
    within: np.ndarray
    confidence: np.ndarray
    sigma: np.ndarray
    nll: np.ndarray


def likelihood_loss(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """Returns the negative log-likelihood of each pixel's bin under its tempered distribution.

    Args:
        logits: (N, K) float32, of the bins.
        bins: (N,) int64, the bins of the references.
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
    """Returns the temperature with the least mean negative log-likelihood.

    Args:
        logits: (N, K) float32, of the bins of N pixels.
        bins: (N,) int64, the bins of the references.

    Returns:
        T, rounded to four digits.

    Raises:
        DataError: The logits aren't finite, or there is no minimum between LEAST and MOST.
    """
    if not bool(torch.isfinite(logits).all()):
        raise DataError("the network's output isn't finite (nan or inf), so nothing can be fitted")

    def loss(log_t: float) -> float:
        return likelihood_loss(logits, bins, math.exp(log_t)).mean().item()

    # Golden-section search: each step keeps the part of the interval that holds the minimum, and
    # one of its two inner points.
    shrink = (5**0.5 - 1) / 2
    low, high = math.log(LEAST), math.log(MOST)
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
    if not LEAST * 1.001 < found < MOST / 1.001:
        raise DataError(
            f"no temperature between {LEAST:g} and {MOST:g} has the least negative log-likelihood "
            f"(it still falls at T = {found:.3g}), as with an untrained student or a constant "
            "reference; train longer, or look at the reference"
        )
    return float(f"{found:.{_DIGITS}g}")


def figures(pixels: Pixels) -> dict:
    """Returns the figures of the module's docstring as plain values for JSON.

    Args:
        pixels: One pixel or more.

    Returns:
        name -> value. `nll`; of confidence `calibration_error`, `mean_confidence`, `share_within`
        and `reliability_of_confidence`; of sigma `sigma_error`, `mean_sigma_m`, `rms_error_m`,
        `within_1_sigma`, `within_2_sigma` and `reliability_of_sigma`; and `sparsification`.
    """
    error = pixels.error
    ranges = _by_confidence(pixels)
    groups = _by_sigma(pixels)
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


def _by_confidence(pixels: Pixels) -> list[dict]:
    """Returns the ranges of confidence that have pixels, in ascending order."""
    place = np.minimum((pixels.confidence * CONFIDENCE_RANGES).astype(int), CONFIDENCE_RANGES - 1)
    return [
        {
            "confidence": float(pixels.confidence[place == each].mean()),
            "share_within": float(pixels.within[place == each].mean()),
            "pixels": int((place == each).sum()),
        }
        for each in np.unique(place)
    ]


def _by_sigma(pixels: Pixels) -> list[dict]:
    """Returns SIGMA_GROUPS groups of as many pixels each, in ascending order of sigma."""
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
    """Returns the mean curves and areas of the frames with MIN_PIXELS pixels or more.

    Returns:
        The curves `by_sigma`, `by_confidence` and `oracle`, as `sigma_quality.sparsification` has
        them, at the shares `dropped`; the areas under them, their means; `area_random`, which is 1;
        and `gain`, the share of the oracle's gain over a random order that sigma has. None in the
        place of all if no frame has as many pixels.
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
