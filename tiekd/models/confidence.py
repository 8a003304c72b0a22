"""Computes how far a DPM head's depth can be trusted: a sigma in metres, and a confidence.

The distribution p over depth bins is tempered first, with one temperature T for all pixels:

    q_k = p_k^(1/T) / sum_j p_j^(1/T),    which is the softmax of the logits divided by T

(temperature scaling; Guo et al. 2017, arXiv 1706.04599). T above 1 widens all distributions, T
below 1 narrows them, and T = 1 leaves them as trained. The predicted depth d is computed from p, so
T doesn't change it. Within a bin from a_k to b_k the probability q_k is spread evenly. Then

    sigma      = sqrt(sum_k q_k (((a_k + b_k) / 2 - d)^2 + (b_k - a_k)^2 / 12))
    confidence = sum_k q_k max(0, min(b_k, d + r d) - max(a_k, d - r d)) / (b_k - a_k)

Sigma is the root of the expected squared error of d. Confidence is the probability that the true
depth is between (1 - r) d and (1 + r) d, with r = RELATIVE_TOLERANCE. bin/calibrate.py fits T on
validation frames. A single T can't correct the order of the pixels' sigmas. Nor can it correct
distributions that are too wide at small depths and too narrow at large ones: a head that is trained
with a Gaussian target of half a metre predicts about that width even where its error is smaller.

This sigma is what predictions and exported files have. tiekd/models/spread.py computes another one,
which a teacher states and which the report of a run calls excess width: a half-width between
quantiles, without a temperature and without the width of the training target.

For a network with `canonical_focal` (tiekd/models/canonical.py), sigma is converted to metres like
depth; confidence needs no conversion, because its bounds are relative to d. Depth isn't averaged
with that of the mirrored image, because `load_student`, bin/predict.py and exported files don't do
so either; a temperature is fitted to their depth, whatever the setting `evaluation.flip` is.
Temporary memory: about six tensors of at most `readout.STRIP_BYTES` each, since a few image rows
are processed at a time.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd import console
from tiekd.errors import CheckpointError
from tiekd.files import instead_of_file
from tiekd.models.network import Network
from tiekd.models.readout import along, in_strips, resize_to_image

KEY = "confidence"  # the record's key in a weights file
# Confidence is the probability that the true depth differs from the predicted depth by at most this
# fraction of the predicted depth.
RELATIVE_TOLERANCE = 0.1


class Calibration(NamedTuple):
    """A fitted temperature, by which the logits of the distributions over depth bins are divided.

    A weights file stores it in its entry KEY, a dict whose keys are the attributes' names.

    Attributes:
        temperature: T, above 0.
        against: the kind of depth that served as truth in the fit, such as "ground truth".
    """

    temperature: float
    against: str


class Certainty(NamedTuple):
    """Two measures of how far the predicted depth of each pixel can be trusted.

    Attributes:
        confidence: (B, 1, H, W) float32, 0 to 1, the probability that the true depth differs from
            the predicted depth by at most RELATIVE_TOLERANCE times the predicted depth.
        sigma: (B, 1, H, W) float32, metres, above 0, the root of the predicted depth's expected
            squared error.
    """

    confidence: Tensor
    sigma: Tensor


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Returns distributions with a temperature applied, up to a factor in each pixel: p_k^(1/T).

    Args:
        probabilities: (B, K, h, w), up to a factor in each pixel.
        temperature: T, above 0.

    Returns:
        (B, K, h, w); `probabilities` itself if T is 1, and otherwise with a largest value of 1 in
        each pixel.
    """
    if temperature == 1:
        return probabilities
    # Divide by the largest probability of each pixel first. Otherwise, with a small T, all powers
    # of a wide distribution would underflow to 0.
    return (probabilities / probabilities.amax(1, keepdim=True)) ** (1 / temperature)


