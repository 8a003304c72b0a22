"""Floors: best constant, training median and median map, worked out another way."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tiekd.errors import DataError
from tiekd.evaluation import floors
from tiekd.evaluation.evaluate import EvaluationProtocol, EvaluationSettings
from tiekd.evaluation.metrics import METRIC_NAMES, depth_metrics


def frames(*depths):
    return [SimpleNamespace(depth=depth, name=str(i)) for i, depth in enumerate(depths)]


def protocol(crop="none"):
    return EvaluationProtocol(EvaluationSettings(crop=crop), 0.1, 80.0)


@pytest.mark.parametrize("crop", ["none", "garg"])
def test_best_constant_has_least_abs_rel(crop):
    """No other constant has a smaller mean of the frames' abs_rel than the best one."""
    torch.manual_seed(0)
    depths = [1 + 30 * torch.rand(1, 48, 64) ** 2 for _ in range(4)]
    depths[2][:, 30:] = 0
    depths[3][:, :20] = 70.0
    constant = floors.best_constant(frames(*depths), protocol(crop))

    def error(value):
        each = [
            depth_metrics(torch.full_like(depth[0], value), depth[0], 0.1, 80.0, crop)
            for depth in depths
        ]
        return float(torch.cat(each)[:, METRIC_NAMES.index("abs_rel")].mean())

    tried = np.linspace(1, 31, 100)
    assert error(constant) <= min(map(error, tried)) + 1e-4


def test_measure_median_is_of_all_depths():
    """The training median is that of all measured depths in the range."""
    torch.manual_seed(0)
    depths = 1 + 30 * torch.rand(3, 1, 48, 64) ** 2
    depths[0, :, :5] = 0
    depths[1, :, :5] = 90
    median, _ = floors.measure(frames(*depths), 0.1, 80.0)
    valid = depths[(depths > 0) & (depths < 80)]
    assert median == pytest.approx(float(valid.median()), rel=4e-3)


def test_measure_map_is_median_of_each_place():
    """A cell of the map is the median of the training depths in it; empty ones take their row's."""
    torch.manual_seed(0)
    depths = 1 + 30 * torch.rand(5, 1, 48, 64)
    depths[:, :, 7, 3] = 0  # no value in this cell
    depths[:, :, 9] = 0  # no value in this row
    depths[0, :, 0, 0] = 90.0  # beyond the cap
    _, cells = floors.measure(frames(*depths), 0.1, 80.0)
    assert cells[0, 0, 20, 20] == pytest.approx(float(depths[:, 0, 20, 20].median()), rel=4e-3)
    rest = depths[:, 0, 7]
    assert cells[0, 0, 7, 3] == pytest.approx(float(rest[rest > 0].median()), rel=8e-3)
    everything = depths[(depths > 0) & (depths < 80)]
    assert cells[0, 0, 9, 5] == pytest.approx(float(everything.median()), rel=8e-3)
    assert cells[0, 0, 0, 0] < 80


def test_entrants_take_images_of_any_size():
    """Training frames and images may differ in size; the map is resized to each image."""
    depths = [torch.full((1, 48, 64), 5.0), torch.full((1, 96, 96), 5.0)]
    found = floors.entrants(frames(*depths), frames(*depths), protocol(), torch.device("cpu"))
    assert tuple(found) == floors.NAMES
    for entrant in found.values():
        depth = entrant.predict(torch.zeros(2, 3, 30, 50))
        assert depth.shape == (2, 1, 30, 50)
        assert torch.allclose(depth, torch.full_like(depth, 5.0), rtol=4e-3)


def test_measure_without_ground_truth_refused():
    """Frames without ground truth can't give a floor."""
    nothing = frames(torch.zeros(1, 48, 64))
    with pytest.raises(DataError, match="no training frame has ground truth between"):
        floors.measure(nothing, 0.1, 80.0)
    with pytest.raises(DataError, match="no evaluated frame has ground truth between"):
        floors.best_constant(nothing, protocol())
