"""Bias and error by range of the measured depth: near, middle and far.

A network may be right on the mean and wrong where it matters. Most predict too near far away; that
shows here and in none of the nine metrics. The ranges end at a quarter, a half and the whole of
the cap: 0-20, 20-40 and 40-80 m on KITTI. Unlike the nine metrics these are means over all pixels
of a range, since many images have few far pixels. Sums are float64 and stay on the device, without
a host sync; they cost some twelve passes over the crop's pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.evaluation import metrics

_SHARES = (0.0, 0.25, 0.5, 1.0)  # of the cap
NUM_RANGES = len(_SHARES) - 1
PIXELS = 0  # index of the number of pixels among the sums


class RangeFigures(NamedTuple):
    """The errors of the pixels whose measured depth is in [from_m, to_m). NaN without a pixel.

    Attributes:
        from_m: lower end of the range, metres.
        to_m: upper end of the range, metres.
        pixels: number of pixels.
        bias_m: mean of prediction - ground truth, metres; below 0: predicted too near.
        abs_rel: mean of |prediction - ground truth| / ground truth.
        rmse_m: root of the mean squared difference, metres.
    """

    from_m: float
    to_m: float
    pixels: int
    bias_m: float
    abs_rel: float
    rmse_m: float


def bounds_m(cap: float) -> list[tuple[float, float]]:
    """Returns the ranges (from, to) in metres."""
    edges = [share * cap for share in _SHARES]
    return list(zip(edges[:-1], edges[1:], strict=True))


@torch.no_grad()
def range_sums(
    prediction: Tensor, ground_truth: Tensor, min_depth: float, cap: float, crop: str
) -> Tensor:
    """Returns the sums of each image and range: pixels, d, |d| / t and d^2, for d = prediction - t.

    A prediction that is not finite is an infinite error.

    Args:
        prediction: (B, 1, H, W), metres.
        ground_truth: (B, 1, H, W), metres; the pixels that count for `metrics.depth_metrics` count.
        min_depth: metres; ground truth counts above it.
        cap: metres; ground truth counts below it.
        crop: name of the evaluation crop.

    Returns:
        (B, NUM_RANGES, 4) float64 on the same device.
    """
    rows, columns = metrics.crop_box(crop, *prediction.shape[-2:])
    predicted, truth = (
        maps[:, 0, rows, columns].flatten(1).double() for maps in (prediction, ground_truth)
    )
    # Pixels that don't count get a truth of 1, so that no division fails.
    counts = (truth > min_depth) & (truth < cap)
    truth = torch.where(counts, truth, 1.0)
    difference = torch.where(predicted.isfinite(), predicted, torch.inf) - truth
    # Each range sums its own pixels.
    terms = (torch.ones_like(truth), difference, difference.abs() / truth, difference.square())
    sums = []
    for low, high in bounds_m(cap):
        here = counts & (truth >= low) & (truth < high)
        sums.append(torch.stack([torch.where(here, term, 0.0).sum(1) for term in terms], dim=1))
    return torch.stack(sums, dim=1)


def range_figures(sums: Tensor, cap: float) -> list[RangeFigures]:
    """Returns the figures of each range.

    Args:
        sums: (N, NUM_RANGES, 4) of all images, as `range_sums` returns them.
        cap: metres.
    """
    figures = []
    for (low, high), (count, bias, relative, square) in zip(
        bounds_m(cap), sums.double().sum(0), strict=True
    ):
        means = (bias / count, relative / count, (square / count).sqrt())
        figures.append(RangeFigures(low, high, int(count), *(mean.item() for mean in means)))
    return figures
