import numpy as np
import pytest

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.visualization.pictures import (
    UNKNOWN,
    colourise,
    denormalise,
    dilate,
    entropy_map,
    error_map,
    panel,
    sheet,
)


def test_colourise_depends_on_depth_only():
    """A colour depends on depth alone: near is warm, far is cold, and beyond the range clipped."""
    few = colourise(np.array([[5.0, 80.0]], np.float32), 80.0)
    many = colourise(np.array([[1.0, 5.0, 20.0, 80.0, 200.0]], np.float32), 80.0)
    assert few.dtype == np.uint8
    assert few.shape == (1, 2, 3)
    assert (many[0, 1] == few[0, 0]).all()
    assert (many[0, 3] == few[0, 1]).all()
    assert (many[0, 4] == many[0, 3]).all()
    red, _, blue = many[0].astype(int).T
    assert red[0] > blue[0] + 100
    assert blue[3] > red[3] + 50


def test_colourise_unknown_is_grey():
    """Zero, negative and nonfinite depths are grey."""
    depth = np.array([[0.0, -1.0, np.nan, np.inf, 3.0]], np.float32)
    assert (colourise(depth, 10.0)[0] == UNKNOWN).all(axis=-1).tolist() == [
        True,
        True,
        True,
        True,
        False,
    ]


def test_colourise_separates_ten_percent():
    """Depths that differ by a tenth have visibly different colours."""
    depth = np.geomspace(1, 80, 47)[None]
    steps = np.abs(np.diff(colourise(depth, 80.0)[0].astype(int), axis=0)).sum(1)
    assert steps.min() >= 4


def test_error_map_dark_to_bright_and_grey():
    """Errors run from dark to bright and saturate, and pixels without a target are grey."""
    prediction = np.array([[5.0, 5.0, 5.0, np.nan, 99.0]], np.float32)
    target = np.array([[5.0, 9.0, 0.0, 5.0, 5.0]], np.float32)
    colours = error_map(prediction, target, 8.0)[0].astype(int)
    assert colours[0].sum() < 10
    assert (colours[2] == UNKNOWN).all()
    assert colours[0].sum() < colours[1].sum() < colours[4].sum()
    assert (colours[3] == colours[4]).all()


def test_error_map_dilation_keeps_larger_error():
    """Dilated errors cover their neighbourhood, and the larger error wins an overlap."""
    target = np.zeros((5, 7), np.float32)
    target[2, 2] = target[2, 4] = 10.0
    prediction = np.full((5, 7), 10.0, np.float32)
    prediction[2, 4] = 18.0
    colours = error_map(prediction, target, 8.0, radius=1)
    known = (colours != UNKNOWN).any(-1)
    assert known[1:4, 1:6].all()
    assert known.sum() == 15
    assert (colours[2, 3] == colours[2, 5]).all()
    assert (colours[2, 3] != colours[2, 1]).any()


def test_dilate_keeps_nearer_point():
    """Dilation grows valid points only, and the nearer one wins an overlap."""
    sparse = np.zeros((9, 12), np.float32)
    sparse[4, 3], sparse[4, 6], sparse[0, 11] = 20.0, 10.0, 5.0
    sparse[8, 0] = np.nan
    grown = dilate(sparse, 2)
    assert grown.dtype == np.float32
    assert (grown[2:7, 1:4] == 20).all()
    assert (grown[2:7, 4:9] == 10).all()
    assert (grown[:3, 9:] == 5).all()
    assert (grown > 0).sum() == 15 + 25 + 9
    assert (dilate(np.zeros((4, 4), np.float32)) == 0).all()


def test_denormalise_inverts_normalisation():
    """Denormalising recovers the uint8 pixels and clips values out of range."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    normalised = (
        ((pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD))
        .transpose(2, 0, 1)
        .astype(np.float32)
    )
    assert (denormalise(normalised) == pixels).all()
    assert denormalise(np.full((3, 1, 1), 99.0, np.float32)).tolist() == [[[255, 255, 255]]]


def test_panel_places_images_and_scales():
    """The panel shows each image at its place, titles above and scales beside."""
    colours = [
        [(250, 0, 0), (0, 250, 0)],
        [(0, 0, 250), (250, 250, 0)],
        [(0, 250, 250), (250, 0, 250)],
    ]
    rows = [[np.full((30, 60, 3), colour, np.uint8) for colour in row] for row in colours]
    image = panel(rows, ["image", "depth"], 80.0, cell_width=120)
    both = panel(rows, ["image", "depth"], 80.0, 8.0, cell_width=120)
    assert image.dtype == np.uint8
    assert both.shape[0] == image.shape[0]
    assert both.shape[1] > image.shape[1]
    for row in range(3):
        for column in range(2):
            place = np.argwhere((image == colours[row][column]).all(-1))
            assert len(place) == 60 * 120
            assert place.min(0).tolist() == [38 + row * 66, 14 + column * 126]
    # The scale runs from the colour of the far end at the top to that of 0 at the bottom.
    bar = image[38:, 14 + 246 + 20]
    assert (bar[0] == colourise(np.array([[80.0]]), 80.0)[0, 0]).all()
    assert (bar[3 * 66 - 7] == colourise(np.array([[1e-9]]), 80.0)[0, 0]).all()
    assert image[14:36, 14:260].max() > 200
    assert (image[14:36, 14:260] > 200).any(axis=(0, 2)).sum() > 20


def test_panel_rejects_wrong_title_count():
    """A number of titles unlike the number of columns raises a ValueError."""
    with pytest.raises(ValueError, match=r"rows of \[2\] images need as many titles, got 1"):
        panel([[np.zeros((2, 2, 3), np.uint8)] * 2], ["one"], 80.0)


def test_panel_rows_keep_aspect():
    """Rows of images with different heights keep their aspect ratios."""
    rows = [[np.full((height, 60, 3), 200, np.uint8)] for height in (30, 45)]
    image = panel(rows, ["image"], 80.0, cell_width=120)
    assert (image[:, 70] == 200).all(-1).nonzero()[0].tolist() == [
        *range(38, 98),
        *range(104, 194),
    ]


def test_sheet_titles_and_equal_cells():
    """Each cell has a title above it, and smaller maps are enlarged to the same size."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    cells = {str(i): np.full((30, 60, 3), colour, np.uint8) for i, colour in enumerate(colours)}
    cells["4"] = cells["4"][::2, ::2]
    image = sheet(cells, 80.0, 8.0, 5.5, cell_width=120)
    for i, colour in enumerate(colours):
        line, column = divmod(i, 2)
        place = np.argwhere((image == colour).all(-1))
        assert len(place) == 60 * 120
        assert place.min(0).tolist() == [
            38 + line * 90,
            14 + column * 126,
        ]
        title = image[14 + line * 90 : 36 + line * 90, 14 + column * 126 :][:, :120]
        assert (title.max(-1) > 200).any()
    assert image.shape[1] == 2 * 14 + 246 + 3 * 74
    upright = sheet(
        {name: cell.transpose(1, 0, 2) for name, cell in cells.items()}, 80.0, cell_width=120
    )
    assert upright.shape[1] == 2 * 14 + 3 * 126 - 6 + 74


def test_entropy_map_light_with_entropy():
    """Colours get lighter with entropy and saturate, and nonfinite values are grey."""
    colours = entropy_map(np.array([[0.0, 1.0, 3.0, 5.5, 9.0, np.nan]]), 5.5)[0].astype(int)
    assert (np.diff(colours[:4].sum(1)) > 100).all()
    assert (colours[3] == colours[4]).all()
    assert (colours[5] == UNKNOWN).all()
