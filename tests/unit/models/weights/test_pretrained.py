"""ImageNet weights: the encoder computes what torchvision's network does.

Only a new run reads them.
"""

import urllib.error

import pytest
import torch
from support.torchvision_weights import CLASSIFIER, node, randomised, refused
from torchvision import models

from tiekd.config.recipe import load_recipe
from tiekd.errors import RecipeError
from tiekd.models.build import build_network
from tiekd.models.encoders.mobilenet_v2 import MobileNetV2
from tiekd.models.encoders.resnet import ResNet
from tiekd.models.weights import pretrained
from tiekd.models.weights.state_dicts import to_published
from tiekd.teaching import build_teacher
from tiekd.training.build import load_weights
from tiekd.training.settings import Recipe

FILE = "mobilenet_v2-b0353104.pth"  # what torchvision calls it in the hub cache


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    return randomised(models.mobilenet_v2(weights=None))


@pytest.fixture(scope="module")
def mobilenet_file(mobilenet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(mobilenet.state_dict(), path)
    return path


@pytest.fixture
def no_connection(monkeypatch, tmp_path):
    """Sets an empty hub cache and a network that can't be reached.

    Returns the list of what was asked for.
    """
    asked = []

    def refuse(url, *_, **__):
        asked.append(url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return asked


@torch.no_grad()
def features_of_torchvision(network, image, stages):
    """The outputs of torchvision's MobileNetV2 after its blocks 1.. that end our stages."""
    ends = {0: 1, 1: 3, 2: 6, 3: 10, 4: 13, 5: 16, 6: 17}
    outputs = [image := layer(image) for layer in network.features]
    return [outputs[ends[stage]] for stage in stages]


def test_pretrained_mobilenet_equals_torchvision(mobilenet, mobilenet_file):
    """MobileNetV2 with torchvision's weights computes torchvision's features."""
    network = build_network(
        node(taps=[0, 1, 2, 3, 4, 5, 6], pretrained=str(mobilenet_file)) | FIVE_MORE
    )
    note = pretrained.load(network)
    assert note == f"Encoder: {len(network.encoder.state_dict())} tensors from {mobilenet_file}"
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = network.encoder.eval()(image)
    for found, expected in zip(
        features, features_of_torchvision(mobilenet, image, range(7)), strict=True
    ):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected)


FIVE_MORE = {"decoder": {"name": "densedepth", "widths": [8] * 7, "extra_ups": 1, "extra_width": 8}}


@pytest.mark.parametrize("depth", [18, 50])
def test_pretrained_resnet_equals_torchvision(depth, tmp_path):
    """ResNet with torchvision's weights computes torchvision's features."""
    torch.manual_seed(depth)
    theirs = randomised(getattr(models, f"resnet{depth}")(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    encoder = ResNet(depth, pretrained=str(tmp_path / "resnet.pth")).eval()
    pretrained.load(torch.nn.ModuleDict({"encoder": encoder}))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = [x := theirs.relu(theirs.bn1(theirs.conv1(image)))]
        x = theirs.maxpool(x)
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            expected.append(x := layer(x))
        for found, wanted in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_pretrained_skips_stages_behind_last_tap(mobilenet_file, mobilenet):
    """Weights of stages behind the last tap are skipped."""
    encoder = MobileNetV2(**CLASSIFIER, taps=(1, 3), pretrained=str(mobilenet_file)).eval()
    pretrained.load(torch.nn.ModuleDict({"encoder": encoder}))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(image)[1], features_of_torchvision(mobilenet, image, [3])[0])


def test_pretrained_accepts_published_or_own_names(mobilenet_file, tmp_path):
    """A file with published names, backbone names or ours gives the same weights."""
    source = build_network(node(pretrained=str(mobilenet_file)))
    pretrained.load(source)
    ours = source.state_dict()
    backbone = {
        k.removeprefix("backbone."): v
        for k, v in to_published(ours).items()
        if k.startswith("backbone.")
    }
    for state in (ours, {"state_dict": to_published(ours)}, backbone):
        torch.save(state, tmp_path / "other.pth")
        network = build_network(node(pretrained=str(tmp_path / "other.pth")))
        pretrained.load(network)
        for name, tensor in network.encoder.state_dict().items():
            assert torch.equal(tensor, ours[f"encoder.{name}"]), name


def test_pretrained_without_connection_names_cache(no_connection, tmp_path):
    """A failed download is one line that names URL, cache path and option."""
    message = refused(pretrained="imagenet")
    assert no_connection == [f"https://download.pytorch.org/models/{FILE}"]
    assert "imagenet weights of mobilenet_v2 can't be downloaded" in message
    assert "Name or service not known" in message
    assert message.endswith(
        f"put {no_connection[0]} at {tmp_path}/torch/hub/checkpoints/{FILE}, or anywhere and say "
        "network.encoder.pretrained=FILE"
    )


def test_pretrained_imagenet_from_hub_cache(no_connection, mobilenet, tmp_path):
    """ImageNet weights are read from torch's hub cache, and a truncated file is named."""
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(mobilenet.state_dict(), cache / FILE)
    network = build_network(node(pretrained="imagenet"))
    assert "from ImageNet weights of torchvision's mobilenet_v2" in pretrained.load(network)
    assert torch.equal(network.encoder.conv1.conv.weight, mobilenet.features[0][0].weight)
    (cache / FILE).write_bytes(b"torn")
    assert f"{cache / FILE}: truncated" in refused(pretrained="imagenet")
    assert no_connection == []


def test_pretrained_rejects_weights_that_do_not_fit(mobilenet_file, tmp_path, no_connection):
    """Weights that don't fit or don't exist raise a RecipeError of one line."""
    message = refused(pretrained=str(mobilenet_file), width=0.5)
    assert "are not in" in message
    assert "or of another size, such as conv1.conv.weight" in message
    assert "torchvision has no weights for this encoder as it is" in refused(
        pretrained="imagenet", width=0.5
    )
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    assert f"tensors are not in {tmp_path / 'resnet.pth'}" in refused(
        pretrained=str(tmp_path / "resnet.pth")
    )
    assert "no such file" in refused(pretrained=str(tmp_path / "none.pth"))
    assert no_connection == []


def test_pretrained_read_by_new_runs_only(no_connection, mobilenet_file, tmp_path):
    """Pretrained weights aren't read if a checkpoint is loaded, nor by a teacher."""
    recipe = {"network": node(pretrained="imagenet")}
    network = build_network(recipe["network"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert load_weights(
        network, Recipe(recipe | {"load": {"checkpoint": str(tmp_path / "weights.pth")}})
    )
    teacher = {"network": recipe["network"], "checkpoint": str(tmp_path / "weights.pth")}
    build_teacher(teacher, torch.device("cpu"))
    assert no_connection == []
    with pytest.raises(RecipeError, match="can't be downloaded"):
        load_weights(network, Recipe(recipe))
    (note,) = load_weights(build_network(node(pretrained=str(mobilenet_file))), Recipe(recipe))
    assert note.endswith(f"tensors from {mobilenet_file}")
    plain = build_network(node())
    before = plain.encoder.conv1.conv.weight.clone()
    assert load_weights(plain, Recipe({"network": node()})) == []
    assert torch.equal(plain.encoder.conv1.conv.weight, before)


def test_pretrained_set_by_one_override(tmp_path):
    """An override of network.encoder.pretrained sets it in the recipe."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("network: {encoder: {name: mobilenet_v2}}\n")
    loaded = load_recipe(recipe, ["network.encoder.pretrained=imagenet"])
    assert loaded["network"]["encoder"] == {"name": "mobilenet_v2", "pretrained": "imagenet"}
