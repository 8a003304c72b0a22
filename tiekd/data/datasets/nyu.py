"""NYU Depth v2 in the published layout: split lines `/scene/rgb_N.jpg /scene/sync_depth_N.png focal` below a root.

Ground truth is uint16 PNG, millimetres. Training frames are cut to rows 45:472, columns 43:608, which leaves out the
blank border of the registered pictures; evaluation sees whole frames, 480x640. Both are as published. Cached teacher
maps lie in one folder, whole and cut together with their picture (or already cut), named data_nyu_<scene>_rgb_<N>.png.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tiekd.data.frames import Camera, Frame, Frames, Window, data_root
from tiekd.data.image_io import read_measured_levels
from tiekd.data.splits import SplitLine, read_split
from tiekd.errors import RecipeError

UNITS_PER_M = 1000.0
# The colour camera of the whole data set, for pictures of 480x640 (the data set's toolbox, camera_params.m).
_CAMERA = Camera(518.8579011745019, 519.4696111212749, 325.58244941119034, 253.73616633400465)


def build(
    root: str,
    split: str,
    max_depth: float,
    needs_ground_truth: bool = True,
    train_split: str = "nyu_train.txt",
    val_split: str = "nyu_test.txt",
    nyu_crop: tuple[int, int, int, int] | None = None,
    maps: str | None = None,
    invalid: Sequence[float] = (),
) -> Frames:
    """The frames of a split; training frames cut to `nyu_crop`.

    root: folder with the scenes' folders. split: "train" or "val", which picks `train_split` or `val_split` (below
    root, or an absolute path). nyu_crop: [top, bottom, left, right] in pixels, bottom and right excluded, of training
    frames, without it whole ones. maps: folder of cached teacher maps (below root, or absolute), read for training
    frames only. needs_ground_truth: skip frames whose line says `None`. invalid: levels of the ground truth, besides 0
    and 65535, that mean not measured. Raises DataError for missing files and malformed lines.
    """
    if nyu_crop is not None and not (
        0 <= nyu_crop[0] < nyu_crop[1] and 0 <= nyu_crop[2] < nyu_crop[3]
    ):
        raise RecipeError(
            f"data.nyu_crop: got {nyu_crop}; it must be [top, bottom, left, right] in pixels, or "
            "null"
        )
    training = split == "train"
    folder = data_root(root, "NYU")
    split_file = folder / (train_split if training else val_split)
    return Frames(
        [_frame(line, f"{folder}/") for line in read_split(split_file)],
        split_file,
        read_measured_levels,
        UNITS_PER_M,
        max_depth,
        needs_ground_truth,
        window=Window("data.nyu_crop", partial(_window, nyu_crop))
        if training and nyu_crop is not None
        else None,
        maps=folder / maps if maps and training else None,
        map_prefix="data_nyu_",
        invalid=invalid,
    )


def known_camera(path: Path, height: int, width: int) -> Camera | None:
    """The data set's camera, for a picture of its size; None for others."""
    return _CAMERA if (height, width) == (480, 640) else None


def _window(
    nyu_crop: tuple[int, int, int, int], height: int, width: int
) -> tuple[int, int, int, int]:
    top, bottom, left, right = nyu_crop
    return top, left, bottom - top, right - left


def _frame(line: SplitLine, folder: str) -> Frame:
    if line.focal is None:
        camera = None
    # A resized picture: the line's focal length rules.
    elif abs(line.focal - _CAMERA.focal_x) > 0.01:
        camera = Camera(line.focal, line.focal)
    else:
        camera = _CAMERA
    depth = None if line.ground_truth is None else folder + line.ground_truth
    return Frame(line.image, folder + line.image, depth, camera)
