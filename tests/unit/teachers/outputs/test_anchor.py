"""The robust fit that makes a relative map metric, on maps with a planted scale and shift."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.relative_maps import MAX_DEPTH_M, plant

from tiekd.errors import TeacherError
from tiekd.teachers.outputs import anchor
from tiekd.teachers.outputs.output_kind import OUTPUT_KINDS

RELATIVE = [name for name, output_kind in OUTPUT_KINDS.items() if not output_kind.is_metric]
SEEDS = range(8)


def fit(planted, name, **arguments):
    return anchor.fit(
        planted.output, planted.anchor, OUTPUT_KINDS[name], max_depth_m=MAX_DEPTH_M, **arguments
    )


def count_points(planted):
    return np.count_nonzero((planted.anchor > 0) & (planted.anchor < MAX_DEPTH_M))


def error(planted, found, name):
    depth, _ = anchor.apply(planted.output, found, OUTPUT_KINDS[name], MAX_DEPTH_M)
    return planted.error(depth.numpy())


@pytest.mark.parametrize("outliers", ["uniform", "structured"])
@pytest.mark.parametrize("name", RELATIVE)
def test_fit_finds_planted_scale_and_shift(name, outliers):
    """With 4 % of points, 2 % noise and 30 % outliers of two kinds depth is right within 1 %."""
    for seed in SEEDS:
        planted = plant(seed, OUTPUT_KINDS[name], outliers=outliers)
        found = fit(planted, name)
        assert found.is_good, found.reason
        assert found.num_points == count_points(planted)
        assert found.scale == pytest.approx(planted.scale, rel=0.01)
        assert error(planted, found, name) < 0.007
        # 30 % of the points are outliers; some of them agree by chance, some of the noise doesn't.
        assert 0.62 < found.inlier_share < 0.85
        assert 0.01 < found.error < 0.0155
        assert found.uncertainty < 0.007


@pytest.mark.parametrize("near", ["depth", "inverse", "pixels"])
@pytest.mark.parametrize("name", RELATIVE)
def test_fit_on_near_points_is_right_or_left_out(name, near):
    """With near points only the whole range is right within 1 %, or the image is left out."""
    kept = 0
    for seed in SEEDS:
        planted = plant(seed, OUTPUT_KINDS[name], near=near)
        found = fit(planted, name)
        if found.is_good:
            kept += 1
            assert error(planted, found, name) < 0.01
        else:
            assert found.reason
    # A third of the depth is enough, and so is any part of it without a shift.
    if near == "depth" or not OUTPUT_KINDS[name].has_shift:
        assert kept >= len(SEEDS) - 1
    elif near == "inverse":
        assert kept == 0


@pytest.mark.parametrize("name", ["depth_affine", "inverse_affine"])
def test_fit_predicts_its_error(name):
    """The error is below the predicted 2 sigma in most images, and not far below it."""
    ratios = []
    for seed in range(24):
        near = ["", "depth", "pixels"][seed % 3]
        planted = plant(seed, OUTPUT_KINDS[name], near=near)
        found = fit(planted, name)
        # The prediction is for left-out images, too.
        kept = anchor.Fit(found.scale, found.shift, found.num_points)
        ratios.append(error(planted, kept, name) / found.uncertainty)
        assert found.extrapolation >= found.uncertainty
    assert np.mean(np.array(ratios) < 1) > 0.8
    assert np.median(ratios) > 0.2


@pytest.mark.parametrize("name", RELATIVE)
def test_fit_is_less_certain_with_smooth_errors(name):
    """Noise that neighbours share makes a fit less certain than independent noise of that size."""
    for seed in SEEDS[:3]:
        white = fit(plant(seed, OUTPUT_KINDS[name], outliers=""), name)
        smooth = plant(seed, OUTPUT_KINDS[name], outliers="", noise=0.001, smooth_noise=0.02)
        smooth_fit = fit(smooth, name)
        assert smooth_fit.error == pytest.approx(white.error, rel=0.35)
        assert smooth_fit.uncertainty > 2 * white.uncertainty
        assert error(smooth, anchor.Fit(smooth_fit.scale, smooth_fit.shift, 1), name) < 0.01


@pytest.mark.parametrize("name", ["depth_affine", "inverse_affine"])
def test_fit_weights_residuals_relative_in_depth(name):
    """Near depth is as right as far depth, though noise in metres grows with depth."""
    nearest, farthest = [], []
    for seed in range(16):
        planted = plant(seed, OUTPUT_KINDS[name], outliers="")
        found = fit(planted, name)
        depth, _ = anchor.apply(planted.output, found, OUTPUT_KINDS[name], MAX_DEPTH_M)
        errors = np.abs(depth.numpy() / planted.depth - 1)
        within = planted.depth[planted.depth <= MAX_DEPTH_M]
        nearest.append(np.median(errors[planted.depth <= np.quantile(within, 0.05)]))
        far = (planted.depth >= np.quantile(within, 0.95)) & (planted.depth <= MAX_DEPTH_M)
        farthest.append(np.median(errors[far]))
    assert np.mean(nearest) < 0.0025
    assert np.mean(farthest) < 0.0025


@pytest.mark.parametrize("name", RELATIVE)
def test_fit_has_no_bias_from_noise(name):
    """Noise of 10 % doesn't shrink the scale by its variance."""
    scales = []
    for seed in range(16):
        planted = plant(seed, OUTPUT_KINDS[name], outliers="", noise=0.1)
        scales.append(fit(planted, name).scale / planted.scale)
    # Weights of 1 / y^2 would shrink it by 2 %; the mean of exp(noise) is 0.5 % above 1.
    assert np.mean(scales) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", RELATIVE)
