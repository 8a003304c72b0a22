"""Bias and error by range: by hand, over pixels, and for dense and sparse ground truth alike."""

import math

import pytest
import torch

from tiekd.evaluation.range_errors import bounds_m, range_figures, range_sums


def maps(rows):
    return torch.tensor(rows, dtype=torch.float32)[:, None]


def figures(prediction, truth, cap=80.0, crop="none"):
    return range_figures(range_sums(maps(prediction), maps(truth), 1e-3, cap, crop), cap)


def test_bounds_m_are_quarter_half_and_cap():
    """The ranges end at a quarter, a half and the whole of the cap."""
    assert bounds_m(80.0) == [(0, 20), (20, 40), (40, 80)]
    assert bounds_m(10.0) == [(0, 2.5), (2.5, 5), (5, 10)]


def test_range_figures_by_hand():
    """Pixels, bias, abs_rel and rmse of each range equal values computed by hand."""
    truth = [[[10.0, 19.999, 20.0], [0.0, 40.0, 80.0]], [[10.0, 0.0, 0.0], [0.0, 0.0, 90.0]]]
    prediction = [[[11.0, 19.999, 16.0], [5.0, 50.0, 1.0]], [[7.0, 3.0, 3.0], [3.0, 3.0, 3.0]]]
    near, middle, far = figures(prediction, truth)
    assert (near.from_m, near.to_m, near.pixels) == (0, 20, 3)
    assert near.bias_m == pytest.approx((1 + 0 - 3) / 3)
    assert near.abs_rel == pytest.approx((0.1 + 0 + 0.3) / 3)
    assert near.rmse_m == pytest.approx(math.sqrt((1 + 0 + 9) / 3))
    # 20 m is middle, 40 m far; 80 m and beyond are over the cap, as in the nine metrics.
    assert middle == (20, 40, 1, pytest.approx(-4), pytest.approx(0.2), pytest.approx(4))
    assert far == (40, 80, 1, pytest.approx(10), pytest.approx(0.25), pytest.approx(10))


def test_range_figures_nan_without_pixels():
    """A range without pixels has NaN figures; a NaN prediction makes them infinite."""
    near, middle, far = figures([[[math.nan, 25.0]]], [[[10.0, 25.0]]])
    assert near.pixels == 1
    assert math.isinf(near.bias_m)
    assert math.isinf(near.abs_rel)
    assert math.isinf(near.rmse_m)
    assert middle == (20, 40, 1, 0, 0, 0)
    assert far.pixels == 0
    assert all(map(math.isnan, far[3:]))


def test_range_sums_agree_with_depth_metrics():
    """Summed over the ranges, pixels, abs_rel and rmse are those of `depth_metrics`."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 1, 40, 60, generator=generator) * 90
    truth[torch.rand(3, 1, 40, 60, generator=generator) < 0.7] = 0
    prediction = truth * 1.1 + 0.5
    sums = range_sums(prediction, truth, 1e-3, 50.0, "garg")
    from tiekd.evaluation.metrics import METRIC_NAMES, crop_box, depth_metrics

    rows, columns = crop_box("garg", 40, 60)
    inside = truth[:, 0, rows, columns]
    assert sums[..., 0].sum(1).tolist() == ((inside > 1e-3) & (inside < 50)).sum((1, 2)).tolist()
    # Put together over the ranges, the sums of an image are its metrics.
    by_metric = dict(
        zip(METRIC_NAMES, depth_metrics(prediction, truth, 1e-3, 50.0, "garg").T, strict=True)
    )
    count, _, relative, square = sums.sum(1).T
    torch.testing.assert_close(relative / count, by_metric["abs_rel"])
    torch.testing.assert_close((square / count).sqrt(), by_metric["rmse"])
    assert sums.dtype == torch.float64
