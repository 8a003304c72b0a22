"""Computes how far a DPM head's depth can be trusted: a sigma in metres, and a confidence.

The distribution p over depth bins is tempered first, with one temperature T for all pixels:

    q_k = p_k^(1/T) / sum_j p_j^(1/T),    which is the softmax of the logits divided by T

(temperature scaling; Guo et al. 2017, arXiv 1706.04599). T above 1 widens all distributions, T
below 1 narrows them, and T = 1 leaves them as trained. Depth d is read from p, whatever T is, so it
stays the same bit for bit. Within a bin from a_k to b_k the probability q_k is spread evenly. Then

    sigma      = sqrt(sum_k q_k (((a_k + b_k) / 2 - d)^2 + (b_k - a_k)^2 / 12))
    confidence = sum_k q_k max(0, min(b_k, d + BAND d) - max(a_k, d - BAND d)) / (b_k - a_k)

Sigma is the root of the expected squared error of d, and confidence the probability that the true
depth is within BAND of d. bin/calibrate.py fits T on validation frames. One number can't mend a
wrong order of pixels, nor distributions that are too wide near and too narrow far away: a head that
learns a Gaussian target of half a metre shows about that width, also where its error is smaller.

This sigma is what predictions and exported files have. It isn't that of tiekd/models/spread.py,
which a teacher states and which the report of a run calls the excess width. That one is a
half-width between quantiles, without a temperature and without the width of the training target.

With a canonical camera sigma scales as depth does, with f / F; the band scales with depth, so that
confidence needs no conversion. Flip averaging has no part in it: `load_student`, bin/predict.py and
exported files don't flip, and a temperature is fitted to what they return, whatever
`evaluation.flip` says. Temporary memory: that of `readout.in_strips`, with about six tensors.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd import console
from tiekd.errors import CheckpointError
from tiekd.files import instead_of_file
from tiekd.models.network import Network
from tiekd.models.readout import in_strips, on_image_grid

KEY = "confidence"  # the record's key in a weights file
# Confidence is the probability of a true depth within this share of the returned one.
BAND = 0.1


class Calibration(NamedTuple):
    """The record of a temperature in a weights file, which is a dict of these values.

    Attributes:
        temperature: T, above 0.
        against: what it was fitted to, such as "ground truth".
    """

    temperature: float
    against: str


class Certainty(NamedTuple):
    """How far the depth of each pixel can be trusted.

    Attributes:
        confidence: (B, 1, H, W) float32, 0 to 1, the probability that the true depth is within BAND
            of the returned depth.
        sigma: (B, 1, H, W) float32, metres, above 0, the root of the expected squared error.
    """

    confidence: Tensor
    sigma: Tensor


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Returns the tempered distributions q of the module's docstring.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.
        temperature: T, above 0.

    Returns:
        (B, K, h, w), summing to 1 over K; the argument itself if T is 1.
    """
    if temperature == 1:
        return probabilities
    # Divide by the largest first: a small T would let all bins of a wide distribution underflow.
    powers = (probabilities / probabilities.amax(1, keepdim=True)) ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def certainty(probabilities: Tensor, depth: Tensor, edges: Tensor, temperature: float) -> Tensor:
    """Computes confidence and sigma of each pixel, by plain operations that can be exported.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K, not tempered.
        depth: (B, 1, h, w), the returned depth, in the unit of `edges`.
        edges: (K + 1,), edges of the bins, increasing.
        temperature: T, above 0.

    Returns:
        (B, 2, h, w): confidence, 0 to 1; and sigma, in the unit of `edges`.
    """
    q = tempered(probabilities, temperature)
    low, high = (each.view(1, -1, 1, 1) for each in (edges[:-1], edges[1:]))
    width, band = high - low, BAND * depth
    inside = torch.minimum(high, depth + band) - torch.maximum(low, depth - band)
    confidence = (q * (inside.clamp_min(0) / width)).sum(1, keepdim=True)
    squares = ((low + high) / 2 - depth).square() + width.square() / 12
    sigma = (q * squares).sum(1, keepdim=True).sqrt()
    # Rounding could bring the sum of all bins above 1.
    return torch.cat((confidence.clamp_max(1), sigma), dim=1)


@torch.no_grad()
def of_features(
    network: Network,
    features: Tensor,
    depth: Tensor,
    image_size: tuple[int, int],
    temperature: float,
    focal: Tensor | None = None,
) -> Certainty:
    """Returns confidence and sigma of a network's depth, on the image's grid.

    Both are computed at the head's resolution, and reach the image as depth does: bilinearly, or by
    learned upsampling. They are always blended, also for the readouts that don't blend depth.

    Args:
        network: the network, in eval mode, whose head predicts a distribution over fixed bins.
        features: (B, C, h, w), the head's input.
        depth: (B, 1, h, w), metres, the depth that is returned, at the head's resolution.
        image_size: (H, W) of the network's input.
        temperature: T, above 0.
        focal: (B,), focal lengths in pixels of the input; None without a canonical camera.
    """
    head, camera = network.head, network.canonical
    own = depth if camera is None else camera.from_metres(depth, focal)
    read = partial(certainty, edges=head.edges, temperature=temperature)
    confidence, sigma = in_strips(read, features, head.probabilities, own).split(1, dim=1)
    if camera is not None:
        sigma = camera.to_metres(sigma, focal)
    return Certainty(
        *(
            on_image_grid(network.upsampled(values, features, image_size), image_size, smooth=True)
            for values in (confidence, sigma)
        )
    )


def of_content(content: Mapping, source: object) -> Calibration | None:
    """Returns the record in the content of a weights file; None if the weights have none.

    Args:
        content: The content.
        source: The file, for the error message.

    Raises:
        CheckpointError: The record isn't one, or its temperature isn't a number above 0.
    """
    if content.get(KEY) is None:
        return None
    node = content[KEY] if isinstance(content[KEY], Mapping) else {}
    temperature, against = node.get("temperature"), node.get("against")
    is_number = isinstance(temperature, float) and 0 < temperature < math.inf
    if not is_number or not isinstance(against, str):
        raise CheckpointError(
            f"{source}: its entry {KEY!r} is {content[KEY]!r:.80}; it must have a temperature "
            "above 0, and what it was fitted against; write it again with "
            f"{console.command('calibrate')}"
        )
    return Calibration(temperature, against)


def read(weights: Path) -> Calibration | None:
    """Returns the record in a weights file; None if the file has none or torch can't load it.

    The file is memory-mapped, so that the weights themselves aren't read.

    Args:
        weights: The file.

    Raises:
        CheckpointError: The record is invalid.
    """
    if instead_of_file(weights):
        return None
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001 - loading the weights reports the error
        return None
    return of_content(content, weights) if isinstance(content, Mapping) else None


def line(calibration: Calibration | None) -> str:
    """Returns a line on the temperature of a student's confidence, for what a program prints.

    Args:
        calibration: The record of the weights; None if they have none.
    """
    if calibration is None:
        return (
            "Confidence: not calibrated, temperature 1; fit it with "
            f"{console.command('calibrate')} WORK_DIR"
        )
    return (
        f"Confidence: temperature {calibration.temperature:.4g}, calibrated against "
        f"{console.printable(calibration.against)}"
    )
