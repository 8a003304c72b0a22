"""Figures of each frame: abs_rel after median alignment, and edges where ground truth is dense."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from support.noise_frames import CPU, Frames, Slanted, protocol

from tiekd.evaluation.evaluate import evaluate
from tiekd.evaluation.frame_figures import AlignedFigures, FrameFigures
from tiekd.evaluation.per_frame import FrameRows


def seen(depth, truth):
    watcher = AlignedFigures(0.1, 80.0, "none")
    watcher([0], SimpleNamespace(depth=truth), depth, None)
    return watcher._by_index[0]


def test_aligned_abs_rel_ignores_global_scale():
    """A prediction that is the truth times a factor has an aligned error of 0."""
    truth = 1 + 50 * torch.rand(1, 1, 8, 9)
    assert seen(3.0 * truth, truth)[0] == pytest.approx(0, abs=1e-6)


def test_aligned_abs_rel_of_constant():
    """A constant aligned to a frame is the frame's median depth, of the valid pixels alone."""
    truth = torch.tensor([0.0, 2.0, 4.0, 8.0]).view(1, 1, 1, 4)
    aligned, _ = seen(torch.full_like(truth, 5.0), truth)
    assert aligned == pytest.approx((2 / 2 + 0 + 4 / 8) / 3)


def test_aligned_abs_rel_bad_prediction_is_infinite():
    """A prediction that is not finite or not above 0 makes the error infinite, not NaN."""
    truth = torch.full((1, 1, 4, 4), 5.0)
    for value in (math.nan, math.inf, 0.0):
        depth = truth.clone()
        depth[..., 0, 0] = value
        assert seen(depth, truth)[0] == math.inf
    assert math.isnan(seen(truth, torch.zeros_like(truth))[0])


def test_edge_error_needs_dense_truth():
    """Mid-air points count where ground truth is dense; sparse ground truth has no edge error."""
    truth = torch.full((1, 1, 10, 20), 4.0)
    truth[..., 10:] = 20.0
    between = torch.full_like(truth, 10.0)
    assert seen(truth, truth)[1] == 0.0
    assert seen(between, truth)[1] == 1.0
    truth[..., ::2, :] = 0.0
    truth[..., 1, 0] = 0.0
    assert math.isnan(seen(between, truth)[1])


def test_figures_follow_the_dataset_and_survive_json():
    """Figures of an evaluation are in the dataset's order, and JSON keeps all of their digits."""
    rows, aligned = FrameRows(1e-3, 80.0, "none"), AlignedFigures(1e-3, 80.0, "none")
    network = Slanted()
    evaluate(
        lambda image: network(image).depth,
        Frames(),
        protocol(flip=False, batch_size=3),
        CPU,
        watchers=[rows, aligned],
    )
    table = rows.gather()
    found = aligned.figures(table)
    assert [each.name for each in found] == table.names
    assert [each.pixels for each in found] == table.pixels
    assert math.isnan(found[3].abs_rel)
    assert found[2].abs_rel == table.column("abs_rel")[2]
    assert math.isnan(found[3].abs_rel_aligned)
    back = [FrameFigures.from_json(json.loads(json.dumps(each.as_json()))) for each in found]
    assert [repr(each) for each in back] == [repr(each) for each in found]


def test_infinite_figures_survive_json():
    """An infinite error is no number in JSON, but comes back as infinite."""
    figures = FrameFigures("a", 1, math.inf, math.inf, math.inf, math.nan, [[1.0, math.inf]])
    plain = json.dumps(figures.as_json(), allow_nan=False)
    assert repr(FrameFigures.from_json(json.loads(plain))) == repr(figures)
