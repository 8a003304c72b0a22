"""The working resolution: who sets it, the size that networks see, and maps there and back."""

from pathlib import Path

import pytest
import torch

from tiekd.config.recipe import load_recipe
from tiekd.data.resize import (
    BAND_PIXELS,
    OWN_SIZE,
    Resize,
    at_own_size,
    bands,
    dense_weights,
    frame_size,
    network_input,
    of_data,
    of_node,
    open_weights,
    parse_size,
    resize_of,
    resized_by_products,
    resized_image,
    resized_map,
)
from tiekd.errors import RecipeError

ROOT = Path(__file__).parents[3]
KITTI = Resize(at_most=(352, 1216))
FIT = Resize(height=480, width=640, mode="fit")


@pytest.mark.parametrize(
    ("own", "resize", "expected"),
    [
        ((375, 1242), KITTI, (375, 1242)),  # a little larger than the recipe's window: as evaluated
        ((3000, 4000), KITTI, (567, 755)),
        ((20, 30), KITTI, (20, 30)),
        ((3000, 4000), OWN_SIZE, (3000, 4000)),
        ((3000, 4000), FIT, (480, 640)),
        ((3000, 1000), FIT, (480, 160)),
        ((24, 32), FIT, (480, 640)),  # HxW scales up, too
        ((1, 10_000), FIT, (1, 640)),
        ((375, 1242), Resize(192, 640, "stretch"), (192, 640)),
        ((375, 1242), Resize(192, 640, "cover"), (193, 640)),
        ((600, 300), Resize(192, 640, "cover"), (1280, 640)),
        ((375, 1242), Resize(192, 640, "contain"), (192, 640)),
        ((4000, 3000), Resize(short_side=192), (256, 192)),
        ((37, 50), Resize(scale=0.5), (18, 25)),
        ((3, 5), Resize(scale=0.01), (1, 1)),
    ],
)
def test_network_input_has_canvas_size(own, resize, expected):
    """The network's input has the canvas size of the resize."""
    assert resize.placement_of(*own).canvas == expected
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, *own)
    assert network_input(pixels, resize).shape == (1, 3, *expected)


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("students/tiekd_light_bts_kitti", (352, 1216)),
        ("students/tiekd_mobilenet_v2_adabins_nyu", (480, 640)),
        ("demo", (96, 320)),
    ],
)
def test_of_data_fixed_size_recipe_limits_images(recipe, size):
    """A recipe with frames of one size limits larger images to that size."""
    data = load_recipe(f"{ROOT}/model_configs/{recipe}.yaml")["data"]
    assert frame_size(data) == size
    assert of_data(data) == Resize(at_most=size)


def test_of_data_other_recipe_keeps_own_size():
    """A recipe without a fixed frame size leaves images at their own size."""
    assert of_data({}) == OWN_SIZE
    assert of_data({"name": "folder", "augment": {"crop": [352, 704]}}) == OWN_SIZE


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"kb_crop": 5}, "data.kb_crop"),
        ({"kb_crop": [352, 0]}, "data.kb_crop"),
        ({"name": "scenes", "height": "a", "width": 5}, "data.height, data.width"),
        ({"augment": {"crop": [352, 704, 3], "sizes": "keep_aspect"}}, "data.augment.crop"),
        ({"augment": 3}, "data.augment"),
        ({"resize": 5}, "data.resize"),
        ({"resize": {"height": 5, "width": 7}}, "data.resize"),
        ({"resize": {"short_side": 0}}, "data.resize.short_side"),
        ({"resize": {"scale": float("nan")}}, "data.resize.scale"),
    ],
)
def test_of_data_refuses_wrong_size(data, key):
    """A wrong size in the recipe's data raises a `RecipeError` that names the key."""
    with pytest.raises(RecipeError, match=f"^{key}: got .*must "):
        of_data(data)


