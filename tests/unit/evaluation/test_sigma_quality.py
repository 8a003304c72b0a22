"""Figures of sigma against actual errors: planted errors, blind sources and ties."""

import numpy as np
import pytest

from tiekd.evaluation import sigma_quality
from tiekd.evaluation.sigma_quality import SigmaFrame

MAX_DEPTH_M = 80.0
SOURCES = {
    "right": lambda draw, true, depth: true,
    "random": lambda draw, true, depth: draw.uniform(1, 2, len(true)),
    "constant": lambda draw, true, depth: np.ones_like(true),
    "depth": lambda draw, true, depth: 0.1 * depth,
}


def _frames(source: str, factor: float = 1.0, count: int = 24, spread: float = 1.0):
    """Images whose errors are Gaussian with a known sigma: 5 % of depth, times 0.3 to 3."""
    draw = np.random.default_rng(3)
    frames = []
    for _ in range(count):
        depth = draw.uniform(2, 78, 4000)
        true = 0.05 * depth * np.exp(spread * draw.uniform(-1.2, 1.2, 4000))
        error = np.abs(true * draw.standard_normal(4000))
        frames.append(SigmaFrame(SOURCES[source](draw, true, depth) / factor, error, depth))
    return frames


def test_measure_planted_errors():
    """The sigma of planted errors correlates with them, also at equal depth, and is admitted."""
    found = sigma_quality.measure(_frames("right"), MAX_DEPTH_M)
    assert found.frames == 24
    # |error| is sigma times a random number, whose own spread bounds the correlation.
    assert 0.6 < found.correlation.low < found.correlation.value < found.correlation.high < 0.75
    assert found.at_depth.low > 0.4
    assert 0.5 < found.gain.value < 0.9
    assert found.orders_errors


def test_measure_exact_errors():
    """If sigma is the error itself, correlation and gain are 1."""
    frames = [frame._replace(sigma=frame.error) for frame in _frames("right")]
    found = sigma_quality.measure(frames, MAX_DEPTH_M)
    assert found.correlation.value == pytest.approx(1)
    assert found.at_depth.value == pytest.approx(1)
    assert found.gain.value == pytest.approx(1)
    assert np.array_equal(found.curve, found.oracle)


@pytest.mark.parametrize("source", ["random", "constant"])
def test_measure_blind_source(source):
    """A sigma that knows nothing of the errors is at chance, and isn't admitted."""
    found = sigma_quality.measure(_frames(source), MAX_DEPTH_M)
    assert abs(found.correlation.value) < 0.01
    assert abs(found.gain.value) < 0.02
    assert not found.orders_errors


def test_measure_depth_as_source():
    """Depth alone orders errors in metres, but not at equal depth, so it isn't admitted."""
    found = sigma_quality.measure(_frames("depth"), MAX_DEPTH_M)
    assert found.correlation.value == pytest.approx(found.of_depth.value)
    assert found.correlation.low > 0.3
    assert found.at_depth.value == 0
    assert not found.orders_errors


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_measure_recovers_factor(factor):
    """A sigma that is too small by a factor gets it back in every range, within 3 %."""
    found = sigma_quality.measure(_frames("right", factor), MAX_DEPTH_M)
    assert [(each.from_m, each.to_m) for each in found.ranges] == [
        (0, 10),
        (10, 20),
        (20, 40),
        (40, 80),
    ]
    for each in found.ranges:
        assert each.factor.value == pytest.approx(factor, rel=0.03)
        assert each.factor.low < factor < each.factor.high
        assert each.covered == pytest.approx(0.683, abs=0.01)
        assert each.from_m < each.depth_m < each.to_m


def test_measure_needs_images():
    """Fewer than eight images with ground truth admit nothing; none give NaN."""
    assert not sigma_quality.measure(_frames("right", count=7), MAX_DEPTH_M).orders_errors
    few = [SigmaFrame(*(values[:49] for values in frame)) for frame in _frames("right")]
    found = sigma_quality.measure(few, MAX_DEPTH_M)
    assert found.frames == 0
    assert np.isnan(found.correlation.value)
    assert found.ranges == []
    assert not found.orders_errors


def test_rank_correlation_of_ties():
    """Equal values share the mean of their ranks."""
    one, other = np.array([1.0, 1, 2, 3]), np.array([10.0, 20, 30, 40])
    expected = np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1]
    assert sigma_quality.rank_correlation(one, other) == pytest.approx(expected)


def test_sparsification_by_hand():
    """After half of four pixels are dropped, the mean is that of the two of smallest sigma."""
    curve = sigma_quality.sparsification(np.array([4.0, 3, 1, 2]), np.array([1.0, 2, 4, 5]))
    assert curve[0] == 1
    assert curve[10] == pytest.approx(4.5 / 3)
    assert curve[-1] == pytest.approx(4 / 3)
