"""An encoder with norms over all ranks and a smooth activation.

Near an input of 0, rounding can switch a ReLU's gradient on or off. A smooth activation avoids
this, so that runs on different numbers of ranks differ by rounding only.
"""

from torch import Tensor, nn

from tiekd.models.layers.batch_norm import BatchNorm2d


class SmoothEncoder(nn.Module):
    """Three convolutions of stride 2 with BatchNorm and SiLU; the last two give the features."""

    def __init__(self):
        super().__init__()
        self.stem, self.fine, self.coarse = (
            self._block(c, d) for c, d in ((3, 8), (8, 8), (8, 16))
        )
        self.channels, self.strides = (8, 16), (4, 8)

    @staticmethod
    def _block(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False),
            BatchNorm2d(channels_out),
            nn.SiLU(),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the two features of images (B, 3, H, W), fine to coarse."""
        fine = self.fine(self.stem(image))
        return [fine, self.coarse(fine)]


build = SmoothEncoder
