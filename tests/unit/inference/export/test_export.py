"""Exported files compute what the network does and need nothing of this project.

A file that differs is not left there.
"""

import json
import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.exported_student import (
    DECODER,
    DPM,
    ENCODER,
    ODD,
    RANGE,
    SMALL,
    TEACHERS,
    evaluated,
    fitted_network,
    random_image,
    write,
)
from support.one_picture.doors import NODES, network_of
from torch import nn

import tiekd
from tiekd.data.resize import Resize, bands
from tiekd.errors import ExportError, LaunchError
from tiekd.inference.export import (
    export,
    onnx_format,
    program_format,
    trial_images,
    verification,
)
from tiekd.inference.export.deployed import Deployed
from tiekd.inference.export.norms import fold_norms
from tiekd.inference.student import Student
from tiekd.models.build import build_network
from tiekd.models.confidence import Calibration

DEEPER = {**DECODER, "widths": [8, 24], "extra_ups": 2}
SIGMOID = {"encoder": ENCODER, "decoder": DEEPER, "head": {"name": "sigmoid"}, **RANGE}
LITE = {
    "encoder": {"name": "efficientnet_lite", "taps": [0]},
    "decoder": {"name": "separable", "widths": [8]},
    "head": {"name": "dpm", "num_bins": 33, "sigma": 2.0, "upsampling": "convex"},
    **RANGE,
}


@pytest.fixture(scope="module")
def dpm() -> nn.Module:
    return fitted_network(DPM)


@pytest.fixture(scope="module")
def sigmoid() -> nn.Module:
    return fitted_network(SIGMOID)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_export_attention_network(suffix, tmp_path):
    """A Swin network with a HAHI neck exports to both formats within 1 mm."""
    swin = {"width": 24, "depths": [2, 1, 1, 1], "heads": [1, 2, 4, 8], "window": 4}
    node = {
        "encoder": {"name": "depthformer", **swin},
        "neck": {"name": "hahi", "width": 32, "num_heads": 4, "num_points": 2},
        "decoder": {**DECODER, "widths": [8, 16, 16, 32, 32]},
        "head": {"name": "relu"},
        **RANGE,
    }
    torch.manual_seed(0)
    path = tmp_path / f"student{suffix}"
    (agreed,) = write(path, build_network(node).eval(), node).comparisons
    assert path.is_file()
    assert agreed.high > agreed.low
    assert agreed.depth_max < 1e-3


@torch.no_grad()
def test_trace_of_lite_with_learned_upsampling_is_valid_for_any_size():
    """SAME padding and learned upsampling trace for any size; no depth is blended but its mean."""
    torch.manual_seed(0)
    network = build_network(LITE).eval()
    nn.init.normal_(network.head.weight)
    nn.init.normal_(network.head.upsampling.logits.weight)
    deployed = Deployed(network, "local", temperature=2.0)
    run = program_format.trace(deployed, (32, 48), torch.uint8, dynamic_sizes=True).module()
    for shape in ((1, 33, 20), (2, 7, 18)):
        image = random_image(*shape[1:], seed=4, batch=shape[0])
        depth, confidence, sigma = run(image)
        student = Student(network, "cpu", "local", calibration=Calibration(2.0, "a test"))
        wanted = student.predict(image, with_confidence=True)
        assert wanted.depth.max() > wanted.depth.min() + 1
        assert ((depth - wanted.depth).abs() < 1e-3).float().mean() > 0.98
        same = student.tie_weight(image, 1e-4) == 0
        assert same.float().mean() > 0.3
        assert (confidence - wanted.confidence).abs()[same].max() < 1e-3
        assert (sigma - wanted.sigma).abs()[same].max() < 1e-3


def test_onnx_bins_lie_side_by_side(tmp_path):
    """Every reduction over the bins is over the last dimension, and there is no softmax."""
    import onnx

    torch.manual_seed(0)
    path = tmp_path / "student.onnx"
    write(path, build_network(LITE).eval(), LITE, confidence=True, size=(32, 64))
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.value_info
    }
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    reductions = [node for node in graph.node if node.op_type in ("ReduceMax", "ReduceSum")]
    over_bins = [node for node in reductions if 33 in shapes[node.input[0]]]
    assert len(over_bins) >= 5
    for node in over_bins:
        assert constants[node.input[1]].tolist() in ([-1], [3])
        assert shapes[node.input[0]][3] == 33
    assert "Softmax" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("size", [SMALL, ODD])
