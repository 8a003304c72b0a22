"""KITTI in the published layout: split files, images in `input/`, ground truth in `gt_depth/`.

Ground truth is uint16 PNG, metres * 256. A line of a split file is `input ground_truth focal`. With
`kb_crop`, frames are cropped to the window of the KITTI benchmark (at the bottom, horizontally
centred) when they are read. Cached teacher maps are already cropped and are all in one folder,
named by the path below `input/` joined with `_`. The benchmark's test set has no ground truth: its
split file is a list of names, and its images are already cropped and are in another folder. It can
be used for prediction, for caching teacher maps and for training with a teacher, but not for
evaluation.
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
from tiekd.data.splits import SplitLine, SplitTable, read_table
from tiekd.errors import RecipeError

UNITS_PER_M = 256.0

# Intrinsics of colour camera 2 by recording day: focal length, then column and row of the principal
# point, in pixels (from the calibration files of KITTI raw).
_CALIBRATION = {
    "2011_09_26": (721.5377, 609.5593, 172.854),
    "2011_09_28": (707.0493, 604.0814, 180.5066),
    "2011_09_29": (718.3351, 600.3891, 181.5122),
    "2011_09_30": (707.0912, 601.8873, 183.1104),
    "2011_10_03": (718.856, 607.1928, 185.2157),
}

# Option that names a folder below the root -> (default folder, suffixes of the files that are read;
# empty for all suffixes).
READS = {"image_folder": ("input", ()), "gt_depth": ("gt_depth", ())}


@dataclass(frozen=True)
class KittiOptions:
    """The options of a recipe's `data` section for KITTI.

    Attributes:
        root: Folder with the images in `image_folder` and the ground truth in gt_depth/.
        train_split: Split file of training, below root or absolute.
        val_split: Split file of validation, below root or absolute; kitti_benchmark_test.txt for
            the benchmark's test set.
        image_folder: Folder of the images below root; for the benchmark's test set benchmark_test.
        kb_crop: (height, width) in pixels to which frames are cropped; None for whole frames.
        invalid: Levels of the ground truth that mean "not measured", in addition to 0 and 65535.
        intrinsics: The cameras of the whole images (tiekd/data/cameras/source.py), in place of the
            split files' focal lengths; None uses the split files' focal lengths.
    """

    root: str
    train_split: str = "kitti_eigen_train.txt"
    val_split: str = "kitti_eigen_test.txt"
    image_folder: str = "input"
    kb_crop: tuple[int, int] | None = None
    invalid: Sequence[float] = ()
    intrinsics: Path | Sequence[float] | None = None

    def __post_init__(self):
        check_numbers(self.intrinsics)
        if self.kb_crop is not None and min(self.kb_crop) < 1:
            raise RecipeError(
                f"data.kb_crop: got {self.kb_crop}; it must be [height, width] in pixels, or null "
                "for none"
            )


def build(
    options: KittiOptions,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    maps: str | None = None,
) -> Frames:
    """Builds the dataset of a split's frames, which are cropped to `options.kb_crop`.

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
    folder = data_root(options.root, "KITTI")
    split_file = folder / (options.train_split if split == "train" else options.val_split)
    images = f"{folder / options.image_folder}/"
    window = None
    if options.kb_crop is not None:
        window = Window("data.kb_crop", partial(_kb_window, options.kb_crop))
    lines = read_table(split_file)
    frames = FrameTable(
        lines.images,
        lines.images.below(images),
        lines.ground_truths.below(f"{folder}/gt_depth/"),
        lines.has_depth,
        _cameras(lines),
    )
    frames, camera_notes = with_cameras(frames, options.intrinsics, folder)
    files = DatasetSplit(
        frames,
        split_file,
        DepthFormat(read_measured_levels, UNITS_PER_M, invalid=options.invalid),
        window=window,
        camera_notes=camera_notes,
    )
    training_maps = folder / maps if maps and split == "train" else None
    return Frames(files, max_depth, needs_ground_truth, maps=training_maps)


def known_camera(path: Path, height: int, width: int) -> Camera | None:
    """Returns the camera of an uncropped image, found by the recording day in its path.

    The result is None if the size isn't that of a KITTI image, or the path contains no known day.

    Args:
        path: Path of the image.
        height: Rows of the image.
        width: Columns of the image.
    """
    whole = 370 <= height <= 376 and 1224 <= width <= 1242
    days = (
        [day for part in path.parts for day in _CALIBRATION if part.startswith(day)]
        if whole
        else []
    )
    return Camera(_CALIBRATION[days[0]][0], *_CALIBRATION[days[0]]) if days else None


def _kb_window(kb_crop: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of the crop to the KITTI benchmark's window (KB crop).

    The window is at the bottom of the image and horizontally centred.

    Args:
        kb_crop: (height, width) of the crop in pixels.
        height: Rows of the image.
        width: Columns of the image.
    """
    return height - kb_crop[0], (width - kb_crop[1]) // 2, *kb_crop


def _cameras(lines: SplitTable) -> Cameras:
    """Returns the camera of each line of a split file, in the order of the lines.

    A camera follows from the recording day and the focal length, so it is looked up once for each
    pair of them.

    Args:
        lines: The split file's lines. If they are image names alone, no camera is known.
    """
    if lines.focals is None:
        return Cameras.same(None, len(lines.images))
    days = np.zeros(len(lines.images), np.int64)
    for number, day in enumerate(_CALIBRATION, 1):
        days[lines.images.begins_with(f"{day}/")] = number
    _, focals = np.unique(lines.focals, return_inverse=True)
    pairs = focals * (len(_CALIBRATION) + 1) + days
    _, examples, codes = np.unique(pairs, return_index=True, return_inverse=True)
    distinct = [_camera(lines.line(index)) for index in examples]
    return Cameras(codes.astype(np.int32), distinct)


def _camera(line: SplitLine) -> Camera | None:
    if line.focal is None:
        return None
    focal, centre_x, centre_y = _CALIBRATION.get(line.image.split("/")[0], (0.0, 0.0, 0.0))
    # Use the focal length in the split file's line, with the principal point at the image's centre,
    # if it differs from the camera's: the image was then resized or rendered.
    if abs(focal - line.focal) > 0.01:
        return Camera(line.focal, line.focal)
    return Camera(focal, focal, centre_x, centre_y)
