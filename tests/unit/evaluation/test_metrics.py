"""The nine metrics equal the published code's, case by case and averaged.

An image without a valid pixel, or with one, changes its own figures only.
"""

import hashlib
import math
from functools import cache

import numpy as np
import pytest
import torch
from support import golden

from tiekd.errors import RecipeError
from tiekd.evaluation import metrics
from tiekd.evaluation.metrics import (
    METRIC_NAMES,
    aggregate,
    crop_box,
    depth_metrics,
    is_better,
    metrics_table,
)

GOLDEN = golden.load_json("metrics/manifest.json")
TEACHER_ROWS = {
    "kitti": slice(110, None),
    "nyu": slice(None),
}  # the published code leaves KITTI's upper rows out


@cache
def golden_case(name):
    """Returns a case's prediction, ground truth, teacher's map (H, W), range and crop.

    They are made by the rule in the manifest.
    """
    case, tag = (GOLDEN["cases"] | GOLDEN["aggregate_only"])[name], f"metric:{name}"
    high, scale = (80.0, 256) if case["which"] == "kitti" else (10.0, 1000)
    height, width = case["png_shape"]
    base = golden.depth(
        f"{tag}:gt", (1, 1, height, width), 1e-3, high * (1.2 if case["over"] else 0.9)
    )
    base = base[0, 0].double().numpy()
    png = np.clip(np.round(base * scale), 0, 65535).astype(np.uint16)
    png[golden.rs(f"{tag}:sparse").random_sample((height, width)) >= case["keep"]] = 0
    if case["which"] == "kitti":
        top, left = height - 352, (width - 1216) // 2
        base, png = (a[top : top + 352, left : left + 1216] for a in (base, png))
    truth = png.astype(np.float32) / np.float32(scale)
    crop = "garg" if case["garg_crop"] else "eigen" if case["which"] == "kitti" else "nyu_eigen"
    if case["few"]:
        kept = np.flatnonzero(mask(truth, high, crop))[: case["few"]]
        truth.flat[np.setdiff1d(np.arange(truth.size), kept)] = 0
    prediction = (base * np.exp(0.15 * golden.normal(f"{tag}:prednoise", base.shape))).astype(
        np.float32
    )
    mode = case["pred_mode"]
    if mode == "clipped":
        prediction = np.clip(prediction, 1e-3, high)
    elif mode == "outside":
        draw = golden.rs(f"{tag}:outside").random_sample(base.shape)
        prediction = np.where(draw < 0.05, 1e-5, np.where(draw > 0.95, 1.5 * high, prediction))
    else:
        prediction = np.where(
            truth > 0, truth.astype(float) * (1.3 if mode == "scaled" else 1.0), 1.0
        )
    teacher = np.clip(base * np.exp(0.1 * golden.normal(f"{tag}:kdnoise", base.shape)), 1e-3, high)
    maps = (torch.from_numpy(array.astype(np.float32)) for array in (prediction, truth, teacher))
    return *maps, high, crop


def mask(truth, high, crop):
    inside = np.zeros(truth.shape, bool)
    inside[crop_box(crop, *truth.shape)] = True
    return inside & (truth > 1e-3) & (truth < high)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_depth_metrics_equal_published_code(name):
    """The nine metrics of each golden case equal the published code's."""
    prediction, truth, _, high, crop = golden_case(name)
    case = GOLDEN["cases"][name]
    assert sha256(prediction.numpy()) == case["pred_sha"]
    assert sha256(truth.numpy()) == case["gt_sha"]
    counted = mask(truth.numpy(), high, crop)
    assert sha256(counted) == case["mask_sha"]
    assert counted.sum() == case["n_valid"]
    ours = dict(
        zip(
            METRIC_NAMES,
            depth_metrics(prediction, truth, 1e-3, high, crop)[0].tolist(),
            strict=True,
        )
    )
    for metric, value in case["result_core"].items():
        share = metric in ("a1", "a2", "a3")
        # The published float32 variance of a constant log ratio, or of one pixel, is rounding
        # noise.
        noisy = metric == "silog" and (case["pred_mode"] in ("scaled", "equal") or case["few"])
        tolerance = (
            {"abs": 1.01 / case["n_valid"]}
            if share
            else {"abs": 2e-2}
            if noisy
            else {"rel": 1e-5, "abs": 1e-9}
        )
        assert ours[metric] == pytest.approx(value, **tolerance), metric


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_depth_metrics_against_teacher_map(name):
    """The metrics against a teacher's map equal the published code's."""
    prediction, _, teacher, high, _ = golden_case(name)
    case = GOLDEN["cases"][name]
    maps = {"teacher": teacher, "teacher_as_png": (teacher / high * 65535).round() / 65535 * high}
    for kind in maps.keys() & case.keys():
        rows = TEACHER_ROWS[case["which"]]
        found = depth_metrics(prediction[rows], maps[kind][rows], 0.0, math.inf, "none")[0].tolist()
        ours = dict(zip(METRIC_NAMES, found, strict=True))
        for metric, value in case[kind].items():
            assert ours[metric] == pytest.approx(value, rel=1e-5, abs=1.01 / prediction.numel()), (
                kind,
                metric,
            )


