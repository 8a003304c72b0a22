import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.metrics import METRIC_NAMES, aggregate, crop_box, depth_metrics, is_better, metrics_table

GOLDEN = json.loads((Path(__file__).parent / "golden/metrics/manifest.json").read_text())
HIGHEST = {"kitti": 80.0, "nyu": 10.0}


def stream(tag):
    return np.random.RandomState(zlib.crc32(tag.encode()) & 0xFFFFFFFF)


def normal(tag, height, width):
    return stream(tag).standard_normal(height * width).reshape(height, width)


def golden_depth(tag, height, width, low, high):
    y, x = np.mgrid[:height, :width]
    t = 0.5 + 0.45 * np.sin(2 * np.pi * (1.5 * x / width + 0.5 * y / height)) * np.cos(2 * np.pi * 0.75 * y / height)
    t = np.clip(t + 0.03 * normal(tag, height, width), 0.01, 0.99)
    return low + (high - low) * t**2


def golden_case(name):
    """Prediction, ground truth and crop of a case, by the rule in the manifest (numbers of the published code)."""
    case, tag = GOLDEN["cases"][name], f"metric:{name}"
    high, scale = (80.0, 256) if case["which"] == "kitti" else (10.0, 1000)
    height, width = case["png_shape"]
    base = golden_depth(f"{tag}:gt", height, width, 1e-3, high * (1.2 if case["over"] else 0.9))
    png = np.clip(np.round(base * scale), 0, 65535).astype(np.uint16)
    png[stream(f"{tag}:sparse").random_sample((height, width)) >= case["keep"]] = 0
    if case["which"] == "kitti":
        top, left = height - 352, (width - 1216) // 2
        base, png = (a[top : top + 352, left : left + 1216] for a in (base, png))
    truth = png.astype(np.float32) / scale
    crop = "garg" if case["garg_crop"] else "eigen" if case["which"] == "kitti" else "nyu_eigen"
    if case["few"]:
        kept = np.zeros(truth.shape, bool)
        kept[crop_box(crop, *truth.shape)] = True
        kept &= (truth > 1e-3) & (truth < high)
        truth.flat[np.setdiff1d(np.arange(truth.size), np.flatnonzero(kept)[: case["few"]])] = 0
    prediction = (base * np.exp(0.15 * normal(f"{tag}:prednoise", *base.shape))).astype(np.float32)
    mode = case["pred_mode"]
    if mode == "clipped":
        prediction = np.clip(prediction, 1e-3, high)
    elif mode == "outside":
        draw = stream(f"{tag}:outside").random_sample(base.shape)
        prediction = np.where(draw < 0.05, 1e-5, np.where(draw > 0.95, 1.5 * high, prediction))
    else:
        prediction = np.where(truth > 0, truth * (1.3 if mode == "scaled" else 1.0), 1.0)
    return torch.from_numpy(prediction.astype(np.float32)), torch.from_numpy(truth), high, crop


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_metrics_equal_the_published_code(name):
    prediction, truth, high, crop = golden_case(name)
    case = GOLDEN["cases"][name]
    rows, columns = crop_box(crop, *truth.shape)
    assert ((truth > 1e-3) & (truth < high))[rows, columns].sum() == case["n_valid"]
    ours = dict(zip(METRIC_NAMES, depth_metrics(prediction, truth, 1e-3, high, crop)[0].tolist(), strict=True))
    for metric, value in case["result_core"].items():
        share = metric in ("a1", "a2", "a3")
        # The published float32 variance of a constant log ratio, or of one pixel, is rounding noise.
        noisy = metric == "silog" and (case["pred_mode"] in ("scaled", "equal") or case["few"])
        tolerance = {"abs": 1.01 / case["n_valid"]} if share else {"abs": 2e-2} if noisy else {"rel": 1e-5, "abs": 1e-9}
        assert ours[metric] == pytest.approx(value, **tolerance), metric


@pytest.mark.parametrize("name", GOLDEN["tiny"])
def test_tiny_cases_and_the_strict_threshold(name):
    case = GOLDEN["tiny"][name]
    rows = depth_metrics(torch.tensor([case["pred"]]), torch.tensor([case["gt"]]), 1e-3, 80.0, "none")
    for metric, value in zip(METRIC_NAMES, rows[0].tolist(), strict=True):
        assert value == pytest.approx(case["result"][metric], rel=1e-5)


