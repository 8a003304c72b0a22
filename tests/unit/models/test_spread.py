"""The width of a distribution over depth bins: by hand, and without a DPM head's training sigma."""

import pytest
import torch

from tiekd.kernels.target import bin_centres, bin_edges, gaussian_target
from tiekd.models import confidence, spread
from tiekd.models.build import build_network
from tiekd.models.heads.adabins import AdaBins, AdaBinsOptions
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.models.network import Network
from tiekd.models.spread import Spread

EDGES = bin_edges(160, 0.5, 40.5)


def gaussians(depths, sigma, edges=EDGES):
    """Distributions of one pixel per depth, (1, K, 1, N)."""
    depth = torch.as_tensor(depths, dtype=torch.float32).view(1, 1, 1, -1)
    return gaussian_target(depth, sigma, None, edges)


def test_half_width_by_hand():
    """Of four bins with probabilities 0.1, 0.4, 0.4 and 0.1 the quantiles are in the middle two."""
    edges = torch.tensor([1.0, 2.0, 3.0, 5.0, 9.0])
    p = torch.tensor([0.1, 0.4, 0.4, 0.1]).view(1, 4, 1, 1)
    low = 2 + (spread.LOW - 0.1) / 0.4
    high = 3 + 2 * (spread.HIGH - 0.5) / 0.4
    assert spread.half_width(p, edges).item() == pytest.approx((high - low) / 2, rel=1e-5)