@pytest.mark.parametrize("data", ["kitti", "nyu"])
def test_aggregate_equals_published_means(data):
    """The means over all images of a dataset equal the published code's."""
    rows = []
    for name in GOLDEN["aggregate_order"][data]:
        prediction, truth, _, high, crop = golden_case(name)
        rows.append(depth_metrics(prediction, truth, 1e-3, high, crop))
    means = aggregate(torch.cat(rows))
    assert means == pytest.approx(
        {name: GOLDEN["aggregate"][data][name] for name in METRIC_NAMES}, rel=3e-5
    )


@pytest.mark.parametrize("name", GOLDEN["tiny"])
def test_depth_metrics_tiny_cases(name):
    """Tiny cases, with ratios exactly at a threshold, give the published metrics."""
    case = GOLDEN["tiny"][name]
    rows = depth_metrics(
        torch.tensor([case["pred"]]), torch.tensor([case["gt"]]), 1e-3, 80.0, "none"
    )
    for metric, value in zip(METRIC_NAMES, rows[0].tolist(), strict=True):
        assert value == pytest.approx(case["result"][metric], rel=1e-5)


@pytest.mark.parametrize("name", GOLDEN["eval_masks"])
def test_crop_box_equals_published_masks(name):
    """The box of each crop equals the published evaluation mask."""
    data, crop, size = name.split("_")
    crop = "nyu_eigen" if (data, crop) == ("nyu", "eigen") else crop
    rows, columns = crop_box(crop, *map(int, size.split("x")))
    assert [rows.start, rows.stop, columns.start, columns.stop] == GOLDEN["eval_masks"][name][
        "bbox_y0y1x0x1"
    ]


def test_depth_metrics_exclude_range_ends():
    """Ground truth equal to min_depth or to the cap is not scored."""
    truth = torch.tensor([[0.5, 1.0, 80.0, 0.001]])
    rows = depth_metrics(torch.tensor([[9.0, 2.0, 9.0, 9.0]]), truth, 0.5, 80.0, "none")
    assert rows[0, METRIC_NAMES.index("abs_rel")] == 1.0


def test_aggregate_skips_images_without_valid_pixels():
    """An image without valid pixels is a row of NaN, which `aggregate` skips."""
    truth = torch.full((2, 1, 4, 5), 2.0)
    truth[1] = 0
    rows = depth_metrics(torch.full((2, 1, 4, 5), 3.0), truth, 1e-3, 80.0, "none")
    assert rows.shape == (2, 9)
    assert rows.dtype == torch.float64
    assert rows[1].isnan().all()
    assert not rows[0].isnan().any()
    assert aggregate(rows)["abs_rel"] == 0.5
    assert all(math.isnan(value) for value in aggregate(rows[1:]).values())
    assert all(math.isnan(value) for value in aggregate(rows[:0]).values())


@pytest.mark.parametrize("value", [math.nan, 0.0, -1.0, math.inf])
def test_depth_metrics_invalid_prediction_is_inf(value):
    """A valid pixel predicted as NaN, 0, negative or inf makes the error means inf."""
    prediction = torch.full((2, 1, 2, 2), 2.0)
    prediction[0, 0, 0, 0] = value
    means = aggregate(depth_metrics(prediction, torch.full((2, 1, 2, 2), 2.0), 1e-3, 80.0, "none"))
    assert means["a1"] == 7 / 8
    assert all(means[name] == math.inf for name in METRIC_NAMES[3:])


