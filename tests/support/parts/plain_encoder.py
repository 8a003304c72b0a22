"""An encoder without norms.

Without batch statistics, gradient accumulation gives the same results as one large batch.
"""

from torch import Tensor, nn


class PlainEncoder(nn.Module):
    """Three convolutions of stride 2, of which the last two give the features."""

    def __init__(self):
        super().__init__()
        self.stem, self.fine, self.coarse = (
            nn.Conv2d(c, d, 3, 2, 1) for c, d in ((3, 8), (8, 8), (8, 16))
        )
        self.channels, self.strides = (8, 16), (4, 8)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Returns the two features of images (B, 3, H, W), fine to coarse."""
        fine = self.fine(self.stem(image).relu()).relu()
        return [fine, self.coarse(fine).relu()]


build = PlainEncoder
