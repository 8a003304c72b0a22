"""NYU Depth v2 in the published layout: lines `/scene/rgb_N.jpg /scene/sync_depth_N.png focal`.

Ground truth is uint16 PNG, millimetres. Training frames are cropped to rows 45:472 and columns
43:608, which leaves out the blank border of the registered images. Evaluation sees whole frames,
480x640. Both follow the published protocol. Cached teacher maps are all in one folder, named
data_nyu_<scene>_rgb_<N>.png; a map has the size of the whole image and is cropped with it, or is
already cropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tiekd.data.cameras.source import check_numbers
from tiekd.data.frame_table import Cameras, FrameTable
from tiekd.data.frames import (
    Camera,
    DatasetSplit,
    DepthFormat,
    Frames,
    Window,
    data_root,
    with_cameras,
)
from tiekd.data.image_io import read_measured_levels
from tiekd.data.splits import SplitTable, read_table
from tiekd.errors import RecipeError

UNITS_PER_M = 1000.0
# The colour camera of the whole dataset, for images of 480x640 (the dataset's toolbox,
# camera_params.m).
_CAMERA = Camera(518.8579011745019, 519.4696111212749, 325.58244941119034, 253.73616633400465)


@dataclass(frozen=True)
class NyuOptions:
    """The options of a recipe's `data` section for NYU Depth v2.

    Attributes:
        root: Folder with the scenes' folders.
        train_split: Split file of training, below root or absolute.
        val_split: Split file of validation, below root or absolute.
        nyu_crop: [top, bottom, left, right] in pixels, bottom and right excluded, of training
            frames; None for whole frames.
        invalid: Levels of the ground truth that mean "not measured", in addition to 0 and 65535.
        intrinsics: The cameras of the whole images (tiekd/data/cameras/source.py), in place of the
            split files' focal lengths; None uses the split files' focal lengths.
    """

    root: str
    train_split: str = "nyu_train.txt"
    val_split: str = "nyu_test.txt"
    nyu_crop: tuple[int, int, int, int] | None = None
    invalid: Sequence[float] = ()
    intrinsics: Path | Sequence[float] | None = None

    def __post_init__(self):
        check_numbers(self.intrinsics)
        if self.nyu_crop is None:
            return
        top, bottom, left, right = self.nyu_crop
        if not (0 <= top < bottom and 0 <= left < right):
            raise RecipeError(
                f"data.nyu_crop: got {self.nyu_crop}; it must be [top, bottom, left, right] in "
                "pixels, or null"
            )


def build(
    options: NyuOptions,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    maps: str | None = None,
) -> Frames:
    """Builds the dataset of a split's frames; training frames are cropped to `options.nyu_crop`.

    Only the split file is read here.

    Args:
        options: The files and the crop.
        split: "train" or "val"; selects `train_split` or `val_split`.
        max_depth: The largest depth that the network predicts, in metres.
        needs_ground_truth: True to skip frames without ground truth (`None` in the split file).
        maps: Folder of cached teacher maps, below root or absolute; read for training frames only.

    Returns:
        The dataset, which reads and crops a frame's files on access.

    Raises:
        DataError: Files are missing, or lines of the split file are malformed.
    """
    training = split == "train"
    folder = data_root(options.root, "NYU")
    split_file = folder / (options.train_split if training else options.val_split)
    window = None
    if training and options.nyu_crop is not None:
        window = Window("data.nyu_crop", partial(_window, options.nyu_crop))
    lines = read_table(split_file)
    frames = FrameTable(
        lines.images,
        lines.images.below(f"{folder}/"),
        lines.ground_truths.below(f"{folder}/"),
        lines.has_depth,
        _cameras(lines),
    )
    frames, camera_notes = with_cameras(frames, options.intrinsics, folder)
    files = DatasetSplit(
        frames,
        split_file,
        DepthFormat(read_measured_levels, UNITS_PER_M, invalid=options.invalid),
        window=window,
        map_prefix="data_nyu_",
        camera_notes=camera_notes,
    )
    training_maps = folder / maps if maps and training else None
    return Frames(files, max_depth, needs_ground_truth, maps=training_maps)


def known_camera(path: Path, height: int, width: int) -> Camera | None:
    """Returns the dataset's camera for an uncropped image; None if its size isn't 480x640.

    Args:
        path: Path of the image, not used, since all images are of one camera.
        height: Rows of the image.
        width: Columns of the image.
    """
    return _CAMERA if (height, width) == (480, 640) else None


def _window(
    nyu_crop: tuple[int, int, int, int], height: int, width: int
) -> tuple[int, int, int, int]:
    """Converts the crop to (top, left, height, width); it is the same for images of any size.

    Args:
        nyu_crop: [top, bottom, left, right] in pixels, bottom and right excluded.
        height: Rows of the image, not used.
        width: Columns of the image, not used.
    """
    top, bottom, left, right = nyu_crop
    return top, left, bottom - top, right - left


def _cameras(lines: SplitTable) -> Cameras:
    """Returns the camera of each line of a split file, in the order of the lines.

    A camera follows from the focal length in its line.

    Args:
        lines: The split file's lines. If they are image names alone, no camera is known.
    """
    if lines.focals is None:
        return Cameras.same(None, len(lines.images))
    focals, codes = np.unique(lines.focals, return_inverse=True)
    return Cameras(codes.astype(np.int32), [_camera(focal) for focal in focals.tolist()])


def _camera(focal: float) -> Camera:
    # Use the focal length in the split file's line if it differs from the camera's: the image was
    # then resized.
    return Camera(focal, focal) if abs(focal - _CAMERA.focal_x) > 0.01 else _CAMERA
