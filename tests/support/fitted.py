"""Fits networks within a minute, such that depth on real images spans a factor of 10.

They are fitted to a ramp from near (bottom row) to far (top row). Fitting the head alone on a
random body isn't enough: rounding costs the features one or two digits and the head amplifies the
error, so that two libraries differ by millimetres.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from tiekd.data.augment.augment import colour_table, look_up
from tiekd.data.datasets import scenes
from tiekd.data.image_io import read_image
from tiekd.models.build import build_network
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.workdir.weights_file import write_weights

SIZE = 64, 96


def images(count: int = 2) -> list[Tensor]:
    """Returns (3, H, W) uint8 images: KITTI's if TIEKD_REAL_DATA is set, else rendered scenes."""
    if "TIEKD_REAL_DATA" in os.environ:
        found = sorted((Path(os.environ["TIEKD_REAL_DATA"]) / "kitti" / "input").rglob("*.png"))
        return [read_image(path) for path in found[:: len(found) // count][:count]]
    rendered = [scenes.render(0, index, 192, 640).image for index in range(count)]
    return [torch.from_numpy(image).permute(2, 0, 1) for image in rendered]


def fit(network: Network, image: Tensor, iterations: int = 150) -> None:
    """Fits a network to a ramp of depth on the given images.

    Args:
        network: the network, changed in place.
        image: (B, 3, H, W) uint8.
        iterations: number of optimizer steps.
    """
    normalised = look_up(image, colour_table()[None].expand(len(image), -1, -1))
    far, near = 0.9 * network.max_depth, network.max_depth / 60
    target = (
        torch.linspace(far, near, image.shape[2])
        .view(1, 1, -1, 1)
        .expand(len(image), 1, -1, image.shape[3])
    )
    # Use a smaller learning rate for other heads, since a saturated sigmoid has no gradient.
    lr = 3e-3 if isinstance(network.head, Dpm) else 3e-4
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    network.train()
    for _ in range(iterations):
        depth, divergence, _ = network(normalised, target)
        loss = (depth.clamp(min=network.min_depth).log() - target.log()).abs().mean()
        if divergence is not None:
            loss = loss + divergence.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    _settle_norms(network, normalised)
    network.eval()


def _settle_norms(network: Network, normalised: Tensor) -> None:
    """Sets the norms' running statistics to those of one batch."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train().features(normalised)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def checkpoint(path: Path, node: dict, iterations: int = 150, seed: int = 0) -> Network:
    """Builds and fits a network, writes its weights to `path`, and returns the network.

    `node` is the `network` section of a recipe.
    """
    torch.manual_seed(seed)
    network = build_network(node)
    fit(network, torch.stack([_cut(photo) for photo in images()]), iterations)
    write_weights(path, network.state_dict(), node, 0)
    return network


def _cut(photo: Tensor) -> Tensor:
    """Returns the centre of an image, subsampled by 2 to SIZE."""
    height, width = (2 * side for side in SIZE)
    top, left = (
        (side - cut) // 2 for side, cut in zip(photo.shape[1:], (height, width), strict=True)
    )
    return photo[:, max(0, top) :, max(0, left) :][:, :height:2, :width:2]
