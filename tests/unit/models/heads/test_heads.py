"""Heads: range, cells coarser than the image, validity, precision, and what they refuse."""

import copy
import math

import pytest
import torch
from support import golden

from tiekd.errors import RecipeError
from tiekd.kernels.target import bin_centres, bin_edges, gaussian_target
from tiekd.models.decoders.densedepth import DenseDepth
from tiekd.models.heads.dpm import Dpm, DpmOptions
from tiekd.models.heads.relu import Relu
from tiekd.models.heads.sigmoid import Sigmoid
from tiekd.models.weights.state_dicts import from_published

# Decoder widths and doublings after the finest feature, by the backbone in a case's name.
DECODERS = {
    "mobile": ([128, 256, 512, 2048], 2),
    "resnet18": ([128, 128, 256, 256, 512], 1),
    "resnet50": ([128, 256, 512, 1024, 2048], 1),
}
PUBLISHED = golden.load_json("heads/cases.json")
BINS, NEAR, FAR = 20, 0.001, 10.0


def dpm_head(stride: int = 1, **options) -> Dpm:
    torch.manual_seed(0)
    options = DpmOptions(**{"num_bins": BINS, "sigma": 0.5} | options)
    head = Dpm(4, NEAR, FAR, stride, options)
    torch.nn.init.normal_(head.weight)
    return head


def holed_depth(shape=(2, 1, 10, 14)) -> torch.Tensor:
    depth = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 8 + 1
    depth[:, :, :4, :5] = 0
    depth[:, :, 7, 9] = math.nan
    return depth


