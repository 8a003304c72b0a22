"""Draws the predictions of several networks beside the ground truth, for a few frames."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiekd.data.image_io import write_image
from tiekd.data.sample import in_grey_levels
from tiekd.visualization import pictures
from tiekd.visualization.frame_pictures import dilation_radius


@torch.no_grad()
def write_panel(
    path: Path,
    frames: Dataset,
    predictors: Mapping[str, Callable[[Tensor, torch.device, Tensor], Tensor]],
    max_depth: float,
    device: torch.device,
    num_rows: int = 5,
) -> None:
    """Writes an image file that compares the predictions of several networks, one row per frame.

    The columns are image, ground truth, the depth of each network, and the error of the last one.

    Args:
        path: The image file to write.
        frames: The dataset, of which evenly spaced frames are shown.
        predictors: A dict from title to a function of three arguments: (B, 3, H, W) uint8 images at
            their own size, the device, and the images' intrinsics (B, 3, 3). It returns
            (B, 1, H, W) depth in metres.
        max_depth: End of the depth scale in metres; the error scale ends at an eighth of it.
        device: The networks' device.
        num_rows: Maximum number of frames.
    """
    titles = ["image", "ground truth", *predictors, f"error of {list(predictors)[-1]}"]
    max_error = max_depth / 8
    rows = []
    for row in range(min(num_rows, len(frames))):
        # Choose evenly spaced frames, the same frames in every call.
        sample = in_grey_levels(frames[row * len(frames) // min(num_rows, len(frames))])
        truth = sample.depth[0].numpy()
        radius = dilation_radius(truth)
        depths = [
            predict(sample.image[None], device, sample.intrinsics[None])[0, 0].cpu().numpy()
            for predict in predictors.values()
        ]
        rows.append(
            [
                sample.image.permute(1, 2, 0).numpy(),
                pictures.colourise(pictures.dilate(truth, radius), max_depth),
                *(pictures.colourise(depth, max_depth) for depth in depths),
                pictures.error_map(depths[-1], truth, max_error, radius),
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, pictures.panel(rows, titles, max_depth, max_error))