def test_fit_follows_an_anchor_wrong_by_a_factor(name):
    """An anchor that is 20 % too far everywhere makes a good fit that is 20 % too far."""
    planted = plant(3, OUTPUT_KINDS[name])
    planted.anchor *= 1.2
    planted.anchor[planted.anchor > MAX_DEPTH_M] = 0
    found = fit(planted, name)
    assert found.is_good, found.reason
    depth, _ = anchor.apply(planted.output, found, OUTPUT_KINDS[name], MAX_DEPTH_M)
    within = planted.depth * 1.2 < MAX_DEPTH_M
    ratio = np.median(depth.numpy()[within] / planted.depth[within])
    assert ratio == pytest.approx(1.2, rel=0.01)


@pytest.mark.parametrize("near", ["", "depth", "inverse"])
@pytest.mark.parametrize("name", RELATIVE)
def test_fit_refuses_inverted_output(name, near):
    """An output that falls where it should rise is left out, and the opposite kind is named."""
    for seed in SEEDS:
        planted = plant(seed, OUTPUT_KINDS[name], near=near)
        # Exactly what a model of the opposite kind gives.
        planted.output = plant(seed, OUTPUT_KINDS[OUTPUT_KINDS[name].opposite], near=near).output
        found = fit(planted, name, min_points=50)
        assert not found.is_good
        assert f"its kind may be {OUTPUT_KINDS[name].opposite}, not {name}" in found.reason


@pytest.mark.parametrize("name", RELATIVE)
def test_fit_refuses_constant_output(name):
    """A constant output is left out."""
    planted = plant(0, OUTPUT_KINDS[name])
    planted.output[:] = 0.25
    assert fit(planted, name).reason == "the output is constant (0.25)"


@pytest.mark.parametrize("name", RELATIVE)
def test_fit_refuses_unrelated_output(name):
    """An output that has nothing to do with depth is left out."""
    for seed in SEEDS:
        planted = plant(seed, OUTPUT_KINDS[name])
        rng = np.random.default_rng(seed)
        planted.output = rng.uniform(1, 2, planted.output.shape)
        assert not fit(planted, name).is_good


def test_fit_refuses_majority_of_outliers():
    """Where most points agree with no line, the image is left out with the share that does."""
    planted = plant(0, OUTPUT_KINDS["inverse"])
    rng = np.random.default_rng(0)
    wrong = (rng.random(planted.anchor.shape) < 0.6) & (planted.anchor > 0)
    planted.anchor[wrong] = rng.uniform(1, 80, wrong.sum())
    found = fit(planted, "inverse")
    assert "% of the anchor points agree with a fit; 50% needed" in found.reason
    assert found.inlier_share < 0.5


@pytest.mark.parametrize("name", ["depth_affine", "inverse_affine"])
def test_fit_refuses_anchor_of_one_depth(name):
    """Points of one depth don't determine scale and shift; the reason says where they are."""
    for seed in SEEDS:
        planted = plant(seed, OUTPUT_KINDS[name], share=1, outliers="")
        planted.anchor[(planted.depth < 9.9) | (planted.depth > 10.1)] = 0
        found = fit(planted, name, min_points=20)
        assert not found.is_good
        assert "10" in found.reason


