"""Makes a tiny teacher and a dataset, and caches the teacher's maps of its frames."""

import io
from pathlib import Path

import pytest
import torch

from tiekd.data.datasets.scenes import write_kitti_layout
from tiekd.models.build import build_network
from tiekd.tools import cache_teacher
from tiekd.training.settings import Recipe
from tiekd.workdir.weights_file import write_weights

CPU = torch.device("cpu")
TEACHER = {
    "encoder": {"name": "mobilenet_v2", "width": 0.25, "taps": [1, 3], "pretrained": "imagenet"},
    "decoder": {"name": "densedepth", "widths": [8, 8], "extra_ups": 2, "extra_width": 8},
    "head": {"name": "sigmoid"},
    "min_depth": 0.001,
    "max_depth": 80.0,
}
CROP = [48, 96]
NUM_TRAIN = 5


def make_ground(folder: Path) -> Path:
    """Writes `teacher.pth` and `kitti/` with five training and two validation frames of 64x128.

    The second training frame has no ground truth.
    """
    write_kitti_layout(folder / "kitti", 0, 64, 128, NUM_TRAIN, 2)
    split = folder / "kitti" / "kitti_eigen_train.txt"
    lines = split.read_text().splitlines()
    image, _, focal = lines[1].split()
    lines[1] = f"{image} None {focal}"
    split.write_text("\n".join(lines))
    make_teacher(folder)
    return folder


def make_teacher(folder: Path) -> None:
    """Writes `teacher.pth`, a teacher whose depths spread over the whole range."""
    torch.manual_seed(1)
    network = build_network(TEACHER)
    for tensor in network.head.parameters():
        tensor.data.mul_(100)  # spreads the depths over the whole range
    write_weights(folder / "teacher.pth", network.state_dict(), TEACHER, 0)


def recipe_of(ground: Path, max_depth: float = 80.0, **teacher) -> dict:
    """Returns the recipe of a student of this teacher, in the form of load_recipe's result."""
    return {
        "network": TEACHER | {"max_depth": max_depth},
        "teacher": {"network": TEACHER, "checkpoint": str(ground / "teacher.pth"), **teacher},
        "data": {
            "name": "kitti",
            "root": str(ground / "kitti"),
            "kb_crop": CROP,
            "workers": 0,
            "augment": {},
        },
    }


def cache(recipe: dict, folder: Path, split: str = "train", checkpoint: str | None = None) -> str:
    """Caches the maps of a split, and returns the printed text."""
    out = io.StringIO()
    source = cache_teacher.teacher_settings(Recipe(recipe), "recipes/student.yaml", checkpoint)
    frames = cache_teacher.frames_of(Recipe(recipe), split)
    cache_teacher.cache_maps(Recipe(recipe), source, frames, folder, CPU, out)
    return out.getvalue()


def refused(kind, *arguments, **options) -> str:
    """Checks that `cache` raises an error of this kind, and returns its one-line message."""
    with pytest.raises(kind) as error:
        cache(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def files_of(folder: Path) -> dict[str, tuple]:
    """Returns file name -> (inode, modification time in ns, content) of a folder's files."""
    stats = {path: path.stat() for path in folder.iterdir()}
    return {
        path.name: (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
        for path, stat in stats.items()
    }
