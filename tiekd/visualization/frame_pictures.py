"""Writes an image file for every frame of an evaluation: image, truth, prediction and error.

`evaluate.evaluate` calls `FramePictures` with each batch; each rank writes the files of its own
frames. Costs about 0.1 s per KITTI frame and a copy to the host. Points of sparse ground truth are
dilated so that they are visible; dense ground truth is shown as it is.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.frames import joined_name
from tiekd.data.image_io import write_image
from tiekd.data.resize import OWN_SIZE, Resize, at_own_size
from tiekd.evaluation import metrics
from tiekd.visualization import pictures

_LARGEST_ERROR = 1 / 8  # end of the error scale as a fraction of the end of the depth scale
# Minimum and maximum width in pixels at which each of a frame's images is drawn.
_NARROWEST = 320
_WIDEST = 800
_DENSE = 0.5  # minimum fraction of measured pixels for ground truth to be treated as dense
_CAPTION_HEIGHT = 34
_SHOWN = ("abs_rel", "rmse", "a1")


class FramePictures:
    """Writes an image file for every frame of an evaluation, named `<index>_<frame's name>.png`.

    The index is the frame's number in the dataset. It is padded with zeros, so that a folder
    listing follows the dataset's order.

    Args:
        folder: The folder to write to.
        num_frames: Number of frames in the dataset.
        max_depth: End of the depth scale in metres; the error scale ends at an eighth of it.
        resize: How the batches' images were resized for the network. They are drawn at their
            original size.
        against: Title of the depth with which predictions are compared.
    """

    def __init__(
        self,
        folder: Path,
        num_frames: int,
        max_depth: float,
        resize: Resize = OWN_SIZE,
        against: str = "ground truth",
    ):
        self.folder = folder
        self.against = against
        self.digits = len(str(num_frames - 1))
        self.max_depth = max_depth
        self.resize = resize

    def __call__(self, indices: list[int], batch: Batch, depth: Tensor, rows: Tensor) -> None:
        """Writes the images of one batch.

        Args:
            indices: The frames' indices in the dataset.
            batch: The batch, with the frames' images, names and ground truth.
            depth: (B, 1, H, W) predicted depth in metres, at the size of the ground truth.
            rows: (B, number of metrics), each frame's metrics in the order of METRIC_NAMES.
        """
        image = at_own_size(batch.image, self.resize, tuple(batch.depth.shape[-2:]), smooth=True)
        images, truths, depths = (t.float().cpu().numpy() for t in (image, batch.depth, depth))
        for position, index in enumerate(indices):
            name = batch.names[position]
            row = rows[position].tolist()
            figures = dict(zip(metrics.METRIC_NAMES, row, strict=True))
            figures_text = ", ".join(f"{key} {figures[key]:.4f}" for key in _SHOWN)
            if figures["a1"] != figures["a1"]:
                figures_text = f"no {self.against} that counts"
            maps = images[position], truths[position, 0], depths[position, 0]
            drawn = frame_picture(*maps, self.max_depth, f"{name}   {figures_text}", self.against)
            write_image(self.folder / f"{index:0{self.digits}d}_{joined_name(name)}", drawn)


def frame_picture(
    image: np.ndarray,
    truth: np.ndarray,
    depth: np.ndarray,
    max_depth: float,
    caption: str,
    against: str = "ground truth",
) -> np.ndarray:
    """Draws image and ground truth above prediction and error, with scales in metres.

    Args:
        image: (3, H, W) float, ImageNet-normalised.
        truth: (H, W) ground truth in metres, 0 where not measured.
        depth: (H, W) predicted depth in metres.
        max_depth: End of the depth scale in metres; the error scale ends at an eighth of it.
        caption: A line of text above the images.
        against: The title of `truth`.

    Returns:
        (height, width, 3) uint8.
    """
    radius = dilation_radius(truth)
    max_error = max_depth * _LARGEST_ERROR
    measured = pictures.colourise(pictures.dilate(truth, radius), max_depth)
    error = pictures.error_map(depth, truth, max_error, radius)
    cells = {
        "image": pictures.denormalise(image),
        against: measured,
        "prediction": pictures.colourise(depth, max_depth),
        "error": error,
    }
    width = min(max(truth.shape[1], _NARROWEST), _WIDEST)
    titles = list(cells)
    # Draw two panels of two images each, because a panel has titles above its first row only.
    halves = [
        pictures.panel([[cells[title] for title in pair]], pair, max_depth, max_error, width)
        for pair in (titles[:2], titles[2:])
    ]
    return np.concatenate([_captioned(halves[0], caption), *halves])


def dilation_radius(truth: np.ndarray) -> int:
    """Returns the number of pixels by which measured points are dilated to be visible.

    Args:
        truth: (H, W) metres, 0 where not measured.

    Returns:
        1 for sparse ground truth, 0 for dense ground truth.
    """
    return 0 if np.count_nonzero(truth > 0) >= _DENSE * truth.size else 1


def _captioned(below: np.ndarray, caption: str) -> np.ndarray:
    """Draws a line of text as an image that is put above another image.

    Args:
        below: The other image, (H, W, 3) uint8; the result gets its width and the colour of its top
            left pixel as background.
        caption: The text.

    Returns:
        (_CAPTION_HEIGHT, W, 3) uint8.
    """
    strip = Image.new("RGB", (below.shape[1], _CAPTION_HEIGHT), tuple(below[0, 0].tolist()))
    ImageDraw.Draw(strip).text(
        (14, _CAPTION_HEIGHT - 6),
        caption,
        font=ImageFont.load_default(15),
        fill="white",
        anchor="ls",
    )
    return np.asarray(strip)