def test_fit_of_scale_alone_takes_anchor_of_one_depth():
    """Points of one depth determine a scale."""
    planted = plant(1, OUTPUT_KINDS["inverse"], share=1, outliers="")
    planted.anchor[(planted.depth < 9) | (planted.depth > 11)] = 0
    found = fit(planted, "inverse")
    assert found.is_good, found.reason
    assert found.scale == pytest.approx(planted.scale, rel=0.01)


def test_fit_ignores_invalid_pixels():
    """NaN and infinity in output or anchor, and anchors at or beyond the range, are no points."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"])
    expected = fit(planted, "inverse_affine").num_points
    rows, columns = np.nonzero((planted.anchor > 0) & (planted.anchor < MAX_DEPTH_M))
    planted.output[rows[:10], columns[:10]] = np.nan
    planted.output[rows[10:20], columns[10:20]] = np.inf
    planted.anchor[rows[20:30], columns[20:30]] = np.nan
    planted.anchor[rows[30:40], columns[30:40]] = np.inf
    planted.anchor[rows[40:50], columns[40:50]] = MAX_DEPTH_M
    planted.anchor[rows[50:60], columns[50:60]] = -3
    found = fit(planted, "inverse_affine")
    assert found.num_points == expected - 60
    assert found.is_good
    assert found.scale == pytest.approx(planted.scale, rel=0.01)


@pytest.mark.parametrize("values", [np.nan, 0.0, 100.0])
def test_fit_refuses_anchor_without_points(values):
    """An anchor that is invalid everywhere, or beyond the range, leaves the image out."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"])
    planted.anchor[:] = values
    found = fit(planted, "inverse_affine")
    assert found == anchor.Fit(None, None, 0, reason="0 anchor points; 100 needed")


def test_fit_refuses_output_without_values():
    """An output that is nowhere finite leaves the image out."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"])
    planted.output[:] = np.nan
    assert fit(planted, "inverse_affine").reason == "0 anchor points; 100 needed"


def test_fit_of_scale_alone_uses_positive_outputs():
    """Without a shift an output of 0 or less is no depth, so it is no anchor point."""
    planted = plant(0, OUTPUT_KINDS["depth_scale"])
    points = count_points(planted)
    rows, columns = np.nonzero(planted.anchor)
    planted.output[rows[:10], columns[:10]] = 0
    assert fit(planted, "depth_scale").num_points == points - 10


def test_fit_counts_min_points():
    """One point fewer than min_points leaves the image out; too small a limit is refused."""
    planted = plant(0, OUTPUT_KINDS["inverse"])
    points = count_points(planted)
    assert fit(planted, "inverse", min_points=points).is_good
    found = fit(planted, "inverse", min_points=points + 1)
    assert found.reason == f"{points} anchor points; {points + 1} needed"
    with pytest.raises(TeacherError, match="min_points 0 is too few; use 4 or more"):
        fit(planted, "inverse", min_points=0)


def test_fit_refuses_maps_of_two_sizes():
    """An anchor of another size is an error that gives both sizes."""
    planted = plant(0, OUTPUT_KINDS["inverse"])
    planted.anchor = planted.anchor[:-1]
    with pytest.raises(ValueError, match=r"output \(94, 310\) and depth \(93, 310\)"):
        fit(planted, "inverse")


@pytest.mark.parametrize("name", RELATIVE)
def test_fit_takes_integers(name):
    """A 16-bit map of whole numbers gives the scale per step."""
    planted = plant(2, OUTPUT_KINDS[name])
    span = np.ptp(planted.output) if OUTPUT_KINDS[name].has_shift else planted.output.max()
    low = planted.output.min() if OUTPUT_KINDS[name].has_shift else 0
    planted.output = np.round((planted.output - low) / span * 60000).astype(np.int32)
    found = fit(planted, name)
    assert found.is_good, found.reason
    assert error(planted, found, name) < 0.01


def test_fit_is_deterministic_and_leaves_global_generators():
    """Two fits are equal, draw from no global generator and change no map."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"])
    output, truth = planted.output.copy(), planted.anchor.copy()
    np.random.seed(1)
    torch.manual_seed(1)
    first = fit(planted, "inverse_affine")
    drawn = np.random.random(), torch.rand(1).item()
    np.random.seed(1)
    torch.manual_seed(1)
    assert (np.random.random(), torch.rand(1).item()) == drawn
    assert fit(planted, "inverse_affine") == first
    assert np.array_equal(planted.output, output)
    assert np.array_equal(planted.anchor, truth)


