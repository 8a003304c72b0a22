"""Teachers with planted errors: good near or far, of one sign, smooth, and the same every time."""

import json

import numpy as np
import pytest
from support import recipes

from tiekd.data import teacher_maps
from tiekd.data.datasets import scenes
from tiekd.data.image_io import read_teacher_map
from tiekd.errors import DataError, RecipeError
from tiekd.tools.experiment import planted_teachers
from tiekd.training.settings import Recipe


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    node = recipes.recipe(tmp_path)
    del node["teacher"]
    node["data"] |= {"num_train": 2, "num_val": 1}
    return Recipe(node)


def test_errors_are_one_signed_unequal_and_smooth():
    """Near the first teacher is better, far the second; both are too far, over many pixels."""
    for distance, better in ((5.0, 0), (40.0, 1)):
        depth = np.full((96, 320), distance)
        squares = np.zeros(2)
        for index in range(40):
            found = planted_teachers.planted(index, depth)
            errors = [found[name][0] - depth for name in ("near", "far")]
            assert min(error.min() for error in errors) >= 0
            squares += [np.square(error).mean() for error in errors]
        root_mean_square = np.sqrt(squares / 40)
        # The sigma of each teacher is what its errors are.
        sigmas = [found[name][1][0, 0] for name in ("near", "far")]
        assert root_mean_square == pytest.approx(sigmas, rel=0.15)
        assert root_mean_square[better] < 0.25 * root_mean_square[1 - better]
    fields = np.array([planted_teachers.field("near", index, 96, 320) for index in range(60)])
    assert fields.std() == pytest.approx(1, abs=0.1)
    assert np.corrcoef(fields[:, :, :-32].ravel(), fields[:, :, 32:].ravel())[0, 1] > 0.5


def test_oracle_takes_better_teacher_of_each_pixel():
    """The oracle's error is the smaller one; where there is no depth, no teacher has one."""
    depth = np.linspace(2, 60, 96 * 320).reshape(96, 320)
    depth[:5] = 0
    found = planted_teachers.planted(3, depth)
    errors = [np.abs(found[name][0] - depth) for name in ("near", "far", "oracle")]
    assert np.array_equal(errors[2], np.minimum(*errors[:2]))
    assert (errors[2] < errors[0]).any()
    assert (errors[2] < errors[1]).any()
    assert all(found[name][0][:5].max() == 0 for name in found)


def test_write_makes_maps_of_the_scenes(recipe):
    """The maps are those of the training scenes, have sigma maps, and are the same again."""
    folders = planted_teachers.write(recipe)
    root = recipe.without_teacher().dataset.root
    assert folders == [root / f"maps_{name}" for name in ("near", "far", "oracle")]
    scale = teacher_maps.full_scale_m(folders[0], recipe.max_depth_m)
    exact = scenes.render(0, 1, 64, 128).depth
    expected = planted_teachers.planted(1, exact.astype(np.float64))
    files = {path: path.read_bytes() for folder in folders for path in folder.rglob("*.png")}
    assert len(files) == 2 * 5
    file = next(path.name for path in files if path.name.endswith("0000000001.png"))
    for folder, name in zip(folders, ("near", "far", "oracle"), strict=True):
        depth = read_teacher_map(folder / file).numpy() * scale / 65535
        assert depth.reshape(64, 128) == pytest.approx(expected[name][0], abs=scale / 65535)
    assert teacher_maps.sigma_full_scale_m(folders[1]) == recipe.max_depth_m
    assert teacher_maps.sigma_full_scale_m(folders[2]) is None
    planted_teachers.write(recipe)
    assert {path: path.read_bytes() for path in files} == files


def test_write_refuses_other_maps_and_other_data(recipe):
    """Maps of something else aren't replaced, and only rendered scenes have exact depth."""
    folder = planted_teachers.write(recipe)[1]
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"flip": True}))
    with pytest.raises(DataError, match="maps_far: holds other maps"):
        planted_teachers.write(recipe)
    node = recipe.node | {"data": {"name": "kitti", "root": "x"}}
    with pytest.raises(RecipeError, match="data.name: got 'kitti'; errors are planted in scenes"):
        planted_teachers.write(Recipe(node))
