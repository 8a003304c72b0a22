"""Exported files compute what the network does and need nothing of this project.

A file that differs is not left there.
"""

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
    evaluated,
    fitted_network,
    picture,
    write,
)
from support.one_picture.doors import NODES, network_of
from torch import nn

import tiekd
from tiekd.data.resize import Resize, dense_weights
from tiekd.errors import ExportError, LaunchError
from tiekd.inference.export import (
    export,
    onnx_format,
    program_format,
    trial_pictures,
    verification,
)
from tiekd.inference.export.deployed import Deployed
from tiekd.inference.export.norms import fold_norms
from tiekd.inference.student import Student
from tiekd.models.build import build_network

DEEPER = {**DECODER, "widths": [8, 24], "extra_ups": 2}
SIGMOID = {"encoder": ENCODER, "decoder": DEEPER, "head": {"name": "sigmoid"}, **RANGE}


@pytest.fixture(scope="module")
def dpm() -> nn.Module:
    return fitted_network(DPM)


@pytest.fixture(scope="module")
def sigmoid() -> nn.Module:
    return fitted_network(SIGMOID)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_networks_with_attention_become_files(suffix, tmp_path):
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


@pytest.mark.parametrize("size", [SMALL, ODD])
@pytest.mark.parametrize("kind", ["dpm", "sigmoid"])
def test_a_file_gives_the_networks_metres_of_pixels(tmp_path, request, kind, size):
    network, path = request.getfixturevalue(kind), tmp_path / "student.onnx"
    write(path, network, size=size)
    image = picture(*size, seed=3)
    wanted, found = evaluated(network, image), onnx_format.load(path)(image)[0]
    assert wanted.max() > 2 * wanted.min()  # not fitted at this size
    assert found.shape == (1, 1, *size)
    assert (found - wanted).abs().max() < 1e-3


def test_an_open_file_takes_any_batch_and_size(tmp_path, dpm):
    path = tmp_path / "student.onnx"
    write(path, dpm, dynamic=True)
    run = onnx_format.load(path)
    for shape in ((1, *SMALL), (1, *ODD), (3, 91, 50), (2, 17, 130)):
        image = picture(*shape[1:], seed=4, batch=shape[0])
        assert (run(image)[0] - evaluated(dpm, image)).abs().max() < 1e-3, shape


def test_an_onnx_file_is_of_standard_operators_and_says_what_it_is(tmp_path, dpm):
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
    assert "metres from 0.5 to 80" in facts["output"]
    assert "RGB, uint8" in facts["input"]
    dims = [
        dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim
    ]
    assert dims == ["batch", 3, "height", "width"]
    assert [output.name for output in model.graph.output] == ["depth", "confidence"]


def test_float_pixels_are_of_the_same_range(tmp_path, dpm):
    path = tmp_path / "student.onnx"
    write(path, dpm, input="float")
    image = picture(*SMALL, seed=6)
    assert (onnx_format.load(path)(image.float())[0] - evaluated(dpm, image)).abs().max() < 1e-3


def test_confidence_is_the_probability_near_the_likeliest_bin(tmp_path, dpm):
    path = tmp_path / "student.onnx"
    write(path, dpm, confidence=True)
    image = picture(*SMALL, seed=7)
    depth, confidence = onnx_format.load(path)(image)
    with torch.no_grad():
        p = dpm.head.probabilities(dpm.features((image.float() - 117) / 57))[0]
    assert confidence.shape == depth.shape
    assert 0 < confidence.min() < confidence.max() <= 1 + 1e-6
    middle = p[:, 20, 30]
    mode = int(middle.argmax())
    near = middle[max(0, mode - 2) : mode + 3].sum()
    assert near < 0.999, "a case that says something"
    settings = Deployed(dpm, confidence=True)
    assert torch.allclose(settings(image)[1], confidence, atol=1e-4)


@pytest.mark.parametrize("readout", ["mode", "local"])
def test_other_readouts_keep_to_the_likeliest_bin(tmp_path, dpm, readout):
    path = tmp_path / "student.onnx"
    write(path, dpm, readout=readout)
    image = picture(*SMALL, seed=8)
    found = onnx_format.load(path)(image)[0]
    assert (found - Deployed(dpm, readout)(image)[0]).abs().quantile(0.99) < 1e-3
    assert (found - Student(dpm, "cpu", readout)(image)[:, None]).abs().quantile(0.99) < 1e-3
    assert (found - evaluated(dpm, image)).abs().max() > 0.1


def test_half_precision_is_inside_only_and_without_norms(tmp_path, sigmoid):
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
def test_a_pointwise_convolution_that_adds_channels_is_not_in_the_file(
    tmp_path, sigmoid, suffix, dynamic
):
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