@pytest.mark.parametrize("kind", ["dpm", "sigmoid"])
def test_export_onnx_fixed_size_equals_network(tmp_path, request, kind, size):
    """A fixed-size ONNX file gives the network's depth within 1 mm, also at odd sizes."""
    network, path = request.getfixturevalue(kind), tmp_path / "student.onnx"
    write(path, network, size=size)
    image = random_image(*size, seed=3)
    wanted, found = evaluated(network, image), onnx_format.load(path)(image)[0]
    assert wanted.max() > 2 * wanted.min()  # not fitted at this size
    assert found.shape == (1, 1, *size)
    assert (found - wanted).abs().max() < 1e-3


def test_export_onnx_dynamic_takes_any_shape(tmp_path, dpm):
    """A dynamic ONNX file gives the network's depth at any batch size and image size."""
    path = tmp_path / "student.onnx"
    write(path, dpm, dynamic=True)
    run = onnx_format.load(path)
    for shape in ((1, *SMALL), (1, *ODD), (3, 91, 50), (2, 17, 130)):
        image = random_image(*shape[1:], seed=4, batch=shape[0])
        assert (run(image)[0] - evaluated(dpm, image)).abs().max() < 1e-3, shape


def test_export_onnx_operators_and_metadata(tmp_path, dpm):
    """The ONNX file uses only standard operators and states input, output, recipe and axes."""
    import onnx

    path = tmp_path / "student.onnx"
    write(path, dpm, dynamic=True, confidence=True)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["recipe"] == "tiny"
    assert json.loads(facts["teachers"]) == TEACHERS
    assert "metres from 0.5 to 80" in facts["output"]
    assert "RGB, uint8" in facts["input"]
    dims = [
        dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim
    ]
    assert dims == ["batch", 3, "height", "width"]
    assert [output.name for output in model.graph.output] == ["depth", "confidence", "sigma"]


def test_export_float_input_keeps_range(tmp_path, dpm):
    """A file with float input takes values from 0 to 255 and gives the same depth."""
    path = tmp_path / "student.onnx"
    write(path, dpm, input="float")
    image = random_image(*SMALL, seed=6)
    assert (onnx_format.load(path)(image.float())[0] - evaluated(dpm, image)).abs().max() < 1e-3


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_export_confidence_equals_load_student(tmp_path, dpm, suffix):
    """A file has the confidence and sigma of the weights' temperature, and the same depth."""
    path = tmp_path / f"student{suffix}"
    calibration = Calibration(3.0, "ground truth")
    write(path, dpm, confidence=True, calibration=calibration)
    load = (onnx_format if suffix == ".onnx" else program_format).load
    image = random_image(*SMALL, seed=7)
    found = load(path)(image)
    wanted = Student(dpm, "cpu", calibration=calibration).predict(image, with_confidence=True)
    with torch.no_grad():
        plain, with_both = Deployed(dpm)(image), Deployed(dpm, temperature=3.0)(image)
    assert torch.equal(plain[0], with_both[0])
    for got, right, least in zip(found, wanted, (0.5, 0.0, 0.1), strict=True):
        assert got.shape == right.shape == (1, 1, *SMALL)
        assert (got - right).abs().max() < 1e-3
        assert least < right.min() < right.max() - 0.05, "a case that says something"
    other = Student(dpm, "cpu").predict(image, with_confidence=True)
    assert (other.confidence - wanted.confidence).abs().max() > 0.05


def test_export_wrong_sigma_is_refused(tmp_path, dpm, monkeypatch):
    """The check before an export compares sigma, too."""
    right = Deployed._depth_and_certainty

    def wrong(*given):
        depth, confidence, sigma = right(*given)
        return [depth, confidence, 1.02 * sigma]

    monkeypatch.setattr(Deployed, "_depth_and_certainty", wrong)
    with pytest.raises(ExportError, match="doesn't say what the network says"):
        write(tmp_path / "student.pt2", dpm, confidence=True)


