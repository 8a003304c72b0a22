"""Samples the pixels of validation frames on which a student's confidence is calibrated.

The reference of a pixel is its true depth, or the teacher's depth in its place. A pixel is valid as
in an evaluation: inside the crop, with min_depth < reference < cap. Of each frame at most
PIXELS_PER_FRAME valid pixels are sampled, with random numbers that depend only on SEED and the
frame's index, so that every call samples the same pixels.

`sample_for_fit` returns the logits of the head's output pixel that covers each sampled pixel. They
are at most MOST_LOGITS values in total: with many frames, fewer pixels of each frame are sampled.
`measure_pixels` returns confidence and sigma of the image at its own size, as `load_student`
computes them. Costs: a forward pass per frame; only one frame's maps are in memory at a time. Not
covered: several ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.console import Progress
from tiekd.data import focal as focals
from tiekd.data import resize as resizes
from tiekd.data.batch import Batch
from tiekd.data.loading.loader import Loading, validation_batches
from tiekd.data.resize import Resize
from tiekd.errors import DataError
from tiekd.evaluation import metrics
from tiekd.evaluation.calibration import Pixels, likelihood_loss
from tiekd.evaluation.evaluate import EvaluationProtocol
from tiekd.models import confidence
from tiekd.models.network import Network
from tiekd.models.readout import resize_to_image

PIXELS_PER_FRAME = 1000
MOST_LOGITS = 1 << 25  # float32 values: 128 MiB
SEED = 0


@dataclass(frozen=True)
class Setting:
    """A student network, and the settings with which it is run and compared with a reference.

    Attributes:
        network: the network, in eval mode on the device, with a DPM head.
        resize: how images are resized for the network (working resolution).
        protocol: which pixels are valid (crop and depth range), and whether the reference is ground
            truth or a teacher.
        device: the network's device.
        loading: number and timeout of the data workers.
    """

    network: Network
    resize: Resize
    protocol: EvaluationProtocol
    device: torch.device
    loading: Loading


class FittedPixels(NamedTuple):
    """N sampled pixels on which the temperature is fitted.

    Attributes:
        logits: (N, K) float32, the logits of the K depth bins, on the CPU.
        bins: (N,) int64, index of the bin that contains the reference depth, on the CPU.
    """

    logits: Tensor
    bins: Tensor


@dataclass(frozen=True)
class _FrameOutputs:
    """One frame after the network's forward pass, with n pixels that were sampled from it.

    Attributes:
        setting: the student and how it is run.
        features: (1, C, h, w), the head's input.
        depth: (1, 1, h, w), metres, the predicted depth at the head's resolution.
        input_size: (height, width) of the network's input.
        focal: (1,), focal length in pixels of the network's input; None for a network without
            `canonical_focal`.
        reference: (H, W), the true depth, or the teacher's in its place, metres, at the image's own
            size.
        sampled: (n,) int64, indices of the sampled pixels in the flattened `reference`.
    """

    setting: Setting
    features: Tensor
    depth: Tensor
    input_size: tuple[int, int]
    focal: Tensor | None
    reference: Tensor
    sampled: Tensor

    def at_pixels(self, values: Tensor) -> Tensor:
        """Returns the values of a map at the sampled pixels, (n,).

        Args:
            values: (1, 1, height, width), the map, of the network's input size; it is resized
                bilinearly to the image's own size.
        """
        size = tuple(self.reference.shape)
        own = resizes.at_own_size(values, self.setting.resize, size, smooth=True)
        return own.flatten()[self.sampled]

    @property
    def logits(self) -> Tensor:
        """The logits (n, K) at the head's output pixel that covers each sampled pixel."""
        network, size = self.setting.network, tuple(self.reference.shape)
        # Number the pixels of the head's output, and upsample the numbers to the image without
        # interpolating. Each image pixel then has the number of the output pixel that covers it.
        # float32 represents the numbers exactly.
        cells = torch.arange(self.depth.numel(), device=self.depth.device, dtype=torch.float32)
        numbers = network.upsampled(
            cells.view_as(self.depth), self.features, self.input_size, smooth=False
        )
        numbers = resize_to_image(numbers, self.input_size, smooth=False)
        numbers = resizes.at_own_size(numbers, self.setting.resize, size, smooth=False)
        chosen = numbers.flatten()[self.sampled].long()
        found = network.head.logits(self.features.flatten(2)[..., chosen][..., None])
        return found[0, :, :, 0].T

    @property
    def bins(self) -> Tensor:
        """The index of the bin that contains each sampled pixel's reference depth, (n,) int64.

        Depths beyond the bins are assigned to the first or the last bin.
        """
        network = self.setting.network
        reference = self.reference.flatten()[self.sampled]
        if network.canonical is not None:
            reference = network.canonical.from_metres(reference[None], self.focal).flatten()
        return torch.bucketize(reference, network.head.edges[1:-1])


