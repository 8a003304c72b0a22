"""A frozen network as the teacher."""

import torch
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.flip import predict
from tiekd.models.network import Network

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenTeacher:
    """A network in eval mode without gradients.

    Runs under `no_grad`, not `inference_mode`, whose tensors can't be saved for backward.

    Attributes:
        flip: Averages with the mirrored image's depth, at twice the cost, as cached maps usually
            do.
        precision: "fp32", "bf16" or "fp16", for its convolutions and matrix products,
            independently of the student's precision. Weights, depth and a head's float32
            arithmetic stay float32.
        resize: The working resolution that its weights were trained at.
            tiekd/tools/cache_teacher.py resizes whole images to it; in training the teacher sees
            the student's.
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
            depth = predict(self.network, batch.image, self.flip)
        # Pixels that a rotation filled from outside the image are excluded from the loss.
        return torch.where(batch.inside, depth.float(), 0)


build = FrozenTeacher
