"""The dataset KITTI with one image whose read never returns, as on a failing disk."""

import time
from pathlib import Path

from tiekd.data import image_io
from tiekd.data.datasets import kitti
from tiekd.data.frames import Frames


def build(
    root: str, split: str, max_depth: float, stuck: str, kb_crop: tuple[int, int] | None = None
) -> Frames:
    """Builds the frames of a split.

    Args:
        root: the KITTI folder.
        split: "train" or "val".
        max_depth: the network's range in metres.
        stuck: name of the image whose read never returns.
        kb_crop: (height, width) of the KITTI benchmark crop; None for whole frames.
    """
    read = image_io._decode

    def decode(path: Path, kind: str):
        if str(path) == stuck:
            time.sleep(3600)
        return read(path, kind)

    image_io._decode = decode
    return kitti.build(kitti.KittiOptions(root, kb_crop=kb_crop), split, max_depth)
