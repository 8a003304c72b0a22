"""The costs of an experiment's networks: parameters, multiply-adds, and measured latency."""

import json

import pytest
import torch
from support import small_experiment

from tiekd.tools.experiment import networks, runs


@pytest.fixture
def planned(tmp_path, scenes):
    """The runs of an experiment whose second row has a wider network."""
    rows = {"new": {"recipe": "recipe.yaml"}, "old": {"recipe": "recipe.yaml"}}
    rows["old"]["set"] = ["network.encoder.width=0.5"]
    return runs.plan(small_experiment.write(tmp_path, scenes, rows=rows))[0]


def test_counts_are_those_of_the_network_at_its_input(planned, monkeypatch):
    """Parameters and multiply-adds are those of the row's network at the working resolution."""
    seen = []

    def count(network, image):
        seen.append((sum(each.numel() for each in network.parameters()), tuple(image.shape)))
        return 3_000_000_000

    monkeypatch.setattr(networks, "multiply_adds", count)
    networks._counts.cache_clear()
    of_row = {job.row: networks.counts(job) for job in planned}
    parameters = {row: found["parameters"] for row, found in of_row.items()}
    assert parameters["old"] > parameters["new"] > 0
    height, width = of_row["new"]["input"]
    # A network is counted once, whatever its number of seeds.
    assert seen == [(count, (1, 3, height, width)) for count in parameters.values()]
    assert of_row["new"]["gmac"] == 3.0
    networks._counts.cache_clear()


def test_counts_without_a_single_size_has_no_multiply_adds(tmp_path, scenes):
    """Where the input's size depends on the image, there are parameters alone."""
    spec = small_experiment.write(tmp_path, scenes, set=["data.resize={short_side: 64}"])
    job = runs.plan(spec)[0][0]
    found = networks.counts(job)
    assert found["parameters"] > 0
    assert (found["input"], found["gmac"]) == (None, None)
    spec = small_experiment.write(
        tmp_path, scenes, set=["data.resize={height: 40, width: 64, mode: stretch}"]
    )
    found = networks.counts(runs.plan(spec)[0][0])
    assert found["input"] == [40, 64]
    assert 0 < found["gmac"] < 10


def test_latency_is_a_median_by_row_in_a_file_of_its_own(planned, tmp_path, monkeypatch):
    """Each network takes its turns; rows have the median in milliseconds, warm-up left out."""
    clock = iter(range(10_000))
    taken = []

    def now():
        # Odd readings end a forward pass: the first passes take 1000 s, the others 2 s.
        reading = next(clock)
        taken.append(reading)
        turn = len(taken) // 4
        return 0.0 if len(taken) % 2 else (1000.0 if turn <= networks._WARM_UP else 2.0)

    monkeypatch.setattr(networks.time, "perf_counter", now)
    monkeypatch.setattr(networks, "_build", lambda node: torch.nn.Identity())
    size = {"parameters": 3, "input": [8, 8], "gmac": 1.5}
    monkeypatch.setattr(networks, "counts", lambda job: size)
    lines = []
    networks.measure_latency(planned, tmp_path / "work", lines.append)
    assert lines == ["streets/new: 2000.00 ms", "streets/old: 2000.00 ms"]
    found = networks.read_latency(tmp_path / "work")
    timed = {"ms": 2000.0, "network": size}
    assert found == {"streets": {"new": timed, "old": timed}}
    content = json.loads((tmp_path / "work" / "latency.json").read_text())
    assert content["threads"] == torch.get_num_threads()
    assert "PyTorch" in content["machine"]
    for damaged in ({}, {"sets": []}, {"sets": {"streets": {"new": 2000.0}}}):
        (tmp_path / "work" / "latency.json").write_text(json.dumps(damaged))
        assert networks.read_latency(tmp_path / "work") == {}
    assert networks.read_latency(tmp_path) == {}
