"""An encoder of five convolutions, small enough to be exported in a second."""

from collections.abc import Sequence

from torch import Tensor, nn

CHANNELS, STRIDES = (8, 8, 12, 12, 16), (2, 4, 8, 16, 32)


class SmallEncoder(nn.Module):
    """Five stages of convolution, norm and ReLU, each of stride 2.

    Args:
        taps: the stages (0 to 4) whose features are returned.
    """

    def __init__(self, taps: Sequence[int] = (0, 1, 2, 3, 4)):
        super().__init__()
        before = (3, *CHANNELS)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 3, 2, 1, bias=False), nn.BatchNorm2d(d), nn.ReLU())
            for c, d in zip(before[: taps[-1] + 1], CHANNELS, strict=False)
        )
        self.taps = tuple(taps)
        self.channels, self.strides = (
            tuple(each[tap] for tap in taps) for each in (CHANNELS, STRIDES)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the tapped features of an image (B, 3, H, W)."""
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return [features[tap] for tap in self.taps]


build = SmallEncoder
