"""BatchNorm statistics that are not finite are put back to the last ones that were."""

import math

import torch
from torch import nn

from tiekd.engine.nonfinite import RunningStatistics


def test_keep_finite_restores_last_finite_statistics():
    """Each BatchNorm statistic that isn't finite is restored to its last finite value."""
    norm, plain = nn.BatchNorm2d(3), nn.BatchNorm1d(2, track_running_stats=False)
    statistics = RunningStatistics(nn.Sequential(norm, plain, nn.LayerNorm(2)))
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    statistics.keep_finite()
    norm.running_mean.copy_(torch.tensor([4.0, math.nan, math.inf]))
    norm.running_var.fill_(-math.inf)
    statistics.keep_finite()
    assert norm.running_mean.tolist() == [4.0, 2.0, 3.0]
    assert norm.running_var.tolist() == [1.0, 1.0, 1.0]


def test_keep_finite_without_norms():
    """`keep_finite` raises nothing for a network without norms."""
    network = nn.Linear(2, 2)
    statistics = RunningStatistics(network)
    nn.init.constant_(network.weight, math.nan)
    statistics.keep_finite()
    assert network.weight.isnan().all(), "weights are no statistics"