def test_fit_takes_tensors():
    """A float32 tensor gives the fit of the same array; gradients don't matter."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"])
    output = torch.tensor(planted.output, dtype=torch.float32, requires_grad=True)
    truth = torch.tensor(planted.anchor, dtype=torch.float32)
    found = anchor.fit(output, truth, OUTPUT_KINDS["inverse_affine"], max_depth_m=MAX_DEPTH_M)
    assert found.scale == pytest.approx(fit(planted, "inverse_affine").scale, rel=1e-4)


def test_fit_keeps_digits_of_output_with_large_offset():
    """Values around 10000 with a spread of 1 are fitted as well as around 0."""
    planted = plant(0, OUTPUT_KINDS["depth_affine"])
    planted.output = (planted.output - planted.output.mean()) / np.ptp(planted.output)
    expected = fit(planted, "depth_affine")
    planted.output += 10000
    found = fit(planted, "depth_affine")
    assert found.scale == pytest.approx(expected.scale, rel=1e-6)
    assert found.shift == pytest.approx(expected.shift - 10000 * expected.scale, rel=1e-6)


def test_fit_takes_a_dense_anchor():
    """A metric teacher's map, valid everywhere, is an anchor like any other."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"], share=1)
    found = fit(planted, "inverse_affine")
    assert found.num_points == count_points(planted) > anchor.MAX_POINTS
    assert found.is_good
    assert error(planted, found, "inverse_affine") < 0.004


@pytest.mark.parametrize("share", [0.04, 0.0])
def test_fit_is_strict_json(share):
    """A good and a poor fit can be written to a line of JSON without NaN, and read again."""
    found = fit(plant(0, OUTPUT_KINDS["inverse_affine"], share=share), "inverse_affine")
    line = json.dumps(asdict(found), allow_nan=False)
    assert anchor.Fit(**json.loads(line)) == found


def test_fit_of_one_tile_is_strict_json():
    """Points in one corner tell no uncertainty: left out, with None in the place of infinity."""
    planted = plant(0, OUTPUT_KINDS["inverse_affine"], share=1)
    planted.anchor[:-10] = 0
    planted.anchor[:, 30:] = 0
    found = fit(planted, "inverse_affine")
    assert "lie in 1 of 32 tiles of the image, don't determine the scale" in found.reason
    assert found.uncertainty is None
    json.dumps(asdict(found), allow_nan=False)


def test_apply_marks_beyond_in_inverse_space():
    """In inverse space values at or below 1 / max_depth, also negative ones, are max_depth."""
    output = torch.tensor([[1.0, 0.0125, 0.01, 0.0, -1.0, 4.0, float("nan"), float("-inf")]])
    found = anchor.Fit(1.0, 0.0, 100)
    depth, beyond = anchor.apply(output, found, OUTPUT_KINDS["inverse"], 80.0)
    assert depth.dtype == torch.float32
    assert depth.tolist() == [[1, 80, 80, 80, 80, 0.25, 0, 0]]
    assert beyond.tolist() == [[False, True, True, True, True, False, False, False]]


def test_apply_marks_beyond_in_depth_space():
    """In depth space values from max_depth are beyond, and values of 0 or less aren't valid."""
    output = torch.tensor([[1.0, 2.0, 50.0, 39.0, float("nan"), float("inf")]])
    found = anchor.Fit(2.0, -2.5, 100)
    depth, beyond = anchor.apply(output, found, OUTPUT_KINDS["depth_affine"], 80.0)
    assert depth.tolist() == [[0, 1.5, 80, 75.5, 0, 0]]
    assert beyond.tolist() == [[False, False, True, False, False, False]]


def test_apply_of_poor_fit_is_zero():
    """A poor fit, with or without a scale, gives a map of zeros without anything beyond."""
    output = torch.rand(1, 1, 4, 5)
    for found in (anchor.Fit(None, None, 3, reason="few"), anchor.Fit(1.0, 0.0, 3, reason="poor")):
        depth, beyond = anchor.apply(output, found, OUTPUT_KINDS["inverse"], 80.0)
        assert depth.shape == beyond.shape == output.shape
        assert not depth.any()
        assert not beyond.any()


def test_apply_takes_arrays_and_half_precision():
    """An array or a float16 tensor gives float32 metres."""
    found = anchor.Fit(0.5, 0.25, 100)
    for output in (np.array([[1.5]]), torch.tensor([[1.5]], dtype=torch.float16), np.array([[1]])):
        depth, _ = anchor.apply(output, found, OUTPUT_KINDS["inverse_affine"], 80.0)
        assert depth.dtype == torch.float32
        assert depth.item() == pytest.approx(1 / (0.5 * float(output[0, 0]) + 0.25))
