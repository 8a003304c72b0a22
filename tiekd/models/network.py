"""A depth network: encoder, optional neck, decoder and head.

It maps an image to depth in metres at the image's size.
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tiekd.data.target import Target
from tiekd.errors import RecipeError
from tiekd.models.canonical import Canonical
from tiekd.models.contract import check_decoded, check_features, check_prediction
from tiekd.models.layers.batch_norm import statistics_of
from tiekd.models.readout import resize_to_image

# Pattern of torch's error messages of batch, group and instance norms that get a single value per
# channel.
_ONE_VALUE = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")


class Prediction(NamedTuple):
    """The output of a depth network.

    Attributes:
        depth: (B, 1, H, W) float32, metres, at the image's size; in eval mode clamped to the
            network's depth range, in training mode not clamped. In training mode a network with
            `canonical_focal` gives canonical depth instead of metres, i.e. depth multiplied by
            canonical_focal / focal length (tiekd/models/canonical.py).
        divergence: (B, 1, H, W) float32, nats, KL(target || prediction) per pixel, 0 where the
            target depth is invalid. None if there is no target depth or the head computes no
            divergence.
        bin_centres: (B, K) float32, metres, increasing, the centres of each image's depth bins;
            canonical depth if the network has `canonical_focal`. None if the head predicts no bins.
    """

    depth: Tensor
    divergence: Tensor | None = None
    bin_centres: Tensor | None = None


class Network(nn.Module):
    """A network from image to metric depth; `tiekd.models.build` builds one from a recipe.

    Attributes:
        memory_format: memory layout to which images are converted before the encoder; features
            inherit it. It affects depth only by rounding.

    Args:
        encoder: maps an image to features at several strides.
        decoder: maps the features to one feature map.
        head: maps the feature map to depth.
        min_depth: lower end of the range to which depth is clamped in eval mode, metres.
        max_depth: upper end of that range, metres.
        neck: maps the encoder's features to features of the same strides; None for no neck.
        canonical: converts between metres and canonical depth, which the head predicts
            (tiekd/models/canonical.py); None for a head that predicts metres.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        min_depth: float,
        max_depth: float,
        neck: nn.Module | None = None,
        canonical: Canonical | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        self.decoder = decoder
        self.head = head
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.canonical = canonical
        self.memory_format = torch.contiguous_format
        # Don't check the features of an encoder without an attribute `strides`, such as one that
        # was written for another project.
        self._has_checked_features = not hasattr(encoder, "strides")
        self._has_checked_depth = self._has_checked_features

    def forward(
        self,
        image: Tensor,
        target_depth: Tensor | Target | None = None,
        counted: Tensor | None = None,
        focal: Tensor | None = None,
    ) -> Prediction:
        """Predicts the depth of images, and the quantities that some losses need.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation, any float
                dtype; it is cast to the dtype of the weights.
            target_depth: (B, 1, H, W) float32, metres, 0 or NaN where invalid; or a `Target`, with
                the depths of several teachers or a sigma per pixel. A DPM head computes the
                divergence from it; it has no influence on the predicted depth. A head without the
                attribute `takes_target` gets the mean of a `Target`'s depths. For a network with
                `canonical_focal` it must be canonical depth, i.e. multiplied by canonical_focal /
                focal length.
            counted: (B, 1, H, W) bool, False in an image's padding, which is excluded from the
                norms' statistics in training; None without padding.
            focal: (B,) float32, focal length of each image in pixels of `image`
                (tiekd/data/focal.py); needed in eval mode by a network with `canonical_focal`.

        Returns:
            The prediction at the image's size. If the head's resolution differs, depth is resized
            after clamping: as the head's attribute `upsampling` says, or else bilinearly with
            aligned corners.

        Raises:
            RecipeError: in training, images are so few and small that a norm gets a single value
                per channel; at the first call, the encoder, the neck or the decoder doesn't return
                the channels or strides that it states, or the head returns no depth.
        """
        if not self.training:
            size = image.shape[2], image.shape[3]
            return self.read(self.features(image), size, target_depth, focal)
        try:
            with statistics_of(counted):
                return self.read(
                    self.features(image), (image.shape[2], image.shape[3]), target_depth
                )
        except ValueError as error:
            if not _ONE_VALUE.match(str(error)):
                raise
            raise RecipeError(self._too_small(image, str(error))) from None

    def read(
        self,
        features: Tensor,
        image_size: tuple[int, int],
        target_depth: Tensor | Target | None = None,
        focal: Tensor | None = None,
    ) -> Prediction:
        """Computes the prediction from the head's input, as the second half of `forward`.

        Args:
            features: (B, C, h, w), the head's input, as the method `features` returns it.
            image_size: (height, width) of the images.
            target_depth: the target of a DPM head's divergence, (B, 1, H, W), metres, or a
                `Target`, as for `forward`; None without a target.
            focal: (B,), focal length of each image in pixels of the network's input; needed in eval
                mode by a network with `canonical_focal`.

        Returns:
            The prediction at the image's size, as for `forward`.

        Raises:
            RecipeError: at the first call, the head doesn't return a depth for each pixel.
        """
        if isinstance(target_depth, Target) and not getattr(self.head, "takes_target", False):
            target_depth = target_depth.mean_depth()
        returned = self.head(features, image_size, target_depth)
        if not self._has_checked_depth and not _is_traced():
            check_prediction(self.head, returned, len(features))
            self._has_checked_depth = True
        depth, divergence, bin_centres = returned
        if not self.training:
            depth = self.in_metres(depth, focal)
        depth = resize_to_image(
            self.upsampled(depth, features, image_size), image_size, smooth=True
        )
        return Prediction(depth, divergence, bin_centres)

    def upsampled(
        self,
        values: Tensor,
        features: Tensor,
        image_size: tuple[int, int],
        smooth: bool = True,
    ) -> Tensor:
        """Upsamples a map of the head's resolution with the head's learned weights for upsampling.

        Args:
            values: (B, 1, h, w) float32, the map, e.g. of depths.
            features: (B, C, h, w), the head's input.
            image_size: (H, W) of the images.
            smooth: False to let each image pixel take one of the values instead of a weighted mean,
                so that no depth between two surfaces results.

        Returns:
            (B, 1, H, W). If the head has no such weights, i.e. no module `upsampling`, `values`
            itself, (B, 1, h, w), which the caller has to resize by
            `tiekd.models.readout.resize_to_image`.
        """
        upsampling = getattr(self.head, "upsampling", None)
        if upsampling is None:
            return values
        # Crop the upsampled map, whose last row and column of cells (pixels of `values`) may reach
        # beyond the image.
        fine = upsampling(values, features, smooth)
        if not torch.compiler.is_compiling():
            return fine[:, :, : image_size[0], : image_size[1]]
        # In a traced graph, crop by an index tensor. A slice would make the graph valid for this
        # image size only.
        for dim, side in zip((2, 3), image_size, strict=True):
            fine = fine.index_select(dim, torch.arange(side, device=fine.device))
        return fine

    def in_metres(self, depth: Tensor, focal: Tensor | None = None) -> Tensor:
        """Returns a head's depth in metres, clamped to the network's depth range.

        Args:
            depth: (B, 1, h, w), metres; canonical depth if the network has `canonical_focal`.
            focal: (B,), focal length of each image in pixels of the network's input; needed only by
                a network with `canonical_focal`.

        Returns:
            (B, 1, h, w), metres.

        Raises:
            RecipeError: the network has `canonical_focal`, but `focal` is None.
        """
        if self.canonical is not None:
            depth = self.canonical.to_metres(depth, focal)
        return depth.clamp(self.min_depth, self.max_depth)

    def features(self, image: Tensor) -> Tensor:
        """Applies encoder, neck and decoder to images, and returns the head's input.

        Args:
            image: (B, 3, H, W), normalised with ImageNet's mean and standard deviation, any float
                dtype.

        Returns:
            (B, C, h, w), with the decoder's number of channels and its stride.

        Raises:
            RecipeError: at the first call, features of the encoder, the neck or the decoder don't
                have the channels or strides that they state.
        """
        image = image.to(next(self.parameters()).dtype, memory_format=self.memory_format)
        features = self.encoder(image)
        # Skip the check of the features' shapes while the network is traced or compiled, because
        # the check would become part of the graph.
        checks = not (self._has_checked_features or _is_traced())
        if checks:
            check_features(self.encoder, "encoder", features, image, self.encoder.strides)
        if self.neck is not None:
            features = self.neck(features)
            if checks:
                check_features(self.neck, "neck", features, image, self.encoder.strides)
        decoded = self.decoder(features, (image.shape[2], image.shape[3]))
        if checks and hasattr(self.decoder, "channels"):
            check_decoded(self.decoder, decoded, image)
        self._has_checked_features = self._has_checked_features or checks
        return decoded

    def _too_small(self, image: Tensor, error: str) -> str:
        """Returns the error message for a norm that gets a single value per channel, with a remedy.

        Args:
            image: (B, 3, H, W), the network's input.
            error: torch's own message, which differs between kinds of norm.
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


def _is_traced() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
