"""Makes a tiny KITTI folder that contains every kind of fault, for tests of the data check."""

import json
import os
from pathlib import Path

import numpy as np
from support import fake_data
from support.fake_data import depth_name, image_name, write_png

TRAIN, VAL = (*range(15), 17, 18, 24, 0), (20, 21, 22, 23)  # frame 0 is listed twice

# The complete list of findings that bin/check_data.py must report: (split, kind, frame). Frame 18
# is two frames away from 20, and 24 is one frame away from 23.
PLANTED = {
    ("train", "missing", 1),
    ("train", "unreadable", 2),
    ("train", "bit depth", 3),
    ("train", "size", 4),
    ("train", "unit", 5),
    ("train", "empty", 6),
    ("train", "duplicate", 7),
    ("train", "shared", 8),
    ("train", "missing", 9),
    ("train", "unreadable", 10),
    ("train", "missing", 10),  # both faults of a frame are reported
    ("train", "size", 11),
    ("train", "bit depth", 12),
    ("train", "unit", 13),
    ("train", "duplicate", 0),
    ("train", "neighbour", 18),
    ("train", "neighbour", 24),
    ("val", "missing", 22),
    ("val", "unreadable", 23),
}
DROPPED_TRAIN = {1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13}
DROPPED_VAL = {22, 23}


def make(root: Path) -> Path:
    fake_data.make(root, num_frames=25)
    image, depth = (
        (lambda i: root / "input" / image_name(i)),
        (lambda i: root / "gt_depth" / depth_name(i)),
    )
    image(1).unlink()
    image(2).write_bytes(image(2).read_bytes()[:60])
    write_png(depth(3), np.ones((20, 30), np.uint8))
    write_png(depth(4), np.full((18, 30), 1000, np.uint16))
    write_png(depth(5), np.full((20, 30), 5, np.uint16))  # depth in metres without a factor
    write_png(depth(6), np.zeros((20, 30), np.uint16))
    image(7).write_bytes(image(0).read_bytes())
    image(8).write_bytes(image(21).read_bytes())
    depth(9).unlink()
    image(10).write_bytes(b"")
    depth(10).unlink()
    write_png(image(11), np.full((8, 30, 3), 7, np.uint8))
    write_png(depth(11), np.full((8, 30), 1000, np.uint16))
    write_png(image(12), np.full((20, 30), 40000, np.uint16))
    write_png(depth(13), np.full((20, 30), 65534, np.uint16))
    image(22).unlink()
    os.mkdir(image(22))
    depth(23).write_text("no depth")
    lines = {name: split_lines(root, name) for name in ("train", "test")}
    for name, frames in (("train", TRAIN), ("test", VAL)):
        (root / f"kitti_eigen_{name}.txt").write_text(
            "\n\n".join(lines[name][frame] for frame in frames) + "\n"
        )
    return root


def split_lines(root: Path, name: str) -> list[str]:
    return [line for line in (root / f"kitti_eigen_{name}.txt").read_text().splitlines() if line]


def recipe(root: Path, **sections) -> dict:
    data = {
        "name": "kitti",
        "root": str(root),
        "kb_crop": None,
        "augment": {"crop": [12, 16]},
        "workers": 0,
    }
    return {"network": {"max_depth": 80.0}, "data": data, **sections}


def found(report: Path) -> set[tuple[str, str, int]]:
    rows = json.loads(report.read_text())["findings"]
    assert len({(row["split"], row["kind"], row["frame"], row["where"]) for row in rows}) == len(
        rows
    )
    return {(row["split"], row["kind"], int(row["frame"][-8:-4])) for row in rows}
