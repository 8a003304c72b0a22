"""Depth averaged with that of the mirrored picture, which runs as one batch with it, but on a CPU."""

import torch
from torch import Tensor

from tiekd.models.network import Network


@torch.no_grad()
def predict(network: Network, image: Tensor, flip: bool) -> Tensor:
    """Depth (B, 1, H, W) float32 metres of normalised images; with `flip` the mean with the mirrored prediction."""
    if not flip:
        return network(image).depth
    if (
        image.device.type == "cpu"
    ):  # where two pictures at once take longer than one after the other
        plain, mirrored = network(image).depth, network(image.flip(-1)).depth
    else:
        plain, mirrored = network(torch.cat([image, image.flip(-1)])).depth.chunk(2)
    return (plain + mirrored.flip(-1)) / 2
