"""Computes the nine standard depth metrics (Eigen et al. 2014) per image, and formats tables.

Source: arXiv 1406.2283. Sums are float64, so that the metrics don't depend on the device; the
results stay on the inputs' device. On a CPU the pixels with valid ground truth are selected first,
because measured depth is sparse: a 352x1216 image of which 18 % is measured takes about 0.8 ms. On
a GPU selecting them would force a host sync, so all pixels of the evaluated part of the image are
summed with a mask, in some twenty passes. Predictions are not clamped: clamp them to the depth
range first if the evaluation protocol says so.

Not covered: median scaling (metric depth needs none), metrics against the teacher's map, and
gradients.
"""

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tiekd.errors import RecipeError

METRIC_NAMES = ("a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel")
LESS_IS_BETTER = frozenset(METRIC_NAMES) - {"a1", "a2", "a3"}

# The parts of an image that are evaluated: top, bottom, left and right edge, as fractions of height
# and width. On KITTI's 352x1216 these are rows 143:349 (Garg et al. 2016) or 117:321 (Eigen et al.
# 2014) and columns 43:1172.
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
CROPS = ("none", *_FRACTIONS, "nyu_eigen")
# A pixel counts in a1, a2 or a3 if |log(p / t)|, of prediction p and truth t, is below log(1.25)
# times 1, 2 or 3. A ratio of exactly 1.25 mustn't count, but its logarithm may be rounded down, so
# 1e-10 is subtracted. That excludes no smaller ratio of two float32 numbers, since its logarithm
# differs from the bound by more than 1e-10.
_LARGEST_LOGS = tuple(power * math.log(1.25) - 1e-10 for power in (1, 2, 3))


def crop_box(crop: str, height: int, width: int) -> tuple[slice, slice]:
    """Returns the rows and columns of an image that are evaluated, as two slices.

    Args:
        crop: one of CROPS: "none" for the whole image, or the name of a published crop. "nyu_eigen"
            is a fixed rectangle in the pixels of a 480x640 image and isn't scaled for other sizes.
        height: number of the image's rows.
        width: number of the image's columns.

    Returns:
        (rows, columns).

    Raises:
        RecipeError: the crop is unknown.
    """
    if crop == "none":
        return slice(0, height), slice(0, width)
    if crop == "nyu_eigen":
        return slice(45, min(471, height)), slice(41, min(601, width))
    if crop not in _FRACTIONS:
        raise RecipeError(f"evaluation crop: got {crop!r}; it must be one of: {', '.join(CROPS)}")
    top, bottom, left, right = _FRACTIONS[crop]
    rows = slice(int(top * height), int(bottom * height))
    return rows, slice(int(left * width), int(right * width))


@torch.no_grad()
def depth_metrics(
    prediction: Tensor, ground_truth: Tensor, min_depth: float, max_depth: float, crop: str
) -> Tensor:
    """Returns the nine depth metrics of each image, in the order of METRIC_NAMES.

    Only pixels inside the crop with min_depth < ground_truth < max_depth are valid. If the
    prediction at a valid pixel is not finite or not above 0, the image's errors are infinite rather
    than NaN, because `aggregate` leaves NaN out of the mean over images, which would hide a broken
    network.

    Args:
        prediction: (H, W) or (B, 1, H, W) float, metres.
        ground_truth: the same shape, metres.
        min_depth: exclusive lower bound of valid ground truth, metres.
        max_depth: exclusive upper bound of valid ground truth, metres.
        crop: "garg", "eigen", "nyu_eigen" or "none", see `crop_box`.

    Returns:
        (B, 9) float64 in the order of METRIC_NAMES, on the device of the inputs; B = 1 for (H, W).
        a1, a2 and a3 are fractions from 0 to 1, rmse and sq_rel are in metres, silog is in percent,
        the others have no unit. The row of an image without valid pixels is NaN.

    Raises:
        ValueError: the shapes differ, or are neither (H, W) nor (B, 1, H, W).
        RecipeError: the crop is unknown.
    """
    if prediction.shape != ground_truth.shape or prediction.ndim not in (2, 4):
        shapes = f"{tuple(prediction.shape)} and {tuple(ground_truth.shape)}"
        raise ValueError(f"depth_metrics: got {shapes}; both must be (H, W) or both (B, 1, H, W)")
    rows, columns = crop_box(crop, *prediction.shape[-2:])
    predicted, truth = (
        maps.reshape(-1, *maps.shape[-2:])[:, rows] for maps in (prediction, ground_truth)
    )
    # On a CPU, select the valid pixels. On a GPU this would force a host sync, so compute with all
    # pixels and mask invalid ones.
    if prediction.device.type == "cpu":
        return _from_sums(*_sums_on_cpu(predicted, truth, min_depth, max_depth, columns))
    predicted, truth = (maps[..., columns].flatten(1).double() for maps in (predicted, truth))
    return _from_sums(*_sums_without_sync(predicted, truth, min_depth, max_depth))


