"""DepthFormer's encoder (Li et al. 2022, arXiv 2203.14211): a Swin transformer beside a convolutional stem.

The stem, ResNet's first convolution, gives the feature at stride 2 that the transformer, which starts at stride 4, has
not; the stages give those at 4, 8, 16 and 32. Left out: convolutional stages after the stem, which published configs
don't have.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.models.encoders.swin import Swin
from tiekd.models.layers.batch_norm import BatchNorm2d

STEM_CHANNELS = 64


class DepthFormer(nn.Module):
    """Stem and Swin; the arguments are Swin's, `pretrained` too, which leaves the stem at random.

    `channels` and `strides` describe the returned features.
    """

    def __init__(
        self,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.0,
        pretrained: str | None = None,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm2d(STEM_CHANNELS)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.swin = Swin(width, depths, heads, window, drop_path, pretrained)
        self.channels = (STEM_CHANNELS, *self.swin.channels)
        self.strides = (2, *self.swin.strides)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image: (B, 3, H, W), normalised. Returns (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))."""
        return [relu(self.bn1(self.conv1(image)), inplace=True), *self.swin(image)]


build = DepthFormer
