"""A network as it is exported: from a camera's pixels to metres and confidence, in plain operators.

The working resolution is part of it: matrix products resize images to it (`tiekd.data.resize`), and
depth is resized back to the image's own size by the readout's rule, as in
`tiekd.inference.student`. The DPM head's own arithmetic works in tiles with its own backward pass,
which no exporter supports; here it is written out plainly. Costs about three (B, K, h, w) float32
tensors with a DPM head at the working size, so it is for export, not for training; and for each
side a matrix of the image's side by the working one, which a graph of a fixed size contains (12
megapixels to 192x640: 12 MB). Left out: images of any size if the working size depends on the
image's.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.data.resize import (
    OWN_SIZE,
    Resize,
    dense_weights,
    on_canvas,
    open_weights,
    resized_by_products,
    restored,
    stretched_map,
)
from tiekd.kernels.target import bin_centres
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.models.readout import confidence, on_image_grid, read_out, spread_on_grid


class Deployed(nn.Module):
    """(B, 3, H, W) RGB grey levels 0..255 to depth (B, 1, H, W) float32 in metres, and confidence.

    The input is uint8 or float. Depth is clamped to the network's range. With `confidence` the
    second output is (B, 1, H, W) float32, 0 to 1.

    Args:
        network: The network.
        readout: For DPM heads only, see `tiekd.models.readout`.
        confidence: For DPM heads only, see `tiekd.models.readout`.
        resize: The working resolution.
        size: (H, W) of all images. None if they may have any size: then nothing may depend on it,
            and `resize` must be OWN_SIZE or stretch.
    """

    def __init__(
        self,
        network: Network,
        readout: str = "mean",
        confidence: bool = False,
        resize: Resize = OWN_SIZE,
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        assert size is not None or resize == OWN_SIZE or resize.mode == "stretch", (
            "its working size is not constant"
        )
        self.network = network
        self.readout = readout
        self.confidence = confidence
        self.resize = resize
        self.size = size
        for name, numbers in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
        # For images of one size the resizing matrices are constants of the graph.
        self.is_resized = size is not None and resize.place(*size).scaled != size
        if self.is_resized:
            for name, old, new in zip(
                ("rows", "columns"), size, resize.place(*size).scaled, strict=True
            ):
                self.register_buffer(name, dense_weights(old, new), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns (depth,) or (depth, confidence)."""
        network = self.network
        own = (image.shape[2], image.shape[3])
        seen = self._network_input(image.float())
        size = (seen.shape[2], seen.shape[3])
        features = network.features((seen - self.mean) / self.std)
        if isinstance(network.head, Dpm):
            maps = self._read(network.head, features)
        else:
            maps = [network.head(features, size).depth]
        maps[0] = maps[0].clamp(network.min_depth, network.max_depth)
        is_smooth = self.readout == "mean", True  # of depth, of confidence
        return tuple(
            self._at_own_size(*pair, size, own) for pair in zip(maps, is_smooth, strict=False)
        )

    def _network_input(self, image: Tensor) -> Tensor:
        if self.is_resized:
            image = resized_by_products(image, self.rows, self.columns)
        elif self.size is None and self.resize.mode is not None:
            height, width = self.resize.height, self.resize.width
            rows, columns = (
                open_weights(image.shape[2], height),
                open_weights(image.shape[3], width),
            )
            image = resized_by_products(image, rows.to(image.device), columns.to(image.device))
        return image if self.size is None else on_canvas(image, self.resize.place(*self.size))

    def _at_own_size(
        self, values: Tensor, smooth: bool, size: tuple[int, int], own: tuple[int, int]
    ) -> Tensor:
        """Resizes from the head's grid to the network's input, then to the image's own size.

        Args:
            values: The output on the head's grid.
            smooth: Interpolate bilinearly; False takes the nearest.
            size: (height, width) of the network's input.
            own: (height, width) of the image.
        """
        if self.size is not None:
            return restored(on_image_grid(values, size, smooth), self.resize, self.size, smooth)
        # Without resizing, `size` equals `own`, and one step suffices.
        if self.resize.mode is None:
            return spread_on_grid(values, own, smooth)
        return stretched_map(on_image_grid(values, size, smooth), own, smooth)

    def _read(self, head: Dpm, features: Tensor) -> list[Tensor]:
        logits = conv2d(features, head.weight, head.bias).float()
        # Unnormalised probabilities: with the largest logit subtracted, their sum neither over- nor
        # underflows, and one division per pixel normalises them. Matrix products are avoided, since
        # they may run in TF32.
        unscaled = (logits - logits.amax(1, keepdim=True)).exp()
        maps = [read_out(unscaled, bin_centres(head.edges), self.readout)]
        if self.confidence:
            maps.append(confidence(unscaled) / unscaled.sum(1, keepdim=True))
        return maps
