import math

import numpy as np
import torch
from torch import nn

from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.models.network import Network
from tiekd.visualization.pictures import UNKNOWN
from tiekd.visualization.views import draw_distributions, overview, views


class Pass(nn.Module):
    def forward(self, features, size):
        return features


def make_network(num_bins=20):
    torch.manual_seed(0)
    head = Dpm(3, 1e-3, 10.0, options=DpmOptions(num_bins=num_bins, sigma=0.5))
    nn.init.normal_(head.weight)
    return Network(nn.Identity(), Pass(), head, 1e-3, 10.0)


def frames(count=2):
    torch.manual_seed(1)
    images, depths = torch.randn(count, 3, 24, 48), torch.rand(count, 1, 24, 48) * 9 + 0.5
    return images, depths


def test_views_have_depth_and_entropy():
    """Views hold depths and entropy, explain the first only and restore training mode."""
    network, (images, depths) = make_network().train(), frames()
    truths = depths * (torch.rand(depths.shape) < 0.1)
    shown = views(network, images, truths, depths, num_with_pixels=1)
    assert network.training
    with torch.no_grad():
        expected = network.eval()(images).depth
        p = network.head.probabilities(images).double()
    for i, view in enumerate(shown):
        assert np.allclose(view.student, expected[i, 0])
        assert np.allclose(view.teacher, depths[i, 0])
        assert np.allclose(view.truth, truths[i, 0])
        assert view.image.shape == (24, 48, 3)
        assert np.allclose(view.entropy, -(p[i] * p[i].log()).sum(0), atol=1e-5)
        assert view.max_entropy == math.log(20)
    assert [len(view.pixels) for view in shown] == [4, 0]


def test_views_subsample_large_entropy():
    """The entropy of a large image is computed on every second pixel."""
    network, images = make_network(), torch.randn(1, 3, 200, 300)
    (view,) = views(network, images, torch.ones(1, 1, 200, 300), None, num_with_pixels=0)
    p = network.head.probabilities(images[:, :, ::2, ::2]).double()
    assert view.entropy.shape == (100, 150)
    assert view.teacher is None
    assert np.allclose(view.entropy, -(p * p.log()).sum(1)[0].detach(), atol=1e-5)


def test_views_of_given_depths():
    """Given depths need no network and have no entropy; NaN teacher depth becomes 0."""
    images, depths = frames()
    (view, _) = views(
        depths.half(), images, depths, depths.clone().fill_(torch.nan), num_with_pixels=2
    )
    assert view.entropy is None
    assert view.pixels == ()
    assert (view.teacher == 0).all()
    assert draw_distributions(view, 10.0) is None


def test_overview_points_and_error_reference():
    """Single points are enlarged, and the error is shown against the chosen reference."""
    network, (images, depths) = make_network(), frames(1)
    truth = torch.zeros_like(depths)
    truth[0, 0, 12, 24] = 5.0
    (view,) = views(network, images, truth, depths, num_with_pixels=0)

    def known(against, line, column):  # of a cell of 400x200 pixels, the share that has a colour
        top, left = 38 + line * 230, 14 + column * 406
        return (
            (overview(view, 10.0, against)[top : top + 200, left : left + 400] != UNKNOWN)
            .any(-1)
            .mean()
        )

    assert 0.002 < known("ground truth", 0, 1) < 0.05
    assert 0.002 < known("ground truth", 2, 0) < 0.05
    assert (
        known("teacher", 1, 0)
        == known("teacher", 1, 1)
        == known("teacher", 2, 0)
        == known("teacher", 2, 1)
        == 1
    )


def test_why_without_teacher_uses_truth():
    """Without a teacher the drawn target is the ground truth."""
    network, (images, depths) = make_network(), frames(1)
    (view,) = views(network, images, depths, None, num_with_pixels=1)
    assert draw_distributions(view, 10.0).shape[2] == 3
    for pixel in view.pixels:
        assert abs(pixel.target @ pixel.centres - view.truth[pixel.row, pixel.column]) < 0.02