@pytest.mark.parametrize("readout", ["mode", "local"])
def test_export_mode_and_local_equal_student(tmp_path, dpm, readout):
    """Files with the mode or local readout agree with Student and differ from the mean."""
    path = tmp_path / "student.onnx"
    write(path, dpm, readout=readout)
    image = random_image(*SMALL, seed=8)
    found = onnx_format.load(path)(image)[0]
    assert (found - Deployed(dpm, readout)(image)[0]).abs().quantile(0.99) < 1e-3
    assert (found - Student(dpm, "cpu", readout)(image)[:, None]).abs().quantile(0.99) < 1e-3
    assert (found - evaluated(dpm, image)).abs().max() > 0.1


def test_export_half_weights_only(tmp_path, sigmoid):
    """Half precision stores float16 weights and no norms; output and network stay float32."""
    import onnx

    path = tmp_path / "student.onnx"
    done = write(path, sigmoid, SIGMOID, half=True)
    model = onnx.load(path)
    types = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert types.count(10) >= len(types) - 1 > 10, "float16, but for the head"
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert model.graph.output[0].type.tensor_type.elem_type == 1, "float32"
    assert done.comparisons[0].depth_p999 > 1e-3, "float16 shows"
    assert {parameter.dtype for parameter in sigmoid.parameters()} == {torch.float32}, (
        "the network stays as it was"
    )