def test_resize_of_prefers_override_then_weights():
    """An override precedes the resize in the weights file, and that the recipe's."""
    ours, recipe = {"short_side": 64}, {"data": {"name": "nyu", "resize": {"scale": 0.5}}}
    as_recipe = {"data": {"name": "nyu"}}
    # Without data.resize, the crop of these sets would determine the size.
    crop = {"augment": {"crop": [32, 64], "sizes": "keep_aspect"}}
    sets = {"data": [{"name": "nyu", **crop}, {"name": "b"}]}
    resized = {"data": [{"name": "nyu"}, {"name": "b", "resize": {"scale": 0.5}}]}
    for state, given, overrides, expected in (
        ({"resize": ours}, recipe, [], Resize(short_side=64)),
        ({"resize": ours}, None, [], Resize(short_side=64)),
        ({"resize": {}}, recipe, [], OWN_SIZE),
        ({"resize": {"at_most": (480, 640)}}, None, [], Resize(at_most=(480, 640))),
        ({}, recipe, [], Resize(scale=0.5)),
        ({}, as_recipe, [], Resize(at_most=(480, 640))),
        ({}, {}, [], OWN_SIZE),
        ({}, None, [], OWN_SIZE),
        ({"resize": ours}, recipe, ["data.resize={scale: 0.5}"], Resize(scale=0.5)),
        ({"resize": ours}, recipe, ["data.resize.scale=0.5", "data.root=x"], Resize(scale=0.5)),
        ({"resize": ours}, recipe, ["data={resize: {scale: 0.5}}"], Resize(scale=0.5)),
        ({"resize": ours}, recipe, ["data.root=resize", "data.resized=1"], Resize(short_side=64)),
        ({"resize": ours}, recipe, ["data={root: /x/resize}"], Resize(short_side=64)),
        ({"resize": ours}, as_recipe, ["data.resize=null"], OWN_SIZE),
        ({"resize": ours}, sets, ["data.workers=1"], Resize(short_side=64)),
        ({"resize": ours}, sets, ["data.b.root=resize"], Resize(short_side=64)),
        ({"resize": ours}, sets | resized, ["data.resize={scale: 0.5}"], Resize(scale=0.5)),
        ({"resize": ours}, sets | resized, ["data.b.resize={scale: 0.5}"], Resize(scale=0.5)),
        ({"resize": ours}, sets | resized, ["data.1={resize: {scale: 0.5}}"], Resize(scale=0.5)),
        ({"resize": ours}, resized, ["data=[{name: b, resize: {scale: 0.5}}]"], Resize(scale=0.5)),
        ({"resize": ours}, sets, ["data.resize=null"], OWN_SIZE),
    ):
        assert resize_of(state, given, overrides) == expected, (state, given, overrides)


def test_resize_node_round_trip():
    """A resize is rebuilt from its node."""
    for resize in (
        OWN_SIZE,
        KITTI,
        FIT,
        Resize(short_side=7),
        Resize(scale=0.3),
        Resize(4, 6, "contain"),
    ):
        assert of_node(resize.node()) == resize


def test_parse_size_accepts_and_refuses():
    """`parse_size` reads `full` and HEIGHTxWIDTH and refuses everything else."""
    assert parse_size(None) is None
    assert parse_size("full") == OWN_SIZE
    assert parse_size("352x1216") == Resize(height=352, width=1216, mode="fit")
    for text in ("352", "0x10", "352x", "half", "-1x5", "20000x10", "1e3x5"):
        with pytest.raises(RecipeError, match="--size: got .*allowed: HEIGHTxWIDTH"):
            parse_size(text)


def test_resized_picture_averages_covered_pixels():
    """Shrinking an image averages over the pixels that an output pixel covers."""
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 200
    small = resized_image(stripes, (8, 8))
    assert small.dtype == torch.uint8
    assert (small.int() - 100).abs().max() <= 5


@pytest.mark.parametrize("size", [(20, 31), (61, 50), (150, 220), (1, 1), (61, 97), (3, 400)])
def test_resized_by_products_equals_resized_picture(size):
    """Matrix products give the grey levels of `resized_image` exactly."""
    pixels = torch.randint(
        0, 256, (2, 3, 61, 97), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for weights in (dense_weights, bands):
        found = resized_by_products(pixels.float(), weights(61, size[0]), weights(97, size[1]))
        assert torch.equal(found, resized_image(pixels, size).float())


def test_bands_of_large_image_have_few_weights():
    """The bands hold a small part of the matrix: the products cost as much less."""
    for old, new in ((3000, 192), (4000, 640), (375, 192)):
        found = bands(old, new)
        assert sum(len(band.weights) for band in found) == new
        share = sum(band.weights.numel() for band in found) / (old * new)
        assert share < 1.3 * BAND_PIXELS / new


def test_open_weights_equal_dense_weights():
    """`open_weights` and `dense_weights` are equal for every pair of sizes."""
    for old in (2, 3, 7, 60, 97, 375, 1242, 4032):
        for new in (1, 2, 5, 37, 192, 640):
            assert torch.equal(open_weights(old, new), dense_weights(old, new)), (old, new)


def test_resized_map_sharp_keeps_edge_depths():
    """Only the smooth map has depths between the two sides of an edge."""
    edge = torch.tensor([5.0, 5.0, 40.0, 40.0]).expand(1, 1, 3, 4)
    smooth, sharp = resized_map(edge, (7, 11), True), resized_map(edge, (7, 11), False)
    assert smooth.shape == sharp.shape == (1, 1, 7, 11)
    assert ((smooth > 6) & (smooth < 39)).any()
    assert (
        sharp[0, 0, 0].tolist() == [5.0] * 5 + [40.0] * 6
    )  # the middle one's centre lies on the border


def test_restored_removes_padding():
    """`at_own_size` removes the padding of a contained image."""
    pixels = torch.full((1, 3, 30, 60), 200, dtype=torch.uint8)
    contain = Resize(32, 32, "contain")
    seen = network_input(pixels, contain)
    assert seen.shape == (1, 3, 32, 32)
    assert (seen[:, :, 8:24] == 200).all()
    assert (seen[:, :, :8] == 0).all()
    assert (seen[:, :, 24:] == 0).all()
    for smooth in (True, False):
        back = at_own_size(seen[:, :1].float(), contain, (30, 60), smooth)
        assert back.shape == (1, 1, 30, 60)
        assert (back - 200).abs().max() < 1e-4
