"""The module that is exported: pixels in, depth and its confidence out, in plain operators.

The module resizes images to the working resolution, i.e. the size at which the network runs, by
matrix products (`tiekd.data.resize`). Depth is resized back to the image's own size as in
`tiekd.inference.student`: bilinearly if it is the mean of the distribution over depth bins, to the
nearest value if it is near the mode. The DPM head's own kernel works in tiles with a custom
backward pass, which no exporter supports, so the same arithmetic is written here in plain
operators.

Cost: with a DPM head about five (B, h, w, K) float32 tensors at the working resolution, so this is
for export, not for training. A graph of fixed size contains the resizing weights of both sides, as
bands of a matrix (working side, image side): 12 megapixels to 192x640 take 0.9 MB. Not covered: a
graph for images of any size, if the working resolution depends on the image's size.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tiekd.data import focal as focals
from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.data.cameras.calibration import Camera
from tiekd.data.resize import (
    OWN_SIZE,
    Band,
    Resize,
    at_own_size,
    bands,
    on_canvas,
    open_weights,
    resized_by_products,
    stretched_map,
)
from tiekd.kernels.target import bin_centres
from tiekd.models.confidence import certainty
from tiekd.models.heads.dpm import Dpm
from tiekd.models.network import Network
from tiekd.models.readout import read_out, resize_for_export, resize_to_image


class Deployed(nn.Module):
    """Maps RGB images (B, 3, H, W), uint8 or float in 0..255, to depth and optionally confidence.

    Depth is (B, 1, H, W) float32 in metres, clamped to the network's range. Confidence is
    (B, 1, H, W) float32, 0 to 1, and comes with sigma, (B, 1, H, W) float32 in metres; see
    `tiekd.models.confidence`.

    Args:
        network: The network, which is used without a copy.
        readout: How depth is read from a DPM head's distribution over depth bins: "mean", "mode" or
            "local" (`tiekd.models.readout`). With another head it must be "mean".
        temperature: The temperature by which the logits are divided before confidence and sigma are
            computed, which are then returned, too; None to return depth alone. Needs a DPM head.
        resize: How images are resized for the network.
        size: (H, W) of all images, or None for images of any size. With None, `resize` must be
            OWN_SIZE (no resizing) or have the mode "stretch", since otherwise the size depends on
            the image.
        focal: Focal length of all images in pixels of their own size, for a network with a
            canonical camera. None makes it an input, (B,) float32.
    """

    def __init__(
        self,
        network: Network,
        readout: str = "mean",
        temperature: float | None = None,
        resize: Resize = OWN_SIZE,
        size: tuple[int, int] | None = None,
        focal: float | None = None,
    ):
        super().__init__()
        assert size is not None or resize == OWN_SIZE or resize.mode == "stretch", (
            "its working size is not constant"
        )
        self.network = network
        self.readout = readout
        self.temperature = temperature
        self.resize = resize
        self.size = size
        # Factor by which resizing changes an image's focal length, a constant if all images have
        # one size.
        self.focal_scale = 1.0
        if network.canonical is not None and size is not None:
            self.focal_scale = focals.of_camera(Camera(1.0, 1.0), size, resize)
        if focal is not None:
            self.register_buffer("focal", torch.tensor([focal]), persistent=False)
        for name, numbers in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
        # Store the resizing matrices as constants of the graph if all images have one size. Buffers
        # of this module move to a device with it; bands that begin at `starts` use them.
        self.is_resized = size is not None and resize.placement_of(*size).scaled != size
        if self.is_resized:
            self.starts = {}
            for name, old, new in zip(
                ("rows", "columns"), size, resize.placement_of(*size).scaled, strict=True
            ):
                found = bands(old, new)
                self.starts[name] = [band.start for band in found]
                for number, band in enumerate(found):
                    self.register_buffer(f"{name}_{number}", band.weights, persistent=False)

    def forward(self, image: Tensor, focal: Tensor | None = None) -> tuple[Tensor, ...]:
        """Predicts depth, and confidence and sigma if the module has a temperature.

        Args:
            image: (B, 3, H, W) RGB, uint8 or float in 0..255.
            focal: (B,) float32, focal length of each image in pixels of `image`; None if the module
                was created with a focal length, or the network has no canonical camera.

        Returns:
            (depth,) or (depth, confidence, sigma), each (B, 1, H, W) float32; depth and sigma in
            metres, confidence from 0 to 1.
        """
        if self.network.canonical is not None:
            focal = (self.focal if focal is None else focal) * self.focal_scale
        network = self.network
        own = (image.shape[2], image.shape[3])
        seen = self._network_input(image.float())
        size = (seen.shape[2], seen.shape[3])
        features = network.features((seen - self.mean) / self.std)
        if isinstance(network.head, Dpm):
            maps = self._depth_and_certainty(network.head, features, focal)
        else:
            maps = [network.in_metres(network.head(features, size).depth, focal)]
        is_smooth = self.readout == "mean", True, True  # for depth, confidence and sigma
        return tuple(
            self._at_own_size(network.upsampled(values, features, size, smooth), smooth, size, own)
            for values, smooth in zip(maps, is_smooth, strict=False)
        )

    def _network_input(self, image: Tensor) -> Tensor:
        if self.is_resized:
            rows, columns = (self._bands(name) for name in ("rows", "columns"))
            image = resized_by_products(image, rows, columns)
        elif self.size is None and self.resize.mode is not None:
            height, width = self.resize.height, self.resize.width
            rows, columns = (
                open_weights(image.shape[2], height),
                open_weights(image.shape[3], width),
            )
            image = resized_by_products(image, rows.to(image.device), columns.to(image.device))
        return (
            image if self.size is None else on_canvas(image, self.resize.placement_of(*self.size))
        )

    def _bands(self, name: str) -> list[Band]:
        """Returns the bands of the resizing matrix `name`, "rows" or "columns"."""
        return [
            Band(start, getattr(self, f"{name}_{number}"))
            for number, start in enumerate(self.starts[name])
        ]

    def _at_own_size(
        self, values: Tensor, smooth: bool, size: tuple[int, int], own: tuple[int, int]
    ) -> Tensor:
        """Resizes a map from the head's output size to the network's input, then to the image.

        Args:
            values: (B, 1, h, w), depth or confidence per pixel of the head's output, or already
                upsampled to the network's input.
            smooth: True to interpolate bilinearly, False to use the nearest value.
            size: (height, width) of the network's input.
            own: (height, width) of the image at its own size.

        Returns:
            (B, 1, height, width) at the image's own size.
        """
        if self.size is not None:
            return at_own_size(
                resize_to_image(values, size, smooth), self.resize, self.size, smooth
            )
        # Interpolate once, from the head's output to the image, if images aren't resized.
        if self.resize.mode is None:
            return resize_for_export(values, own, smooth)
        return stretched_map(resize_to_image(values, size, smooth), own, smooth)

    def _depth_and_certainty(
        self, head: Dpm, features: Tensor, focal: Tensor | None
    ) -> list[Tensor]:
        # Compute the head's convolution as a matrix product whose last dimension is that of the
        # bins. With the bins of a pixel side by side in memory, the sums over them take a quarter
        # of the time in ONNX Runtime on a CPU.
        logits = linear(features.permute(0, 2, 3, 1), head.weight.flatten(1), head.bias).float()
        # Compute unnormalised probabilities. Subtracting the largest logit avoids overflow and
        # underflow of their sum, and one division per pixel then normalises the result. Use sums
        # for the mean instead of a matrix product, which may run in TF32.
        logits = logits - logits.amax(-1, keepdim=True)
        unscaled = logits.exp()
        depth = read_out(unscaled, bin_centres(head.edges), self.readout, dim=-1)
        depth = self.network.in_metres(depth.squeeze(-1).unsqueeze(1), focal)
        if self.temperature is None:
            return [depth]
        camera = self.network.canonical
        own = depth if camera is None else camera.from_metres(depth, focal)
        # Apply the temperature to the logits, which equals `confidence.tempered`.
        q = unscaled if self.temperature == 1 else (logits / self.temperature).exp()
        found = certainty(q, own.squeeze(1).unsqueeze(-1), head.edges, dim=-1)
        confidence, sigma = found.permute(0, 3, 1, 2).contiguous().split(1, dim=1)
        if camera is not None:
            sigma = camera.to_metres(sigma, focal)
        return [depth, confidence, sigma]
