"""Encoders of timm: features, the normalisation that they expect, weights, what is refused."""

import re
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.errors import CheckpointError, RecipeError
from tiekd.inference.export.norms import fold_norms
from tiekd.models.build import build_network
from tiekd.models.encoders.timm import Timm
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.models.layers.normalisation import Normalisation
from tiekd.models.weights import pretrained, state_dicts

HALVES = "test_resnet"  # normalises by a mean and deviation of 0.5
IMAGENETS = "test_efficientnet"  # by ImageNet's; its norms have an activation
# Of HALVES, in the order of a file of the kind.
CLASSIFIER = {".pth": "fc.weight, fc.bias", ".safetensors": "fc.bias, fc.weight"}


def node(**encoder) -> dict:
    return {
        "encoder": {"name": "timm", "model": HALVES, **encoder},
        "decoder": {"name": "densedepth", "widths": [8, 8, 8, 8, 8], "extra_ups": 1},
        "head": {"name": "sigmoid"},
        "min_depth": 0.001,
        "max_depth": 80.0,
    }


def randomised(network: nn.Module) -> nn.Module:
    """Gives every parameter and statistic another value than a new network's; in eval mode."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) * 0.5 + 0.5)
    return network.eval()


def image(height: int = 64, width: int = 96) -> torch.Tensor:
    """Grey levels from 0 to 255, (2, 3, height, width)."""
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width)).float()


def normalised(levels: torch.Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> torch.Tensor:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
    return (levels - mean) / std


@pytest.fixture(scope="module")
def whole():
    """Timm's own model with its classifier, at random."""
    torch.manual_seed(0)
    return randomised(timm.create_model(HALVES))


