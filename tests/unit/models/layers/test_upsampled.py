"""A decoder's convolution of upsampled features.

It has a plain one's numbers, for less memory and fewer products.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from tiekd.kernels import convolution, layouts
from tiekd.models.layers.upsampled import PointwiseConv, UpsampleByProducts, UpsampledConv

SIZE = (7, 10)


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.calls.append(operator.overloadpacket.__name__)
        return operator(*arguments, **(options or {}))


def inputs(with_skip: bool) -> tuple[UpsampledConv, Tensor, Tensor | None]:
    torch.manual_seed(0)
    skip = torch.randn(2, 3, *SIZE, requires_grad=True) if with_skip else None
    return UpsampledConv(4 + 3 * with_skip, 5), torch.randn(2, 4, 4, 5, requires_grad=True), skip


@pytest.mark.parametrize("with_skip", [True, False], ids=["skip", "alone"])
def test_upsampled_conv_equals_plain(with_skip):
    """Output and gradients equal, bit for bit, those of upsample, cat and convolution."""
    conv, x, skip = inputs(with_skip)
    learned = [tensor for tensor in (x, skip, conv.weight, conv.bias) if tensor is not None]
    y = conv(x, SIZE, skip)
    upsampled = interpolate(x, size=SIZE, mode="bilinear", align_corners=True)
    merged = torch.cat([upsampled, skip], 1) if with_skip else upsampled
    expected = conv2d(merged, conv.weight, conv.bias, padding=1)
    assert torch.equal(y, expected)
    ours, plain = (torch.autograd.grad(each.sin().sum(), learned) for each in (y, expected))
    assert all(map(torch.equal, ours, plain))
    with torch.no_grad():
        assert torch.equal(conv(x, SIZE, skip), expected)


def test_upsampled_conv_backward_recomputes_upsampling():
    """Backward upsamples again, and convolves nothing again."""
    conv, x, skip = inputs(with_skip=True)
    with Operators() as forward:
        y = conv(x, SIZE, skip)
    with Operators() as backward:
        y.sum().backward()
    for operators in (forward, backward):
        assert operators.calls.count("upsample_bilinear2d") == operators.calls.count("cat") == 1
    assert "convolution" in forward.calls
    assert "convolution" not in backward.calls
    assert "convolution_backward" in backward.calls


@pytest.fixture
def without_avx512():
    layouts.set_settings(layouts.of_isa("avx2"))
    yield
    layouts.set_settings(None)


@pytest.mark.parametrize("small", [(4, 5), (5, 6), SIZE], ids=["much larger", "larger", "as large"])
@pytest.mark.parametrize("channels", [None, 9, 3])
@pytest.mark.parametrize("with_skip", [True, False], ids=["skip", "alone"])
@pytest.mark.usefixtures("without_avx512")
def test_upsampled_conv_by_products_equals_definition(channels, with_skip, small):
    """With matrix products, output and gradients equal the definition's."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, *small).contiguous(memory_format=torch.channels_last).requires_grad_()
    skip = torch.randn(2, 3, *SIZE).contiguous(memory_format=torch.channels_last).requires_grad_()
    pointwise = None if channels is None else PointwiseConv(4, channels)
    conv = UpsampledConv((channels or 4) + 3 * with_skip, 5)
    learned = [
        x,
        *([skip] if with_skip else []),
        *conv.parameters(),
        *(pointwise.parameters() if pointwise else ()),
    ]
    through = x if pointwise is None else conv2d(x, pointwise.weight, pointwise.bias)
    merged = interpolate(through, size=SIZE, mode="bilinear", align_corners=True)
    merged = torch.cat([merged, skip], 1) if with_skip else merged
    expected = conv2d(merged, conv.weight, conv.bias, padding=1)
    ours = conv(x, SIZE, skip if with_skip else None, pointwise)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(
        *(torch.autograd.grad(y.sin().sum(), learned) for y in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize(("small", "made_again"), [((4, 5), 0), ((5, 6), 1)])
@pytest.mark.usefixtures("without_avx512")
def test_upsampled_conv_by_products_saves_inputs_only(small, made_again, monkeypatch):
    """With matrix products only the inputs are saved and nothing is convolved twice."""
    conv, _, skip = inputs(with_skip=True)
    x, skip = (
        t.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        for t in (torch.randn(2, 4, *small), skip)
    )
    taken, kept = [], []
    usual = convolution.weight_gradient
    monkeypatch.setattr(
        convolution, "weight_gradient", lambda *given: taken.append(1) or usual(*given)
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(tuple(t.shape)) or t, lambda t: t
        ),
        Operators() as forward,
    ):
        y = conv(x, SIZE, skip)
    with Operators() as backward:
        y.sum().backward()
    assert forward.calls.count("convolution") == 1
    assert "convolution" not in backward.calls
    assert backward.calls.count("upsample_bilinear2d") == made_again
    assert len(taken) == 1
    assert backward.calls.count("upsample_bilinear2d_backward") == (1 if made_again else 9)
    assert set(kept) == {tuple(x.shape), tuple(skip.shape), tuple(conv.weight.shape)}


@pytest.mark.usefixtures("without_avx512")
def test_upsampled_conv_by_products_partial_gradients():
    """With matrix products only the gradients that are needed are computed."""
    conv, x, skip = inputs(with_skip=True)
    x, skip = (t.detach().contiguous(memory_format=torch.channels_last) for t in (x, skip))
    conv(x, SIZE, skip).sum().backward()
    assert x.grad is None
    assert skip.grad is None
    assert conv.weight.grad is not None
    conv.requires_grad_(False)
    skip.requires_grad_()
    conv(x, SIZE, skip).sum().backward()
    assert x.grad is None
    assert skip.grad.shape == skip.shape


def test_upsampled_conv_frees_merged_features(monkeypatch):
    """The concatenated features are freed after forward and after backward."""
    conv, x, skip = inputs(with_skip=True)
    made = []
    concatenate = torch.cat

    def remember(*arguments, **options):
        merged = concatenate(*arguments, **options)
        made.append(torch.multiprocessing.reductions.StorageWeakRef(merged.untyped_storage()))
        return merged

    monkeypatch.setattr(torch, "cat", remember)
    y = conv(x, SIZE, skip)
    assert len(made) == 1
    assert made[0].expired()
    y.sum().backward()
    assert len(made) == 2
    assert all(merged.expired() for merged in made)


def with_pointwise(
    channels: int, dtype=torch.float64
) -> tuple[PointwiseConv, UpsampledConv, Tensor, Tensor]:
    torch.manual_seed(0)
    pointwise, conv = PointwiseConv(4, channels).to(dtype), UpsampledConv(channels + 3, 5).to(dtype)
    x, skip = torch.randn(2, 4, 4, 5, dtype=dtype), torch.randn(2, 3, *SIZE, dtype=dtype)
    return pointwise, conv, x.requires_grad_(), skip.requires_grad_()


def defined(pointwise: nn.Conv2d, conv: nn.Conv2d, x: Tensor, skip: Tensor) -> Tensor:
    upsampled = interpolate(
        conv2d(x, pointwise.weight, pointwise.bias), size=SIZE, mode="bilinear", align_corners=True
    )
    return conv2d(torch.cat([upsampled, skip], 1), conv.weight, conv.bias, padding=1)


@pytest.mark.parametrize("channels", [9, 4, 3])
def test_pointwise_merged_equals_definition(channels):
    """Merging a pointwise convolution into the next one changes rounding only."""
    pointwise, conv, x, skip = with_pointwise(channels)
    learned = [x, skip, *pointwise.parameters(), *conv.parameters()]
    expected = defined(pointwise, conv, x, skip)
    ours = conv(x, SIZE, skip, pointwise)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    for got, wanted in zip(
        *(torch.autograd.grad(y.sin().sum(), learned) for y in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(conv(x, SIZE, skip, pointwise), expected, rtol=0, atol=1e-13)
    conv.plain = True
    assert torch.equal(conv(x, SIZE, skip, pointwise), expected)


@pytest.mark.parametrize(("channels", "widest"), [(9, 7), (4, 7), (3, 6)])
def test_pointwise_added_channels_are_never_made(channels, widest):
    """A pointwise convolution that adds channels is merged, so none is computed."""
    pointwise, conv, x, skip = with_pointwise(channels)
    merged = []
    conv._conv_forward = lambda x, *others: (
        merged.append(x.shape[1]) or conv2d(x, *others, padding=1)
    )
    conv(x, SIZE, skip, pointwise)
    assert merged == [widest]


def test_pointwise_weights_multiplied_once():
    """The weights are multiplied once, and nothing but parameters is saved."""
    pointwise, conv, x, skip = with_pointwise(9)
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.add(tensor.data_ptr()), lambda _: None
    ):
        pointwise.merged(conv.weight)
    assert kept <= {parameter.data_ptr() for parameter in (conv.weight, *pointwise.parameters())}
    with Operators() as forward:
        y = conv(x, SIZE, skip, pointwise)
    with Operators() as backward:
        y.sum().backward()
    assert forward.calls.count("mm") == 1, "the product's gradients"
    assert backward.calls.count("mm") == 2, "the product's gradients"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_merged_keeps_memory_layout(layout):
    """A merged weight keeps the memory layout of the features."""
    pointwise, conv, x, skip = with_pointwise(9, torch.float32)
    x, skip = (each.detach().contiguous(memory_format=layout) for each in (x, skip))
    assert conv(x, SIZE, skip, pointwise).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pointwise_half_parameters_get_half_gradients(dtype):
    """Half precision parameters get half precision gradients within rounding."""
    pointwise, conv, x, skip = with_pointwise(9, torch.float32)
    exact = torch.autograd.grad(
        defined(pointwise, conv, x, skip).sum(), [pointwise.weight, pointwise.bias]
    )
    pointwise, conv, x, skip = pointwise.to(dtype), conv.to(dtype), x.to(dtype), skip.to(dtype)
    conv(x, SIZE, skip, pointwise).sum().backward()
    for parameter, wanted in zip(pointwise.parameters(), exact, strict=True):
        assert parameter.grad.dtype == dtype
        assert (parameter.grad - wanted).abs().max() <= 4 * torch.finfo(
            dtype
        ).eps * wanted.abs().max()


def test_pointwise_merged_bf16_rounding():
    """In bf16 autocast merging adds at most half again to the rounding error."""
    pointwise, conv, x, skip = with_pointwise(64, torch.float32)
    exact = defined(pointwise, conv, x, skip)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = conv(x, SIZE, skip, pointwise), defined(pointwise, conv, x, skip)
    errors = [(y.float() - exact).square().mean().sqrt().item() for y in (ours, plain)]
    assert ours.dtype == torch.bfloat16
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize(
    "sizes", [((4, 5), SIZE), ((3, 4), (6, 8)), ((5, 3), (5, 3)), ((1, 2), (3, 1))]
)
def test_upsample_by_products_gradient_equals_autograd(sizes):
    """The gradient by matrix products equals that of bilinear interpolation."""
    torch.manual_seed(0)
    small, large = sizes
    x, grad = (
        torch.randn(2, 3, *small, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, *large).double(),
    )
    expected = interpolate(x, size=large, mode="bilinear", align_corners=True)
    ours = UpsampleByProducts.apply(x, large)
    assert torch.equal(ours, expected)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    for given in (grad, grad.contiguous(memory_format=torch.channels_last)):
        (found,) = torch.autograd.grad(ours, x, given, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_upsample_by_products_half_precision(dtype):
    """In half precision the gradient by matrix products is within rounding."""
    torch.manual_seed(0)
    x, grad = torch.randn(1, 8, 22, 44), torch.randn(1, 8, 44, 88).to(dtype)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    (ours,) = torch.autograd.grad(UpsampleByProducts.apply(x, (44, 88)), x, grad)
    exact = x.detach().double().requires_grad_()
    wanted = interpolate(exact, size=(44, 88), mode="bilinear", align_corners=True)
    (wanted,) = torch.autograd.grad(wanted, exact, grad.double())
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert (ours - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * wanted.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's way in half precision")
def test_upsampled_conv_gpu_half_uses_products():
    """On a GPU in half precision the gradient is computed by two bmm."""
    conv, x, skip = inputs(with_skip=True)
    conv, x = conv.cuda(), x.detach().cuda().bfloat16().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = conv(x, SIZE, skip.detach().cuda().bfloat16())
    with Operators() as backward:
        y.float().sum().backward()
    assert backward.calls.count("bmm") == 2
    assert "upsample_bilinear2d_backward" not in backward.calls


def test_upsample_by_products_compiles():
    """UpsampleByProducts compiles as a full graph, with the plain gradient."""
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    by_products = torch.compile(
        lambda x: UpsampleByProducts.apply(x, SIZE).sin(), backend="aot_eager", fullgraph=True
    )
    (ours,) = torch.autograd.grad(by_products(x).sum(), x)
    plain = interpolate(x, size=SIZE, mode="bilinear", align_corners=True).sin()
    torch.testing.assert_close(ours, torch.autograd.grad(plain.sum(), x)[0])
