"""A network as it is used outside: pixels as a camera gives them to metres, and how sure it is, in plain operators.

The DPM head's own arithmetic works in tiles and with a backward pass of its own, which no exporter knows; here it is
written down plainly. Cost: about three (B, K, h, w) float32 tensors with a DPM head, so for export, not for training.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from tiekd.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tiekd.kernels.target import bin_centres
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.models.readout import confidence, read_out


class Deployed(nn.Module):
    """(B, 3, H, W) RGB of grey levels 0..255, uint8 or float, to depth (B, 1, H, W) float32 in metres, clamped to the
    network's range; and, with `confidence`, to (B, 1, H, W) float32, 0 to 1.

    readout, confidence: for DPM heads only, see `tiekd.models.readout`. open_sizes: H and W aren't known when it is
    traced, so that nothing may be decided by them.
    """

    def __init__(self, network: Network, readout: str = "mean", confidence: bool = False, open_sizes: bool = False):
        super().__init__()
        self.network, self.readout, self.confidence, self.open_sizes = network, readout, confidence, open_sizes
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(depth,) or (depth, confidence)."""
        network, size = self.network, (image.shape[2], image.shape[3])
        features = network.features((image.float() - self.mean) / self.std)
        if isinstance(network.head, Dpm):
            maps = self._read(network.head, features)
        else:
            maps = [network.head(features, size).depth]
        maps[0] = maps[0].clamp(network.min_depth, network.max_depth)
        # To its own size a map is resized to itself, number by number.
        return tuple(
            interpolate(each, size=size, mode="bilinear", align_corners=True)
            if self.open_sizes or tuple(each.shape[2:]) != size
            else each
            for each in maps
        )

    def _read(self, head: Dpm, features: Tensor) -> list[Tensor]:
        logits = conv2d(features, head.weight, head.bias).float()
        # Probabilities but for a factor: with the largest logit taken off, the sum of these neither over- nor
        # underflows, and one division a pixel makes up for it. Not matrix products: those may run in TF32.
        unscaled = (logits - logits.amax(1, keepdim=True)).exp()
        maps = [read_out(unscaled, bin_centres(head.edges), self.readout)]
        if self.confidence:
            maps.append(confidence(unscaled) / unscaled.sum(1, keepdim=True))
        return maps