@pytest.mark.parametrize(("suffix", "dynamic"), [(".onnx", False), (".onnx", True), (".pt2", True)])
def test_export_fuses_widening_pointwise_conv(tmp_path, sigmoid, suffix, dynamic):
    """A widening 1x1 convolution is fused into the next one, and the network is unchanged."""
    import onnx

    path = tmp_path / f"student{suffix}"
    write(path, sigmoid, SIGMOID, dynamic=dynamic)
    if suffix == ".onnx":
        shapes = [list(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    else:
        shapes = [list(tensor.shape) for tensor in torch.export.load(path).state_dict.values()]
    # 16 -> 24, and then 24 with 8 of the encoder -> 8.
    assert [8, 16 + 8, 3, 3] in shapes
    assert [24, 16, 1, 1] not in shapes
    assert [8, 24 + 8, 3, 3] not in shapes
    assert list(sigmoid.decoder.levels[1].first.weight.shape) == [8, 24 + 8, 3, 3], (
        "the network stays as it was"
    )


def test_fold_norms_skips_shared_conv():
    """A norm folds into its convolution unless something else uses that convolution's output."""
    import copy

    class Two(nn.Module):
        """A norm after a convolution, and one after a convolution that something else uses too."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.norm, self.shared = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.second(self.norm(self.first(x)))
            return self.shared(y) + y

    torch.manual_seed(0)
    module, x = Two(), torch.randn(2, 3, 12, 12)
    module(x)
    folded = copy.deepcopy(module.eval())
    assert fold_norms(folded, torch.export.export(folded, (x,))) == 1
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(folded.shared, nn.BatchNorm2d)
    assert torch.allclose(folded(x), module(x), atol=1e-5)


def test_export_weights_rebuild_network(tmp_path, dpm):
    """Exported weights load with weights_only and rebuild a network with the same depth."""
    path = tmp_path / "student.pth"
    write(path, dpm)
    state = torch.load(path, weights_only=True)
    assert state["teachers"] == TEACHERS
    again = build_network(state["network"]).eval()
    again.load_state_dict(state["state_dict"])
    assert torch.equal(evaluated(again, random_image(*ODD)), evaluated(dpm, random_image(*ODD)))


def test_export_weights_keep_resize(tmp_path, dpm):
    """Exported weights store the resize, and load_student applies it."""
    path, resize = tmp_path / "student.pth", Resize(48, 80, "contain")
    write(path, dpm, resize=resize)
    student = tiekd.load_student(path)
    assert student.resize == resize
    image = random_image(*ODD)
    assert torch.equal(student(image), Student(dpm, "cpu", resize=resize)(image))


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
@pytest.mark.parametrize("readout", ["mean", "local"])
def test_export_dynamic_keeps_working_size(tmp_path, dpm, name, readout):
    """A dynamic file with a stretch resize equals Student, also at the resize's own size.

    Also of the working size itself, and where only one side is another. The file says that it takes
    images of any size, and how depth is read.
    """
    path, resize = tmp_path / name, Resize(48, 80, "stretch")
    write(path, dpm, size=ODD, dynamic=True, readout=readout, resize=resize)
    loader = onnx_format if path.suffix == ".onnx" else program_format
    run, inputs, facts = loader.load_described(path)
    assert inputs == [((None, 3, None, None), torch.uint8)]
    assert facts["readout"] == readout
    student = Student(dpm, "cpu", readout, resize)
    for shape in ((1, *ODD), (2, 48, 80), (1, 48, 131), (1, 300, 80), (3, 7, 9)):
        image = random_image(*shape[1:], seed=4, batch=shape[0])
        errors = (run(image)[0] - student.predict(image).depth).abs()
        if readout == "local":
            errors = errors[student.margins(image) > 1e-4]
        assert len(errors) > 0, shape
        assert errors.quantile(0.999) < 1e-3, shape


def test_export_dynamic_bts_needs_stretch(tmp_path):
    """A BTS network exports with --dynamic only if images are stretched to a fixed size."""
    node, network, path = NODES["bts"], network_of("bts"), tmp_path / "student.pt2"
    with pytest.raises(ExportError, match="leave out --dynamic"):
        write(path, network, node, dynamic=True)
    resize = Resize(*SMALL, "stretch")
    write(path, network, node, dynamic=True, resize=resize)
    image = random_image(75, 131, seed=9)
    wanted = Student(network, "cpu", resize=resize).predict(image).depth
    assert (program_format.load(path)(image)[0] - wanted).abs().max() < 1e-2


@pytest.mark.parametrize(
    "resize",
    [
        Resize(short_side=40),
        Resize(scale=0.5),
        *(Resize(48, 80, mode) for mode in ("cover", "contain", "fit")),
    ],
)
def test_export_dynamic_rejects_varying_resize(tmp_path, dpm, resize):
    """A resize that depends on the image's size is rejected with --dynamic and allowed without."""
    with pytest.raises(
        ExportError,
        match=r"--dynamic: .* depends on the image's; .*one file a size \(--size HxW\)",
    ):
        export.check(dpm, export.Settings(ODD, dynamic=True, resize=resize), tmp_path / "a.onnx")
    export.check(dpm, export.Settings(ODD, resize=resize), tmp_path / "a.onnx")


def test_export_dynamic_without_resize_shrinks_none(tmp_path, dpm):
    """A dynamic file without a resize says that it shrinks no image, and rejects a large --size."""
    import onnx

    path, resize = tmp_path / "student.onnx", Resize(at_most=SMALL)
    write(path, dpm, dynamic=True, resize=resize)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}[
        "working_resolution"
    ]
    assert "load_student shrinks images larger than 1.5 times 64x96, this file shrinks none" in told
    with pytest.raises(
        ExportError,
        match=r"--size 128x192: .* the network would see 64x96 of it; leave out --dynamic",
    ):
        export.check(dpm, export.Settings((128, 192), dynamic=True, resize=resize), path)


def test_export_metadata_states_size_and_readout(tmp_path, dpm):
    """The file's metadata states the working resolution and the readout."""
    import onnx

    path = tmp_path / "student.onnx"
    write(path, dpm, size=ODD, readout="mode", resize=Resize(48, 80, "stretch"))
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["working_resolution"] == "48x80, stretch"
    assert facts["readout"] == "mode"
    assert "at its own size" in facts["input"]


def test_export_half_keeps_resize_float32(tmp_path, sigmoid):
    """A half-precision file keeps its resizing weights in float32, bit for bit."""
    path, resize = tmp_path / "student.pt2", Resize(48, 80, "stretch")
    write(path, sigmoid, SIGMOID, size=ODD, half=True, resize=resize)
    facts = {program_format.FACTS: ""}
    torch.export.load(path, extra_files=facts)
    assert json.loads(json.loads(facts[program_format.FACTS])["teachers"]) == TEACHERS
    stored = torch.export.load(path).constants
    for name, old, new in (("rows", ODD[0], 48), ("columns", ODD[1], 80)):
        for number, band in enumerate(bands(old, new)):
            weights = stored[f"{name}_{number}"]
            assert weights.dtype == torch.float32
            assert torch.equal(weights, band.weights)


def test_export_check_compares_with_student(tmp_path, dpm, monkeypatch):
    """The check rejects a file whose graph resizes bins or skips the working resolution.

    The fault that it once certified: a map of bins, resized like any other.
    """
    from tiekd.inference.export import deployed

    def blended(values, size, _smooth):
        return nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=True)

    monkeypatch.setattr(deployed, "resize_to_image", blended)
    for readout in ("mode", "local"):
        with pytest.raises(ExportError, match="doesn't say what the network says"):
            write(tmp_path / "student.pt2", dpm, readout=readout)
    monkeypatch.undo()
    # The working resolution, too.
    monkeypatch.setattr(export.Settings, "dynamic_resize", property(lambda self: Resize()))
    with pytest.raises(ExportError, match="doesn't say what the network says"):
        write(
            tmp_path / "student.pt2", dpm, size=ODD, dynamic=True, resize=Resize(48, 80, "stretch")
        )


