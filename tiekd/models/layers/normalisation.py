"""The normalisation of a backbone that was trained with another mean than ImageNet's.

The data pipeline normalises every image with ImageNet's mean and standard deviation. For a backbone
with other values, `Normalisation` converts the images; its buffers store these values with the
weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD


class Normalisation(nn.Module):
    """Converts images from ImageNet's normalisation to that of a backbone.

    If both have equal values, images stay the same. Mean and standard deviation are fp32 buffers
    for colours from 0 to 255, whatever the dtype of the network.

    Args:
        mean: the backbone's mean of red, green and blue, for colours from 0 to 1.
        std: the backbone's standard deviation of red, green and blue, for colours from 0 to 1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # Multiply by 255 in double precision. If the backbone's mean and standard deviation are
        # ImageNet's, the results then equal those of the data pipeline, bit for bit.
        for name, values in (("mean", mean), ("std", std)):
            levels = torch.tensor([255 * value for value in values])
            self.register_buffer(name, levels[:, None, None])
        for name, values in (("imagenet_mean", IMAGENET_MEAN), ("imagenet_std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def _apply(self, fn, recurse=True):
        """Moves the module to another device like nn.Module, but keeps its buffers in fp32.

        nn.Module calls this method for `to`, `half` and the like.

        Args:
            fn: function that moves or casts a tensor.
            recurse: True to apply `fn` to submodules, too.

        Returns:
            The module itself.
        """
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            setattr(self, name, before[name].to(buffer.device))
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Returns the images in the backbone's normalisation, in the shape and dtype of `image`.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.
        """
        scale = self.imagenet_std / self.std
        offset = (self.imagenet_mean - self.mean) / self.std
        return (image.float() * scale + offset).to(image.dtype)