def certainty(q: Tensor, depth: Tensor, edges: Tensor, dim: int = 1) -> Tensor:
    """Computes confidence and sigma of each pixel, by plain torch operations that can be exported.

    Confidence is the probability that the true depth differs from `depth` by at most
    RELATIVE_TOLERANCE times `depth`. Sigma is the root of the expected squared error of `depth`.

    Args:
        q: (B, K, h, w), the tempered distributions, up to a factor in each pixel.
        depth: (B, 1, h, w), the predicted depth, in the unit of `edges`.
        edges: (K + 1,), edges of the bins, increasing.
        dim: The dimension of `q` and `depth` that has the bins: 1 or, for (B, h, w, K) and
            (B, h, w, 1), -1.

    Returns:
        (B, 2, h, w), or the two values along `dim`: confidence, 0 to 1; and sigma, in the unit of
        `edges`.
    """
    total = q.sum(dim, keepdim=True)
    low, high = (along(each, dim) for each in (edges[:-1], edges[1:]))
    width, tolerance = high - low, RELATIVE_TOLERANCE * depth
    inside = torch.minimum(high, depth + tolerance) - torch.maximum(low, depth - tolerance)
    confidence = (q * (inside.clamp_min(0) / width)).sum(dim, keepdim=True) / total
    squares = ((low + high) / 2 - depth).square() + width.square() / 12
    sigma = ((q * squares).sum(dim, keepdim=True) / total).sqrt()
    # Clamp confidence, a sum of probabilities, which rounding could bring above 1.
    return torch.cat((confidence.clamp_max(1), sigma), dim=dim)


@torch.no_grad()
def of_features(
    network: Network,
    features: Tensor,
    depth: Tensor,
    image_size: tuple[int, int],
    temperature: float,
    focal: Tensor | None = None,
) -> Certainty:
    """Returns confidence and sigma of a network's depth, for each pixel of the image.

    Both are computed at the head's resolution, and upsampled to the image like depth: bilinearly,
    or with the head's learned weights. They are interpolated even if the depth isn't, as with the
    readouts `mode` and `local`.

    Args:
        network: the network, in eval mode, whose head predicts a distribution over fixed bins.
        features: (B, C, h, w), the head's input.
        depth: (B, 1, h, w), metres, the predicted depth, at the head's resolution.
        image_size: (H, W) of the network's input.
        temperature: T, above 0.
        focal: (B,), focal length of each image in pixels of the network's input; None for a network
            without `canonical_focal`.

    Returns:
        (B, 1, H, W) float32 each, sigma in metres.
    """
    head, camera = network.head, network.canonical
    own = depth if camera is None else camera.from_metres(depth, focal)

    def read(probabilities: Tensor, depth: Tensor) -> Tensor:
        return certainty(tempered(probabilities, temperature), depth, head.edges)

    confidence, sigma = in_strips(read, features, head.probabilities, own).split(1, dim=1)
    if camera is not None:
        sigma = camera.to_metres(sigma, focal)
    return Certainty(
        *(
            resize_to_image(
                network.upsampled(values, features, image_size), image_size, smooth=True
            )
            for values in (confidence, sigma)
        )
    )


def of_content(content: Mapping, source: object) -> Calibration | None:
    """Returns the fitted temperature in the content of a weights file; None if there is none.

    Args:
        content: The content of the weights file, a dict.
        source: The file, for the error message.

    Raises:
        CheckpointError: The entry KEY isn't a dict of a `temperature`, a number above 0, and a text
            `against`.
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
    """Returns the fitted temperature in a weights file; None if there is none.

    None is also returned if torch can't load the file; loading the weights themselves reports that.

    The file is memory-mapped, so that the weights themselves aren't read.

    Args:
        weights: The weights file.

    Raises:
        CheckpointError: The file's entry KEY is invalid, as for `of_content`.
    """
    if instead_of_file(weights):
        return None
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001 - loading the weights reports the error
        return None
    return of_content(content, weights) if isinstance(content, Mapping) else None


def describe(calibration: Calibration | None) -> str:
    """Returns a line of text that states a student's temperature, or how to fit one.

    Args:
        calibration: The temperature in the student's weights file; None if it has none.
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
