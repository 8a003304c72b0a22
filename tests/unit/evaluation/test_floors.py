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


def depths_of(*depths):
    return [(str(i), depth[0]) for i, depth in enumerate(depths)]


def each_its_own(name):
    """The scene of a frame is the frame."""
    return name


def protocol(crop="none"):
    return EvaluationProtocol(EvaluationSettings(crop=crop), 0.1, 80.0)


@pytest.mark.parametrize("crop", ["none", "garg"])
def test_best_constant_has_least_abs_rel(crop):
    """No other constant has a smaller mean of the frames' abs_rel than the best one."""
    torch.manual_seed(0)
    depths = [1 + 30 * torch.rand(1, 48, 64) ** 2 for _ in range(4)]
    depths[2][:, 30:] = 0
    depths[3][:, :20] = 70.0
    constant = floors.best_constant(depths_of(*depths), protocol(crop), each_its_own)

    def error(value):
        each = [
            depth_metrics(torch.full_like(depth[0], value), depth[0], 0.1, 80.0, crop)
            for depth in depths
        ]
        return float(torch.cat(each)[:, METRIC_NAMES.index("abs_rel")].mean())

    tried = np.linspace(1, 31, 100)
    assert error(constant) <= min(map(error, tried)) + 1e-4


def test_best_constant_minimises_mean_of_scene_means():
    """A scene with many frames weighs no more than another, nor one with frames without depth."""
    depths = [3.0, 0.0, *[5.0] * 6]
    evaluated = depths_of(*(torch.full((1, 48, 64), depth) for depth in depths))
    by_scene = floors.best_constant(evaluated, protocol(), lambda name: "aabbbbbb"[int(name)])
    assert by_scene == pytest.approx(3.0, rel=4e-3)
    by_frame = floors.best_constant(evaluated, protocol(), each_its_own)
    assert by_frame == pytest.approx(5.0, rel=4e-3)


def test_measure_median_is_of_all_depths():
    """The training median is that of all measured depths in the range."""
    torch.manual_seed(0)
    depths = 1 + 30 * torch.rand(3, 1, 48, 64) ** 2
    depths[0, :, :5] = 0
    depths[1, :, :5] = 90
    median, _ = floors.measure(depths_of(*depths), 0.1, 80.0)
    valid = depths[(depths > 0) & (depths < 80)]
    assert median == pytest.approx(float(valid.median()), rel=4e-3)


def test_measure_map_is_median_of_each_place():
    """A cell of the map is the median of the training depths in it; empty ones take their row's."""
    torch.manual_seed(0)
    depths = 1 + 30 * torch.rand(5, 1, 48, 64)
    depths[:, :, 7, 3] = 0  # no value in this cell
    depths[:, :, 9] = 0  # no value in this row
    depths[0, :, 0, 0] = 90.0  # beyond the cap
    _, cells = floors.measure(depths_of(*depths), 0.1, 80.0)
    assert cells[0, 0, 20, 20] == pytest.approx(float(depths[:, 0, 20, 20].median()), rel=4e-3)
    rest = depths[:, 0, 7]
    assert cells[0, 0, 7, 3] == pytest.approx(float(rest[rest > 0].median()), rel=8e-3)
    everything = depths[(depths > 0) & (depths < 80)]
    assert cells[0, 0, 9, 5] == pytest.approx(float(everything.median()), rel=8e-3)
    assert cells[0, 0, 0, 0] < 80


def test_build_takes_images_of_any_size():
    """Training frames and images may differ in size; the map is resized to each image."""
    depths = [torch.full((1, 48, 64), 5.0), torch.full((1, 96, 96), 5.0)]
    found = built(frames(*depths), frames(*depths))
    assert found.left_out == {}
    assert tuple(found.predictors) == floors.NAMES
    for predictor in found.predictors.values():
        depth = predictor.predict(torch.zeros(2, 3, 30, 50))
        assert depth.shape == (2, 1, 30, 50)
        assert torch.allclose(depth, torch.full_like(depth, 5.0), rtol=4e-3)


def built(training, evaluated):
    cpu = torch.device("cpu")
    return floors.build(lambda: training, evaluated, protocol(), each_its_own, cpu)


def test_build_takes_training_depths_of_what_has_them():
    """Training frames without ground truth don't count, whether their depth is empty or absent."""
    labelled = torch.full((1, 48, 64), 5.0)
    found = built(frames(None, labelled, torch.zeros(1, 48, 64)), frames(labelled))
    assert found.left_out == {}
    assert found.predictors["training median"].predict(torch.zeros(1, 3, 4, 4))[0, 0, 0, 0] == (
        pytest.approx(5.0, rel=4e-3)
    )


def test_build_leaves_out_floors_without_training_depths():
    """Without any ground truth of training frames the best constant is left, and the reason."""
    found = built(frames(None, torch.zeros(1, 48, 64)), frames(torch.full((1, 48, 64), 5.0)))
    assert list(found.predictors) == ["best constant"]
    assert list(found.left_out) == ["training median", "median map"]
    assert "no training frame has depth between" in found.left_out["median map"]

    def unreadable():
        raise DataError("no frame has ground truth")

    cpu = torch.device("cpu")
    evaluated = frames(torch.full((1, 48, 64), 5.0))
    found = floors.build(unreadable, evaluated, protocol(), each_its_own, cpu)
    assert found.left_out["training median"] == "no frame has ground truth"


class Unreadable(list):
    """Frames of which the second can't be read."""

    def __getitem__(self, index):
        if index == 1:
            raise DataError("b.png can't be read")
        return super().__getitem__(index)


def test_build_skips_frames_as_the_recipe_says():
    """A training frame that can't be read costs two floors, or is skipped (data.on_error)."""
    depths = [torch.full((1, 48, 64), depth) for depth in (5.0, 5.0, 5.0)]
    training, evaluated, cpu = Unreadable(frames(*depths)), frames(depths[0]), torch.device("cpu")
    given = (lambda: training), evaluated, protocol(), each_its_own, cpu
    assert floors.build(*given).left_out["median map"] == "b.png can't be read"
    assert floors.build(*given, skips_errors=True).left_out == {}


def test_floors_without_ground_truth_refused():
    """Frames without ground truth can't give a floor."""
    nothing = depths_of(torch.zeros(1, 48, 64))
    with pytest.raises(DataError, match="no training frame has depth between"):
        floors.measure(nothing, 0.1, 80.0)
    with pytest.raises(DataError, match="no evaluated frame has depth between"):
        floors.best_constant(nothing, protocol(), each_its_own)
