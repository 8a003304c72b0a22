"""Decoders: the published parts by number, sizes at any image size, and what they refuse."""

import pytest
import torch
from support import golden

from tiekd.errors import RecipeError
from tiekd.kernels import layouts
from tiekd.models.decoders.bts import Bts, Reduction, spread_planes, to_planes
from tiekd.models.decoders.densedepth import DenseDepth
from tiekd.models.decoders.separable import Separable
from tiekd.models.layers.batch_norm import BatchNorm2d
from tiekd.tools.benchmarks.training import make_plain

CHANNELS, STRIDES = (8, 16, 16, 24, 32), (2, 4, 8, 16, 32)


def features(size, channels=CHANNELS, strides=STRIDES):
    return [
        torch.randn(2, c, -(-size[0] // s), -(-size[1] // s))
        for c, s in zip(channels, strides, strict=True)
    ]


def test_spread_planes_equals_published():
    """Local planar guidance equals the published layer's output."""
    arrays = golden.load_arrays("networks/arrays.npz")
    depth = spread_planes(torch.from_numpy(arrays["lpg4_in"]), 4)
    torch.testing.assert_close(depth[:, 0], torch.from_numpy(arrays["lpg4_out"]), rtol=0, atol=3e-4)


def test_to_planes_equals_published_parameters():
    """Plane parameters, times max_depth, equal the published ones."""
    reduction = Reduction(32, 32, 3)
    for name, layer in reduction.layers.items():
        layer.weight.data = golden.fill(f"reduc.inter_{name}.0.weight", layer.weight.shape)
    reduction.out.weight.data = golden.fill("reduc.plane_params.weight", reduction.out.weight.shape)
    with torch.no_grad():
        planes = to_planes(reduction(golden.randn("extra:red:x", (2, 32, 3, 5))))
    planes[:, 3] *= 80
    want = torch.from_numpy(golden.load_arrays("networks/arrays.npz")["reduc_out"])
    torch.testing.assert_close(planes, want, rtol=0, atol=2e-5 * want.abs().max().item())


def test_spread_planes_steepest_plane_is_bounded():
    """The steepest plane has a positive, bounded depth."""
    # Logits far out: 60 degrees towards a corner of the cell, where the plane turns away from the
    # ray.
    corners = torch.tensor(
        [[50.0, side, 0.0] for side in (-50.0, -1.9459, -0.5108, 0.5108, 1.9459)]
    )
    depth = spread_planes(to_planes(corners.T.reshape(1, 3, 1, 5)), 8)
    assert depth.isfinite().all()
    assert (depth > 0).all()
    assert depth.max() <= 0.5 / 0.01


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 40)])
def test_bts_output_at_image_size(size):
    """BTS gives 8 finite channels at stride 1 for any image size."""
    decoder = Bts(CHANNELS, STRIDES, width=128).eval()
    with torch.no_grad():
        out = decoder(features(size), size)
    assert (decoder.channels, decoder.stride) == (8, 1)
    assert tuple(out.shape) == (2, 8, *size)
    assert out.isfinite().all()


