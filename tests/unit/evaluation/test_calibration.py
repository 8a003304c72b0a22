"""The temperature of planted distributions is found, and figures equal values by hand."""

import json
import math

import numpy as np
import pytest
import torch

from tiekd.errors import DataError
from tiekd.evaluation import calibration
from tiekd.evaluation.calibration import Pixels


def planted(temperature: float, count: int = 10000, num_bins: int = 33):
    """Returns logits, and bins that are drawn from the distributions of this temperature."""
    draw = torch.Generator().manual_seed(3)
    logits = 1.5 * torch.randn(count, num_bins, generator=draw)
    bins = torch.multinomial((logits / temperature).softmax(1), 1, generator=draw)[:, 0]
    return logits, bins


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_temperature_finds_the_planted_one(temperature):
    """The fit is within 2 % of the temperature that the references were drawn with."""
    logits, bins = planted(temperature)
    found = calibration.fit_temperature(logits, bins)
    assert found == pytest.approx(temperature, rel=0.02)
    assert calibration.fit_temperature(logits, bins) == found
    # Another scale of the logits is another temperature.
    assert calibration.fit_temperature(2 * logits, bins) == pytest.approx(2 * found, rel=1e-3)


def test_fit_temperature_is_the_minimum():
    """No temperature nearby has a smaller mean negative log-likelihood."""
    logits, bins = planted(1.7, count=3000)
    found = calibration.fit_temperature(logits, bins)
    losses = [
        calibration.likelihood_loss(logits, bins, found * factor).mean().item()
        for factor in (0.98, 1.0, 1.02)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_likelihood_loss_by_hand():
    """It is -log of the tempered probability, also over several blocks of rows."""
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(5000, 1)
    loss = calibration.likelihood_loss(logits, torch.ones(5000, dtype=torch.int64), 0.5)
    assert loss.shape == (5000,)
    assert loss[-1].item() == pytest.approx(-math.log(9 / 10), rel=1e-6)


def test_fit_temperature_refuses_what_has_no_minimum():
    """Always right, never right and not finite are one line each, not a temperature."""
    logits, _ = planted(1.0, count=50)
    for bins in (logits.argmax(1), logits.argmin(1)):
        with pytest.raises(DataError, match="no temperature between 0.001 and 1000"):
            calibration.fit_temperature(logits, bins)
    logits[3, 4] = math.nan
    with pytest.raises(DataError, match="isn't finite"):
        calibration.fit_temperature(logits, logits.argmax(1))


def pixels(**changes) -> Pixels:
    draw = np.random.default_rng(0)
    count = 4000
    sigma = draw.uniform(0.5, 4, count)
    sure = draw.uniform(0, 1, count)
    values = {
        "frame": np.repeat([0, 1], count // 2),
        "error": np.abs(draw.normal(0, sigma)),
        "within": draw.uniform(0, 1, count) < sure,
        "confidence": sure,
        "sigma": sigma,
        "nll": np.full(count, 2.0),
    }
    return Pixels(**{**values, **changes})


def test_measure_calibration_of_calibrated_pixels():
    """Gaussian errors of the stated sigma, and events of the stated probability, fit."""
    found = calibration.measure_calibration(pixels())
    assert found["calibration_error"] < 0.03
    assert found["sigma_error"] < 0.06
    assert found["within_1_sigma"] == pytest.approx(0.683, abs=0.02)
    assert found["within_2_sigma"] == pytest.approx(0.954, abs=0.02)
    assert found["nll"] == 2.0
    assert [each["pixels"] for each in found["reliability_of_sigma"]] == [400] * 10
    sparse = found["sparsification"]
    assert sparse["area_oracle"] < sparse["area_by_sigma"] < sparse["area_random"] == 1
    assert 0 < sparse["gain"] < 1
    json.dumps(found, allow_nan=False)


def test_measure_calibration_sees_a_wrong_scale():
    """Doubled sigmas and halved confidences are errors of half their size."""
    right = pixels()
    found = calibration.measure_calibration(
        right._replace(sigma=2 * right.sigma, confidence=right.confidence / 2)
    )
    assert found["sigma_error"] == pytest.approx(0.5, abs=0.03)
    assert found["within_1_sigma"] == pytest.approx(0.954, abs=0.02)
    assert found["calibration_error"] == pytest.approx(0.25, abs=0.02)


def test_calibration_error_by_hand():
    """The gap of each range of confidence counts with its pixels, also in a range's end."""
    found = calibration.measure_calibration(
        pixels(
            confidence=np.repeat([1.0, 0.5], [3000, 1000]),
            within=np.repeat([True, False, True], [2400, 600, 1000]),
        )
    )
    assert found["calibration_error"] == pytest.approx((3000 * 0.2 + 1000 * 0.5) / 4000)
    rows = found["reliability_of_confidence"]
    assert [(row["confidence"], row["share_within"]) for row in rows] == [(0.5, 1.0), (1.0, 0.8)]


def test_measure_calibration_of_few_pixels_has_no_curves():
    """Frames of less than 50 pixels give no curve, and figures stay plain JSON."""
    some = Pixels(*(values[:30] for values in pixels()))
    found = calibration.measure_calibration(some)
    assert found["sparsification"]["area_by_sigma"] is None
    json.dumps(found, allow_nan=False)
