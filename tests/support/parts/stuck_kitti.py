"""KITTI on a disk that doesn't answer for one image."""

import time
from pathlib import Path

from tiekd.data import image_io
from tiekd.data.datasets import kitti
from tiekd.data.frames import Frames


def build(
    root: str, split: str, max_depth: float, stuck: str, kb_crop: tuple[int, int] | None = None
) -> Frames:
    """Builds the data set.

    stuck: the image.
    """
    read = image_io._decode

    def decode(path: Path, kind: str):
        if str(path) == stuck:
            time.sleep(3600)
        return read(path, kind)

    image_io._decode = decode
    return kitti.build(kitti.KittiOptions(root, kb_crop=kb_crop), split, max_depth)