def _sums_on_cpu(
    predicted: Tensor, truth: Tensor, min_depth: float, max_depth: float, columns: slice
) -> tuple[Tensor, Tensor]:
    """Returns the sums over valid pixels from which the metrics follow, for maps on a CPU.

    The function uses numpy, one image at a time, whose data fit in a core's cache. torch would run
    each operation on several threads, and wait for them while data workers occupy the cores.

    Args:
        predicted: (B, h, W), metres, already restricted to the rows of the crop.
        truth: (B, h, W), metres, already restricted to the rows of the crop.
        min_depth: exclusive lower bound of valid ground truth, metres.
        max_depth: exclusive upper bound of valid ground truth, metres.
        columns: columns of the crop.

    Returns:
        (sums, counts): (B, 9) as `_sums` returns them, and the numbers of valid pixels, (B,).
    """
    predicted, truth = (
        m if m.dtype in (torch.float32, torch.float64) else m.float() for m in (predicted, truth)
    )
    predicted, truth = predicted.numpy(), truth.numpy()
    # numpy would round min_depth and max_depth to the nearest number of the array's dtype. Round
    # the lower one down and the upper one up, so that each depth compares as with the exact bound.
    low = _rounded(min_depth, truth.dtype, -np.inf)
    high = _rounded(max_depth, truth.dtype, np.inf)
    dot = partial(np.einsum, "i,i->")
    sums, counts = [], []
    for predicted_map, truth_map in zip(predicted, truth, strict=True):
        valid = truth_map > low
        valid &= truth_map < high
        valid[:, : columns.start] = valid[:, columns.stop :] = False
        # Select the valid pixels by their indices, which is several times faster than by a mask.
        kept = np.flatnonzero(valid)
        pixels = (
            maps.reshape(-1).take(kept).astype(np.float64) for maps in (predicted_map, truth_map)
        )
        with np.errstate(divide="ignore"):  # the logarithm of a prediction of 0 is -inf
            sums.append(_sums(*pixels, np.log, np.count_nonzero, dot))
        counts.append(len(kept))
    return torch.tensor(np.array(sums)), torch.tensor(counts)


def _sums_without_sync(
    predicted: Tensor, truth: Tensor, min_depth: float, max_depth: float
) -> tuple[Tensor, Tensor]:
    """Returns the sums over valid pixels from which the metrics follow, without a host sync.

    Truth and prediction of an invalid pixel are both set to 1, so that it adds 0 to every error.

    Args:
        predicted: (B, N) float64, metres, the N pixels of the crop.
        truth: (B, N) float64, metres.
        min_depth: exclusive lower bound of valid ground truth, metres.
        max_depth: exclusive upper bound of valid ground truth, metres.

    Returns:
        (sums, counts): (B, 9) as `_sums` returns them, and the numbers of valid pixels, (B,).
    """
    valid = (truth > min_depth) & (truth < max_depth)
    count = valid.sum(1)
    predicted, truth = (torch.where(valid, maps, 1.0) for maps in (predicted, truth))
    sums = torch.stack(
        _sums(predicted, truth, torch.log, partial(torch.sum, dim=1), torch.linalg.vecdot), dim=1
    )
    # Subtract the invalid pixels from the first three sums, the numbers of pixels for a1, a2 and
    # a3. They were counted there, because their truth and prediction are both 1.
    sums[:, :3] -= (valid.shape[1] - count)[:, None]
    return sums, count


def _sums(predicted, truth, log: Callable, count: Callable, dot: Callable) -> list:
    """Returns the sums over pixels from which the metrics follow.

    The function works on NumPy arrays and on tensors. It sums over the last dimension.

    Args:
        predicted: p, predicted depth, float64 array or tensor, metres.
        truth: t, true depth, of the same shape.
        log: elementwise logarithm, of NumPy or torch.
        count: function that counts the True values along the last dimension.
        dot: function that computes the dot product of two arrays along the last dimension.

    Returns:
        Nine sums: the numbers of pixels with |l| below each of _LARGEST_LOGS, then the sums of
        |d| / t, d^2, |l|, l^2, l and d^2 / t, for d = p - t and l = log(p / t). If a prediction
        isn't finite or isn't above 0, the sum of l^2 is not finite.
    """
    predicted = predicted.clip(0)
    ratio = predicted / truth
    difference = predicted - truth
    relative = ratio - 1
    log_ratio = log(ratio)
    size = abs(log_ratio)
    return [
        *(count(size < largest) for largest in _LARGEST_LOGS),
        abs(relative).sum(-1),
        dot(difference, difference),
        size.sum(-1),
        dot(log_ratio, log_ratio),
        log_ratio.sum(-1),
        dot(difference, relative),
    ]