@pytest.fixture(scope="module")
def file(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(whole.state_dict(), path)
    return path


@pytest.fixture
def no_hub(monkeypatch):
    """Makes every way to timm's hub an error; returns the list of what was asked for."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no connection\nat all")

    for name in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
        monkeypatch.setattr(f"timm.models._builder.{name}", refuse)
    return asked


def refused(**arguments) -> str:
    with pytest.raises(RecipeError) as error:
        build_network(node(**arguments))
    message = str(error.value)
    assert message.startswith("network.")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("model", "taps", "channels", "strides"),
    [
        (HALVES, None, (32, 32, 48, 192, 96), (2, 4, 8, 16, 32)),
        (HALVES, (1, 3), (32, 192), (4, 16)),
        (IMAGENETS, (0, 2), (16, 32), (2, 8)),
        ("test_convnext", None, (24, 32, 48, 64), (4, 8, 16, 32)),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_features_have_timms_channels_and_strides(model, taps, channels, strides, size):
    """Sizes are rounded up, also by a backbone that rounds down (ConvNeXt)."""
    encoder = Timm(model, taps).eval()
    assert encoder.channels == channels
    assert encoder.strides == strides
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, *size))
    assert [tuple(feature.shape) for feature in features] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_features_are_those_of_timm_for_the_backbones_own_normalisation(whole, file, size):
    encoder = Timm(HALVES)
    encoder.load_state_dict(encoder.read_pretrained(str(file))[0], strict=False)
    theirs = timm.create_model(HALVES, features_only=True)
    theirs.load_state_dict(whole.state_dict(), strict=False)
    levels = image(*size)
    with torch.no_grad():
        expected = theirs.eval()(normalised(levels, [127.5] * 3, [127.5] * 3))
        features = encoder.eval()(normalised(levels))
    for feature, other in zip(features, expected, strict=True):
        assert other.std() > 0.01
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-4)


def test_a_backbone_that_rounds_down_sees_the_mean_beyond_the_image():
    encoder = Timm("test_convnext").eval()
    levels = image(60, 90)
    extended = torch.full((2, 3, 64, 96), 127.5)
    extended[:, :, :60, :90] = levels
    with torch.no_grad():
        features = encoder(normalised(levels))
        expected = encoder(normalised(extended))
    for feature, other in zip(features, expected, strict=True):
        height, width = feature.shape[2:]
        torch.testing.assert_close(feature, other[:, :, :height, :width], rtol=1e-4, atol=1e-4)


def test_normalisation_is_none_for_imagenets_mean_and_deviation():
    seen = normalised(image())
    assert torch.equal(Timm(IMAGENETS).normalisation(seen), seen)
    assert not torch.equal(Timm(HALVES).normalisation(seen), seen)


def test_normalisation_stays_in_fp32_in_a_network_of_another_precision():
    seen = normalised(image())
    layer = Normalisation([0.5] * 3, [0.3] * 3)
    expected = layer(seen)
    layer = layer.to(torch.bfloat16)
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.float32}
    assert torch.equal(layer(seen), expected)
    assert layer(seen.bfloat16()).dtype == torch.bfloat16


def test_normalisation_is_stored_with_the_weights():
    """A later timm may say another mean; the weights keep the one that they were trained with."""
    trained, later = build_network(node()), build_network(node())
    later.encoder.normalisation.mean.fill_(100.0)
    later.encoder.normalisation.std.fill_(50.0)
    state_dicts.load_into(later, trained.state_dict())
    seen = normalised(image())
    with torch.no_grad():
        assert torch.equal(later.eval()(seen).depth, trained.eval()(seen).depth)


@pytest.mark.parametrize("model", [HALVES, IMAGENETS])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_are_ours_and_compute_what_timms_do(model, training):
    torch.manual_seed(0)
    encoder = Timm(model)
    torch.manual_seed(0)
    theirs = timm.create_model(model, features_only=True)
    assert any(isinstance(module, _BatchNorm) for module in theirs.modules())
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    assert {type(norm) for norm in norms} == {BatchNorm2d}
    seen = normalised(image())
    encoder.train(training)
    theirs.train(training)
    for feature, other in zip(encoder(seen), theirs(encoder.normalisation(seen)), strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-4)


def test_folding_norms_keeps_their_activation():
    """The activation of timm's norms isn't lost where a half-precision export folds norms."""
    torch.manual_seed(0)
    assert any(
        isinstance(module, BatchNormAct2d)
        for module in timm.create_model(IMAGENETS, features_only=True).modules()
    )
    encoder = randomised(Timm(IMAGENETS))
    seen = normalised(image())
    with torch.no_grad():
        expected = encoder(seen)
        assert fold_norms(encoder, torch.export.export(encoder, (seen,))) > 10
        features = encoder(seen)
    for feature, other in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("taps", [None, (1, 2)])
def test_a_file_of_timms_names_fills_every_tensor(whole, file, taps, tmp_path, no_hub):
    """.pth, .safetensors, a checkpoint's `state_dict` and names with `module.` give the same."""
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.pth"
    save_file(whole.state_dict(), plain)
    renamed = {f"module.{name}": tensor for name, tensor in whole.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": renamed}, wrapped)
    for path in (file, plain, wrapped):
        torch.manual_seed(3)
        network = build_network(node(pretrained=str(path), taps=taps) | decoder_of(taps))
        drawn = torch.get_rng_state()
        said = pretrained.load(network)
        assert torch.equal(torch.get_rng_state(), drawn)
        backbone = network.encoder.backbone.state_dict()
        assert said == (
            f"Encoder: {len(backbone)} tensors from {path}, without its classifier "
            f"({CLASSIFIER[path.suffix]})"
        )
        assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in backbone.items())
    assert no_hub == []


def decoder_of(taps) -> dict:
    widths = [8] * (5 if taps is None else len(taps))
    return {"decoder": {"name": "densedepth", "widths": widths, "extra_ups": 1}}


@pytest.mark.usefixtures("no_hub")
def test_a_file_that_does_not_fit_is_refused_with_what_is_missing_and_unexpected(whole, tmp_path):
    """In one line, with nothing loaded; the classifier may be missing or of other classes."""
    state = dict(whole.state_dict())
    state["fc.weight"] = torch.zeros(3, 96)
    del state["fc.bias"]
    torch.save(state, tmp_path / "other_classes.pth")
    assert pretrained.load(build_network(node(pretrained=str(tmp_path / "other_classes.pth"))))
    del state["layer1.0.conv1.weight"]
    state["new.weight"] = torch.zeros(1)
    state["conv1.0.weight"] = torch.zeros(1, 1, 3, 3)
    torch.save(state, tmp_path / "wrong.pth")
    network = build_network(node(pretrained=str(tmp_path / "wrong.pth")))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RecipeError) as error:
        pretrained.load(network)
    assert str(error.value) == (
        f"network.encoder.pretrained: {tmp_path}/wrong.pth: doesn't fit timm's test_resnet: "
        "1 missing (layer1.0.conv1.weight), 1 unexpected (new.weight), "
        "1 of another shape (conv1.0.weight); give a state dict of this model with timm's own "
        "names; or say hub, or null for a random start"
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "torn.safetensors", "imagenet"])
def test_a_file_that_can_not_be_read_is_told_in_one_line(tmp_path, name):
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{\n")
    network = build_network(node(pretrained=str(tmp_path / name)))
    with pytest.raises(RecipeError) as error:
        pretrained.load(network)
    message = str(error.value)
    assert message.startswith(f"network.encoder.pretrained: {tmp_path / name}: ")
    assert message.endswith("; or say hub, or null for a random start")
    assert "\n" not in message


def test_only_a_new_run_that_asks_for_the_hub_reaches_for_it(monkeypatch, whole, no_hub):
    network = build_network(node(pretrained="hub"))
    assert pretrained.load(build_network(node())) is None
    assert no_hub == []
    with pytest.raises(RecipeError) as error:
        pretrained.load(network)
    assert str(error.value) == (
        "network.encoder.pretrained: hub: timm can't load weights of test_resnet (OSError: no "
        "connection at all); download them on another machine and give the file; or null for a "
        "random start"
    )
    assert len(no_hub) == 1
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(whole.state_dict())
    )
    said = pretrained.load(network)
    backbone = network.encoder.backbone.state_dict()
    assert said == f"Encoder: {len(backbone)} tensors from timm's hub for test_resnet"
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in backbone.items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": "tset_resnet"}, r"encoder\.model: timm [\d.]+ has no 'tset_resnet'; nearest: "),
        ({"model": "hf-hub:timm/x"}, r"has no 'hf-hub:timm/x'; nearest: "),
        (
            {"model": "test_resnet.none"},
            r"weights 'test_resnet.none'; there are: test_resnet\.r160",
        ),
        (
            {"model": "test_vit"},
            r"test_vit has features at strides \[16, 16, 16\]; a decoder needs",
        ),
        ({"model": "test_maxvit"}, r"doesn't work on an image of 64x64 \(.*divisible by window"),
        ({"model": "test_mambaout"}, r"on an image of 64x64 \(features of \[\(16, 16, 16\), \(8, "),
        ({"taps": []}, r"encoder\.taps: got \[\]; whole numbers from 0, increasing"),
        ({"taps": [2, 1]}, r"encoder\.taps: got \[2, 1\]; whole numbers from 0, increasing"),
        ({"taps": [-1]}, r"encoder\.taps: got \[-1\]; whole numbers from 0, increasing"),
        ({"taps": [1, 7]}, r"taps: got \[1, 7\]; test_resnet has 0 to 4, at strides \[2, 4, 8, 16"),
    ],
)
def test_what_no_decoder_can_use_is_refused_in_one_line(arguments, told, no_hub):
    assert re.search(told, refused(**arguments))
    assert no_hub == []


