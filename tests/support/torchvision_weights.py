"""Recipe nodes of students with `pretrained` encoders, and random torchvision weights."""

import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.models.build import build_network
from tiekd.models.weights import pretrained

CLASSIFIER = {"strides": [1, 2, 2, 2, 1, 2, 1], "dilations": [1] * 7}
RANGE = {"min_depth": 0.001, "max_depth": 80.0}
LIGHT = RANGE | {
    "encoder": {"name": "mobilenet_v2", **CLASSIFIER},
    "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8], "extra_ups": 1, "extra_width": 8},
    "head": {"name": "sigmoid"},
}


def node(**encoder) -> dict:
    return LIGHT | {"encoder": LIGHT["encoder"] | encoder}


def randomised(network):
    """Randomises a torchvision network's parameters and statistics; returns it in eval mode."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand_like(tensor) * 0.5 + 0.5
                if tensor.ndim == 1
                else torch.randn_like(tensor) * 0.1
            )
    return network.eval()


def refused(*arguments, **encoder) -> str:
    with pytest.raises(RecipeError) as error:
        pretrained.load(build_network(node(*arguments, **encoder)))
    message = str(error.value)
    assert message.startswith("network.encoder.pretrained: ")
    assert "\n" not in message
    return message
