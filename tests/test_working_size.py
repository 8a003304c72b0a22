"""Sizes at which networks see pictures: aspect kept, large ones shrunk, recipes' own sizes, and no depth made up."""

from pathlib import Path

import pytest
import torch

from tiekd.config import load_recipe
from tiekd.errors import RecipeError
from tiekd.working_size import on_image_grid, parse, recipe_size, resized_map, resized_picture, working_size

ROOT = Path(__file__).parents[1]
KITTI = float(352 * 1216)


@pytest.mark.parametrize(
    ("own", "limit", "expected"),
    [
        ((375, 1242), KITTI, (375, 1242)),  # a little larger than the recipe's window: as evaluated
        ((3000, 4000), KITTI, (567, 755)),
        ((20, 30), KITTI, (20, 30)),
        ((3000, 4000), None, (3000, 4000)),
        ((3000, 4000), (480, 640), (480, 640)),
        ((3000, 1000), (480, 640), (480, 160)),
        ((24, 32), (480, 640), (480, 640)),  # HxW scales up, too
        ((1, 10_000), (480, 640), (1, 640)),
    ],
)
def test_the_network_sees_a_size_near_the_pictures_aspect(own, limit, expected):
    assert working_size(*own, limit) == expected


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("students/tiekd_light_bts_kitti", (352, 1216)),
        ("students/tiekd_mobilenet_v2_adabins_nyu", (480, 640)),
        ("demo", (96, 320)),
    ],
)
def test_a_recipe_says_the_size_that_it_is_evaluated_on(recipe, size):
    assert recipe_size(load_recipe(f"{ROOT}/model_configs/{recipe}.yaml")["data"]) == size


def test_a_recipe_without_data_or_with_a_folder_has_a_size_too():
    assert recipe_size({}) == (480, 640)
    assert recipe_size({"name": "folder", "augment": {"crop": [352, 704]}}) == (352, 704)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"kb_crop": 5}, "data.kb_crop"),
        ({"kb_crop": [352, 0]}, "data.kb_crop"),
        ({"height": "a", "width": 5}, "data.height, data.width"),
        ({"augment": {"crop": [352, 704, 3]}}, "data.augment.crop"),
        ({"augment": 3}, "data.augment"),
    ],
)
def test_a_recipe_that_says_no_size_where_it_should_is_told(data, key):
    with pytest.raises(RecipeError, match=f"^{key}: got .*must be"):
        recipe_size(data)


def test_the_option_is_read_and_a_wrong_one_refused():
    assert parse(None, (2, 3)) == 6.0 and parse("full", (2, 3)) is None and parse("352x1216", (2, 3)) == (352, 1216)
    for text in ("352", "0x10", "352x", "half", "-1x5"):
        with pytest.raises(RecipeError, match="--size: got .*allowed: HEIGHTxWIDTH"):
            parse(text, (2, 3))


def test_shrinking_a_picture_averages_over_what_a_pixel_covers():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 200
    small = resized_picture(stripes, (8, 8))
    assert small.dtype == torch.uint8 and (small.int() - 100).abs().max() <= 5


def test_only_smooth_maps_get_depths_between_the_two_sides_of_an_edge():
    edge = torch.tensor([5.0, 5.0, 40.0, 40.0]).expand(1, 1, 3, 4)
    for resize in (resized_map, on_image_grid):
        smooth, sharp = resize(edge, (7, 11), True), resize(edge, (7, 11), False)
        assert smooth.shape == sharp.shape == (1, 1, 7, 11)
        assert ((smooth > 6) & (smooth < 39)).any()
        assert set(sharp.unique().tolist()) == {5.0, 40.0}
        assert sharp[0, 0, 0, 0] == 5 and sharp[0, 0, -1, -1] == 40
