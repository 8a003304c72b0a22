import numpy as np
import pytest
import torch

from tiekd.kernels.target import bin_centres
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.visualization.distribution_charts import (
    choose_pixels,
    distribution_panel,
    pixel_distributions,
)


def street(height=40, width=120):
    """A ground from 40 m at the top to 4 m at the bottom, and a thing of 5 m in front of it."""
    depth = np.repeat(np.geomspace(40, 4, height)[:, None], width, axis=1).astype(np.float32)
    depth[6:20, 84:100] = 5.0
    return depth


def test_choose_pixels_near_middle_far_edge():
    """The chosen pixels are near, middle, far and at an edge, well apart and deterministic."""
    depth = street()
    chosen = {name: (row, column) for name, row, column in choose_pixels(depth, depth)}
    assert list(chosen) == ["near", "middle", "far", "edge"]
    near, middle, far = (float(depth[chosen[name]]) for name in ("near", "middle", "far"))
    assert near < 7 < middle < 20 < 25 < far
    row, column = chosen["edge"]
    around = depth[row - 2 : row + 3, column - 2 : column + 3]
    assert around.max() / around.min() > 5
    places = np.array(list(chosen.values()))
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(4)
    assert gaps.min() > 120 / 10
    assert choose_pixels(depth, depth) == choose_pixels(depth.copy(), depth.copy())


def test_choose_pixels_where_truth_is_known():
    """Pixels are chosen where ground truth and a target exist, or anywhere without truth."""
    truth, target = np.zeros((40, 120), np.float32), street()
    truth[30, 20], truth[10, 50], truth[20, 70] = 5.0, 20.0, 9.0
    assert {(row, column) for _, row, column in choose_pixels(truth, target)} == {
        (30, 20),
        (10, 50),
        (20, 70),
    }
    assert len(choose_pixels(0 * truth, target)) == 4  # of a frame without ground truth: anywhere
    assert choose_pixels(truth, 0 * target) == []


@pytest.mark.parametrize("stride", [1, 2])
def test_explain_distributions_of_pixel(stride):
    """Target and student distributions sum to 1 and have the means of the pixel's cell."""
    torch.manual_seed(0)
    head = Dpm(8, 1e-3, 80.0, stride=stride, options=DpmOptions(num_bins=160, sigma=1.0))
    torch.nn.init.normal_(head.weight)
    depth = street()
    features = torch.randn(1, 8, 40 // stride, 120 // stride)
    mean = head(features, (40, 120)).depth.detach()
    pixels = pixel_distributions(head, features, depth, depth)
    assert len(pixels) == 4
    for pixel in pixels:
        at = pixel.row // stride, pixel.column // stride
        assert (pixel.target.sum(), pixel.student.sum()) == (
            pytest.approx(1, abs=1e-4),
            pytest.approx(1, abs=1e-4),
        )
        assert float(pixel.student @ pixel.centres) == pytest.approx(
            float(mean[0, 0][at]), rel=1e-4
        )
        cell = depth[at[0] * stride :, at[1] * stride :][:stride, :stride]
        assert float(pixel.target @ pixel.centres) == pytest.approx(float(cell.mean()), rel=2e-3)
        assert pixel.truth == depth[pixel.row, pixel.column]
        assert np.allclose(pixel.centres, bin_centres(head.edges))


def test_explain_skips_nan_features():
    """A student with NaN features gets no explanation."""
    head, depth = Dpm(8, 1e-3, 80.0, options=DpmOptions(num_bins=160, sigma=1.0)), street()
    assert pixel_distributions(head, torch.full((1, 8, 40, 120), torch.nan), depth, depth) == []


def test_explanation_charts_and_marks_each_pixel():
    """The panel has a chart for each of the four pixels and marks them in every image."""
    head, depth = Dpm(8, 1e-3, 80.0, options=DpmOptions(num_bins=160, sigma=1.0)), street()
    pixels = pixel_distributions(head, torch.randn(1, 8, 40, 120), depth, depth)
    grey = np.full((40, 120, 3), 90, np.uint8)
    panel = distribution_panel({"image": grey, "student": grey}, pixels, "teacher")
    without = distribution_panel({"image": grey, "student": grey}, [], "teacher")
    assert panel.shape == without.shape
    assert panel.dtype == np.uint8
    left = (panel == 90).all(-1).any(0).nonzero()[0].max()  # where the images end
    changed = (panel != without).any(-1)
    marked = changed[:, :left].any(1).nonzero()[0]
    assert marked.min() < 150
    assert marked.max() > 200  # in both images
    charts = changed[:, left + 10 :]
    for part in (
        charts[40:240, :380],
        charts[40:240, 420:],
        charts[310:500, :380],
        charts[310:500, 420:],
    ):
        assert part.any()
    target, student = (
        (np.abs(panel.astype(int) - colour).sum(-1) < 40).sum()
        for colour in ((230, 159, 0), (86, 180, 233))
    )
    assert target > 800
    assert student > 800
