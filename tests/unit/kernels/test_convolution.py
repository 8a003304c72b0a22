"""Convolutions on a CPU: torch's numbers, whichever way they are computed."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from tiekd.engine import execution
from tiekd.kernels import convolution, layouts
from tiekd.kernels.convolution import Conv2d, compute_in_fp32, weight_gradient

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def given_back():
    yield
    layouts.set_settings(None)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 4, 5, 6),
        (1, 2, 3, 1, 5),
        (1, 2, 2, 6, 1),
        (1, 2, 3, 1, 1),
        (2, 2, 2, 2, 2),
        (1, 3, 5, 7, 3),
    ],
)
def test_weight_gradient_equals_autograd(shape):
    """`weight_gradient` equals autograd's, for each layout and strip size."""
    torch.manual_seed(0)
    batch, channels, outputs, height, width = shape
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    grad = torch.randn(batch, outputs, height, width, dtype=torch.float64)
    weight = torch.zeros(outputs, channels, 3, 3, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(conv2d(x, weight, padding=1), weight, grad)
    for layout, strip in itertools.product(
        (torch.contiguous_format, LAST), (1, width, 2 * width, 1000)
    ):
        given = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
        found = weight_gradient(*given, strip_pixels=strip)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        assert found.is_contiguous()


def outcome(conv: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = conv(x)
    return [y, *torch.autograd.grad(y.sin().sum(), [x, *conv.parameters()])]


@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_products_change_weight_gradient_only(bias):
    """Matrix products change only the weight gradient, and that by rounding only."""
    torch.manual_seed(0)
    conv = Conv2d(8, 6, 3, padding=1, bias=bias)
    x = torch.randn(2, 8, 15, 17).contiguous(memory_format=LAST)
    layouts.set_settings(layouts.of_isa("avx512"))
    usual = outcome(conv, x)
    layouts.set_settings(layouts.of_isa("avx2"))
    ours = outcome(conv, x)
    assert torch.equal(ours[0], usual[0])
    assert torch.equal(ours[1], usual[1])
    for got, wanted in zip(ours[2:], usual[2:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    assert not torch.equal(ours[2], usual[2]), "else the products weren't taken"


def test_conv2d_products_only_where_table_says(monkeypatch):
    """Products are used only for large plain 3x3 fp32 training convolutions on AVX2."""
    taken = []
    monkeypatch.setattr(
        convolution, "weight_gradient", lambda x, grad: taken.append(1) or x.new_zeros(6, 8, 3, 3)
    )
    layouts.set_settings(layouts.of_isa("avx2"))
    large = torch.randn(2, 8, 15, 17).contiguous(memory_format=LAST)
    plain = {"kernel_size": 3, "padding": 1}
    others = [
        (large.contiguous(), plain),
        (large[:1, :, :2, :2].contiguous(memory_format=LAST), plain),  # less than its weights
        (large, plain | {"padding": 0}),
        (large, plain | {"stride": 2}),
        (large, plain | {"dilation": 2, "padding": 2}),
        (large, plain | {"groups": 2}),
        (large, {"kernel_size": 1}),
        (large.double(), plain),
    ]
    for x, arguments in others:
        Conv2d(8, 6, **arguments).to(x.dtype)(x).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        Conv2d(8, 6, **plain)(large).float().sum().backward()
    with torch.no_grad():
        Conv2d(8, 6, **plain)(large)
    for isa in ("avx512_bf16", "avx512", "other"):
        layouts.set_settings(layouts.of_isa(isa))
        Conv2d(8, 6, **plain)(large).sum().backward()
    assert not taken
    layouts.set_settings(layouts.of_isa("avx2"))
    Conv2d(8, 6, **plain)(large).sum().backward()
    assert taken == [1]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16, bias=False),
        nn.Conv2d(16, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1),
    )


def step(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
        y = net(x)
    return [y, *torch.autograd.grad(y.float().square().mean(), list(net.parameters()))]


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("kind", ["autocast", "bf16 parameters"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_compute_in_fp32_results_are_bf16_rounded(isa, kind, layout):
    """Computed in fp32, bf16 convolutions differ from native ones by rounding only."""
    net, x = network(), torch.randn(2, 8, 32, 40).contiguous(memory_format=layout)
    exact = copy.deepcopy(net)(x)
    if kind != "autocast":
        net, x = net.bfloat16(), x.bfloat16()
    ours = copy.deepcopy(net)
    layouts.set_settings(layouts.of_isa(isa))
    compute_in_fp32(ours)
    assert ours.state_dict().keys() == net.state_dict().keys()
    ours = copy.deepcopy(ours)
    got, wanted = step(ours, x), step(net, x)
    assert got[0].dtype == torch.bfloat16
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        error = (one.float() - other.float()).abs().max() / other.float().abs().max()
        assert error < 4 * torch.finfo(torch.bfloat16).eps
    assert (got[0].float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_compute_in_fp32_saves_bf16_tensors(monkeypatch):
    """Convolutions run in fp32, save bf16 tensors, and leave fp32 input as it is."""
    net, computed, kept = network(), [], []
    compute_in_fp32(net)
    monkeypatch.setattr(
        convolution, "conv2d", lambda x, *others: computed.append(x.dtype) or conv2d(x, *others)
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16),
    ):
        net(torch.randn(1, 8, 16, 16))
    assert computed == [torch.float32] * 4
    assert set(kept) == {torch.bfloat16}
    assert net(torch.randn(1, 8, 16, 16)).dtype == torch.float32, "fp32 is left as it is"
    assert len(computed) == 4, "fp32 is left as it is"


@pytest.mark.parametrize(
    ("isa", "config", "patched"),
    [
        ("avx2", {"torch_autocast": {"enabled": True}}, True),
        ("avx2", {"bf16": {"enabled": True}}, True),
        ("avx512", {"bf16": {"enabled": True}}, True),
        ("avx512_bf16", {"bf16": {"enabled": True}}, False),
        ("other", {"bf16": {"enabled": True}}, False),
        ("avx2", {"fp16": {"enabled": True}}, False),
        ("avx2", {}, False),
    ],
)
def test_prepare_bf16_follows_layouts_table(isa, config, patched):
    """A bf16 config is computed in fp32, and logged so, where the table says it."""
    layouts.set_settings(layouts.of_isa(isa))
    net = network()
    execution.prepare(net, config)
    assert all(("_conv_forward" in vars(module)) is patched for module in net)
    lines = execution.log_messages(config, torch.device("cpu"))
    assert len(lines) == patched
    assert all("bf16 convolutions are computed in fp32" in line for line in lines)
    assert execution.log_messages(config, torch.device("cuda")) == []
