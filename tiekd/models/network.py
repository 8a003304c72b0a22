"""A depth network: encoder, optional neck, decoder and head.

It maps an image to depth in metres at the image's size.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import counting_only

# torch's messages of batch and group norms, and of instance norms.
_ONE_VALUE = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")


class Prediction(NamedTuple):
    """The output of a network.

    Attributes:
        depth: (B, 1, H, W) float32, metres, at the image's size; raw in training mode, clamped in
            eval mode.
        divergence: (B, 1, H, W) float32, nats, KL(target || prediction) per pixel, 0 where the
            target depth is not valid; None without a target depth or a head that predicts a
            distribution.
        bin_centres: (B, K) float32, metres, increasing: each image's own depth bins; None without a
            head that predicts bins.
    """

    depth: Tensor
    divergence: Tensor | None = None
    bin_centres: Tensor | None = None


class Network(nn.Module):
    """A network from image to metric depth.

    Attributes:
        memory_format: the layout of images before the encoder; features follow it. Depths in
            different layouts differ by rounding only.

    Args:
        encoder: image to features. `tiekd.models.build` makes the parts from a recipe.
        decoder: features to one feature map.
        head: the feature map to depth.
        min_depth: metres, lower end of the range that depth is clamped to in eval mode.
        max_depth: metres, upper end of the same.
        neck: features to features of the same strides, or None.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        min_depth: float,
        max_depth: float,
        neck: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        self.decoder = decoder
        self.head = head
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.memory_format = torch.contiguous_format

    def forward(
        self, image: Tensor, target_depth: Tensor | None = None, counted: Tensor | None = None
    ) -> Prediction:
        """Predicts depth.

        Args:
            image: (B, 3, H, W), normalised, any float dtype; it is cast to the dtype of the
                weights.
            target_depth: (B, 1, H, W) float32, metres, 0 or NaN where not valid: the target of a
                DPM head's divergence. It doesn't influence the depth.
            counted: (B, 1, H, W) bool, False in an image's padding, which counts in no norm's
                statistics in training; None without padding.

        Returns:
            The prediction at the image's size. A depth of another size is resized bilinearly,
            corners aligned, after the clamp.

        Raises:
            RecipeError: in training, images are so few and small that a norm gets one value.
        """
        if not self.training:
            return self.read(self.features(image), (image.shape[2], image.shape[3]), target_depth)
        try:
            with counting_only(counted):
                return self.read(
                    self.features(image), (image.shape[2], image.shape[3]), target_depth
                )
        except ValueError as error:
            if not _ONE_VALUE.match(str(error)):
                raise
            raise RecipeError(self._too_small(image, str(error))) from None

    def read(
        self, features: Tensor, image_size: tuple[int, int], target_depth: Tensor | None = None
    ) -> Prediction:
        """Returns the prediction from features; `forward` is `features` followed by this.

        Args:
            features: (B, C, h, w), as `features` returns them.
            image_size: (height, width) of the images.
            target_depth: as for `forward`.
        """
        depth, divergence, bin_centres = self.head(features, image_size, target_depth)
        if not self.training:
            depth = depth.clamp(self.min_depth, self.max_depth)
        if depth.shape[2:] != image_size:
            depth = interpolate(depth, size=image_size, mode="bilinear", align_corners=True)
        return Prediction(depth, divergence, bin_centres)

    def features(self, image: Tensor) -> Tensor:
        """Returns the input of the head, (B, C, h, w), from images as for `forward`."""
        features = self.encoder(
            image.to(next(self.parameters()).dtype, memory_format=self.memory_format)
        )
        if self.neck is not None:
            features = self.neck(features)
        return self.decoder(features, (image.shape[2], image.shape[3]))

    def _too_small(self, image: Tensor, error: str) -> str:
        """Returns the error for norms of one value, in terms of the recipe.

        Each of torch's layers words its error differently; `error` is that text.
        """
        count, _, height, width = image.shape
        stride = max(getattr(self.encoder, "strides", (0,)))
        larger = ""
        if max(height, width) <= stride:
            larger = f", or data.augment.crop with a side of {2 * stride} or more"
        return (
            f"train.batch_size: {count} image(s) of {height}x{width} a rank and micro-batch leave "
            f"a norm one value, which can't be normalised ({error}); set 2 images or more a rank "
            f"and micro-batch{larger}"
        )
