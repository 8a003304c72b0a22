"""A teacher that is a frozen network, run on the batch's images.

With the recipe's `teacher.sigma` it also gives each pixel's sigma, the standard deviation of the
depth's error (teachers/outputs/sigma.py). Sigma from the source `flip` costs no forward pass beyond
the two that averaging with the mirrored image needs. For sigma from the source `own`, the
distribution that the head predicts is read a few image rows at a time, which saves memory.
"""

import torch
from torch import Tensor

from tiekd.data import focal as focals
from tiekd.data.batch import Batch
from tiekd.data.resize import OWN_SIZE, Resize
from tiekd.data.target import Target
from tiekd.errors import TeacherError
from tiekd.kernels.convolution import prepare_bf16
from tiekd.models.flip import predict, predict_pair
from tiekd.models.network import Network
from tiekd.models.spread import Modes, Spread
from tiekd.teachers.outputs import digest
from tiekd.teachers.outputs.sigma import disagreement, options_of

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raises TeacherError if a teacher's precision is unknown or not supported on its device.

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
        flip: True to average with the prediction for the mirrored image, at twice the cost. Maps
            are usually cached with it.
        precision: "fp32", "bf16" or "fp16", for convolutions and matrix products, independently of
            the student's precision. Weights, depth and a head's float32 arithmetic stay float32.
        resize: The resize of images with which the teacher's weights were trained.
            tiekd/tools/cache_teacher.py resizes whole images by it. In training the teacher gets
            the student's images, at the student's size.
        seen_at: The resize of the images that the teacher gets, from which their focal length is
            computed. Initially `resize`; training sets it to the student's.
        sigma: The source of the sigma of each pixel, i.e. the standard deviation of the depth's
            error, as the recipe's `teacher.sigma` describes it; None for depth alone.
        spread: The object that reads the sigma from the head's distribution (source `own`); None
            for other sources.
    """

    def __init__(
        self,
        network: Network,
        device: torch.device,
        flip: bool = False,
        precision: str = "fp32",
        resize: Resize = OWN_SIZE,
        sigma: float | dict | None = None,
    ):
        self.network = network.to(device).eval().requires_grad_(False)
        self.flip, self.precision, self.resize = flip, precision, resize
        self.seen_at = resize
        if precision != "fp32":
            self.network.memory_format = torch.channels_last
        if precision == "bf16" and torch.device(device).type == "cpu":
            prepare_bf16(self.network)
        self.sigma, self.spread = options_of(sigma), None
        if self.sigma is not None:
            has_bins = Spread.supports(network.head)
            self.sigma.check_source(("flip", "own") if has_bins else ("flip",), flip)
            # Both kinds of heads have one row of weights for each depth bin.
            if self.sigma.modes and self.sigma.modes > len(network.head.weight):
                raise TeacherError(
                    f"teacher.sigma.modes: got {self.sigma.modes}, but the teacher's head has "
                    f"{len(network.head.weight)} depth bins; give fewer, such as 2"
                )
            if self.sigma.source == "own":
                self.spread = Spread(network.head, self.sigma.modes)
            if self.sigma.calibration is not None:
                self.sigma.check_teacher(digest.of_network(network), flip)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor | Target:
        """Returns the network's depth for a batch.

        Args:
            batch: The batch, on the network's device.

        Returns:
            (B, 1, H, W) float32, metres; 0 in pixels that rotation or padding added from outside
            the image. With `sigma` it is a `Target` of such depths and their sigmas.
        """
        # Run in the teacher's own precision: this autocast overrides an enclosing one, and fp32
        # disables it.
        dtype = PRECISIONS[self.precision]
        with torch.autocast(batch.image.device.type, dtype, enabled=dtype is not None):
            if self.sigma is None or self.sigma.source is None:
                depth = predict(self.network, batch.image, self.flip, self._focal(batch))
            else:
                depth, sigma, weight = self._with_sigma(batch)
        # Set the pixels that rotation or padding added from outside the image to 0, i.e. invalid.
        depth = torch.where(batch.inside, depth.float(), 0)
        if self.sigma is None:
            return depth
        if self.sigma.source is None:
            return Target(depth, constants=(self.sigma.constant,))
        sigma = self.sigma.finished(sigma, depth)
        return Target(depth, sigma, weight if self.sigma.modes else None)

    @property
    def needs_focal(self) -> bool:
        """True if each image needs a known focal length.

        This is the case if the network predicts depth as if every image had the same focal length
        (a canonical camera), and then converts it to metres.
        """
        return self.network.canonical is not None

    @property
    def uses_focal(self) -> bool:
        """True if the depth of an image depends on its focal length."""
        return self.needs_focal

    def _with_sigma(self, batch: Batch) -> Modes:
        """Returns depth and sigma; the sigma is not yet multiplied by its calibration factor.

        Args:
            batch: The batch.

        Returns:
            A `Modes` of depth and sigma, in metres, and weight; each has the shape (B, M, H, W). M
            is the number of modes of the distribution if `sigma.modes` is set, else 1.
        """
        focal = self._focal(batch)
        if self.sigma.source == "flip":
            plain, mirrored = predict_pair(self.network, batch.image, focal)
            # Set pixels from outside the image to 0, so that they don't affect the window averages
            # of pixels near them.
            pair = torch.where(batch.inside, torch.cat((plain, mirrored), dim=1), 0)
            return Modes((plain + mirrored) / 2, disagreement(pair), torch.ones_like(plain))
        found = self._own(batch.image, focal)
        if not self.flip:
            return found
        other = Modes(*(each.flip(-1) for each in self._own(batch.image.flip(-1), focal)))
        squares = found.sigma.square() + other.sigma.square()
        return Modes((found.depth + other.depth) / 2, (squares / 2).sqrt(), found.weight)

    def _own(self, image: Tensor, focal: Tensor | None) -> Modes:
        """Returns the network's depth, and the sigma of the distribution that its head predicts.

        Args:
            image: (B, 3, H, W) float32, ImageNet-normalised.
            focal: (B,), focal lengths in pixels of `image`; None if the network doesn't need them.

        Returns:
            A `Modes` of depth and sigma, in metres, and weight; each has the shape (B, M, H, W). M
            is the number of modes of the distribution if `sigma.modes` is set, else 1.
        """
        features = self.network.features(image)
        size = tuple(image.shape[-2:])
        depth, sigma, weight = self.spread(features, size)
        if self.network.canonical is not None:
            sigma = self.network.canonical.to_metres(sigma, focal)
        if self.sigma.modes:
            depth = torch.where(weight > 0, self.network.in_metres(depth, focal), 0)
        else:
            depth = self.network.read(features, size, focal=focal).depth
        return Modes(depth, sigma, weight)

    def _focal(self, batch: Batch) -> Tensor | None:
        if not self.needs_focal:
            return None
        return focals.of_batch(batch, self.seen_at)


build = FrozenTeacher
