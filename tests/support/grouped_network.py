"""A small network whose parameters form three groups, and an optimizer with these groups."""

from collections import OrderedDict

import torch
from torch import nn

from tiekd.training.optimizer import build_optimizer

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": [0.9, 0.99]}
GROUPS = [{"match": ["*norm*", "*.bias"], "weight_decay": 0}, {"match": "decoder.*", "lr_mult": 10}]
CYCLE = {"name": "one_cycle", "div_factor": 4, "final_div_factor": 10, "cycle_momentum": True}


class Net(nn.Module):
    """Encoder and decoder with a norm each: last in the encoder, first in the decoder.

    So tests can't pass by relying on the order of the layers.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(OrderedDict(conv=nn.Linear(3, 4), norm=nn.LayerNorm(4)))
        self.decoder = nn.Sequential(
            OrderedDict(norm1=nn.LayerNorm(4), conv=nn.Linear(4, 5, bias=False))
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


def optimizer(groups, network=None, batch_size: int = 4, lr_scaling: str = "none", **node):
    return build_optimizer(
        ADAMW | {"groups": groups} | node, network or Net(), batch_size, lr_scaling
    )
