"""DepthFormer's encoder (Li et al. 2022): a Swin transformer beside a convolutional stem.

Source: arXiv 2203.14211. Both get the image. The transformer's four stages give the features at
strides 4, 8, 16 and 32. The stem, which is ResNet's first convolution, adds one at stride 2. Not
covered: convolutional stages after the stem, which published configs don't have.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from tiekd.models.encoders.swin import Swin
from tiekd.models.layers.batch_norm import BatchNorm2d

STEM_CHANNELS = 64


class DepthFormer(nn.Module):
    """A convolutional stem (stride 2) and a Swin transformer (strides 4 to 32), side by side.

    The arguments are those of `tiekd.models.encoders.swin.Swin`. `pretrained` weights don't include
    the stem, which keeps its random initialisation.

    Attributes:
        channels: number of channels of each returned feature, fine to coarse.
        strides: stride of each returned feature relative to the image, fine to coarse.
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
        """Returns the features of an image as a list, fine to coarse.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One tensor (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) for each i.
        """
        return [relu(self.bn1(self.conv1(image)), inplace=True), *self.swin(image)]


build = DepthFormer
