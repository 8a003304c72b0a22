"""Makes a KITTI folder of a few small frames."""

from pathlib import Path

import numpy as np
from PIL import Image

DRIVE = "2011_09_26_drive_0001_sync"
FOCAL = 721.5377


def image_name(index: int, day: str = "2011_09_26") -> str:
    return f"{day}/{DRIVE}/image_02/data/{index:010d}.png"


def depth_name(index: int) -> str:
    return f"{DRIVE}/proj_depth/groundtruth/image_02/{index:010d}.png"


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make(
    root: Path,
    num_frames: int = 5,
    height: int = 20,
    width: int = 30,
    without: tuple[int, ...] = (),
) -> Path:
    """Writes `num_frames` frames and both split files.

    Frame `index` has grey level 10 * index and a depth of index + 1 metres, except in row 0, which
    isn't measured.

    Args:
        root: the folder to write to.
        num_frames: number of frames.
        height: height of the frames, pixels.
        width: width of the frames, pixels.
        without: indices of the frames without ground truth (`None` in the split files).
    """
    lines = []
    for index in range(num_frames):
        image = np.full((height, width, 3), 10 * index, np.uint8)
        image[:, :, 0] = np.arange(width)  # the red channel equals the column
        write_png(root / "input" / image_name(index), image)
        levels = np.full((height, width), (index + 1) * 256, np.uint16)
        levels[0] = 0
        if index not in without:
            write_png(root / "gt_depth" / depth_name(index), levels)
        truth = "None" if index in without else depth_name(index)
        lines.append(f"{image_name(index)} {truth} {FOCAL}\n")
    for split in ("train", "test"):
        (root / f"kitti_eigen_{split}.txt").write_text("".join(lines))
    return root