def test_norms_fold_into_the_convolutions_before_them_alone():
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


def test_weights_load_as_plain_tensors_and_build_the_network(tmp_path, dpm):
    path = tmp_path / "student.pth"
    write(path, dpm)
    state = torch.load(path, weights_only=True)
    again = build_network(state["network"]).eval()
    again.load_state_dict(state["state_dict"])
    assert torch.equal(evaluated(again, picture(*ODD)), evaluated(dpm, picture(*ODD)))


def test_exported_weights_know_their_working_resolution(tmp_path, dpm):
    path, resize = tmp_path / "student.pth", Resize(48, 80, "contain")
    write(path, dpm, resize=resize)
    student = tiekd.load_student(path)
    assert student.resize == resize
    assert torch.equal(student(picture(*ODD)), Student(dpm, "cpu", resize=resize)(picture(*ODD)))


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
@pytest.mark.parametrize("readout", ["mean", "local"])
def test_a_file_of_any_size_has_a_working_size_that_is_constant_inside(
    tmp_path, dpm, name, readout
):
    """Also of the working size itself, and where only one side is another."""
    path, resize = tmp_path / name, Resize(48, 80, "stretch")
    write(path, dpm, size=ODD, dynamic=True, readout=readout, resize=resize)
    run = (onnx_format if path.suffix == ".onnx" else program_format).load(path)
    student = Student(dpm, "cpu", readout, resize)
    for shape in ((1, *ODD), (2, 48, 80), (1, 48, 131), (1, 300, 80), (3, 7, 9)):
        image = picture(*shape[1:], seed=4, batch=shape[0])
        errors = (run(image)[0] - student.predict(image).depth).abs()
        if readout == "local":
            errors = errors[student.margins(image) > 1e-4]
        assert len(errors) > 0, shape
        assert errors.quantile(0.999) < 1e-3, shape


def test_a_network_whose_arithmetic_depends_on_the_size_takes_any_once_it_is_stretched(tmp_path):
    node, network, path = NODES["bts"], network_of("bts"), tmp_path / "student.pt2"
    with pytest.raises(ExportError, match="leave out --dynamic"):
        write(path, network, node, dynamic=True)
    resize = Resize(*SMALL, "stretch")
    write(path, network, node, dynamic=True, resize=resize)
    image = picture(75, 131, seed=9)
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
def test_a_working_size_that_depends_on_the_picture_is_of_files_of_one_size(tmp_path, dpm, resize):
    with pytest.raises(
        ExportError,
        match=r"--dynamic: .* depends on the picture's; .*one file a size \(--size HxW\)",
    ):
        export.check(dpm, export.Settings(ODD, dynamic=True, resize=resize), tmp_path / "a.onnx")
    export.check(dpm, export.Settings(ODD, resize=resize), tmp_path / "a.onnx")


def test_recipes_without_a_resize_give_files_of_any_size_that_shrink_nothing(tmp_path, dpm):
    import onnx

    path, resize = tmp_path / "student.onnx", Resize(at_most=SMALL)
    write(path, dpm, dynamic=True, resize=resize)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}[
        "working_resolution"
    ]
    assert "load_student shrinks those of more than 1.5 times 64x96, this file none" in told
    with pytest.raises(
        ExportError,
        match=r"--size 128x192: .* the network would see 64x96 of it; leave out --dynamic",
    ):
        export.check(dpm, export.Settings((128, 192), dynamic=True, resize=resize), path)


def test_a_file_says_at_which_size_its_network_sees_pictures_and_what_it_reads_out(tmp_path, dpm):
    import onnx

    path = tmp_path / "student.onnx"
    write(path, dpm, size=ODD, readout="mode", resize=Resize(48, 80, "stretch"))
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["working_resolution"] == "48x80, stretch"
    assert facts["readout"] == "mode"
    assert "at its own size" in facts["input"]


def test_half_precision_leaves_the_resizing_exact(tmp_path, sigmoid):
    path, resize = tmp_path / "student.pt2", Resize(48, 80, "stretch")
    write(path, sigmoid, SIGMOID, size=ODD, half=True, resize=resize)
    matrices = [
        each for each in torch.export.load(path).constants.values() if each.shape[-1:] == (ODD[0],)
    ]
    assert [each.dtype for each in matrices] == [torch.float32]
    assert torch.equal(matrices[0], dense_weights(ODD[0], 48))