@pytest.mark.parametrize("name", GOLDEN["eval_masks"])
def test_crops(name):
    data, crop, size = name.split("_")
    crop = "nyu_eigen" if (data, crop) == ("nyu", "eigen") else crop
    rows, columns = crop_box(crop, *map(int, size.split("x")))
    assert [rows.start, rows.stop, columns.start, columns.stop] == GOLDEN["eval_masks"][name]["bbox_y0y1x0x1"]


def test_the_ends_of_the_range_are_excluded():
    truth = torch.tensor([[0.5, 1.0, 80.0, 0.001]])
    rows = depth_metrics(torch.tensor([[9.0, 2.0, 9.0, 9.0]]), truth, 0.5, 80.0, "none")
    assert rows[0, METRIC_NAMES.index("abs_rel")] == 1.0


def test_an_image_without_valid_pixels_is_a_row_of_nan_that_the_mean_leaves_out():
    truth = torch.full((2, 1, 4, 5), 2.0)
    truth[1] = 0
    rows = depth_metrics(torch.full((2, 1, 4, 5), 3.0), truth, 1e-3, 80.0, "none")
    assert rows.shape == (2, 9) and rows.dtype == torch.float64
    assert rows[1].isnan().all() and not rows[0].isnan().any()
    assert aggregate(rows)["abs_rel"] == 0.5
    assert all(math.isnan(value) for value in aggregate(rows[1:]).values())
    assert all(math.isnan(value) for value in aggregate(rows[:0]).values())


@pytest.mark.parametrize("value", [math.nan, 0.0, -1.0, math.inf])
def test_a_broken_prediction_cannot_vanish_from_the_mean(value):
    prediction = torch.full((2, 1, 2, 2), 2.0)
    prediction[0, 0, 0, 0] = value
    means = aggregate(depth_metrics(prediction, torch.full((2, 1, 2, 2), 2.0), 1e-3, 80.0, "none"))
    assert means["a1"] == 7 / 8
    assert all(means[name] == math.inf for name in METRIC_NAMES[3:])


def test_a_broken_prediction_outside_the_valid_pixels_does_not_matter():
    prediction, truth = torch.tensor([[math.nan, 2.0]]), torch.tensor([[0.0, 2.0]])
    assert depth_metrics(prediction, truth, 1e-3, 80.0, "none").tolist() == [[1.0] * 3 + [0.0] * 6]


def test_a_constant_ratio_has_no_silog_although_its_variance_rounds_below_0():
    truth = torch.full((1, 9), 3.0)
    rows = depth_metrics(truth * 1.7, truth, 1e-3, 80.0, "none")
    assert rows[0, METRIC_NAMES.index("silog")] == 0


def test_each_image_counts_alike_whatever_its_number_of_pixels():
    truth = torch.full((2, 1, 1, 4), 1.0)
    truth[1, ..., 1:] = 0
    prediction = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 1, 4)
    assert aggregate(depth_metrics(prediction, truth, 1e-3, 80.0, "none"))["abs_rel"] == 0.5


def test_is_better():
    assert is_better("abs_rel", 0.1, 0.2) and not is_better("abs_rel", 0.2, 0.2)
    assert is_better("a1", 0.9, 0.8) and not is_better("a1", 0.8, 0.9)
    assert is_better("rmse", 9.0, None) and is_better("rmse", 9.0, math.nan)
    assert not is_better("rmse", math.nan, None) and not is_better("a1", math.nan, 0.1)
    with pytest.raises(RecipeError, match=r"no metric 'abs_re'; did you mean 'abs_rel'\? allowed: a1, "):
        is_better("abs_re", 1.0, None)


def test_errors_say_what_is_allowed():
    with pytest.raises(RecipeError, match="got 'kb'; it must be one of: none, garg, eigen, nyu_eigen"):
        depth_metrics(torch.ones(2, 2), torch.ones(2, 2), 1e-3, 80.0, "kb")
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 3\)"):
        depth_metrics(torch.ones(2, 2), torch.ones(2, 3), 1e-3, 80.0, "none")


def test_the_table_looks_as_it_does_in_the_field():
    for data, expected in GOLDEN["summary_table"].items():
        means = GOLDEN["aggregate"][data]
        shown = means if data == "kitti" else {name: means[name] for name in METRIC_NAMES}
        assert "\n" + metrics_table(shown) == expected