def _rounded(bound: float, dtype: np.dtype, towards: float) -> np.floating:
    """Returns a number rounded to a NumPy dtype, downwards or upwards.

    Args:
        bound: the number.
        dtype: a floating-point dtype.
        towards: -inf to round downwards, inf to round upwards.
    """
    nearest = dtype.type(bound)
    passed = float(nearest) > bound if towards < 0 else float(nearest) < bound
    if passed:
        return np.nextafter(nearest, dtype.type(towards))
    return nearest


def _from_sums(sums: Tensor, count: Tensor) -> Tensor:
    """Returns the metrics of B images in the order of METRIC_NAMES, (B, 9).

    Args:
        sums: (B, 9), each image's sums as `_sums` returns them.
        count: (B,), each image's number of valid pixels.
    """
    means = sums / count[:, None]
    a1, a2, a3, abs_rel, square, log, log_square, log_mean, sq_rel = means.unbind(1)
    # Rounding can make the variance of a constant log ratio slightly negative.
    silog = (log_square - log_mean**2).clamp(min=0).sqrt() * 100
    errors = torch.stack(
        [abs_rel, square.sqrt(), log / math.log(10), log_square.sqrt(), silog, sq_rel], dim=1
    )
    # Column 6 is the sum of the squared log ratio. It isn't finite if any prediction isn't finite
    # or isn't above 0. The image's errors are then infinite.
    broken = ~sums[:, 6:7].isfinite()
    errors = torch.where(broken, torch.inf, errors)
    return torch.cat([torch.stack([a1, a2, a3], dim=1), errors], dim=1)


def aggregate(rows: Tensor) -> dict[str, float]:
    """Returns the mean of each metric over images, as a dict from the metric's name.

    Images without valid pixels, whose rows are NaN, are left out; if there are no others, all means
    are NaN.

    Args:
        rows: (N, 9), the metrics of N images as `depth_metrics` returns them.
    """
    means = rows.double().nanmean(dim=0).tolist() if len(rows) else [math.nan] * len(METRIC_NAMES)
    return dict(zip(METRIC_NAMES, means, strict=True))


def is_better(name: str, new: float, old: float | None) -> bool:
    """Returns True if a metric's value `new` is better than `old`.

    NaN is never better. Any other number is better than None and NaN.

    Args:
        name: the metric's name, one of METRIC_NAMES; some are better if larger.
        new: the new value.
        old: the value to compare with, e.g. the best so far; None if there is none.

    Raises:
        RecipeError: the metric is unknown.
    """
    if name not in METRIC_NAMES:
        near = get_close_matches(name, METRIC_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"no metric {name!r}; {hint}allowed: {', '.join(METRIC_NAMES)}")
    if math.isnan(new):
        return False
    if old is None or math.isnan(old):
        return True
    return new < old if name in LESS_IS_BETTER else new > old


def sets_table(by_set: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a text table of the metrics of several data sets, with a row for each data set.

    Args:
        by_set: data set's name -> metric's name -> value; all data sets have the same metrics.
    """
    names = list(next(iter(by_set.values())))
    rows = [["data set", *names]]
    for name, figures in by_set.items():
        rows.append([name, *(str(round(float(figures[key]), 4)) for key in names)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [
        "| "
        + " | ".join(cell.center(width) for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def metrics_table(metrics: dict[str, float]) -> str:
    """Returns a text table of metrics with lines around it: a row of names and a row of values.

    Values are rounded to four decimal places.

    Args:
        metrics: metric's name -> value, in the order of the columns.
    """
    values = [str(round(float(value), 4)) for value in metrics.values()]
    widths = [max(len(name), len(value)) for name, value in zip(metrics, values, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def row(cells):
        centred = [cell.center(width) for cell, width in zip(cells, widths, strict=True)]
        return "| " + " | ".join(centred) + " |"

    return "\n".join([rule, row(metrics), rule, row(values), rule])
