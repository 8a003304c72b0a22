"""Caching a teacher's maps on two ranks, killed half-way and started again.

No map is torn, and none is made twice.
"""

import os
import sys
from pathlib import Path

import pytest
from support import programs, recipes

from tiekd.data.datasets.scenes import write_kitti_layout
from tiekd.data.image_io import is_whole_depth_png

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def recipe(ground, tmp_path_factory) -> Path:
    """A student's recipe on scenes of 128x416.

    A map takes long enough for a kill between two.
    """
    folder = tmp_path_factory.mktemp("cache")
    write_kitti_layout(folder / "scenes", 0, 128, 416, NUM_FRAMES, 2)
    node = recipes.recipe(ground)
    size = {
        "root": str(folder / "scenes"),
        "height": 128,
        "width": 416,
        "num_train": NUM_FRAMES,
        "num_val": 2,
    }
    node["data"] |= size | {"workers": 1}
    return recipes.write_recipe(folder / "student.yaml", node)


def command(recipe: Path, folder: Path) -> list:
    return [programs.ROOT / "bin" / "cache_teacher.py", recipe, "--out", folder]


def maps(folder: Path) -> dict[str, tuple]:
    """Inode, time and bytes of every map."""
    files = {path: path.stat() for path in sorted(folder.glob("*.png"))}
    return {
        path.name: (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
        for path, stat in files.items()
    }


@pytest.fixture(scope="module")
def unbroken(recipe) -> dict[str, tuple]:
    folder = recipe.parent / "unbroken"
    result = programs.finish(command(recipe, folder))
    assert result.code == 0, result.stderr[-3000:]
    assert f"maps: {NUM_FRAMES}/{NUM_FRAMES}, " in result.stdout
    return maps(folder)


def test_cache_teacher_killed_job_resumes(recipe, unbroken):
    """A killed `cache_teacher.py` resumes, and its maps equal those of an uninterrupted one."""
    for attempt in range(5):  # it may be done before it is killed
        folder = recipe.parent / f"killed_{attempt}"
        with programs.Program(command(recipe, folder), ranks=2) as program:
            program.wait_until(
                lambda folder=folder: len(list(folder.glob("*.png"))) >= NUM_FRAMES // 4
            )
            program.kill()
        made = maps(folder)
        if len(made) < NUM_FRAMES:
            break
    assert NUM_FRAMES // 4 <= len(made) < NUM_FRAMES
    assert all(is_whole_depth_png(folder / name) for name in made)
    left_behind = [path.name for path in folder.iterdir() if path.suffix != ".png"]
    assert all(name == "manifest.json" or name.startswith(".") for name in left_behind)

    result = programs.finish(command(recipe, folder), ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    expected = (
        f"Maps: {NUM_FRAMES} frames, {len(made)} there already, {NUM_FRAMES - len(made)} to make "
        f"in {folder}"
    )
    assert lines.count(expected) == 1, lines
    after = maps(folder)
    assert {name: after[name] for name in made} == made, "what was made is not made again"
    assert {name: row[2] for name, row in after.items()} == {
        name: row[2] for name, row in unbroken.items()
    }
    assert sorted(os.listdir(folder)) == sorted([*after, "manifest.json"])


@pytest.mark.usefixtures("unbroken")
def test_train_from_cached_maps_without_teacher(recipe):
    """A student trains from cached maps alone, and maps of another `max_depth` are refused."""
    train = [
        sys.executable,
        programs.ROOT / "bin" / "train.py",
        recipe,
        "--set",
        "teacher=null",
        "teacher.audit=off",
        "train.iterations=2",
    ]
    maps_from = [f"teacher.maps={recipe.parent / 'unbroken'}"]
    result = programs.finish([*train, *maps_from, "--work-dir", recipe.parent / "run"])
    assert result.code == 0, result.stderr[-3000:]
    log = programs.log_text(recipe.parent / "run")
    assert (
        f"Teacher: cached maps in {recipe.parent / 'unbroken'}, of the weights with digest " in log
    )
    assert "decode.loss_dpm" in log
    result = programs.finish(
        [*train, *maps_from, "network.max_depth=60.0", "--work-dir", recipe.parent / "other"]
    )
    (line,) = result.our_lines()
    assert result.code == 2
    assert "was made for network.max_depth 80.0, this recipe has 60.0" in line


@pytest.mark.skipif(
    "TIEKD_REAL_DATA" not in os.environ, reason="TIEKD_REAL_DATA is not set: no real frames"
)
def test_cache_teacher_real_kitti_sizes(ground, tmp_path):
    """Whole maps are cached for real KITTI frames of both sizes, cut to the benchmark window.

    KITTI's own sizes, 1242x375 and 1224x370, cut to the benchmark window.
    """
    node = recipes.recipe(ground)
    root = Path(os.environ["TIEKD_REAL_DATA"]) / "kitti"
    node["data"] = {"name": "kitti", "root": str(root), "kb_crop": [352, 1216], "workers": 1}
    recipe = recipes.write_recipe(tmp_path / "student.yaml", node)
    result = programs.finish(command(recipe, tmp_path / "maps"))
    assert result.code == 0, result.stderr[-3000:]
    num_frames = len((root / "kitti_eigen_train.txt").read_text().splitlines())
    assert f"maps: {num_frames}/{num_frames}, " in result.stdout
    assert all(is_whole_depth_png(path) for path in (tmp_path / "maps").glob("*.png"))
