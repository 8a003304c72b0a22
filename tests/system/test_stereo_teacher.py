"""A second camera as the teacher: its maps are cached on two ranks, and a run refuses it online."""

import sys
from pathlib import Path

import pytest
from support import programs, recipes
from support.stereo_pairs import BASELINE_M, write_pairs

from tiekd.data.image_io import is_whole_depth_png

COUNT = 12


@pytest.fixture(scope="module")
def recipe(ground, tmp_path_factory) -> Path:
    """A student's recipe on pairs of planes, whose teacher is the second camera."""
    folder = tmp_path_factory.mktemp("stereo")
    write_pairs(folder / "pairs", COUNT, height=64, width=128)
    node = recipes.recipe(ground)
    node["teacher"] = {"name": "stereo", "baseline": BASELINE_M}
    node["data"] = {"name": "kitti", "root": str(folder / "pairs"), "workers": 1, "augment": {}}
    return recipes.write_recipe(folder / "student.yaml", node)


def test_stereo_maps_are_cached_and_training_asks_for_them(recipe, tmp_path):
    """Two ranks cache the maps; a run with the teacher itself ends in one line that says so."""
    cache = [programs.ROOT / "bin" / "cache_teacher.py", recipe, "--out", tmp_path / "maps"]
    result = programs.finish(cache, ranks=2)
    assert result.code == 0, result.stderr[-3000:]
    assert f"maps: {COUNT}/{COUNT}, " in result.stdout
    assert "Learn from them with --set teacher=null teacher.maps=" in result.stdout
    maps = sorted((tmp_path / "maps").glob("*.png"))
    assert len(maps) == COUNT
    assert all(map(is_whole_depth_png, maps))
    train = [sys.executable, programs.ROOT / "bin" / "train.py", recipe]
    result = programs.finish([*train, "--work-dir", tmp_path / "run"])
    assert result.code == 2
    (line,) = result.our_lines()
    assert "teacher.name: stereo reads whole image pairs, and training has augmented crops" in line
    assert "bin/cache_teacher.py RECIPE" in line
    assert not (tmp_path / "run").exists()
