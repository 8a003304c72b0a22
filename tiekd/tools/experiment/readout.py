"""Evaluates a network with another depth per pixel than the mean of its distribution over bins.

A student of several teachers may learn two possible depths in a pixel. Their mean lies between two
surfaces, while the mode, i.e. the most probable depth, lies on one of them. No flip averaging is
used, since the mean of two modes isn't a mode. Takes one forward pass and the memory of the
distribution for a few rows of pixels. Not covered: resizing depth without interpolation where
`data.resize` changes the size of images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.kernels.target import bin_centres
from tiekd.models import readout as readouts
from tiekd.models.network import Network


class ReadoutPredictor(NamedTuple):
    """A network with a head of depth bins, as a function from images to depth.

    Attributes:
        network: the network, in eval mode.
        readout: how depth is computed from the distribution over bins: "mode" (most probable bin)
            or "local" (mean over bins around the mode). "mean" is what the network itself computes.
    """

    network: Network
    readout: str

    @property
    def needs_focal(self) -> bool:
        """True if the network predicts depth for one canonical focal length.

        Then each image's focal length is needed as the second argument.
        """
        return self.network.canonical is not None

    @torch.no_grad()
    def __call__(self, image: Tensor, focal: Tensor | None = None) -> Tensor:
        """Predicts depth without gradients.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
            focal: (B,), focal length of each image in pixels of `image`; None if the network
                doesn't need it (`needs_focal`).

        Returns:
            (B, 1, H, W) float32, metres.
        """
        network, size = self.network, tuple(image.shape[-2:])
        features = network.features(image)
        depth = readouts.in_strips(self._read, features, network.head.probabilities)
        depth = network.upsampled(network.in_metres(depth, focal), features, size, smooth=False)
        return readouts.resize_to_image(depth, size, smooth=False)

    def _read(self, probabilities: Tensor) -> Tensor:
        centres = bin_centres(self.network.head.edges)
        return readouts.read_out(probabilities, centres, self.readout)