def test_a_model_without_features_is_refused(monkeypatch):
    def none(*_, **__):
        raise RuntimeError("features_only not implemented\nfor this")

    monkeypatch.setattr(timm, "create_model", none)
    assert refused() == (
        "network.encoder.model: timm's test_resnet gives no features (features_only; RuntimeError: "
        "features_only not implemented for this)"
    )


def test_a_decoder_that_needs_other_strides_says_so():
    bts = {"decoder": {"name": "bts", "width": 128}}
    with pytest.raises(RecipeError, match=r"taps are at strides \[4, 8, 16, 32\]; allowed: \[2, 4"):
        build_network(node(model="test_convnext") | bts)
    assert build_network(node() | bts).decoder.stride == 1


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refused() == (
        "network.encoder.model: encoders of the name timm need the package timm, which is not "
        "installed; pip install 'tiekd[timm]'"
    )


def test_a_network_is_built_without_memory_for_a_conversion():
    with torch.device("meta"):
        network = build_network(node())
    state = build_network(node()).state_dict()
    report = state_dicts.compare(network, state)
    assert report.matched == sorted(state)
    assert (report.missing, report.unexpected, report.misfit) == ([], [], [])


def test_read_pretrained_leaves_the_encoder_as_it_is(file):
    encoder = Timm(HALVES)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    tensors, _ = encoder.read_pretrained(str(file))
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    assert set(tensors) == {name for name in before if name.startswith("backbone.")}
    with pytest.raises(CheckpointError, match="no such file"):
        encoder.read_pretrained("nowhere.pth")
