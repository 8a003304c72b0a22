"""Evaluates a network in plain NumPy, one image at a time, as published programs do.

The metrics are those of Eigen et al. 2014, arXiv 1406.2283. The depth of an image is the mean of
the network's predictions for it and for its mirror image (flip averaging). The benchmark `eval`
compares tiekd's metrics and times with those of this module.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.data.datasets.kitti import UNITS_PER_M
from tiekd.data.frames import Frames
from tiekd.evaluation.metrics import METRIC_NAMES, crop_box


def plain_metrics(
    prediction: np.ndarray, truth: np.ndarray, min_depth: float, max_depth: float, crop: str
) -> list:
    """Returns the nine metrics of one image in the order of METRIC_NAMES.

    All are NaN if no pixel is evaluated. A pixel is evaluated if it is inside the crop and its
    ground truth is between `min_depth` and `max_depth`.

    Args:
        prediction: (H, W) float64, metres.
        truth: (H, W) float64, ground truth, metres, 0 where not valid.
        min_depth: lower end of the evaluated depth range, metres, exclusive.
        max_depth: upper end of the evaluated depth range, metres, exclusive.
        crop: name of the evaluation crop, such as "garg".
    """
    evaluated = np.zeros(truth.shape, dtype=bool)
    evaluated[crop_box(crop, *truth.shape)] = True
    valid = np.logical_and(np.logical_and(truth > min_depth, truth < max_depth), evaluated)
    truth = truth[valid]
    prediction = prediction[valid]
    if len(truth) == 0:
        return [np.nan] * len(METRIC_NAMES)
    ratio = np.maximum(truth / prediction, prediction / truth)
    a1, a2, a3 = ((ratio < 1.25**power).mean() for power in (1, 2, 3))
    abs_rel = np.mean(np.abs(truth - prediction) / truth)
    sq_rel = np.mean((truth - prediction) ** 2 / truth)
    rmse = np.sqrt(((truth - prediction) ** 2).mean())
    rmse_log = np.sqrt(((np.log(truth) - np.log(prediction)) ** 2).mean())
    error = np.log(prediction) - np.log(truth)
    silog = np.sqrt(np.mean(error**2) - np.mean(error) ** 2) * 100
    log_10 = np.abs(np.log10(truth) - np.log10(prediction)).mean()
    return [a1, a2, a3, abs_rel, rmse, log_10, rmse_log, silog, sq_rel]


def plain_mean(rows: list[list]) -> dict[str, float]:
    """Returns each metric's mean over images, as metric's name -> mean.

    Images without ground truth, whose metrics are NaN, are excluded.

    Args:
        rows: for each image its metrics, as `plain_metrics` returns them.
    """
    return dict(
        zip(
            METRIC_NAMES, np.nanmean(np.array(rows, dtype=np.float64), axis=0).tolist(), strict=True
        )
    )


@torch.no_grad()
def plain_evaluation(
    network: Callable[[Tensor], Tensor],
    frames: Frames,
    kb_crop: tuple[int, int],
    min_depth: float,
    max_depth: float,
    crop: str,
    device: torch.device,
) -> dict[str, float]:
    """Evaluates a network with flip averaging on images of KITTI.

    Args:
        network: function from a normalised image (1, 3, H, W) to depth (1, 1, H, W) in metres.
        frames: the KITTI dataset; each image has ground truth.
        kb_crop: (height, width) of the KITTI benchmark crop, pixels.
        min_depth: lower end of the evaluated depth range, metres.
        max_depth: upper end of the evaluated depth range, metres.
        crop: name of the evaluation crop, such as "garg".
        device: device of the network.

    Returns:
        Metric's name -> its mean over the images.
    """
    rows = []
    for index in range(len(frames)):
        image, truth = (decode(path).numpy() for path, decode in frames.files(index).values())
        image = image.transpose(1, 2, 0).astype(np.float32)
        truth = truth[0].astype(np.float64) / UNITS_PER_M
        # Crop image and ground truth to the KITTI benchmark crop, at the bottom and horizontally
        # centred.
        top = image.shape[0] - kb_crop[0]
        left = (image.shape[1] - kb_crop[1]) // 2
        image, truth = (
            pixels[top : top + kb_crop[0], left : left + kb_crop[1]] for pixels in (image, truth)
        )
        image = (image - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        # Predict the depth of the image and of its mirror image (flip averaging).
        depths = []
        for view in (image, image[:, ::-1]):
            planes = torch.from_numpy(
                np.ascontiguousarray(view.transpose(2, 0, 1), dtype=np.float32)
            )
            depths.append(network(planes[None].to(device))[0, 0].cpu().numpy())
        prediction = (depths[0] + depths[1][:, ::-1]) / 2
        rows.append(plain_metrics(prediction.astype(np.float64), truth, min_depth, max_depth, crop))
    return plain_mean(rows)