def test_export_check_rejects_all_ties(tmp_path):
    """The check refuses an export if two bins tie at every pixel, as nothing is comparable."""
    torch.manual_seed(0)
    network = build_network(DPM).eval()
    torch.nn.init.zeros_(network.head.weight)
    with pytest.raises(
        ExportError, match="nothing can be compared: at every pixel two bins are equally likely"
    ):
        write(tmp_path / "student.pt2", network, readout="mode")


@pytest.mark.parametrize("suffix", [".pth", ".pt2"])
def test_export_unwritable_file_is_named(tmp_path, sigmoid, suffix):
    """A file that can't be written whole is named in one line, and nothing of it stays."""
    path = tmp_path / f"student{suffix}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ExportError) as error:
            write(path, sigmoid)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == (
        f"--out {path}: can't be written (File too large: the file size limit (ulimit -f) is 1000 "
        "bytes); correct that, or give another --out"
    )
    assert list(tmp_path.iterdir()) == []


def test_export_failed_check_keeps_old_file(tmp_path, sigmoid, monkeypatch):
    """A file that fails the check is removed, and the previous file stays."""
    path = tmp_path / "student.onnx"
    path.write_bytes(b"what was there before")
    monkeypatch.setattr(
        Deployed, "forward", lambda self, image: (self.network(image.float() / 255).depth * 1.001,)
    )
    with pytest.raises(
        ExportError, match=r"doesn't say what the network says: 1 x 64x96, .*allowed 0.001 and 0.01"
    ):
        write(path, sigmoid)
    assert path.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"depth_p999": 1.1e-3}, False),
        ({"depth_max": 1.1e-2}, False),
        ({"depth_max": float("nan")}, False),
        ({"confidence_p999": 0.1}, False),
        ({"sigma_p999": 1.1e-3}, False),
        ({"sigma_p999": float("nan")}, False),
    ],
)
def test_agreement_holds_within_limits(change, holds):
    """An agreement holds only if depth and confidence errors are finite and within the limits."""
    limits = verification.limits_of(False, "mean", 80.0)
    assert limits[:2] == (1e-3, 1e-2)
    row = verification.Comparison((1, 2, 2), 1.0, 9.0, 0.9e-3, 0.9e-2, None, None, limits)
    assert row._replace(**change).holds() is holds


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("a.pt2", {"format": "onnx"}, "a file of format onnx ends with .onnx"),
        (
            "a.onnx",
            {"size": (8, 64)},
            "--size 8x64: too small for this network; give at least 16x16",
        ),
        (
            "a.onnx",
            {"size": (8, 64), "resize": Resize(at_most=SMALL)},
            "--size 8x64: too small for this network",
        ),
        (
            "a.onnx",
            {"resize": Resize(scale=0.2)},
            r"64x96: .* would see 13x19 of it \(scaled by 0.2\); it needs",
        ),
        (
            "a.onnx",
            {"resize": Resize(12, 64, "stretch"), "dynamic": True},
            "would see 12x64 .*, give a larger",
        ),
        (
            "a.onnx",
            {"size": (64, 99999), "resize": Resize(scale=0.01)},
            "--size 64x99999: larger than 16384 pixels a side; give a smaller one",
        ),
        ("a.pth", {"format": "weights", "half": True}, "--format weights: holds no arithmetic"),
        ("a.pth", {"format": "weights", "readout": "mode"}, "leave out .*--readout, "),
    ],
)
def test_export_check_rejects_invalid_settings(tmp_path, dpm, name, options, line):
    """Each impossible export setting raises an ExportError that names it."""
    settings = replace(export.Settings(SMALL), **options)
    with pytest.raises(ExportError, match=line):
        export.check(dpm, settings, tmp_path / name)


