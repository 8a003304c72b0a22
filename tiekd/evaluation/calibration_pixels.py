"""Samples the pixels of validation frames on which a student's confidence is calibrated.

A pixel counts as in an evaluation: inside the crop, with min_depth < reference < cap. Of each frame
at most PIXELS_PER_FRAME pixels are drawn, from a seed and the frame's number, so that every call
draws the same ones. For the fit the logits of the cell that a pixel takes its depth from are kept,
in all at most MOST_LOGITS values: with many frames, fewer pixels of each are drawn. For the report
confidence and sigma are those of the image at its own size, as `load_student` returns them. Costs:
a forward pass per frame; the maps of one frame at a time are in memory. Left out: several ranks.
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
from tiekd.models.readout import on_image_grid

PIXELS_PER_FRAME = 1000
MOST_LOGITS = 1 << 25  # float32 values: 128 MiB
SEED = 0


@dataclass(frozen=True)
class Setting:
    """A student, and the settings with which it runs on the frames of a recipe.

    Attributes:
        network: the network, in eval mode on the device, with a DPM head.
        resize: the working resolution.
        protocol: crop, range of depths that count, and the reference.
        device: the network's device.
        loading: number and timeout of the data workers.
    """

    network: Network
    resize: Resize
    protocol: EvaluationProtocol
    device: torch.device
    loading: Loading


class FittedPixels(NamedTuple):
    """The pixels of the frames on which the temperature is fitted.

    Attributes:
        logits: (N, K) float32, on the CPU.
        bins: (N,) int64, the reference's bin, on the CPU.
    """

    logits: Tensor
    bins: Tensor


@dataclass(frozen=True)
class _Seen:
    """One frame after the network's forward pass, and its drawn pixels.

    Attributes:
        setting: the student and how it is run.
        features: (1, C, h, w), the head's input.
        depth: (1, 1, h, w), metres, the returned depth at the head's resolution.
        input_size: (height, width) of the network's input.
        focal: (1,), of the network's input; None without a canonical camera.
        reference: (H, W), metres, at the image's own size.
        drawn: (n,) int64, indices of the drawn pixels in the flattened reference.
    """

    setting: Setting
    features: Tensor
    depth: Tensor
    input_size: tuple[int, int]
    focal: Tensor | None
    reference: Tensor
    drawn: Tensor

    def at_pixels(self, values: Tensor) -> Tensor:
        """Returns a map of the network's input size at the drawn pixels, (n,)."""
        size = tuple(self.reference.shape)
        own = resizes.restored(values, self.setting.resize, size, smooth=True)
        return own.flatten()[self.drawn]

    @property
    def logits(self) -> Tensor:
        """The logits of the cell that each drawn pixel lies in, (n, K)."""
        network, size = self.setting.network, tuple(self.reference.shape)
        # Bring the cells' numbers to the image without blending them. float32 holds them exactly.
        cells = torch.arange(self.depth.numel(), device=self.depth.device, dtype=torch.float32)
        numbers = network.upsampled(
            cells.view_as(self.depth), self.features, self.input_size, smooth=False
        )
        numbers = on_image_grid(numbers, self.input_size, smooth=False)
        numbers = resizes.restored(numbers, self.setting.resize, size, smooth=False)
        chosen = numbers.flatten()[self.drawn].long()
        found = network.head.logits(self.features.flatten(2)[..., chosen][..., None])
        return found[0, :, :, 0].T

    @property
    def bins(self) -> Tensor:
        """The bin of the reference at each drawn pixel, (n,); the outermost bins have no end."""
        network = self.setting.network
        reference = self.reference.flatten()[self.drawn]
        if network.canonical is not None:
            reference = network.canonical.from_metres(reference[None], self.focal).flatten()
        return torch.bucketize(reference, network.head.edges[1:-1])


