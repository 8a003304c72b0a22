"""Two ranks make the maps that one makes."""

from pathlib import Path

import pytest
from support import sharded_ground, two_ranks
from support.cached_teacher import NUM_TRAIN, cache, files_of, make_ground, recipe_of


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    return make_ground(tmp_path_factory.mktemp("ground"))


def test_cache_maps_two_ranks_equal_one(ground, tmp_path):
    """Two ranks write byte-identical files to one rank, and only rank 0 reports."""
    cache(recipe_of(ground), tmp_path / "alone")
    told, silent = two_ranks.run(cache_on_a_rank, tmp_path, ground, tmp_path / "together")
    assert f"maps: {NUM_TRAIN}/{NUM_TRAIN}" in told
    assert silent == ""
    alone, together = files_of(tmp_path / "alone"), files_of(tmp_path / "together")
    assert {name: row[2] for name, row in alone.items()} == {
        name: row[2] for name, row in together.items()
    }


def cache_on_a_rank(_rank: int, ground: Path, folder: Path) -> str:
    return cache(recipe_of(ground), folder)


def test_cache_maps_two_ranks_write_whole_shards(tmp_path):
    """Two ranks write the shards of maps that one writes, each of them whole shards."""
    ground = sharded_ground.make(tmp_path)
    node = sharded_ground.recipe(ground, **sharded_ground.SIGMA)
    cache(node, tmp_path / "alone")
    told, silent = two_ranks.run(cache_shards_on_a_rank, tmp_path, node, tmp_path / "together")
    assert f"maps: {sharded_ground.NUM_FRAMES}/{sharded_ground.NUM_FRAMES}" in told
    assert silent == ""
    alone, together = (files_of(tmp_path / name / "day") for name in ("alone", "together"))
    assert len(alone) == 2 * len(sharded_ground.COUNTS)
    assert {name: row[2] for name, row in alone.items()} == {
        name: row[2] for name, row in together.items()
    }


def cache_shards_on_a_rank(_rank: int, node: dict, folder: Path) -> str:
    return cache(node, folder)
