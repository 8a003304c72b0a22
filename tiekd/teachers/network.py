"""A teacher that is a frozen network, run on the batch's images."""

import torch
from torch import Tensor

from tiekd.data import focal as focals
from tiekd.data.batch import Batch
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.flip import predict
from tiekd.models.network import Network

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTeacher:
    """A network in eval mode, which predicts without gradients.

    It runs under `no_grad` and not under `inference_mode`, whose tensors can't be saved for
    backward.

    Attributes:
        flip: True to average with the prediction for the mirrored image, at twice the cost. Cached
            maps are usually made so.
        precision: "fp32", "bf16" or "fp16", for convolutions and matrix products, independently of
            the student's precision. Weights, depth and a head's float32 arithmetic stay float32.
        resize: The working resolution that the teacher's weights were trained at.
            tiekd/tools/cache_teacher.py resizes whole images to it; in training the teacher gets
            images at the student's working resolution.
        seen_at: The working resolution of the batches that it is given: its own unless training
            sets the student's.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        flip: bool = False,
        precision: str = "fp32",
        resize: Resize = OWN_SIZE,
    ):
        self.network = network.to(device).eval().requires_grad_(False)
        self.flip, self.precision, self.resize = flip, precision, resize
        self.seen_at = resize
        if precision != "fp32":
            self.network.memory_format = torch.channels_last
        if precision == "bf16" and torch.device(device).type == "cpu":
            prepare_bf16(self.network)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Returns the network's depth, (B, 1, H, W) float32, metres; 0 outside the image."""
        # The teacher's precision overrides an enclosing autocast; fp32 disables autocast.
        dtype = PRECISIONS[self.precision]
        with torch.autocast(batch.image.device.type, dtype, enabled=dtype is not None):
            depth = predict(self.network, batch.image, self.flip, self._focal(batch))
        # Set pixels that a rotation filled from outside the image to 0, i.e. invalid for the loss.
        return torch.where(batch.inside, depth.float(), 0)

    @property
    def needs_focal(self) -> bool:
        """True if the network has a canonical camera, so that images need their focal length."""
        return self.network.canonical is not None

    def _focal(self, batch: Batch) -> Tensor | None:
        if not self.needs_focal:
            return None
        return focals.of_batch(batch, self.seen_at)


build = FrozenTeacher
