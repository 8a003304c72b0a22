"""Writes an image file for every frame of an evaluation: image, truth, prediction and error.

`FramePictures` is one of `evaluate.evaluate`'s watchers; each rank writes the files of its own
frames. Costs about 0.1 s per KITTI frame, and a copy to the host. Ground truth may be sparse or
dense: only points with gaps between them are grown.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.frames import joined_name
from tiekd.data.image_io import write_image
from tiekd.data.resize import OWN_SIZE, Resize, restored
from tiekd.evaluation import metrics
from tiekd.visualization import pictures

_LARGEST_ERROR = 1 / 8  # end of the error scale, as a share of the depth scale's
# Widths of a cell in pixels.
_NARROWEST = 320
_WIDEST = 800
_DENSE = 0.5  # from this share of measured pixels on, points need no growing
_CAPTION_HEIGHT = 34
_SHOWN = ("abs_rel", "rmse", "a1")


class FramePictures:
    """Writes `<folder>/<index in the dataset>_<name>.png`, which lists in the dataset's order.

    Args:
        folder: The folder.
        num_frames: Size of the dataset.
        max_depth: End of the depth scale in metres; the scale of errors ends at an eighth of it.
        resize: The working resolution of the images; they are shown at their own size.
    """

    def __init__(self, folder: Path, num_frames: int, max_depth: float, resize: Resize = OWN_SIZE):
        self.folder = folder
        self.digits = len(str(num_frames - 1))
        self.max_depth = max_depth
        self.resize = resize

    def __call__(self, indices: list[int], batch: Batch, depth: Tensor, rows: Tensor) -> None:
        """Writes the images of one batch.

        Args:
            indices: The frames' indices in the dataset.
            batch: The batch.
            depth: (B, 1, H, W) predicted metres.
            rows: (B, number of metrics), in the order of METRIC_NAMES.
        """
        image = restored(batch.image, self.resize, tuple(batch.depth.shape[-2:]), smooth=True)
        images, truths, depths = (t.float().cpu().numpy() for t in (image, batch.depth, depth))
        for place, index in enumerate(indices):
            name = batch.names[place]
            row = rows[place].tolist()
            figures = dict(zip(metrics.METRIC_NAMES, row, strict=True))
            told = ", ".join(f"{key} {figures[key]:.4f}" for key in _SHOWN)
            caption = (
                f"{name}   "
                f"{told if figures['a1'] == figures['a1'] else 'no ground truth that counts'}"
            )
            drawn = frame_picture(
                images[place], truths[place, 0], depths[place, 0], self.max_depth, caption
            )
            write_image(self.folder / f"{index:0{self.digits}d}_{joined_name(name)}", drawn)


def frame_picture(
    image: np.ndarray, truth: np.ndarray, depth: np.ndarray, max_depth: float, caption: str
) -> np.ndarray:
    """Draws image and ground truth above prediction and error, with scales in metres.

    Args:
        image: (3, H, W), normalised.
        truth: (H, W) metres, 0 where not measured.
        depth: (H, W) metres.
        max_depth: End of the depth scale in metres.
        caption: A line above the images.

    Returns:
        (height, width, 3) uint8.
    """
    radius = growth(truth)
    max_error = max_depth * _LARGEST_ERROR
    measured = pictures.colourise(pictures.dilate(truth, radius), max_depth)
    error = pictures.error_map(depth, truth, max_error, radius)
    cells = {
        "image": pictures.denormalise(image),
        "ground truth": measured,
        "prediction": pictures.colourise(depth, max_depth),
        "error": error,
    }
    width = min(max(truth.shape[1], _NARROWEST), _WIDEST)
    titles = list(cells)
    # Two panels of two cells, so that each pair has its own titles.
    halves = [
        pictures.panel([[cells[title] for title in pair]], pair, max_depth, max_error, width)
        for pair in (titles[:2], titles[2:])
    ]
    return np.concatenate([_captioned(halves[0], caption), *halves])


def growth(truth: np.ndarray) -> int:
    """Returns by how many pixels measured points must grow to be visible.

    It is 0 if most pixels are measured.
    """
    return 0 if np.count_nonzero(truth > 0) >= _DENSE * truth.size else 1


def _captioned(below: np.ndarray, caption: str) -> np.ndarray:
    """Returns a strip with a caption, in the width and background colour of the image below it."""
    strip = Image.new("RGB", (below.shape[1], _CAPTION_HEIGHT), tuple(below[0, 0].tolist()))
    ImageDraw.Draw(strip).text(
        (14, _CAPTION_HEIGHT - 6),
        caption,
        font=ImageFont.load_default(15),
        fill="white",
        anchor="ls",
    )
    return np.asarray(strip)