def test_depth_metrics_ignore_prediction_at_invalid():
    """A NaN prediction at a pixel without ground truth changes nothing."""
    prediction, truth = torch.tensor([[math.nan, 2.0]]), torch.tensor([[0.0, 2.0]])
    assert depth_metrics(prediction, truth, 1e-3, 80.0, "none").tolist() == [[1.0] * 3 + [0.0] * 6]


def test_depth_metrics_constant_ratio_silog_is_0():
    """A constant ratio has silog 0, though its variance rounds below 0."""
    truth = torch.full((1, 9), 3.0)
    rows = depth_metrics(truth * 1.7, truth, 1e-3, 80.0, "none")
    assert rows[0, METRIC_NAMES.index("silog")] == 0


def test_aggregate_weighs_images_equally():
    """Each image has the same weight, whatever its number of valid pixels."""
    truth = torch.full((2, 1, 1, 4), 1.0)
    truth[1, ..., 1:] = 0
    prediction = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 1, 1, 4)
    assert aggregate(depth_metrics(prediction, truth, 1e-3, 80.0, "none"))["abs_rel"] == 0.5


def test_is_better_direction_and_nan():
    """`is_better` knows each metric's direction, and NaN is never better."""
    assert is_better("abs_rel", 0.1, 0.2)
    assert not is_better("abs_rel", 0.2, 0.2)
    assert is_better("a1", 0.9, 0.8)
    assert not is_better("a1", 0.8, 0.9)
    assert is_better("rmse", 9.0, None)
    assert is_better("rmse", 9.0, math.nan)
    assert not is_better("rmse", math.nan, None)
    assert not is_better("a1", math.nan, 0.1)
    with pytest.raises(
        RecipeError, match=r"no metric 'abs_re'; did you mean 'abs_rel'\? allowed: a1, "
    ):
        is_better("abs_re", 1.0, None)


def test_depth_metrics_rejects_bad_crop_or_shapes():
    """An unknown crop, or maps of different shapes, raise an error that names them."""
    with pytest.raises(
        RecipeError, match="got 'kb'; it must be one of: none, garg, eigen, nyu_eigen"
    ):
        depth_metrics(torch.ones(2, 2), torch.ones(2, 2), 1e-3, 80.0, "kb")
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 3\)"):
        depth_metrics(torch.ones(2, 2), torch.ones(2, 3), 1e-3, 80.0, "none")


def test_metrics_table_equals_published_layout():
    """The table of metrics equals the published code's text."""
    for data, expected in GOLDEN["summary_table"].items():
        means = GOLDEN["aggregate"][data]
        shown = means if data == "kitti" else {name: means[name] for name in METRIC_NAMES}
        assert "\n" + metrics_table(shown) == expected


def test_sums_without_sync_read_no_value(monkeypatch):
    """The sums for other devices than CPUs are computed without reading a value back.

    The metrics as on other devices than CPUs. Everything that would ask the device for a number
    is forbidden.
    """
    prediction, truth = torch.rand(2, 3, 50, dtype=torch.float64) + 0.5

    def wait(*_):
        raise AssertionError("a number was asked for")

    with monkeypatch.context() as forbidden:
        for name in (
            "item",
            "tolist",
            "cpu",
            "numpy",
            "nonzero",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
        ):
            forbidden.setattr(torch.Tensor, name, wait)
        rows = metrics._from_sums(*metrics._sums_without_sync(prediction, truth, 1e-3, 80.0))
    expected = depth_metrics(
        prediction.view(3, 1, 1, 50), truth.view(3, 1, 1, 50), 1e-3, 80.0, "none"
    )
    torch.testing.assert_close(rows, expected)


def test_sums_without_sync_exclude_range():
    """The sums for other devices than CPUs leave out depths outside the range."""
    truth = torch.tensor([[0.0, 1e-4, 2.0, 40.0, 80.0, 90.0]], dtype=torch.float64)
    prediction = torch.full_like(truth, 3.0)
    rows = metrics._from_sums(*metrics._sums_without_sync(prediction, truth, 1e-3, 80.0))
    expected = depth_metrics(
        prediction.view(1, 1, 1, 6), truth.view(1, 1, 1, 6), 1e-3, 80.0, "none"
    )
    torch.testing.assert_close(rows, expected)
