"""Networks from recipe nodes: the parts get what they need, and every mistake is one line."""

import copy
import sys
import types

import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.models.build import build_network

NODE = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8]},
    "head": {"name": "dpm", "num_bins": 9, "sigma": 5.0},
    "min_depth": 0.5,
    "max_depth": 40.0,
}


def changed(path, value):
    node = copy.deepcopy(NODE)
    *parents, last = path.split(".")
    place = node
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return node


@pytest.mark.parametrize("head", ["dpm", "sigmoid"])
def test_build_network_depth_in_range_at_image_size(head):
    """A network in eval gives depth within its range at the image's size."""
    node = NODE if head == "dpm" else changed("head", {"name": "sigmoid"})
    network = build_network(node).eval()
    with torch.no_grad():
        prediction = network(torch.randn(2, 3, 40, 56) * 50)
    assert prediction.depth.shape == (2, 1, 40, 56)
    assert prediction.divergence is None
    assert prediction.depth.min() >= 0.5
    assert prediction.depth.max() <= 40
    assert (network.min_depth, network.max_depth) == (0.5, 40.0)


def test_build_network_leaves_node_unchanged():
    """`build_network` doesn't change the node."""
    before = copy.deepcopy(NODE)
    build_network(NODE)
    assert before == NODE


def test_build_network_passes_range_to_head():
    """The head's bins cover min_depth to max_depth of the network."""
    edges = build_network(changed("max_depth", 20.0)).head.edges.tolist()
    assert (edges[0], edges[-1], len(edges)) == (0.5, pytest.approx(20.0), 10)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("encoder", None, "network: needs encoder"),
        ("max_depth", None, "network: needs max_depth"),
        ("encodr", {}, "network: unknown key 'encodr'; did you mean 'encoder'?"),
        (
            "encoder",
            "resnet",
            "network.encoder: got 'resnet'; it must be a mapping with a name, one of: ",
        ),
        (
            "encoder.name",
            "mobilenetv2",
            "network.encoder.name: no 'mobilenetv2'; there are (nearest first): mobilenet_v2",
        ),
        (
            "decoder.name",
            "densdepth",
            "network.decoder.name: no 'densdepth'; there are (nearest first): densedepth",
        ),
        ("neck", {"name": "haha"}, "network.neck.name: no 'haha'; there are"),
        ("encoder.pretrain", "x.pth", "network.encoder (mobilenet_v2): unknown key 'pretrain'"),
        ("encoder.width", "half", "network.encoder.width: got 'half'; it must be a number"),
        ("encoder.taps", 4, "network.encoder.taps: got 4; it must be a list, each a whole number"),
        ("head.num_bins", 9.5, "network.head.num_bins: got 9.5; it must be a whole number"),
        ("head.in_channels", 3, "network.head (dpm): unknown key 'in_channels'"),
        ("head.sigma", 0.1, "network.head.sigma: 0.1"),
        ("min_depth", "near", "network.min_depth: got 'near'; it must be a number"),
        ("max_depth", [80], "network.max_depth: got [80]; it must be a number"),
        (
            "max_depth",
            0.5,
            "network: min_depth 0.5 and max_depth 0.5 must be metres with 0 < min < max",
        ),
        ("min_depth", 0.0, "network: min_depth 0.0 and max_depth 40.0 must be"),
        ("max_depth", float("inf"), "max_depth inf must be"),
        ("max_depth", float("nan"), "max_depth nan must be"),
    ],
)
def test_build_network_invalid_node_is_one_line(path, value, line):
    """An invalid network node raises a RecipeError of one line that names the key."""
    with pytest.raises(RecipeError) as error:
        build_network(changed(path, value))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_build_network_refuses_parts_that_state_nothing(monkeypatch):
    """A part from outside without channels is refused with its name in the recipe."""
    module = types.ModuleType("mine.part")
    module.build = torch.nn.Identity
    monkeypatch.setitem(sys.modules, "mine.part", module)
    for part in ("encoder", "neck", "decoder"):
        told = rf"^network.{part} \(mine.part\): its attribute channels isn't there; it must be"
        with pytest.raises(RecipeError, match=told):
            build_network(changed(part, {"name": "mine.part"}))
    module.build = lambda: 3.0
    with pytest.raises(RecipeError, match=r"^network.head \(mine.part\): build made a float; it"):
        build_network(changed("head", {"name": "mine.part"}))


@pytest.mark.parametrize("node", [None, {}])
def test_build_network_without_node_says_where(node):
    """A recipe without a network is an error that says where to take one."""
    with pytest.raises(
        RecipeError,
        match="^network: the recipe has none; take one from model_configs/_base_/networks",
    ):
        build_network(node)