@pytest.mark.parametrize("name", PUBLISHED)
def test_decoder_and_head_equal_published(name):
    """DenseDepth with each head gives the published depth and distribution.

    A head in the published code's sense: our decoder and head together.
    """
    case, expected = PUBLISHED[name], golden.load_arrays("heads/arrays.npz")
    features = [
        golden.randn(f"head:{name}:feat{i}", (case["batch"], *shape))
        for i, shape in enumerate(case["features"])
    ]
    (widths, extra_ups), max_depth = DECODERS[name.split("_")[-2]], 10.0 if "nyu" in name else 80.0
    strides = [64 // shape[1] for shape in case["features"]]
    state = {
        key: golden.fill(key, shape, case["gain"], case["overrides"]) for key, shape in case["keys"]
    }
    assert sum(value.numel() for value in state.values()) == case["num_parameters"]
    state = from_published({f"decode_head.{key}": value for key, value in state.items()})
    decoder = DenseDepth([shape[0] for shape in case["features"]], strides, widths, extra_ups)
    is_dpm = name.startswith("DPM")
    num_bins = int(name[-3:]) if name.endswith("257") else 49
    head = (
        Dpm(128, 1e-3, max_depth, options=DpmOptions(num_bins=num_bins))
        if is_dpm
        else Sigmoid(128, max_depth)
    )
    for part, module in (("decoder.", decoder), ("head.", head)):
        module.load_state_dict(
            {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
        )
    with torch.no_grad():
        x = decoder(features, (64, 96))
        depth = head(x, (64, 96)).depth
    want = torch.from_numpy(expected[f"{name}:depth"])
    torch.testing.assert_close(depth, want, rtol=0, atol=5e-5 * max_depth)
    if is_dpm:
        p = torch.nn.functional.conv2d(x, head.weight, head.bias).softmax(1)
        sampled = p.flatten()[torch.from_numpy(expected[f"{name}:p_at"]).long()]
        torch.testing.assert_close(
            sampled, torch.from_numpy(expected[f"{name}:p"]), rtol=0, atol=2e-5
        )
        # Two bins may be equally likely but for rounding.
        assert (p.argmax(1) == torch.from_numpy(expected[f"{name}:argmax"])).float().mean() > 0.999


def test_sigmoid_depth_starts_mid_range():
    """Sigmoid depth starts near half of max_depth and never exceeds it."""
    head = Sigmoid(4, 80.0)
    depth = head(torch.randn(1, 4, 5, 6), (5, 6)).depth
    assert (depth - 40).abs().max() < 5
    torch.nn.init.normal_(head.conv.weight, std=10)
    depth = head(torch.randn(1, 4, 50, 60), (50, 60)).depth
    assert depth.min() < 1e-3
    assert depth.max() > 79.999
    assert depth.max() <= 80


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("head", [Sigmoid(8, 80.0), Relu(8, 1e-3, 80.0)], ids=["sigmoid", "relu"])
def test_head_depth_is_float32_in_low_precision(head, autocast):
    """In bfloat16 or autocast a head's depth has float32 precision."""
    head = copy.deepcopy(head) if autocast else copy.deepcopy(head).bfloat16()
    features = torch.randn(1, 8, 30, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        depth = head(features, (30, 40)).depth
    wanted = copy.deepcopy(head).double()(features.double(), (30, 40)).depth
    assert depth.dtype == torch.float32
    torch.testing.assert_close(depth, wanted.float(), rtol=1e-6, atol=0)
    depth.sum().backward()
    assert head.conv.weight.grad.dtype == head.conv.weight.dtype
    assert head.conv.weight.grad.abs().sum() > 0


def test_dpm_head_starts_nearly_uniform():
    """The DPM head starts with a nearly uniform distribution."""
    torch.manual_seed(0)
    head, features = Dpm(64, NEAR, FAR, options=DpmOptions(num_bins=BINS)), torch.randn(1, 64, 8, 8)
    logits = torch.nn.functional.conv2d(features, head.weight, head.bias)
    assert logits.softmax(1).max() < 1.5 / BINS
    assert (head(features, (8, 8)).depth - FAR / 2).abs().max() < 0.5


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_dpm_head_divergence_uses_sigma(sigma):
    """The divergence is from a Gaussian target with the recipe's sigma."""
    head, target = dpm_head(sigma=sigma), holed_depth()
    features = torch.randn(2, 4, 10, 14)
    with torch.no_grad():
        divergence = head(features, (10, 14), target).divergence
        log_p = torch.nn.functional.conv2d(features, head.weight, head.bias).log_softmax(1)
    q = gaussian_target(target, sigma, None, head.edges)
    wanted = (
        (torch.special.xlogy(q, q) - q * log_p).sum(1, keepdim=True).masked_fill(~(target > 0), 0)
    )
    torch.testing.assert_close(divergence, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 3])
def test_dpm_head_coarse_cell_averages_valid_pixels(stride):
    """A coarse cell's target is the mean distribution of its valid pixels."""
    head, target = dpm_head(stride=stride), holed_depth()
    cells = -(-10 // stride), -(-14 // stride)
    features = torch.randn(2, 4, *cells)
    with torch.no_grad():
        divergence = head(features, (10, 14), target).divergence
        log_p = torch.nn.functional.conv2d(features, head.weight, head.bias).log_softmax(1)
    assert divergence.shape == target.shape
    for b, y, x in [(0, 0, 0), (0, 1, 2), (1, *(size - 1 for size in cells)), (1, 2, 3)]:
        rows = slice(y * stride, (y + 1) * stride), slice(x * stride, (x + 1) * stride)
        pixels = target[b, 0][rows]
        valid = pixels > 0
        assert torch.equal(divergence[b, 0][rows][~valid], torch.zeros(int((~valid).sum())))
        if valid.any():
            q = (
                gaussian_target(pixels[valid].view(-1, 1, 1, 1), 0.5, None, head.edges)
                .mean(0)
                .flatten()
            )
            want = (torch.xlogy(q, q) - q * log_p[b, :, y, x]).sum()
            torch.testing.assert_close(divergence[b, 0][rows][valid], want.expand(int(valid.sum())))


@pytest.mark.parametrize("stride", [1, 2])
def test_dpm_head_beyond_clamps_or_ignores(stride):
    """Targets beyond the range are clamped or ignored, as `beyond` says."""
    features, target = torch.randn(1, 4, 4 // stride, 4 // stride), torch.full((1, 1, 4, 4), 3.0)
    target[:, :, :2, :2] = target[:, :, 2, 2] = FAR + 1
    with torch.no_grad():
        clamped = dpm_head(stride=stride)(features, (4, 4), target).divergence
        ignored = dpm_head(stride=stride, beyond="ignore")(features, (4, 4), target).divergence
    assert (clamped > 0).all()
    assert not ignored[:, :, :2, :2].any()
    assert not ignored[:, :, 2, 2].any()
    assert (ignored[:, :, 2, 3] > 0).all()
    assert torch.equal(ignored[:, :, :2, 2:], clamped[:, :, :2, 2:])


@pytest.mark.parametrize("stride", [1, 2])
def test_dpm_head_gradients_with_holes(stride):
    """Gradients are finite with holes, and zero without a valid pixel."""
    head = dpm_head(stride=stride)
    features = torch.randn(2, 4, 10 // stride, 14 // stride)
    head(features, (10, 14), holed_depth()).divergence.mean().backward()
    assert head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().max() > 0
    head.zero_grad()
    head(features, (10, 14), torch.zeros(2, 1, 10, 14)).divergence.sum().backward()
    assert not head.weight.grad.any()
    assert not head.bias.grad.any()


def test_dpm_head_resizes_features_to_cells():
    """Features larger than the image's cells are resized onto them for the divergence."""
    head, target = dpm_head(stride=2), holed_depth((2, 1, 9, 13))
    features = torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        prediction = head(features, (9, 13), target)
        on_cells = torch.nn.functional.interpolate(
            features, size=(5, 7), mode="bilinear", align_corners=True
        )
        expected = head(on_cells, (9, 13), target).divergence
        assert torch.equal(prediction.depth, head(features, (9, 13)).depth)
    assert torch.equal(prediction.divergence, expected)


def test_dpm_head_edges_stay_float32_and_unsaved():
    """Bin edges stay float32 in any cast and aren't in the state dict."""
    head = dpm_head(num_bins=257)
    assert list(head.state_dict()) == ["weight", "bias"]
    for cast in (torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.float):
        moved = copy.deepcopy(head)._apply(cast)
        assert torch.equal(moved.edges, bin_edges(257, NEAR, FAR))
    assert copy.deepcopy(head).half().weight.dtype == torch.float16


def test_dpm_head_uses_log_bins():
    """With `spacing: log` depth is the mean of log-spaced bin centres."""
    head = dpm_head(num_bins=64, sigma=1.0, spacing="log")
    torch.nn.init.zeros_(head.weight)
    depth = head(torch.randn(1, 4, 2, 2), (2, 2)).depth
    torch.testing.assert_close(
        depth, bin_centres(bin_edges(64, NEAR, FAR, "log")).mean().expand(1, 1, 2, 2)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "laplace"}, "target: got 'laplace'; allowed: gaussian, released"),
        ({"beyond": "drop"}, "beyond: got 'drop'; allowed: clamp, ignore"),
        ({"num_bins": 1}, "num_bins: got 1"),
        ({"num_bins": 49.0}, "num_bins: got 49.0"),
        ({"sigma": 0.0}, "sigma: got 0.0"),
        ({"sigma": 0.2}, "sigma: 0.2"),
        ({"spacing": "cubic"}, "spacing: 'cubic'"),
    ],
)
def test_dpm_head_rejects_invalid_arguments(arguments, words):
    """Invalid arguments of the DPM head raise a RecipeError that names them."""
    with pytest.raises(RecipeError) as error:
        dpm_head(**arguments)
    assert words in str(error.value)


def test_dpm_head_released_accepts_any_sigma():
    """With the released target a sigma below half a bin is accepted."""
    assert dpm_head(target="released", sigma=0.1).sigma == 0.1


def test_dpm_head_rejects_convex_upsampling_at_image_resolution():
    """Learned upsampling needs coarser features; an unknown one is refused by name."""
    with pytest.raises(RecipeError, match="upsampling: convex is for features coarser"):
        dpm_head(stride=1, upsampling="convex")
    with pytest.raises(RecipeError, match="upsampling: got 'nearest'; allowed: bilinear, convex"):
        dpm_head(stride=2, upsampling="nearest")
    assert dpm_head(stride=2).upsampling is None
    assert dpm_head(stride=4, upsampling="convex").upsampling.factor == 4
