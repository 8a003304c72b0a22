"""The choice of a student by latency, with figures in the place of measurements."""

import pytest
import torch
from support import recipes

from tiekd.errors import LaunchError
from tiekd.tools.distill import latency
from tiekd.tools.distill.latency import Latency

NAMES = ["a", "b", "c", "d", "e"]
TAKES = dict(zip(NAMES, (5.0, 8.0, 12.0, 20.0, 40.0), strict=True))


def measure(name: str) -> Latency:
    return Latency(TAKES[name], 50)


@pytest.mark.parametrize(
    ("budget", "student", "larger"),
    [(5.0, "a", "b"), (7.9, "a", "b"), (8.0, "b", "c"), (19.9, "c", "d"), (20.0, "d", "e")],
)
def test_latency_chooses_largest_that_fits(budget, student, larger):
    """The largest that meets the budget is chosen, and the next larger was measured and misses."""
    chosen = latency.choose(NAMES, budget, measure)
    assert (chosen.student, chosen.larger) == (student, larger)
    assert chosen.measured[student].ms <= budget < chosen.measured[larger].ms
    assert len(chosen.measured) <= 3


def test_latency_largest_has_no_larger():
    """If all meet the budget, the largest is chosen."""
    chosen = latency.choose(NAMES, 1000.0, measure)
    assert (chosen.student, chosen.larger) == ("e", None)


def test_latency_tells_least_reachable():
    """If the smallest misses the budget, the error says what is reachable."""
    with pytest.raises(LaunchError) as error:
        latency.choose(NAMES, 4.0, measure)
    assert "--max-latency 4ms" in str(error.value)
    assert "the least that is reachable here is 5.0 ms" in str(error.value)
    assert "median of 50 runs" in str(error.value)


def test_latency_is_median(monkeypatch):
    """The figure is the median of the runs, without the first ones."""
    clock = iter([0.0, 0.010, 1.0, 1.002, 2.0, 2.030])
    calls = []
    monkeypatch.setattr(latency, "RUNS", 3)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    found = latency.measure_median(calls.append, "image")
    assert (found.runs, len(calls)) == (3, 6)
    assert found.ms == pytest.approx(10.0)


def test_latency_ends_after_a_while(monkeypatch):
    """A slow file is run fewer times, and the number is told."""
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert latency.measure_median(lambda _image: None, "image").runs == 2


def test_latency_without_onnx_takes_torch_export(monkeypatch):
    """Without ONNX Runtime, and on a GPU, torch.export's file is measured."""
    assert latency.runtime("cuda") == "torch_export"
    monkeypatch.setattr(latency.importlib.util, "find_spec", lambda name: name != "onnxruntime")
    assert latency.runtime("cpu") == "torch_export"


def test_latency_of_exported_file(monkeypatch):
    """A network's file is timed with the threads that were asked for, then they are reset."""
    seen = []
    monkeypatch.setattr(
        latency.export,
        "write",
        lambda path, network, _node, settings, images, *_: seen.append(
            (torch.get_num_threads(), path.suffix, network.training, images[0].shape)
        ),
    )
    monkeypatch.setattr(latency, "load_exported", lambda *_: lambda _image: None)
    before = torch.get_num_threads()
    settings = latency.export.Settings((32, 64), "torch_export")
    found = latency.of_network(recipes.STUDENT, settings, "cpu", before + 1)
    assert seen == [(before + 1, ".pt2", False, (1, 3, 32, 64))]
    assert found.runs == 50
    assert torch.get_num_threads() == before