def test_half_width_of_one_bin():
    """With all probability in one bin the half-width is 0.34 bins, also in the last bin."""
    for k in (0, 80, 159):
        p = torch.zeros(1, 160, 1, 1)
        p[0, k] = 1
        assert spread.half_width(p, EDGES).item() == pytest.approx(0.25 * 0.341345, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
def test_half_width_of_gaussian_is_sigma(sigma):
    """The half-width of a Gaussian over bins is its sigma, within 4 % at 2.4 bins a sigma."""
    found = spread.half_width(gaussians([12, 17.3, 20], sigma), EDGES)
    assert found.flatten().tolist() == pytest.approx([sigma] * 3, rel=0.04)


@pytest.mark.parametrize("target", ["gaussian", "released"])
def test_subtract_target_width_leaves_nothing_of_the_target(target):
    """A distribution that is the training target has no sigma of its own, also near the ends."""
    target_width = spread.target_widths(EDGES, 0.5, target, spread.half_width)
    centres = bin_centres(EDGES)
    left = spread.subtract_target_width(
        target_width.view(1, 1, 1, -1), centres.view(1, 1, 1, -1), target_width, EDGES
    )
    assert left.abs().max() == 0
    # The published target is a plateau of 8.5 sigma to each side, not a Gaussian.
    assert target_width[80].item() == pytest.approx(0.5 if target == "gaussian" else 2.9, rel=0.05)


def test_excess_width_is_not_the_sigma_of_predictions():
    """The training target has no excess width, and as a prediction the sigma of the target."""
    depth = bin_centres(EDGES)[80].view(1, 1, 1, 1)
    target = gaussians(depth, 0.5)
    target_width = spread.target_widths(EDGES, 0.5, "gaussian", spread.half_width)
    width = spread.half_width(target, EDGES)
    assert float(spread.subtract_target_width(width, depth, target_width, EDGES)) == 0
    for temperature in (1.0, 4.0):
        q = confidence.tempered(target, temperature)
        _, sigma = confidence.certainty(q, depth, EDGES).flatten().tolist()
        assert sigma == pytest.approx(0.5 * temperature**0.5, rel=0.05)


@pytest.mark.parametrize("own", [0.3, 0.6, 2.0])
def test_subtract_target_width_recovers_known_sigma(own):
    """Of a Gaussian whose variance is 0.5^2 + own^2 the own sigma is left, within 5 %."""
    depths = torch.tensor([10.1, 15.0, 22.7, 30.03])
    width = spread.half_width(gaussians(depths, (0.25 + own**2) ** 0.5), EDGES)
    target_width = spread.target_widths(EDGES, 0.5, "gaussian", spread.half_width)
    left = spread.subtract_target_width(width, depths.view(1, 1, 1, -1), target_width, EDGES)
    assert left.flatten().tolist() == pytest.approx([own] * 4, rel=0.05)


def test_largest_modes_of_an_edge():
    """Two surfaces give two modes with their depths, sigmas and probabilities, the larger first."""
    p = 0.3 * gaussians([8.0], 0.6) + 0.7 * gaussians([20.0], 1.0)
    modes = spread.largest_modes(p, EDGES, 3)
    assert modes.weight.flatten().tolist() == pytest.approx([0.7, 0.3, 0.0], abs=1e-3)
    assert modes.depth.flatten().tolist() == pytest.approx([20.0, 8.0, 0.0], abs=0.01)
    assert modes.sigma.flatten().tolist() == pytest.approx([1.0, 0.6, 0.0], rel=0.02)


def test_largest_modes_keep_rounded_peak_whole():
    """Noise of rounding on a single peak doesn't divide it."""
    torch.manual_seed(0)
    p = gaussians([20.0], 2.0) * (1 + 0.02 * torch.randn(1, 160, 1, 1))
    modes = spread.largest_modes(p / p.sum(1, keepdim=True), EDGES, 2)
    assert modes.weight[0, 0].item() > 0.999


def _head_of(distribution):
    """A DPM head that gives one distribution everywhere, whatever its features are."""
    head = Dpm(2, 0.5, 40.5, stride=2, options=DpmOptions(num_bins=160, sigma=0.5))
    torch.nn.init.zeros_(head.weight)
    head.bias.data = distribution.flatten().clamp_min(1e-30).log()
    return head


@pytest.mark.parametrize("own", [0.0, 0.8])
def test_spread_of_dpm_head(own):
    """On the image's grid, a DPM head's sigma is what it has beyond its training target's."""
    head = _head_of(gaussians([20.0], (0.25 + own**2) ** 0.5))
    depth, sigma, weight = Spread(head)(torch.zeros(1, 2, 3, 4), (6, 8))
    assert depth.shape == sigma.shape == weight.shape == (1, 1, 6, 8)
    assert torch.allclose(depth, torch.full_like(depth, 20.0), rtol=1e-3)
    assert torch.allclose(sigma, torch.full_like(sigma, own), atol=0.06)


def test_spread_of_dpm_head_with_modes():
    """With `modes` each component has its own depth, and its sigma without the training's."""
    p = 0.3 * gaussians([8.0], 0.5) + 0.7 * gaussians([20.0], (0.25 + 0.64) ** 0.5)
    depth, sigma, weight = Spread(_head_of(p), 2)(torch.zeros(1, 2, 3, 4), (6, 8))
    assert depth.shape == (1, 2, 6, 8)
    assert depth[0, :, 0, 0].tolist() == pytest.approx([20.0, 8.0], abs=0.02)
    assert sigma[0, :, 0, 0].tolist() == pytest.approx([0.8, 0.0], abs=0.05)
    assert weight[0, :, 0, 0].tolist() == pytest.approx([0.7, 0.3], abs=1e-3)


@pytest.mark.parametrize("modes", [0, 2])
def test_spread_follows_learned_upsampling(modes):
    """Sigma is upsampled by the weights of depth; modes are those of one cell, not blended."""
    torch.manual_seed(0)
    head = Dpm(4, 0.5, 40.5, stride=2, options=DpmOptions(num_bins=160, upsampling="convex"))
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.upsampling.logits.weight, std=2.0)
    features, size = torch.randn(1, 4, 3, 4), (5, 8)
    found = Spread(head, modes)(features, size)
    assert found.depth.shape[2:] == size
    if modes:
        coarse = spread.largest_modes(head.probabilities(features), head.edges, modes)
        cells = torch.stack(list(coarse[::2])).flatten(3).transpose(0, 3).reshape(12, -1)
        pixels = torch.stack(list(found[::2])).flatten(3).transpose(0, 3).reshape(40, -1)
        assert (pixels[:, None] - cells).abs().amax(-1).min(1).values.max() < 1e-4
        return
    network = Network(torch.nn.Identity(), torch.nn.Identity(), head, 0.5, 40.5).eval()
    with torch.no_grad():
        torch.testing.assert_close(found.depth, network.read(features, size).depth)


def test_spread_of_adabins_uses_each_images_bins():
    """AdaBins' bins differ between images, and its depth is the mean that the network returns."""
    torch.manual_seed(0)
    options = AdaBinsOptions(num_bins=16, num_queries=4, width=16, patch=4, num_positions=20)
    head = AdaBins(8, 0.1, 10.0, options).eval()
    torch.nn.init.normal_(head.weight)
    features = torch.randn(2, 8, 12, 16)
    depth, sigma, _ = Spread(head)(features, (12, 16))
    with torch.no_grad():
        expected = head(features, (12, 16))
        edges, _ = head.bins(features)
    assert torch.allclose(depth, expected.depth, atol=1e-4)
    assert torch.allclose(bin_centres(edges[1]), expected.bin_centres[1], atol=1e-5)
    one = Spread(head)(features[1:], (12, 16)).sigma
    assert torch.allclose(sigma[1:], one, atol=1e-5)
    assert (sigma > 0.1).all()


def test_is_in():
    """Heads with bins have a distribution, others haven't."""
    node = {"name": "sigmoid"}
    network = build_network(
        {
            "encoder": {"name": "mobilenet_v2", "width": 0.25},
            "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8]},
            "head": node,
            "min_depth": 0.1,
            "max_depth": 10.0,
        }
    )
    assert not Spread.supports(network.head)
    assert Spread.supports(_head_of(gaussians([5.0], 0.6)))
