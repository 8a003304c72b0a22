"""Two ranks make the maps that one makes."""

from pathlib import Path

import pytest
from support import two_ranks
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
