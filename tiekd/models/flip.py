"""Prediction averaged with that of the mirrored image.

The two images run as one batch, except on a CPU.
"""

import torch
from torch import Tensor

from tiekd.models.network import Network


@torch.no_grad()
def predict(network: Network, image: Tensor, flip: bool) -> Tensor:
    """Predicts depth, with `flip` as the mean with the mirrored image's prediction.

    Args:
        network: in eval mode.
        image: (B, 3, H, W), normalised.
        flip: average with the mirrored prediction.

    Returns:
        (B, 1, H, W) float32, metres.
    """
    if not flip:
        return network(image).depth
    # On a CPU two images at once take longer than one after the other.
    if image.device.type == "cpu":
        plain = network(image).depth
        mirrored = network(image.flip(-1)).depth
    else:
        plain, mirrored = network(torch.cat([image, image.flip(-1)])).depth.chunk(2)
    return (plain + mirrored.flip(-1)) / 2
