"""Makes a KITTI folder, and fills its folder of decoded frames."""

import io
from pathlib import Path

import numpy as np
import pytest
from support import fake_data
from support.fake_data import image_name, write_png

from tiekd.errors import DataError
from tiekd.tools import cache_frames
from tiekd.training.settings import Recipe


def make_root(folder: Path) -> Path:
    """Writes a KITTI folder of five frames with teacher maps."""
    root = fake_data.make(folder)
    for index in range(5):
        write_png(
            root / "maps" / image_name(index).replace("/", "_"),
            np.full((20, 30), index + 1, np.uint16),
        )
    return root


def recipe_of(root: Path, **data) -> dict:
    data = {"name": "kitti", "root": str(root), "decoded": "decoded", "augment": {}} | data
    return {"network": {"max_depth": 80.0}, "teacher": {"maps": "maps"}, "data": data}


def fill(
    root: Path, workers: int = 0, verify: bool = False, splits=("train", "val"), **data
) -> list[str]:
    recipe, out = recipe_of(root, **data), io.StringIO()
    sources = cache_frames.sources_of(Recipe(recipe), splits)
    folder = Recipe(recipe).dataset.decoded_folder
    cache_frames.fill(Recipe(recipe), sources, folder, workers, verify, out)
    return out.getvalue().splitlines()


def refused(root: Path, kind=DataError, **options) -> str:
    with pytest.raises(kind) as error:
        fill(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def arrays(root: Path) -> dict[str, tuple]:
    """Returns relative path -> (inode, modification time in ns, content) of each decoded file."""
    stats = {path: path.stat() for path in (root / "decoded").rglob("*.npy")}
    return {
        str(path): (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
        for path, stat in stats.items()
    }
