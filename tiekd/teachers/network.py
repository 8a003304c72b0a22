"""A teacher that is a frozen network, run on the batch's images."""

import torch
from torch import Tensor

from tiekd.data import focal as focals
from tiekd.data.batch import Batch
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.errors import TeacherError
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.flip import predict
from tiekd.models.network import Network

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raises TeacherError if a teacher's precision is unknown or unfit for its device.

    Args:
        precision: The recipe's key `teacher.precision`: "fp32", "bf16" or "fp16".
        device: The teacher's device; on a CPU fp16 is refused, since it is slow.
    """
    if precision not in PRECISIONS:
        raise TeacherError(
            f"teacher.precision: got {precision!r}; allowed: {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and device.type == "cpu":
        raise TeacherError(
            "teacher.precision: fp16 is not for CPUs, which compute it slowly; set bf16 or fp32"
        )


class FrozenTeacher:
    """A network of the project as the teacher, in eval mode and without gradients.

    It runs under `no_grad` and not under `inference_mode`, whose tensors can't be saved for
    backward.

    Attributes:
        network: The network, on the teacher's device.
        flip: True to average with the prediction for the mirrored image, at twice the cost. Cached
            maps are usually made so.
        precision: "fp32", "bf16" or "fp16", for convolutions and matrix products, independently of
            the student's precision. Weights, depth and a head's float32 arithmetic stay float32.
        resize: The resize of images with which the teacher's weights were trained.
            tiekd/tools/cache_teacher.py resizes whole images so. In training the teacher gets the
            student's images, which are resized as the student needs them.
        seen_at: The resize of the images in the batches that the teacher gets, from which their
            focal length follows. It is `resize` until training sets that of the student.
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
        """Returns the network's depth for a batch.

        Args:
            batch: The batch, on the network's device.

        Returns:
            (B, 1, H, W) float32, metres; 0 in pixels that rotation or padding added from outside
            the image.
        """
        # The teacher's precision overrides an enclosing autocast; fp32 disables autocast.
        dtype = PRECISIONS[self.precision]
        with torch.autocast(batch.image.device.type, dtype, enabled=dtype is not None):
            depth = predict(self.network, batch.image, self.flip, self._focal(batch))
        # Set pixels that a rotation filled from outside the image to 0, i.e. invalid for the loss.
        return torch.where(batch.inside, depth.float(), 0)

    @property
    def needs_focal(self) -> bool:
        """True if each image needs a known focal length.

        That is so if the network has a canonical camera: it predicts depth as if every image had
        the same focal length, and converts that to metres.
        """
        return self.network.canonical is not None

    @property
    def uses_focal(self) -> bool:
        """True if the depth of an image depends on its focal length."""
        return self.needs_focal

    def _focal(self, batch: Batch) -> Tensor | None:
        if not self.needs_focal:
            return None
        return focals.of_batch(batch, self.seen_at)


build = FrozenTeacher
