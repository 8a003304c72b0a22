"""The nine depth metrics of the field (Eigen et al. 2014, arXiv 1406.2283), per image, and their table.

Everything runs on the tensors' own device without a host sync; sums are float64, so that a figure doesn't depend on the
device. Costs some ten passes over the image. Predictions are taken as they are: clamp them to the range first if the
protocol says so. Left out: median scaling (metric depth needs none), and metrics against the teacher's map.
"""

import math
from difflib import get_close_matches

import torch
from torch import Tensor

from tiekd.errors import RecipeError

METRIC_NAMES = ("a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel")
LESS_IS_BETTER = frozenset(METRIC_NAMES) - {"a1", "a2", "a3"}

# Top, bottom, left and right as fractions of height and width; on KITTI's 352x1216 rows 143:349 (Garg et al. 2016) or
# 117:321 (Eigen), columns 43:1172.
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
CROPS = ("none", *_FRACTIONS, "nyu_eigen")


def crop_box(crop: str, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that an evaluation crop keeps. `nyu_eigen` is in pixels of 480x640, whatever the size."""
    if crop == "none":
        return slice(0, height), slice(0, width)
    if crop == "nyu_eigen":
        return slice(45, min(471, height)), slice(41, min(601, width))
    if crop not in _FRACTIONS:
        raise RecipeError(f"evaluation crop: got {crop!r}; it must be one of: {', '.join(CROPS)}")
    top, bottom, left, right = _FRACTIONS[crop]
    return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))


def depth_metrics(prediction: Tensor, ground_truth: Tensor, min_depth: float, max_depth: float, crop: str) -> Tensor:
    """The metrics of each image: (B, 9) float64 in the order of METRIC_NAMES, on the images' device.

    prediction, ground_truth: (H, W) or (B, 1, H, W) float, metres, same shape; only pixels with
    min_depth < ground_truth < max_depth inside the crop ("garg", "eigen", "nyu_eigen" or "none") count.
    An image without any such pixel is a row of NaN. A prediction that is not finite and above 0 at such a pixel makes
    the errors infinite rather than NaN: a broken network must not vanish from the mean.
    a1..a3 are shares of 1, rmse and sq_rel in metres, silog in percent, the rest without unit.
    """
    if prediction.shape != ground_truth.shape or prediction.ndim not in (2, 4):
        shapes = f"{tuple(prediction.shape)} and {tuple(ground_truth.shape)}"
        raise ValueError(f"depth_metrics: got {shapes}; both must be (H, W) or both (B, 1, H, W)")
    rows, columns = crop_box(crop, *prediction.shape[-2:])
    num_images = 1 if prediction.ndim == 2 else prediction.shape[0]
    predicted = prediction[..., rows, columns].reshape(num_images, -1).double()
    truth = ground_truth[..., rows, columns].reshape(num_images, -1).double()
    valid = (truth > min_depth) & (truth < max_depth)
    count = valid.sum(1)
    usable = (predicted > 0) & predicted.isfinite()
    broken = (valid & ~usable).any(1)
    # A ratio of 1 where a pixel doesn't count, so that no log or division there can give NaN.
    truth = torch.where(valid, truth, 1.0)
    predicted = torch.where(valid, predicted, 1.0)

    def mean(values):
        return torch.where(valid, values, 0.0).sum(1) / count

    ratio = torch.maximum(predicted / truth, truth / predicted)
    ratio = torch.where(usable, ratio, torch.inf)
    difference = predicted - truth
    log_ratio = predicted.log() - truth.log()
    log_variance = mean(log_ratio**2) - mean(log_ratio) ** 2
    errors = torch.stack(
        [
            mean(difference.abs() / truth),
            mean(difference**2).sqrt(),
            mean(log_ratio.abs()) / math.log(10),
            mean(log_ratio**2).sqrt(),
            # Rounding can make the variance of a constant log ratio slightly negative.
            log_variance.clamp(min=0).sqrt() * 100,
            mean(difference**2 / truth),
        ],
        dim=1,
    )
    errors = torch.where(broken[:, None], torch.inf, errors)
    shares = torch.stack([mean((ratio < 1.25**power).double()) for power in (1, 2, 3)], dim=1)
    return torch.cat([shares, errors], dim=1)


def aggregate(rows: Tensor) -> dict[str, float]:
    """Means over images: (N, 9) -> {metric: value}. Rows of NaN don't count; with no other row all values are NaN."""
    means = rows.double().nanmean(dim=0).tolist() if len(rows) else [math.nan] * len(METRIC_NAMES)
    return dict(zip(METRIC_NAMES, means, strict=True))


def is_better(name: str, new: float, old: float | None) -> bool:
    """True where `new` beats `old` in this metric. NaN never does; anything else beats None and NaN."""
    if name not in METRIC_NAMES:
        near = get_close_matches(name, METRIC_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"no metric {name!r}; {hint}allowed: {', '.join(METRIC_NAMES)}")
    if math.isnan(new):
        return False
    if old is None or math.isnan(old):
        return True
    return new < old if name in LESS_IS_BETTER else new > old


def metrics_table(metrics: dict[str, float]) -> str:
    """The summary of an evaluation as a boxed table of one row, values rounded to four places."""
    values = [str(round(float(value), 4)) for value in metrics.values()]
    widths = [max(len(name), len(value)) for name, value in zip(metrics, values, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def row(cells):
        return "| " + " | ".join(cell.center(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([rule, row(metrics), rule, row(values), rule])