def test_bts_norms_have_published_constants():
    """Each norm of BTS has the published eps and momentum."""
    decoder = Bts(CHANNELS, STRIDES)
    inner = {f"aspp.branches.{dilation}.norm" for dilation in (3, 6, 12, 18, 24)}
    norms = {name: m for name, m in decoder.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert inner < norms.keys()
    assert len(norms) == 14
    for name, norm in norms.items():
        assert (norm.eps, norm.momentum) == (1e-5 if name in inner else 1.1e-5, 0.01), name


@pytest.mark.parametrize(("extra_ups", "stride"), [(0, 4), (1, 2), (2, 1)])
def test_densedepth_output_stride_of_extra_ups(extra_ups, stride):
    """DenseDepth's output has the size of the finest feature times 2**extra_ups."""
    extra_width = 5 if extra_ups else None
    decoder = DenseDepth(
        (4, 8, 8), (4, 8, 8), (6, 8, 12), extra_ups=extra_ups, extra_width=extra_width
    )
    assert decoder.stride == stride
    assert decoder.channels == (5 if extra_ups else 6)
    with torch.no_grad():
        out = decoder(features((75, 101), (4, 8, 8), (4, 8, 8)), (75, 101))
    assert tuple(out.shape) == (2, decoder.channels, 19 * 2**extra_ups, 26 * 2**extra_ups)


def test_densedepth_initial_output_variance():
    """At initialization the mean square of the output is between 0.1 and 2."""
    torch.manual_seed(0)
    channels, strides = (24, 32, 96, 320), (4, 8, 8, 8)
    decoder = DenseDepth(channels, strides, (64, 128, 256, 512), extra_ups=1)
    with torch.no_grad():
        power = decoder(features((128, 128), channels, strides), (128, 128)).square().mean()
    assert 0.1 < power < 2


@pytest.mark.parametrize(("deepest", "folded"), [(40, True), (24, False), (16, False)])
def test_densedepth_fold_keeps_output(deepest, folded):
    """`fold` keeps the output and folds the first convolution where that adds channels."""
    torch.manual_seed(0)
    channels, strides = (8, 16, 24), (4, 8, 16)
    decoder = DenseDepth(channels, strides, (8, 16, deepest)).double()
    for convolution in (decoder.levels[0], decoder.levels[1].first):
        torch.nn.init.normal_(convolution.bias)
    given = [feature.double() for feature in features((41, 52), channels, strides)]
    with torch.no_grad():
        wanted = decoder(given, (41, 52))
        decoder.fold()
        decoder.fold()  # and again, which changes nothing
        torch.testing.assert_close(decoder(given, (41, 52)), wanted, rtol=0, atol=1e-12)
    assert decoder.levels[1].first.in_channels == 16 + (24 if folded else deepest)
    assert ("levels.0.weight" not in decoder.state_dict()) is folded


def test_densedepth_of_one_feature():
    """DenseDepth of one feature is folded and doubled without an error."""
    decoder = DenseDepth((24,), (8,), (40,), extra_ups=1)
    decoder.fold()
    with torch.no_grad():
        assert tuple(decoder([torch.randn(1, 24, 3, 4)], (24, 32)).shape) == (1, 40, 6, 8)


@pytest.fixture
def on_isa():
    yield lambda isa: layouts.set_settings(layouts.of_isa(isa))
    layouts.set_settings(None)


@pytest.mark.parametrize("isa", ["avx512_bf16", "avx2"])
@pytest.mark.parametrize("deepest", [64, 24])
def test_densedepth_on_cpu_uses_channels_last(deepest, isa, on_isa):
    """On a CPU large features are in channels_last and small ones contiguous."""
    on_isa(isa)
    torch.manual_seed(0)
    channels, strides = (8, 16, 24), (4, 8, 16)
    decoder = DenseDepth(channels, strides, (8, 16, deepest), extra_ups=1)
    seen = []
    for level in [*decoder.levels[1:], *decoder.extras]:
        level.second.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous()))
    given = features((64, 96), channels, strides)
    ours = decoder(given, (64, 96))
    assert seen == [False] * 3
    assert ours.is_contiguous(memory_format=torch.channels_last)
    # One image, 2 x 2 pixels at each level: 4 * (24 + 16 + 16) numbers against 9 * 40 * 16
    # weights, and so on.
    seen.clear()
    decoder([feature[:1, :, :2, :2] for feature in given[:2]] + [given[2][:1, :, :1, :1]], (8, 8))
    assert seen[:2] == [True] * 2
    plain = make_plain(decoder)(given, (64, 96))
    assert plain.is_contiguous()
    torch.testing.assert_close(ours, plain, rtol=0, atol=3e-6 * plain.abs().max().item())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": [8, 8]}, "widths: got [8, 8]; 3 whole numbers"),
        ({"widths": [8, 8, 0]}, "widths: got [8, 8, 0]"),
        (
            {"widths": [8, 8, 8], "extra_ups": 3},
            "extra_ups: got 3; the finest tap is at stride 4: 0 to 2",
        ),
        ({"widths": [8, 8, 8], "extra_ups": -1}, "extra_ups: got -1"),
        ({"widths": [8, 8, 8], "extra_width": 8}, "extra_width: got 8"),
    ],
)
def test_densedepth_rejects_invalid_arguments(arguments, words):
    """Invalid widths, extra_ups or extra_width raise a RecipeError that names them."""
    with pytest.raises(RecipeError) as error:
        DenseDepth((4, 8, 8), (4, 8, 8), **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("strides", "width", "words"),
    [
        (
            (4, 8, 8, 8),
            512,
            "the encoder's taps are at strides [4, 8, 8, 8]; allowed: [2, 4, 8, 16, 32]",
        ),
        (STRIDES, 500, "width: got 500; allowed: 128, 256, 512, 1024"),
    ],
)
def test_bts_rejects_invalid_arguments(strides, width, words):
    """Unsupported strides or an invalid width raise a RecipeError."""
    with pytest.raises(RecipeError) as error:
        Bts(CHANNELS[: len(strides)], strides, width)
    assert words in str(error.value)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_separable_output_has_finest_features_size(size):
    """The separable decoder's output has the finest feature's stride and size."""
    decoder = Separable(CHANNELS, STRIDES, (8, 12, 16, 16, 24)).eval()
    with torch.no_grad():
        out = decoder(features(size), size)
    assert (decoder.channels, decoder.stride) == (8, 2)
    assert tuple(out.shape) == (2, 8, -(-size[0] // 2), -(-size[1] // 2))
    assert (out > 0).float().mean() > 0.2


def test_separable_first_output_is_near_features():
    """At first the output has a mean square near 1 for features of any scale, and no dead layer."""
    torch.manual_seed(0)
    decoder = Separable(CHANNELS, STRIDES, (16, 16, 16, 16, 16))
    out = decoder([50 * feature for feature in features((64, 96))], (64, 96))
    assert 0.3 < out.square().mean() < 10
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())


def test_separable_norms_count_only_pixels_of_the_image():
    """All norms are the project's, which leave out padding and cover all ranks."""
    decoder = Separable(CHANNELS, STRIDES, (8, 8, 8, 8, 8))
    norms = [m for m in decoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # One after the deepest feature's convolution, and of each level two and two a block.
    assert len(norms) == 1 + 4 * (2 + 2 * 2)
    assert {type(norm) for norm in norms} == {BatchNorm2d}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widths": [8, 8]}, "widths: got [8, 8]; 5 whole numbers above 0"),
        ({"widths": [8, 8, 8, 8, 0]}, "widths: got [8, 8, 8, 8, 0]"),
        ({"widths": [8] * 5, "blocks": 0}, "blocks: got 0; a whole number of at least 1"),
    ],
)
def test_separable_rejects_invalid_arguments(arguments, words):
    """Wrong widths or blocks raise a RecipeError."""
    with pytest.raises(RecipeError) as error:
        Separable(CHANNELS, STRIDES, **arguments)
    assert words in str(error.value)
