"""The pass over validation frames: sigma, reliability, bias, and what is kept."""

import numpy as np
import pytest
import torch
from support.noise_frames import CPU, Frames, protocol
from support.recipes import STUDENT

from tiekd.data.loading.loader import Loading
from tiekd.evaluation.compare import EvaluatedPredictor
from tiekd.evaluation.evaluate import evaluate
from tiekd.evaluation.floors import ConstantMap
from tiekd.evaluation.sigma_quality import SigmaFrame
from tiekd.models import flip
from tiekd.models.build import build_network
from tiekd.models.network import Prediction
from tiekd.models.spread import Spread
from tiekd.tools.report import measure
from tiekd.tools.report.measure import WatchedPredictor


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return build_network(STUDENT).eval()


def test_watched_predictor_predicts_as_the_evaluation(network):
    """Depth with and without flip averaging is that of `models.flip`; width is the spread's."""
    image = torch.randn(2, 3, 32, 64)
    for flips in (False, True):
        watched = WatchedPredictor(network, flips)
        assert torch.equal(watched(image), flip.predict(network, image, flips))
    plain, mirrored = flip.predict_pair(network, image)
    assert torch.equal(watched.depth, plain)
    change = (mirrored / plain).log().abs().flatten(1).median(1).values
    assert torch.allclose(watched.change, change)
    wanted = Spread(network.head)(network.features(image), (32, 64)).sigma
    assert torch.equal(watched.excess, wanted)
    assert WatchedPredictor(network, False).change is None


class Wall(torch.nn.Module):
    """Predicts 30 m everywhere, with a head that gives no distribution."""

    head, canonical, max_depth = torch.nn.Identity(), None, 80.0

    def features(self, image):
        return image

    def read(self, features, size, focal=None):
        return self(features)

    def forward(self, image):
        return Prediction(image.new_full((len(image), 1, *image.shape[-2:]), 30.0))


def measured(network, **settings):
    student = EvaluatedPredictor(flip.Predictor(network, True))
    loading = Loading(workers=0)
    return measure.evaluate(student, Frames(), protocol(**settings), CPU, loading, None)


def test_evaluate_measures_bias_over_pixels_that_count():
    """The relative bias is the mean over all pixels between 1 mm and 80 m of all frames."""
    found = measured(Wall(), batch_size=2)
    truths = torch.stack([Frames()[i].depth for i in range(7)]).double()
    truths = truths[(truths > 1e-3) & (truths < 80)]
    assert found.relative_bias == pytest.approx(float((30 / truths - 1).mean()), rel=1e-9)
    assert found.sizes == {(12, 20): 7}
    assert found.flip == 0.0
    assert (found.excess, found.reliability, found.pixels) == (None, None, [])


def test_evaluate_scores_floor_on_same_frames():
    """A map that ignores the image gets the metrics that it would get as a predictor."""
    student = EvaluatedPredictor(flip.Predictor(Wall(), True))
    loading, floor = Loading(workers=0), ConstantMap(torch.full((1, 1, 1, 1), 20.0))
    scored = protocol(batch_size=3)
    found = measure.evaluate(student, Frames(), scored, CPU, loading, None, floor)
    wanted = evaluate(floor, Frames(), scored, CPU)
    assert found.floor == pytest.approx(wanted, rel=1e-9)
    assert found.floor["abs_rel"] != found.result.metrics["abs_rel"]


def test_evaluate_keeps_a_bounded_sample(network, monkeypatch):
    """At most so many frames and pixels are kept, always the same ones."""
    monkeypatch.setattr(measure, "_MAX_FRAMES", 3)
    monkeypatch.setattr(measure, "_MAX_PIXELS", 50)
    first, second = measured(network, flip=False), measured(network, flip=False)
    assert len(first.pixels) == 3  # frames 0, 3 and 6 of seven
    assert [len(each.sigma) for each in first.pixels] == [50, 0, 50]
    for one, other in zip(first.pixels, second.pixels, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    truth = Frames()[0].depth
    known = truth[(truth > 1e-3) & (truth < 80)].numpy()
    depth, error = first.pixels[0].depth[:, None], first.pixels[0].error[:, None]
    matches = np.isclose(np.abs(depth - known), error, rtol=1e-4)
    assert matches.any(1).all()


def test_reliability_of_gaussian_errors():
    """Gaussian errors with the stated sigma have a factor of 1 and lie within each interval."""
    draw = np.random.default_rng(0)
    sigma = draw.uniform(0.5, 2, 200_000)
    error = np.abs(draw.normal(0, sigma))
    frames = [SigmaFrame(sigma, error, sigma), SigmaFrame(sigma[:0], error[:0], sigma[:0])]
    found = measure.reliability(frames)
    assert found.factor == pytest.approx(1, rel=0.01)
    assert found.observed == pytest.approx(measure.LEVELS, abs=0.01)
    # Sigmas of half the size hold fewer errors, until they are doubled.
    small = [SigmaFrame(sigma / 2, error, sigma)]
    assert measure.reliability(small).factor == pytest.approx(2, rel=0.01)
    assert measure.reliability(small).observed[-1] < 0.7
    assert measure.reliability(small, 2.0).observed == pytest.approx(found.observed)


def test_reliability_without_sigma_is_none():
    """Nothing is said without a pixel, or of sigmas that are all 0."""
    nothing = np.zeros(0)
    assert measure.reliability([]) is None
    assert measure.reliability([SigmaFrame(nothing, nothing, nothing)]) is None
    zero, one = np.zeros(3), np.ones(3)
    assert measure.reliability([SigmaFrame(zero, one, one)]) is None


def test_spaced_frames_are_even():
    """Frames are spread over the dataset, all of them if there are few."""
    assert measure.spaced(range(10), 3).indices == [0, 4, 9]
    assert measure.spaced(range(2), 3).indices == [0, 1]
    assert measure.one_by_one(protocol(batch_size=4)).settings.batch_size == 1
