"""Depth prediction, optionally averaged with the prediction for the mirrored image (flip test)."""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.models.network import Network


class Predictor(NamedTuple):
    """A callable that predicts depth from images with a network, with or without the flip test.

    The flip test averages the prediction with the one for the horizontally mirrored image.

    Attributes:
        network: the network, in eval mode.
        flip: True for the flip test.
    """

    network: Network
    flip: bool

    @property
    def needs_focal(self) -> bool:
        """True if a call needs each image's focal length, by which the network computes metres.

        This is the case for networks with `canonical_focal` (tiekd/models/canonical.py).
        """
        return getattr(self.network, "canonical", None) is not None

    def __call__(self, image: Tensor, focal: Tensor | None = None) -> Tensor:
        """Predicts depth without gradients, averaged with the mirrored image's if `flip` is True.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
            focal: (B,), focal length of each image in pixels of `image`; needed only if
                `needs_focal` is True.

        Returns:
            (B, 1, H, W) float32, metres.
        """
        return predict(self.network, image, self.flip, focal)


@torch.no_grad()
def predict(network: Network, image: Tensor, flip: bool, focal: Tensor | None = None) -> Tensor:
    """Predicts depth without gradients, optionally averaged with that of the mirrored image.

    Args:
        network: the network, in eval mode.
        image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
        flip: True to mirror each image left to right, predict its depth, mirror that depth back,
            and average it with the depth of the image itself.
        focal: (B,), focal length of each image in pixels of `image`; needed only by a network with
            `canonical_focal`, which computes metres from it.

    Returns:
        (B, 1, H, W) float32, metres.
    """
    if not flip:
        return network(image, **_given(focal)).depth
    plain, mirrored = predict_pair(network, image, focal)
    return (plain + mirrored) / 2


@torch.no_grad()
def predict_pair(
    network: Network, image: Tensor, focal: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Predicts depth for images and for their mirror images, without gradients.

    Args:
        network: the network, in eval mode.
        image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
        focal: (B,), focal length of each image in pixels of `image`; needed only by a network with
            `canonical_focal`, which computes metres from it.

    Returns:
        (depth for the images, depth for the mirror images), each (B, 1, H, W) float32, metres. The
        second is mirrored back, so that it matches the images.
    """
    given = _given(focal)
    # Run images and mirror images as one batch, except on a CPU, where two separate passes are
    # faster.
    if image.device.type == "cpu":
        plain = network(image, **given).depth
        mirrored = network(image.flip(-1), **given).depth
    else:
        twice = {name: value.repeat(2) for name, value in given.items()}
        both = torch.cat([image, image.flip(-1)])
        plain, mirrored = network(both, **twice).depth.chunk(2)
    return plain, mirrored.flip(-1)


def _given(focal: Tensor | None) -> dict[str, Tensor]:
    return {} if focal is None else {"focal": focal}
