"""The built-in scenes in several processes: same bytes, and one whole set if they write at once."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

from support.programs import ROOT

from tiekd.data.datasets.scenes import render, write_kitti_layout

SIZE = 64, 208
DIGEST = """
import hashlib
from tiekd.data.datasets.scenes import render
scene = render(3, 5, 64, 208)
print(hashlib.sha256(b"".join(part.tobytes() for part in scene)).hexdigest())
"""


def test_render_same_bytes_in_other_process():
    """A scene has the same bytes in another process with another hash seed."""
    here = hashlib.sha256(b"".join(part.tobytes() for part in render(3, 5, *SIZE))).hexdigest()
    command, env = [sys.executable, "-c", DIGEST], {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    assert there.stdout.strip() == here


def start_writing(root: Path, num_train: int) -> multiprocessing.Process:
    writer = multiprocessing.get_context("fork").Process(
        target=write_kitti_layout, args=(root, 1, *SIZE, num_train, 1)
    )
    writer.start()
    return writer


def test_write_kitti_layout_killed_leaves_no_set(tmp_path):
    """A killed writer leaves no set, and the next one writes it whole."""
    root = tmp_path / "set"
    writer = start_writing(root, 100_000)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(f"set.partial-{writer.pid}-*/input/**/0000000001.png")):
        assert time.monotonic() < deadline
        assert writer.is_alive()
        time.sleep(0.02)
    writer.kill()
    writer.join()
    assert not root.exists()
    write_kitti_layout(root, 1, *SIZE, 1, 1)
    assert json.loads((root / "scenes.json").read_text())["num_train"] == 1


def test_write_kitti_layout_parallel_writers_share_set(tmp_path):
    """Writers that start at once all succeed and leave one set."""
    writers = [start_writing(tmp_path / "set", 3) for _ in range(3)]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list((tmp_path / "set" / "input").rglob("*.png"))) == 4