@torch.no_grad()
def for_fit(setting: Setting, frames: Dataset, out: TextIO | None = None) -> FittedPixels:
    """Returns the logits and the references' bins of the frames on which T is fitted.

    Args:
        setting: the student and how it is run.
        frames: the frames.
        out: text stream that receives the progress; None for no progress.

    Raises:
        DataError: No pixel counts, or the network's output isn't finite.
    """
    values = setting.network.head.edges.numel() * len(frames)
    count = max(1, min(PIXELS_PER_FRAME, MOST_LOGITS // values))
    found = [(seen.logits.cpu(), seen.bins.cpu()) for seen in _seen(setting, frames, count, out)]
    return FittedPixels(*map(torch.cat, zip(*found, strict=True)))


@torch.no_grad()
def for_report(
    setting: Setting, frames: Dataset, temperatures: Sequence[float], out: TextIO | None = None
) -> list[Pixels]:
    """Returns the pixels of the frames that are reported, once for each temperature.

    Args:
        setting: the student and how it is run.
        frames: the frames.
        temperatures: the temperatures.
        out: text stream that receives the progress; None for no progress.

    Raises:
        DataError: As for `for_fit`.
    """
    network = setting.network
    rows: list[list[tuple]] = [[] for _ in temperatures]
    for number, seen in enumerate(_seen(setting, frames, PIXELS_PER_FRAME, out)):
        on_image = network.upsampled(seen.depth, seen.features, seen.input_size)
        depth = seen.at_pixels(on_image_grid(on_image, seen.input_size, smooth=True))
        error = (depth - seen.reference.flatten()[seen.drawn]).abs()
        within = error <= confidence.BAND * depth
        logits, bins = seen.logits, seen.bins
        given = (network, seen.features, seen.depth, seen.input_size)
        for row, temperature in zip(rows, temperatures, strict=True):
            maps = confidence.of_features(*given, temperature, seen.focal)
            sure, sigma = map(seen.at_pixels, maps)
            nll = likelihood_loss(logits, bins, temperature)
            frame = torch.full_like(bins, number)
            row.append((frame, error.double(), within, sure.double(), sigma.double(), nll))
    return [
        Pixels(*(torch.cat(each).cpu().numpy() for each in zip(*row, strict=True))) for row in rows
    ]


def _seen(setting: Setting, frames: Dataset, count: int, out: TextIO | None) -> Iterator[_Seen]:
    """Yields the frames that have a pixel that counts.

    Args:
        setting: the student and how it is run.
        frames: the frames.
        count: the largest number of pixels to draw of a frame.
        out: text stream that receives the progress; None for no progress.

    Raises:
        DataError: As for `for_fit`.
    """
    protocol, resize, device = setting.protocol, setting.resize, setting.device
    batches = validation_batches(frames, 1, device, loading=setting.loading, resize=resize)
    if protocol.reference is not None:
        batches = protocol.reference.targets(batches, frames, 1, device, setting.loading, resize)
    done = with_pixels = 0
    progress = None if out is None else Progress("frames", len(frames), lambda: done, out, False)
    for (index,), batch in batches:
        drawn = _drawn(batch.depth[0, 0], protocol, index, count)
        if len(drawn):
            with_pixels += 1
            yield _forward(setting, batch, drawn)
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


def _forward(setting: Setting, batch: Batch, drawn: Tensor) -> _Seen:
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
    return _Seen(setting, features, depth, size, focal, batch.depth[0, 0], drawn)


def _drawn(reference: Tensor, protocol: EvaluationProtocol, index: int, count: int) -> Tensor:
    """Returns indices into the flattened reference, in ascending order, of pixels that count.

    Args:
        reference: (H, W), metres, 0 where invalid.
        protocol: crop, and range of depths that count.
        index: the frame's number, which seeds the draw.
        count: the largest number of pixels.
    """
    counts = torch.zeros(reference.shape, dtype=torch.bool)
    box = metrics.crop_box(protocol.settings.crop, *reference.shape)
    depth = reference[box].cpu()
    # NaN and inf fail one of the comparisons.
    counts[box] = (depth > protocol.min_depth) & (depth < protocol.cap)
    valid = counts.flatten().nonzero()[:, 0]
    if len(valid) > count:
        draw = np.random.default_rng((SEED, index))
        chosen = np.sort(draw.choice(len(valid), count, replace=False))
        valid = valid[torch.from_numpy(chosen)]
    return valid.to(reference.device)
