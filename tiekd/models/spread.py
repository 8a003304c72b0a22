"""Computes the width of each pixel's distribution over depth bins, as a sigma in metres.

The half-width between the quantiles at 16 and 84 % is the standard deviation if the distribution is
a Gaussian, and ignores rare far bins, which would dominate a variance. A DPM head is trained with a
Gaussian of a given sigma as its target, so its distribution has that width even where the depth is
certain. `Spread` subtracts the target's width: the variances of independent causes add up, so
sigma^2 = width^2 - target width^2. The rule is exact for Gaussians and approximate for
distributions of other shapes. `Spread` can also divide a distribution into its modes (separate
peaks), and give depth and sigma of each.

A teacher with `teacher.sigma: {from: own}` states this sigma, and the report of a run calls that of
the student excess width. Predictions and exported files of a student have another sigma
(tiekd/models/confidence.py): the root of the expected squared error, which contains the width of
the training target and a fitted temperature.

Costs: distributions are computed for a few image rows at a time (`readout.in_strips`), with about
120 MiB of temporary memory at any image size (260 MiB for modes), and without a host sync.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tiekd.kernels.reference import cell_target
from tiekd.kernels.target import bin_centres
from tiekd.models.heads.adabins import AdaBins
from tiekd.models.heads.dpm import Dpm
from tiekd.models.readout import in_strips, read_out, resize_to_image

# The levels of the two quantiles: a Gaussian's probabilities below mean - sigma and below mean +
# sigma.
LOW, HIGH = 0.158655254, 0.841344746
# Weights with which a distribution is smoothed before its modes are separated. Without smoothing,
# rounding errors would split a mode in two.
_SMOOTHING = (1, 2, 3, 2, 1)
# The smallest probability of a mode; less probable ones are taken for noise.
_LEAST = 0.01


def half_width(probabilities: Tensor, edges: Tensor) -> Tensor:
    """Returns half of the distance between each distribution's quantiles at 16 and 84 %.

    Within a bin the probability is spread evenly.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.
        edges: (K + 1,), edges of the bins, metres, increasing.

    Returns:
        (B, 1, h, w), metres.
    """
    below = probabilities.cumsum(1)
    low, high = (_quantile(probabilities, below, edges, level) for level in (LOW, HIGH))
    return (high - low) / 2


class Modes(NamedTuple):
    """The M most probable modes of each pixel's distribution over depth bins.

    Attributes:
        depth: (B, M, h, w), mean of each mode, metres; 0 where a pixel has fewer modes.
        sigma: (B, M, h, w), standard deviation within each mode, metres; 0 where a pixel has fewer
            modes.
        weight: (B, M, h, w), probability of each mode, the largest first; 0 where a pixel has fewer
            modes.
    """

    depth: Tensor
    sigma: Tensor
    weight: Tensor


def largest_modes(probabilities: Tensor, edges: Tensor, count: int) -> Modes:
    """Divides each pixel's distribution into modes, and returns the most probable ones.

    A mode is a range of bins between two local minima of the distribution, which is smoothed over
    five bins for finding them. Modes of less than 1 % are left out.

    Args:
        probabilities: (B, K, h, w), summing to 1 over K.
        edges: (K + 1,), edges of the bins, metres, increasing.
        count: M, maximum number of returned modes, at most K.

    Returns:
        The modes: three tensors (B, M, h, w).
    """
    # Number the modes of each pixel: a local minimum begins a new mode. A minimum is strictly below
    # the bin before it but may equal the bin after it, so that a row of equal bins has one minimum.
    smooth = _smoothed(probabilities)
    falls = smooth[:, 1:-1] < smooth[:, :-2]
    rises = smooth[:, 1:-1] <= smooth[:, 2:]
    number = pad((falls & rises).long(), (0, 0, 0, 0, 1, 1)).cumsum(1)
    # Sum the probability and the first two moments of each mode.
    centres = bin_centres(edges).view(1, -1, 1, 1)
    mass = torch.zeros_like(probabilities).scatter_add_(1, number, probabilities)
    some = mass.clamp_min(torch.finfo(mass.dtype).tiny)
    mean = torch.zeros_like(mass).scatter_add_(1, number, probabilities * centres) / some
    squares = probabilities * (centres - mean.gather(1, number)).square()
    variance = torch.zeros_like(mass).scatter_add_(1, number, squares) / some
    weight, largest = mass.topk(count, dim=1)
    found = Modes(mean.gather(1, largest), variance.gather(1, largest).sqrt(), weight)
    return Modes(*(torch.where(weight >= _LEAST, values, 0) for values in found))


def target_widths(
    edges: Tensor, sigma: float, target: str, width: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Returns the width of a DPM head's training target, for a target depth in each of the bins.

    The width differs from the target's sigma: the bins' own width adds to it, the first and last
    bin cut the distribution off, and the target of TIE-KD's published code isn't a Gaussian.

    Args:
        edges: (K + 1,), edges of the bins, metres, increasing.
        sigma: the sigma of the target, metres.
        target: the kind of target, "gaussian" or "released" (that of TIE-KD's published code).
        width: function of a distribution (B, K, h, w) and the edges that returns (B, 1, h, w), such
            as `half_width`.

    Returns:
        (K,), metres: element k is the width for a target depth at the centre of bin k.
    """
    depth = bin_centres(edges).view(1, 1, 1, -1)
    distribution, _ = cell_target(depth, sigma, None, edges, target)
    return width(distribution, edges).flatten()


