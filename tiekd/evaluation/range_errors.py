"""Computes bias and error in three ranges of the ground truth: near, middle and far.

A network can be accurate on average and biased in a range. Most networks predict far surfaces too
near, which none of the nine metrics of `metrics` shows. The ranges end at a quarter, a half and the
whole of the evaluation's maximum depth (the cap): 0-20, 20-40 and 40-80 m on KITTI. Unlike the nine
metrics, bias and error are means over all pixels of a range, not over images, since many images
have few far pixels. Sums are float64 and stay on the device, without a host sync; they cost some
twelve passes over the pixels of the evaluated part of the image.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.evaluation import metrics

# Ends of the depth ranges, as fractions of the evaluation's maximum depth.
_SHARES = (0.0, 0.25, 0.5, 1.0)
NUM_RANGES = len(_SHARES) - 1
PIXELS = 0  # index in the last dimension of `range_sums`' result at which the number of pixels is


class RangeFigures(NamedTuple):
    """The errors over all pixels whose ground truth is in [from_m, to_m).

    All errors are NaN if there are no such pixels.

    Attributes:
        from_m: lower end of the range, metres.
        to_m: upper end of the range, metres.
        pixels: number of pixels.
        bias_m: mean of prediction - ground truth, metres; negative if depths are predicted too
            near.
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
    """Returns (lower end, upper end) of each depth range in metres, as a list, nearest first.

    Args:
        cap: the evaluation's maximum depth, metres, at which the last range ends.
    """
    edges = [share * cap for share in _SHARES]
    return list(zip(edges[:-1], edges[1:], strict=True))


@torch.no_grad()
def range_sums(
    prediction: Tensor, ground_truth: Tensor, min_depth: float, cap: float, crop: str
) -> Tensor:
    """Sums the errors over the valid pixels of each image and depth range.

    A pixel is valid if it is inside the crop and min_depth < ground_truth < cap. A prediction that
    is not finite has an infinite error.

    Args:
        prediction: (B, 1, H, W), metres.
        ground_truth: (B, 1, H, W), metres.
        min_depth: exclusive lower bound of valid ground truth, metres.
        cap: exclusive upper bound of valid ground truth, metres.
        crop: name of the evaluated part of an image, as for `metrics.crop_box`.

    Returns:
        (B, NUM_RANGES, 4) float64 on the same device: the number of pixels, and the sums of d,
        |d| / t and d^2, for d = prediction - t and the ground truth t.
    """
    rows, columns = metrics.crop_box(crop, *prediction.shape[-2:])
    predicted, truth = (
        maps[:, 0, rows, columns].flatten(1).double() for maps in (prediction, ground_truth)
    )
    # Set the ground truth of invalid pixels to 1, so that dividing by it gives no NaN.
    counts = (truth > min_depth) & (truth < cap)
    truth = torch.where(counts, truth, 1.0)
    difference = torch.where(predicted.isfinite(), predicted, torch.inf) - truth
    # Sum each term over the pixels of each range.
    terms = (torch.ones_like(truth), difference, difference.abs() / truth, difference.square())
    sums = []
    for low, high in bounds_m(cap):
        here = counts & (truth >= low) & (truth < high)
        sums.append(torch.stack([torch.where(here, term, 0.0).sum(1) for term in terms], dim=1))
    return torch.stack(sums, dim=1)


def range_figures(sums: Tensor, cap: float) -> list[RangeFigures]:
    """Computes bias and errors of each depth range over the pixels of all images together.

    Args:
        sums: (N, NUM_RANGES, 4), the sums of N images, as `range_sums` returns them.
        cap: the evaluation's maximum depth, metres, at which the last range ends.

    Returns:
        One entry for each depth range, nearest first.
    """
    figures = []
    for (low, high), (count, bias, relative, square) in zip(
        bounds_m(cap), sums.double().sum(0), strict=True
    ):
        means = (bias / count, relative / count, (square / count).sqrt())
        figures.append(RangeFigures(low, high, int(count), *(mean.item() for mean in means)))
    return figures