@pytest.mark.parametrize("options", [{"confidence": True}, {"readout": "local"}])
def test_export_check_needs_dpm_head(tmp_path, sigmoid, options):
    """Confidence and the local readout are rejected for a network without a DPM head."""
    with pytest.raises(ExportError, match="this network's head isn't a DPM head"):
        export.check(sigmoid, export.Settings(SMALL, **options), tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["plain.txt/x.pth", "folder.pth"])
def test_export_check_rejects_unwritable_out(tmp_path, sigmoid, name):
    """An --out path that can't be written is rejected in one line before any work."""
    (tmp_path / "plain.txt").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(LaunchError, match=rf"^--out .*{name}: ") as error:
        export.check(sigmoid, export.Settings(SMALL, "weights"), tmp_path / name)
    assert "\n" not in str(error.value)


def test_trial_batches_second_size_is_valid(dpm):
    """The second trial size is odd and not below the network's smallest side."""
    least = export.least_side(dpm, export.Settings(SMALL, dynamic=True))
    side = least + 1
    *_, both = trial_images.batches([random_image(64, 64)[0]] * 2, (side, side), least)
    assert min(both.shape[2:]) >= least
    assert both.shape[2] % 2 == 1


def test_trial_frames_come_from_dataset(monkeypatch):
    """Trial images come from the recipe's validation split, with the origin stated."""
    frames = [SimpleNamespace(image=random_image(48, 64, seed)[0]) for seed in range(3)]
    monkeypatch.setattr(trial_images, "build_dataset", lambda *_, **__: frames)
    found, origin = trial_images.frames(
        {"network": DPM, "data": {"name": "folder", "images": "rides"}}
    )
    assert origin == "folder (val)"
    assert found[0] is frames[0].image
    assert found[1] is frames[2].image


@pytest.mark.parametrize(("against", "scores"), [("teacher", True), (None, False)])
def test_trial_frames_follow_evaluation(monkeypatch, against, scores):
    """Against the teacher, trial images are those that it is scored on, without ground truth."""
    seen = []

    def built(settings, *_, **__):
        seen.append(settings.scores_teacher)
        return [SimpleNamespace(image=random_image(48, 64)[0])]

    monkeypatch.setattr(trial_images, "build_dataset", built)
    recipe = {"network": DPM, "data": {"name": "folder", "images": "rides"}}
    trial_images.frames(recipe | ({"evaluation": {"against": against}} if against else {}))
    assert seen == [scores]


def test_export_check_names_missing_package(tmp_path, dpm, monkeypatch):
    """A missing package is named together with the pip command that installs it."""
    monkeypatch.setattr(onnx_format, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(
        ExportError, match=r"needs no_such_package, not installed here; pip install no_such_package"
    ):
        export.check(dpm, export.Settings(SMALL), tmp_path / "a.onnx")


def test_export_trace_rejects_size_dependent_graph(dpm):
    """A network that branches on the image's size is rejected with the advice to drop --dynamic."""

    class ByValue(Deployed):
        def forward(self, image):
            return (image.float() if image.shape[2] % 2 else image.double(),)

    with pytest.raises(ExportError, match="leave out --dynamic and export one file a size"):
        program_format.trace(ByValue(dpm), SMALL, torch.uint8, True)


def test_trial_frames_fall_back_to_scenes(tmp_path):
    """Without the recipe's data, two rendered scenes are used, at two sizes and batch sizes."""
    recipe = {"network": DPM, "data": {"name": "kitti", "root": str(tmp_path)}}
    found, origin = trial_images.frames(recipe)
    assert len(found) == 2
    assert origin.startswith("built-in scenes")
    assert str(tmp_path) in origin
    one, other, both = trial_images.batches(found, (96, 128), least=17)
    assert one.shape == other.shape == (1, 3, 96, 128)
    assert both.shape == (2, 3, 73, 97)
    assert both.dtype == torch.uint8
    assert (one.float().mean() - found[0].float().mean()).abs() < 2
