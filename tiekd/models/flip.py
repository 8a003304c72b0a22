"""Depth prediction, optionally averaged with the prediction for the mirrored image (flip test)."""

import torch
from torch import Tensor

from tiekd.models.network import Network


@torch.no_grad()
def predict(network: Network, image: Tensor, flip: bool) -> Tensor:
    """Predicts depth without gradients.

    Args:
        network: the network, in eval mode.
        image: (B, 3, H, W), normalised.
        flip: True to average the prediction with that for the horizontally mirrored image.

    Returns:
        (B, 1, H, W) float32, metres.
    """
    if not flip:
        return network(image).depth
    # Run both images as one batch, except on a CPU, where two separate passes are faster.
    if image.device.type == "cpu":
        plain = network(image).depth
        mirrored = network(image.flip(-1)).depth
    else:
        plain, mirrored = network(torch.cat([image, image.flip(-1)])).depth.chunk(2)
    return (plain + mirrored.flip(-1)) / 2
