"""A scene with a known answer, and a network whose canonical depth of it is known.

A board of WIDTH_M metres stands upright before the camera, filling its height: in an image of focal
length f it is f * WIDTH_M / Z pixels wide. The network counts the board's bright columns and gives
F * WIDTH_M / columns, the canonical depth Z * F / f that a trained one would have learned, without
knowing f.
"""

import torch
from torch import Tensor, nn

from tiekd.data.augment.augment import colour_table
from tiekd.models.canonical import Canonical
from tiekd.models.network import Network, Prediction

WIDTH_M, FOCAL = 2.0, 100.0
MIN_M, MAX_M = 0.5, 80.0


class _Encoder(nn.Module):
    strides, channels = (1,), (3,)

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image]


class _Decoder(nn.Module):
    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        return features[0]


class _Board(nn.Module):
    def forward(self, features: Tensor, size: tuple, target: Tensor | None = None) -> Prediction:
        low, high = colour_table()[0, 0], colour_table()[0, 255]
        # A partly covered column counts by its share; black rows of padding don't count.
        share = ((features[:, :1] - low) / (high - low)).amax(2, keepdim=True)
        depth = FOCAL * WIDTH_M / share.sum(3, keepdim=True).clamp(min=1e-3)
        return Prediction(depth.expand(-1, 1, *features.shape[2:]))


def network(focal: float = FOCAL) -> Network:
    """Returns the network; its range of F / f is wide enough for any test."""
    camera = Canonical(focal, 0.1, 10.0)
    return Network(_Encoder(), _Decoder(), _Board(), MIN_M, MAX_M, canonical=camera).eval()


def image(focal: float, depth_m: float, height: int = 48, width: int = 160) -> Tensor:
    """Returns (3, height, width) uint8, the board at a distance, seen with a focal length.

    The board covers whole pixels: `focal` must make it so.
    """
    columns = round(focal * WIDTH_M / depth_m)
    assert columns == focal * WIDTH_M / depth_m
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    left = (width - columns) // 2
    pixels[:, :, left : left + columns] = 255
    return pixels
