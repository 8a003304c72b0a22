"""A depth network: encoder, optional neck, decoder and head, from an image to metres at the image's size."""

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tiekd.errors import RecipeError
from tiekd.models.layers.batch_norm import counting_only

# Of batch and group norms, and of instance norms.
_ONE_VALUE = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")


class Prediction(NamedTuple):
    """What a network returns.

    depth: (B, 1, H, W) float32, metres, at the image's size; raw in training mode, clamped in eval mode.
    divergence: (B, 1, H, W) float32, KL(target || prediction) per pixel, 0 where the target depth is not valid; None
        without a target depth or a head that predicts a distribution.
    bin_centres: (B, K) float32, metres, increasing: each image's own depth bins; None without a head that moves them.
    """

    depth: Tensor
    divergence: Tensor | None = None
    bin_centres: Tensor | None = None


class Network(nn.Module):
    """Image to metric depth. The parts are ready-made modules; `tiekd.models.build` makes them from a recipe.

    min_depth, max_depth: metres, the range that depth is clamped to in eval mode.

    `memory_format`: how images are laid out before the encoder; features follow. Depths differ by rounding only.
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
        self.encoder, self.neck, self.decoder, self.head = encoder, neck, decoder, head
        self.min_depth, self.max_depth = min_depth, max_depth
        self.memory_format = torch.contiguous_format

    def forward(
        self, image: Tensor, target_depth: Tensor | None = None, counted: Tensor | None = None
    ) -> Prediction:
        """image: (B, 3, H, W), normalised, any float dtype; it is cast to the dtype of the weights.

        target_depth: (B, 1, H, W) float32, metres, 0 or NaN where not valid: what a DPM head's divergence is taken to.
        It doesn't influence the depth. A depth of another size than the image's is resized bilinearly, corners aligned,
        after the clamp. counted: (B, 1, H, W) bool, False where a picture's padding is, which counts in no norm's
        statistics while training; None where there is none. In training, raises RecipeError where images are so few
        and small that a norm gets one value.
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
        """What `forward` returns, from `features` of images of that (height, width)."""
        depth, divergence, bin_centres = self.head(features, image_size, target_depth)
        if not self.training:
            depth = depth.clamp(self.min_depth, self.max_depth)
        if depth.shape[2:] != image_size:
            depth = interpolate(depth, size=image_size, mode="bilinear", align_corners=True)
        return Prediction(depth, divergence, bin_centres)

    def features(self, image: Tensor) -> Tensor:
        """What the head is given: (B, C, h, w), from images as in `forward`."""
        features = self.encoder(
            image.to(next(self.parameters()).dtype, memory_format=self.memory_format)
        )
        if self.neck is not None:
            features = self.neck(features)
        return self.decoder(features, (image.shape[2], image.shape[3]))

    def _too_small(self, image: Tensor, error: str) -> str:
        """What a norm of one value means for the recipe; each layer of torch's says it in its own words."""
        count, _, height, width = image.shape
        stride = max(getattr(self.encoder, "strides", (0,)))
        larger = (
            f", or data.augment.crop with a side of {2 * stride} or more"
            if max(height, width) <= stride
            else ""
        )
        return (
            f"train.batch_size: {count} image(s) of {height}x{width} a rank and micro-batch leave a norm one value, "
            f"which can't be normalised ({error}); set 2 images or more a rank and micro-batch{larger}"
        )