def subtract_target_width(
    width: Tensor, depth: Tensor, target_width: Tensor, edges: Tensor
) -> Tensor:
    """Subtracts the training target's width from widths: sqrt(width^2 - target_width^2).

    Args:
        width: (B, M, h, w), metres.
        depth: (B, M, h, w), the depth to which each width belongs, metres.
        target_width: (K,), the width of the target for a depth in each of K bins, as
            `target_widths` returns it.
        edges: (K + 1,), edges of the bins, metres.

    Returns:
        (B, M, h, w), metres, 0 where the distribution is narrower than the target.
    """
    index = (torch.searchsorted(edges, depth.contiguous()) - 1).clamp_(0, len(target_width) - 1)
    return (width.square() - target_width[index].square()).clamp_min_(0).sqrt_()


class Spread:
    """A callable that computes each pixel's depth and sigma from a head's distributions over bins.

    Attributes:
        head: a DPM or AdaBins head. For a DPM head, the width of its training target is subtracted
            from the distribution's; AdaBins is trained without a target distribution.
        modes: the number of modes (peaks of a distribution) whose depth and sigma a call returns; 0
            for the mean and one sigma of the whole distribution.

    Args:
        head: the head of a network.
        modes: see the attribute.
    """

    def __init__(self, head: Dpm | AdaBins, modes: int = 0):
        self.head, self.modes = head, modes
        self._target_widths = None

    @staticmethod
    def supports(head: torch.nn.Module) -> bool:
        """Returns True if a head predicts distributions over bins, as `Dpm` and `AdaBins` do."""
        return isinstance(head, Dpm | AdaBins)

    @torch.no_grad()
    def __call__(self, features: Tensor, size: tuple[int, int]) -> Modes:
        """Returns depth, sigma and probability of each pixel's M modes, at the image's size.

        Args:
            features: (B, C, h, w), the head's input.
            size: (H, W) of the images.

        Returns:
            The modes, whose three tensors are (B, M, H, W) float32 for M = `self.modes`. If that is
            0, M is 1: the mean and sigma of the whole distribution, with weight 1. Depth and sigma
            are in metres; for a network with `canonical_focal` they are canonical
            (tiekd/models/canonical.py).
        """
        if isinstance(self.head, Dpm):
            packed = in_strips(self._packed_of_dpm, features, self.head.probabilities)
        else:
            packed = self._packed_of_adabins(features)
        # Don't interpolate modes, because those of neighbouring pixels may belong to different
        # surfaces.
        smooth = not self.modes
        upsampling = getattr(self.head, "upsampling", None)
        if upsampling is not None:
            # Upsample depth and sigma with the weights that the network uses for depth, so that
            # both have their edges at the same pixels.
            fine = [upsampling(each, features, smooth) for each in packed.split(1, dim=1)]
            packed = torch.cat(fine, dim=1)[:, :, : size[0], : size[1]]
        packed = resize_to_image(packed, size, smooth)
        return Modes(*packed.chunk(3, dim=1))

    def _packed_of_dpm(self, probabilities: Tensor) -> Tensor:
        edges = self.head.edges
        depth, width, weight = self._read(probabilities, edges).chunk(3, dim=1)
        if self._target_widths is None or self._target_widths.device != edges.device:
            read = self._width_of_target
            self._target_widths = target_widths(edges, self.head.sigma, self.head.target, read)
        sigma = subtract_target_width(width, depth, self._target_widths, edges)
        return torch.cat((depth, sigma, weight), dim=1)

    def _packed_of_adabins(self, features: Tensor) -> Tensor:
        # Process one image at a time, since each image has its own bins.
        edges, maps = self.head.bins(features)
        images = [
            in_strips(lambda p, e=own: self._read(p, e), image[None], self.head.bin_probabilities)
            for own, image in zip(edges, maps, strict=True)
        ]
        return torch.cat(images)

    def _read(self, probabilities: Tensor, edges: Tensor) -> Tensor:
        if self.modes:
            return torch.cat(largest_modes(probabilities, edges, self.modes), dim=1)
        depth = read_out(probabilities, bin_centres(edges), "mean")
        return torch.cat((depth, half_width(probabilities, edges), torch.ones_like(depth)), dim=1)

    def _width_of_target(self, probabilities: Tensor, edges: Tensor) -> Tensor:
        if self.modes:
            return largest_modes(probabilities, edges, 1).sigma
        return half_width(probabilities, edges)


def _quantile(probabilities: Tensor, below: Tensor, edges: Tensor, level: float) -> Tensor:
    """Returns the depth below which a fraction `level` of each pixel's probability is.

    Args:
        probabilities: (B, K, h, w), distributions over K bins.
        below: (B, K, h, w), the cumulative probability up to each bin's upper edge.
        edges: (K + 1,), edges of the bins, metres.
        level: 0 to 1.

    Returns:
        (B, 1, h, w), metres.
    """
    index = (below < level).sum(1, keepdim=True).clamp_max_(probabilities.shape[1] - 1)
    mass = probabilities.gather(1, index)
    missing = level - (below.gather(1, index) - mass)
    share = (missing / mass.clamp_min(torch.finfo(mass.dtype).tiny)).clamp_(0, 1)
    return torch.lerp(edges[index], edges[index + 1], share)


def _smoothed(probabilities: Tensor) -> Tensor:
    """Returns distributions smoothed over the bins, up to a constant factor.

    Args:
        probabilities: (B, K, h, w), distributions over K bins.

    Returns:
        (B, K, h, w).
    """
    num_bins = probabilities.shape[1]
    wide = pad(probabilities, (0, 0, 0, 0, len(_SMOOTHING) // 2, len(_SMOOTHING) // 2))
    return sum(weight * wide[:, i : i + num_bins] for i, weight in enumerate(_SMOOTHING))
