"""Encoders: sizes and channels as declared, nothing after the last tap, what they refuse.

Values: test_network.py.
"""

import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.models.encoders.mobilenet_v2 import ConvNorm, MobileNetV2
from tiekd.models.encoders.resnet import ResNet

CLASSIFIER = {"strides": (1, 2, 2, 2, 1, 2, 1), "dilations": (1,) * 7}


@pytest.mark.parametrize(
    ("encoder", "channels", "strides"),
    [
        (lambda: MobileNetV2(), (24, 32, 96, 320), (4, 8, 8, 8)),
        (
            lambda: MobileNetV2(**CLASSIFIER, taps=(0, 1, 2, 4, 6)),
            (16, 24, 32, 96, 320),
            (2, 4, 8, 16, 32),
        ),
        (lambda: MobileNetV2(taps=(2,), width=0.5), (16,), (8,)),
        (lambda: ResNet(18), (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
        (lambda: ResNet(50, taps=(1, 3)), (256, 1024), (4, 16)),
        (lambda: ResNet(18, taps=(0,)), (64,), (2,)),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_encoder_features_have_declared_shapes(encoder, channels, strides, size):
    """Features have the declared channels and strides, also at odd image sizes."""
    encoder = encoder().eval()
    assert encoder.channels == channels
    assert encoder.strides == strides
    with torch.no_grad():
        features = encoder(torch.zeros(1, 3, *size))
    sizes = [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(channels, strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == sizes


@pytest.mark.parametrize(
    ("depth", "num_parameters"),
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)],
)
def test_resnet_number_of_parameters(depth, num_parameters):
    """Each ResNet has the parameters of the classifier without its last layer."""
    with torch.device("meta"):
        encoder = ResNet(depth)
    assert sum(p.numel() for p in encoder.parameters()) == num_parameters


def test_encoder_has_no_parameters_behind_last_tap():
    """Each parameter gets a gradient, so none is behind the last tap."""
    for encoder in (MobileNetV2(taps=(1, 3)), ResNet(18, taps=(0, 2))):
        sum(feature.square().mean() for feature in encoder(torch.randn(2, 3, 64, 64))).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_conv_norm_relu6_saves_only_its_result():
    """ReLU6 has torch's values and gradients and saves only its result for backward."""
    torch.manual_seed(0)
    layer, image = ConvNorm(3, 4, 3), torch.randn(2, 3, 8, 8)
    torch.nn.init.constant_(layer.bn.weight, 4.0)  # so that some are cut at 6
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(image)
    # The convolution keeps its input and weight, the norm its input and a few numbers per channel.
    assert sorted(kept.values())[-3:] == [image.numel(), y.numel(), y.numel()]
    assert y.data_ptr() in kept
    before = layer.bn(layer.conv(image))
    assert (before > 6).any()
    assert (before < 0).any()
    expected = torch.nn.functional.relu6(before)
    assert torch.equal(y, expected)
    ours, plain = (
        torch.autograd.grad(each.sin().sum(), list(layer.parameters())) for each in (y, expected)
    )
    assert all(map(torch.equal, ours, plain))


def test_mobilenet_weights_fit_other_strides():
    """Weights load into a MobileNetV2 of other strides, with equal early features."""
    dilated, strided = MobileNetV2(), MobileNetV2(**CLASSIFIER)
    strided.load_state_dict(dilated.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # Up to the first stage whose stride differs (the fourth) they are one network.
        torch.testing.assert_close(dilated.eval()(image)[1], strided.eval()(image)[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strides": [1, 2, 2]}, "strides: got [1, 2, 2]; 7 values"),
        ({"strides": [1, 2, 2, 3, 1, 1, 1]}, "each 1 or 2"),
        ({"dilations": [1, 1, 1, 2, 2, 4, 0]}, "dilations: got [1, 1, 1, 2, 2, 4, 0]"),
        ({"taps": []}, "taps: got []"),
        ({"taps": [4, 2]}, "increasing"),
        ({"taps": [1, 7]}, "out of 0, 1, 2, 3, 4, 5, 6"),
        ({"width": 0}, "width: got 0"),
    ],
)
def test_mobilenet_rejects_invalid_arguments(arguments, words):
    """Invalid strides, dilations, taps or width raise a RecipeError."""
    with pytest.raises(RecipeError) as error:
        MobileNetV2(**arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 20}, "got 20; allowed: 18, 34, 50, 101"),
        ({"depth": 18, "taps": [0, 0]}, "taps: got [0, 0]"),
    ],
)
def test_resnet_rejects_invalid_arguments(arguments, words):
    """An unknown depth or repeated taps raise a RecipeError."""
    with pytest.raises(RecipeError) as error:
        ResNet(**arguments)
    assert words in str(error.value)
