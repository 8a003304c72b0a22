"""Provides the images of the data benchmarks: the user's KITTI folder, or rendered scenes.

Rendered scenes are written in KITTI's format. Teacher maps are synthetic: they show a flat road
with noise, and take as long to decode as real ones. Not covered: maps of a real teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tiekd.data import image_io
from tiekd.data.datasets import kitti
from tiekd.data.datasets.scenes import write_kitti_layout
from tiekd.data.frames import Frames

MAX_DEPTH_M = 80.0
_RENDERED = 8


@contextmanager
def kitti_folder(
    data: str | None, kb_crop: tuple[int, int], rendered: int = _RENDERED
) -> Iterator[tuple[Path, Path]]:
    """Context manager that provides a KITTI folder and a temporary folder.

    The temporary folder, and the KITTI folder if it was rendered, are removed at the end.

    Args:
        data: the user's KITTI folder; None renders images somewhat larger than `kb_crop`.
        kb_crop: (height, width) of the KITTI benchmark crop, pixels.
        rendered: number of training images, and also of validation images, to render if `data` is
            None.

    Yields:
        The KITTI folder, and the temporary folder for the benchmark's files.
    """
    with TemporaryDirectory(prefix="benchmark_") as folder:
        scratch = Path(folder)
        root = Path(data or scratch / "rendered")
        if data is None:
            write_kitti_layout(root, 0, kb_crop[0] + 23, kb_crop[1] + 26, rendered, rendered)
        yield root, scratch


def with_teacher_maps(root: Path, scratch: Path, kb_crop: tuple[int, int]) -> Frames:
    """Writes synthetic teacher maps, and returns a KITTI folder's training dataset with them.

    Args:
        root: the KITTI folder.
        scratch: the folder in which the folder of maps is created.
        kb_crop: (height, width) of the KITTI benchmark crop and of the maps, pixels.

    Returns:
        The training dataset, whose images are cropped to the benchmark crop.
    """
    options = kitti.KittiOptions(str(root), kb_crop=kb_crop)
    frames = kitti.build(options, "train", MAX_DEPTH_M, needs_ground_truth=False)
    maps = scratch / "maps"
    maps.mkdir()
    rng = np.random.default_rng(0)
    rows = np.linspace(0.02, 1, kb_crop[0])[:, None]  # slope of each row's viewing ray
    for index in range(len(frames)):
        # Compute the depth of a flat road that a camera 1.65 m above it sees. Add noise, so that
        # the depth maps take as long to decode as those of a real teacher.
        depth_m = np.clip(1.65 / rows, 1, MAX_DEPTH_M) * rng.normal(1, 0.003, kb_crop)
        image_io.write_durably(
            maps / frames.map_name(index), image_io.encode_teacher_map(depth_m, MAX_DEPTH_M)
        )
    return kitti.build(options, "train", MAX_DEPTH_M, needs_ground_truth=False, maps=str(maps))
