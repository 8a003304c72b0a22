"""Target: which components are valid, and the one map that other losses compare with."""

import math

import torch

from tiekd.data.target import Target, mean_depth


def two() -> Target:
    """Two teachers at four pixels: both valid, the second alone, none, and a NaN beside a depth."""
    first = torch.tensor([2.0, 0.0, 0.0, math.nan])
    second = torch.tensor([6.0, 5.0, 0.0, 4.0])
    return Target(torch.stack((first, second)).view(1, 2, 1, 4))


def test_mean_depth_weights_the_valid_components():
    """The mean is over the valid components, by their weights, and 0 where none is valid."""
    weighted = two()._replace(weight=torch.tensor([3.0, 1.0]))
    assert two().mean_depth().flatten().tolist() == [4.0, 5.0, 0.0, 4.0]
    assert weighted.mean_depth().flatten().tolist() == [3.0, 5.0, 0.0, 4.0]
    assert weighted.mean_depth().shape == (1, 1, 1, 4)


def test_component_of_weight_0_is_invalid():
    """A weight map of 0 takes a component out, and the pixel with it if it was the only one."""
    weight = torch.ones(1, 2, 1, 4)
    weight[0, 1, 0, :2] = 0
    target = two()._replace(weight=weight)
    assert target.mean_depth().flatten().tolist() == [2.0, 0.0, 0.0, 4.0]
    assert target.valid()[0, 1, 0].tolist() == [False, False, False, True]


def test_mean_of_one_component_is_the_map_itself():
    """One component's map isn't copied, whatever its weight; so a plain tensor."""
    depth = torch.rand(2, 1, 3, 4)
    assert Target(depth).mean_depth() is depth
    assert Target(depth, weight=torch.tensor([0.5])).mean_depth() is depth
    assert Target(depth, weight=torch.tensor([0.5])).component_weight() is None
    assert mean_depth(depth) is depth
    assert mean_depth(None) is None
    assert torch.equal(mean_depth(two()), two().mean_depth())


def test_scaled_multiplies_depth_and_sigma():
    """A factor per image applies to depth and sigma, and to no weight."""
    depth, weight = torch.ones(2, 2, 1, 1), torch.tensor([1.0, 2.0])
    factor = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    found = Target(depth, depth / 4, weight).scaled(factor)
    assert found.depth[:, 0].flatten().tolist() == [2.0, 3.0]
    assert found.sigma[:, 1].flatten().tolist() == [0.5, 0.75]
    assert found.weight is weight
    assert Target(depth).scaled(factor).sigma is None
