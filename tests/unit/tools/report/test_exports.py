"""Size and latency of exported files: what is timed, and what a file says of its options."""

import importlib.util

import onnx
import pytest
import torch
from support.recipes import STUDENT

from tiekd.data.resize import OWN_SIZE
from tiekd.models.build import build_network
from tiekd.tools.report import exports


def write_onnx(path):
    """Writes a file that returns its image as float32, with a student's metadata."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 64, 96])
    depth = onnx.helper.make_tensor_value_info("depth", onnx.TensorProto.FLOAT, [1, 3, 64, 96])
    node = onnx.helper.make_node("Identity", ["image"], ["depth"])
    graph = onnx.helper.make_graph([node], "x", [image], [depth])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.helper.set_model_props(model, {"readout": "mean", "confidence": "0 to 1"})
    onnx.save(model, path)


def test_of_file_times_an_onnx_file(tmp_path, monkeypatch):
    """A file's latency is of an image of its own size; its size, runs and threads are stated."""
    monkeypatch.setattr(exports, "RUNS", 4)
    path = tmp_path / "x.onnx"
    write_onnx(path)
    found = exports.of_file(path, (10, 10))
    assert found.problem is None
    assert (found.size, found.runs) == ((64, 96), 4)
    assert found.median_ms > 0
    assert found.threads == torch.get_num_threads()
    assert found.num_bytes == path.stat().st_size
    assert found.options == ("--size", "64x96", "--input", "float", "--confidence")
    assert found.runtime.startswith("ONNX Runtime ")


def test_of_file_says_why_a_file_cant_be_run(tmp_path, monkeypatch):
    """A damaged file and a missing package are named; the size is known all the same."""
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no model")
    found = exports.of_file(path, (10, 10))
    assert found.problem.startswith("it can't be run (")
    assert (found.num_bytes, found.median_ms) == (8, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert exports.of_file(path, (10, 10)).problem == "onnxruntime is not installed"


def test_trial_refuses_other_inputs():
    """A file that takes something else than an image is no student."""
    image = exports.FileInput((None, 3, None, None), torch.uint8)
    (trial,) = exports._trial_inputs([image], (6, 8))
    assert (trial.shape, trial.dtype) == ((1, 3, 6, 8), torch.uint8)
    with_focal = exports._trial_inputs([image, exports.FileInput((None,), torch.float32)], (6, 8))
    assert [each.shape for each in with_focal] == [(1, 3, 6, 8), (1,)]
    for shape, dtype in (
        ((1, 4, 6, 8), torch.uint8),
        ((1, 3, 6), torch.uint8),
        ((1, 3, 6, 8), None),
    ):
        with pytest.raises(ValueError, match="not one RGB image"):
            exports._trial_inputs([exports.FileInput(shape, dtype)], (6, 8))


def test_options_of_a_dynamic_file_with_focal():
    """Open sizes, another readout and the focal length are read from the file."""
    image = exports.FileInput((None, 3, None, None), torch.uint8)
    facts = {"readout": "local", "focal": "721.5 pixels of the image at its own size, a constant"}
    assert exports._options([image], facts) == (
        *("--dynamic", "--readout", "local", "--focal", "721.5"),
    )
    focal = exports.FileInput((None,), torch.float32)
    assert exports._options([image, focal], {"focal": "an input: float32 pixels"})[-1:] == (
        "--focal-input",
    )


def test_timed_is_the_median_of_stated_runs(monkeypatch):
    """The first call isn't timed; slow calls are timed fewer times, but three at least."""
    clock = [0.0]
    monkeypatch.setattr(exports.time, "perf_counter", lambda: clock[0])
    steps = iter([100.0, 1.0, 2.0, 4.0, *[3.0] * 100])

    def run():
        clock[0] += next(steps)

    assert exports.measure_median(run) == (2500.0, 4)  # 1, 2, 4 and 3 s make 10 s
    steps = iter([0.0, 60.0, 50.0, 70.0, 1.0])
    assert exports.measure_median(run) == (60_000.0, 3)


def test_of_network_without_an_export(monkeypatch):
    """The network itself is timed in torch, with the size of its weights."""
    monkeypatch.setattr(exports, "RUNS", 2)
    network = build_network(STUDENT).eval()
    found = exports.of_network(network, OWN_SIZE, (64, 96))
    assert (found.size, found.name) == ((64, 96), "the network")
    assert found.num_bytes == 4 * sum(each.numel() for each in network.parameters())