def test_the_check_is_against_load_student_and_not_against_the_files_own_graph(
    tmp_path, dpm, monkeypatch
):
    """The fault that it once certified: a map of bins, resized like any other."""
    from tiekd.inference.export import deployed

    def blended(values, size, _smooth):
        return nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=True)

    monkeypatch.setattr(deployed, "on_image_grid", blended)
    for readout in ("mode", "local"):
        with pytest.raises(ExportError, match="doesn't say what the network says"):
            write(tmp_path / "student.pt2", dpm, readout=readout)
    monkeypatch.undo()
    # The working resolution, too.
    monkeypatch.setattr(export.Settings, "open_resize", property(lambda self: Resize()))
    with pytest.raises(ExportError, match="doesn't say what the network says"):
        write(
            tmp_path / "student.pt2", dpm, size=ODD, dynamic=True, resize=Resize(48, 80, "stretch")
        )


def test_where_every_pixel_is_a_tie_nothing_is_certified(tmp_path):
    torch.manual_seed(0)
    network = build_network(DPM).eval()
    torch.nn.init.zeros_(network.head.weight)
    with pytest.raises(
        ExportError, match="nothing can be compared: at every pixel two bins are equally likely"
    ):
        write(tmp_path / "student.pt2", network, readout="mode")


def test_a_file_that_disagrees_is_not_left_behind(tmp_path, sigmoid, monkeypatch):
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
    ],
)
def test_limits_are_those_that_are_stated(change, holds):
    limits = verification.limits_of(False, "mean", 80.0)
    assert limits[:2] == (1e-3, 1e-2)
    row = verification.Comparison((1, 2, 2), 1.0, 9.0, 0.9e-3, 0.9e-2, None, limits)
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
        ("a.pth", {"format": "weights", "half": True}, "--format weights: holds no arithmetic"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, dpm, name, options, line):
    settings = replace(export.Settings(SMALL), **options)
    with pytest.raises(ExportError, match=line):
        export.check(dpm, settings, tmp_path / name)


@pytest.mark.parametrize("options", [{"confidence": True}, {"readout": "local"}])
def test_what_only_a_distribution_has_is_refused_of_others(tmp_path, sigmoid, options):
    with pytest.raises(ExportError, match="this network's head isn't a DPM head"):
        export.check(sigmoid, export.Settings(SMALL, **options), tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["plain.txt/x.pth", "folder.pth"])
def test_a_file_that_can_not_be_there_is_refused_before_the_work(tmp_path, sigmoid, name):
    (tmp_path / "plain.txt").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(LaunchError, match=rf"^--out .*{name}: ") as error:
        export.check(sigmoid, export.Settings(SMALL, "weights"), tmp_path / name)
    assert "\n" not in str(error.value)


def test_the_second_size_that_is_tried_is_one_that_the_file_takes(dpm):
    least = export.least_side(dpm, export.Settings(SMALL, dynamic=True))
    side = least + 1
    *_, both = trial_pictures.batches([picture(64, 64)[0]] * 2, (side, side), least)
    assert min(both.shape[2:]) >= least
    assert both.shape[2] % 2 == 1


def test_pictures_of_a_data_set_in_the_current_folder_are_its_own(monkeypatch):
    frames = [SimpleNamespace(image=picture(48, 64, seed)[0]) for seed in range(3)]
    monkeypatch.setattr(trial_pictures, "build_dataset", lambda *_, **__: frames)
    found, origin = trial_pictures.frames(
        {"network": DPM, "data": {"name": "folder", "images": "rides"}}
    )
    assert origin == "folder (val)"
    assert found[0] is frames[0].image
    assert found[1] is frames[1].image


def test_missing_packages_are_named(tmp_path, dpm, monkeypatch):
    monkeypatch.setattr(onnx_format, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(
        ExportError, match=r"needs no_such_package, not installed here; pip install no_such_package"
    ):
        export.check(dpm, export.Settings(SMALL), tmp_path / "a.onnx")


def test_sizes_that_cannot_be_left_open_are_one_line(dpm):
    class ByValue(Deployed):
        def forward(self, image):
            return (image.float() if image.shape[2] % 2 else image.double(),)

    with pytest.raises(ExportError, match="leave out --dynamic and export one file a size"):
        program_format.trace(ByValue(dpm), SMALL, torch.uint8, True)


def test_pictures_are_the_recipes_or_rendered_ones(tmp_path):
    recipe = {"network": DPM, "data": {"name": "kitti", "root": str(tmp_path)}}
    found, origin = trial_pictures.frames(recipe)
    assert len(found) == 2
    assert origin.startswith("built-in scenes")
    assert str(tmp_path) in origin
    one, other, both = trial_pictures.batches(found, (96, 128), least=17)
    assert one.shape == other.shape == (1, 3, 96, 128)
    assert both.shape == (2, 3, 73, 97)
    assert both.dtype == torch.uint8
    assert (one.float().mean() - found[0].float().mean()).abs() < 2
