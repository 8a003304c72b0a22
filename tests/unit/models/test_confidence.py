"""Confidence and sigma of a DPM head: values by hand, units, and the record in a weights file."""

import math

import pytest
import torch
from support.recipes import ENCODER

from tiekd.errors import CheckpointError
from tiekd.models import confidence
from tiekd.models.build import build_network
from tiekd.models.canonical import Canonical
from tiekd.models.confidence import Calibration

EDGES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
P = torch.tensor([0.1, 0.4, 0.4, 0.1])
NODE = {
    "encoder": ENCODER,
    "decoder": {"name": "densedepth", "widths": [8, 16], "extra_ups": 0},
    "head": {"name": "dpm", "num_bins": 33, "sigma": 2.0},
    "min_depth": 0.5,
    "max_depth": 80.0,
}


def pixel(values):
    return values.view(1, -1, 1, 1)


def of_pixel(probabilities, depth, temperature):
    maps = confidence.certainty(
        confidence.tempered(pixel(probabilities), temperature),
        torch.full((1, 1, 1, 1), depth),
        EDGES,
    )
    assert maps.shape == (1, 2, 1, 1)
    return maps.flatten().tolist()


def test_tempered_is_softmax_of_divided_logits():
    """Tempering equals dividing the logits by T, also where the powers alone would underflow."""
    torch.manual_seed(0)
    logits = torch.randn(2, 257, 3, 2)
    for temperature in (0.02, 0.5, 4.0):
        wanted = (logits / temperature).softmax(1)
        found = confidence.tempered(logits.softmax(1), temperature)
        found = found / found.sum(1, keepdim=True)
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-7)
    probabilities = logits.softmax(1)
    assert confidence.tempered(probabilities, 1.0) is probabilities


def test_certainty_of_weights_with_bins_last():
    """The layout and a factor in each pixel change neither confidence nor sigma."""
    torch.manual_seed(0)
    p, depth = torch.randn(2, len(EDGES) - 1, 3, 4).softmax(1), 4 + torch.rand(2, 1, 3, 4)
    wanted = confidence.certainty(p, depth, EDGES)
    weights = (p * (0.1 + torch.rand(2, 1, 3, 4))).permute(0, 2, 3, 1).contiguous()
    found = confidence.certainty(weights, depth.permute(0, 2, 3, 1), EDGES, -1)
    assert found.shape == (2, 3, 4, 2)
    assert torch.allclose(found.permute(0, 3, 1, 2), wanted, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_certainty_by_hand(temperature):
    """Confidence is the mass within 10 % of the depth, sigma the root of the expected square."""
    depth = 4.0  # so that the band is 3.6 to 4.4: a fifth of the second bin, a tenth of the third
    q = P ** (1 / temperature)
    q = (q / q.sum()).tolist()
    sure, sigma = of_pixel(P, depth, temperature)
    assert sure == pytest.approx(0.2 * q[1] + 0.1 * q[2], rel=1e-5)
    square = 0.0
    for low, high, share in zip(EDGES[:-1].tolist(), EDGES[1:].tolist(), q, strict=True):
        square += share * ((high - depth) ** 3 - (low - depth) ** 3) / 3 / (high - low)
    assert sigma == pytest.approx(math.sqrt(square), rel=1e-5)


def test_certainty_is_a_probability_at_the_ends():
    """A band around all bins has confidence 1, one beside them 0."""
    edges = torch.linspace(9.9, 10.1, 258)
    p = torch.rand(1, 257, 1, 1).softmax(1)
    sure = confidence.certainty(p, torch.full((1, 1, 1, 1), 10.0), edges)[0, 0].item()
    assert 1 - 1e-5 < sure <= 1
    assert confidence.certainty(p, torch.full((1, 1, 1, 1), 20.0), edges)[0, 0].item() == 0


def test_sigma_grows_and_confidence_falls_with_temperature():
    """A larger temperature means a larger sigma and a smaller confidence."""
    hill = torch.tensor([0.02, 0.9, 0.06, 0.02])
    found = [of_pixel(hill, 3.0, temperature) for temperature in (0.5, 1.0, 2.0, 8.0)]
    sures, sigmas = zip(*found, strict=True)
    assert list(sures) == sorted(sures, reverse=True)
    assert list(sigmas) == sorted(sigmas)


def test_of_features_scales_with_the_canonical_camera():
    """With a canonical camera sigma is metres, as depth is, and confidence stays."""
    torch.manual_seed(0)
    network = build_network(NODE).eval()
    torch.nn.init.normal_(network.head.weight, std=5.0)
    features = network.features(torch.randn(2, 3, 32, 48))
    canonical = network.head(features, (32, 48)).depth.detach()
    plain = confidence.of_features(network, features, canonical, (32, 48), 2.0)
    assert plain.sigma.shape == plain.confidence.shape == (2, 1, 32, 48)
    network.canonical = Canonical(100.0, 0.5, 4.0)
    focal = torch.tensor([50.0, 25.0])
    metres = network.canonical.to_metres(canonical, focal)
    found = confidence.of_features(network, features, metres, (32, 48), 2.0, focal)
    assert torch.allclose(found.confidence, plain.confidence, atol=1e-5)
    factors = torch.tensor([0.5, 0.25]).view(2, 1, 1, 1)
    assert torch.allclose(found.sigma, plain.sigma * factors, rtol=1e-4)


def test_record_of_content_and_its_line():
    """The record is read from a weights file's content; without one, a line says so."""
    found = confidence.of_content({"confidence": {"temperature": 0.5, "against": "truth"}}, "w")
    assert found == Calibration(0.5, "truth")
    assert confidence.describe(found) == "Confidence: temperature 0.5, calibrated against truth"
    assert confidence.of_content({}, "w") is None
    assert confidence.describe(None).startswith("Confidence: not calibrated, temperature 1; ")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, "2", None, True])
def test_wrong_record_is_one_line(temperature, tmp_path):
    """A temperature that isn't a number above 0 is refused, not taken for 1."""
    path = tmp_path / "w.pth"
    torch.save({"confidence": {"temperature": temperature, "against": "truth"}}, path)
    with pytest.raises(CheckpointError, match="w.pth: its entry 'confidence' is "):
        confidence.read(path)
    torch.save({"confidence": [1.0]}, path)
    with pytest.raises(CheckpointError, match="it must have a temperature above 0"):
        confidence.read(path)