@torch.no_grad()
def sample_for_fit(setting: Setting, frames: Dataset, out: TextIO | None = None) -> FittedPixels:
    """Samples pixels of the frames on which the temperature is to be fitted.

    Args:
        setting: the student and how it is run.
        frames: dataset of the frames.
        out: text stream that receives the progress; None for no progress.

    Returns:
        The logits at the sampled pixels, and the bins of their reference depths.

    Raises:
        DataError: No pixel is valid, or the network's output isn't finite.
    """
    values = setting.network.head.edges.numel() * len(frames)
    count = max(1, min(PIXELS_PER_FRAME, MOST_LOGITS // values))
    frame_outputs = _frame_outputs(setting, frames, count, out)
    found = [(outputs.logits.cpu(), outputs.bins.cpu()) for outputs in frame_outputs]
    return FittedPixels(*map(torch.cat, zip(*found, strict=True)))


@torch.no_grad()
def measure_pixels(
    setting: Setting, frames: Dataset, temperatures: Sequence[float], out: TextIO | None = None
) -> list[Pixels]:
    """Samples pixels of frames, and measures confidence and sigma there with each temperature.

    Args:
        setting: the student and how it is run.
        frames: dataset of the frames.
        temperatures: the temperatures, each above 0.
        out: text stream that receives the progress; None for no progress.

    Returns:
        For each temperature, in the order given, the measurements at the sampled pixels, which are
        the same for all temperatures.

    Raises:
        DataError: No pixel is valid, or the network's output isn't finite.
    """
    network = setting.network
    rows: list[list[tuple]] = [[] for _ in temperatures]
    for number, outputs in enumerate(_frame_outputs(setting, frames, PIXELS_PER_FRAME, out)):
        on_image = network.upsampled(outputs.depth, outputs.features, outputs.input_size)
        depth = outputs.at_pixels(resize_to_image(on_image, outputs.input_size, smooth=True))
        error = (depth - outputs.reference.flatten()[outputs.sampled]).abs()
        within = error <= confidence.RELATIVE_TOLERANCE * depth
        logits, bins = outputs.logits, outputs.bins
        given = (network, outputs.features, outputs.depth, outputs.input_size)
        for row, temperature in zip(rows, temperatures, strict=True):
            maps = confidence.of_features(*given, temperature, outputs.focal)
            sure, sigma = map(outputs.at_pixels, maps)
            nll = likelihood_loss(logits, bins, temperature)
            frame = torch.full_like(bins, number)
            row.append((frame, error.double(), within, sure.double(), sigma.double(), nll))
    return [
        Pixels(*(torch.cat(each).cpu().numpy() for each in zip(*row, strict=True))) for row in rows
    ]


def _frame_outputs(
    setting: Setting, frames: Dataset, count: int, out: TextIO | None
) -> Iterator[_FrameOutputs]:
    """Runs the network on each frame, and yields those frames that have a valid pixel.

    Args:
        setting: the student and how it is run.
        frames: dataset of the frames.
        count: maximum number of pixels that are sampled from a frame.
        out: text stream that receives the progress; None for no progress.

    Yields:
        The outputs of each such frame, and its sampled pixels.

    Raises:
        DataError: No pixel is valid, or the network's output isn't finite.
    """
    protocol, resize, device = setting.protocol, setting.resize, setting.device
    batches = validation_batches(frames, 1, device, loading=setting.loading, resize=resize)
    if protocol.reference is not None:
        batches = protocol.reference.targets(batches, frames, 1, device, setting.loading, resize)
    done = with_pixels = 0
    progress = None if out is None else Progress("frames", len(frames), lambda: done, out, False)
    for (index,), batch in batches:
        sampled = _sample_pixels(batch.depth[0, 0], protocol, index, count)
        if len(sampled):
            with_pixels += 1
            yield _forward(setting, batch, sampled)
        done += 1
        if progress is not None:
            progress.update()
    if progress is not None:
        progress.finish()
    if not with_pixels:
        raise DataError(
            f"no pixel of {len(frames)} frame(s) counts ({protocol.min_depth:g} < reference < "
            f"{protocol.cap:g} m, crop {protocol.settings.crop}), so confidence can't be "
            "calibrated; look at the frames, or set another evaluation.crop or evaluation.cap"
        )


def _forward(setting: Setting, batch: Batch, sampled: Tensor) -> _FrameOutputs:
    network, focal = setting.network, None
    if network.canonical is not None:
        focal = focals.of_batch(batch, setting.resize)
        focals.check_known(focal, batch.names)
    size = tuple(batch.image.shape[-2:])
    features = network.features(batch.image)
    depth = network.in_metres(network.head(features, size).depth, focal)
    if not bool(torch.isfinite(depth).all()):
        raise DataError(
            f"{batch.names[0]}: the network's depth isn't finite (nan or inf), so confidence can't "
            "be calibrated; give other weights"
        )
    return _FrameOutputs(setting, features, depth, size, focal, batch.depth[0, 0], sampled)


def _sample_pixels(
    reference: Tensor, protocol: EvaluationProtocol, index: int, count: int
) -> Tensor:
    """Samples at most `count` of a frame's valid pixels at random.

    Args:
        reference: (H, W), metres, 0 where invalid.
        protocol: crop and depth range of the valid pixels.
        index: index of the frame in its dataset, which seeds the random numbers.
        count: maximum number of sampled pixels.

    Returns:
        (n,) int64, ascending indices of the sampled pixels in the flattened `reference`, on its
        device.
    """
    counts = torch.zeros(reference.shape, dtype=torch.bool)
    box = metrics.crop_box(protocol.settings.crop, *reference.shape)
    depth = reference[box].cpu()
    # Pixels with NaN or inf become invalid, too, because one of the comparisons is False for them.
    counts[box] = (depth > protocol.min_depth) & (depth < protocol.cap)
    valid = counts.flatten().nonzero()[:, 0]
    if len(valid) > count:
        generator = np.random.default_rng((SEED, index))
        chosen = np.sort(generator.choice(len(valid), count, replace=False))
        valid = valid[torch.from_numpy(chosen)]
    return valid.to(reference.device)
