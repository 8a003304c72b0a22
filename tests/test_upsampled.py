"""A decoder's convolution of upsampled features: a plain one's numbers, and what it is taken of isn't kept."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from tiekd.models.decoders.upsampled import UpsampledConv

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
def test_numbers_and_gradients_are_those_of_a_plain_convolution(with_skip):
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


def test_backward_upsamples_again_and_convolves_nothing_twice():
    conv, x, skip = inputs(with_skip=True)
    with Operators() as forward:
        y = conv(x, SIZE, skip)
    with Operators() as backward:
        y.sum().backward()
    for operators in (forward, backward):
        assert operators.calls.count("upsample_bilinear2d") == operators.calls.count("cat") == 1
    assert "convolution" in forward.calls and "convolution" not in backward.calls
    assert "convolution_backward" in backward.calls


def test_what_is_convolved_is_not_kept_for_backward(monkeypatch):
    conv, x, skip = inputs(with_skip=True)
    made = []
    concatenate = torch.cat

    def remember(*arguments, **options):
        merged = concatenate(*arguments, **options)
        made.append(torch.multiprocessing.reductions.StorageWeakRef(merged.untyped_storage()))
        return merged

    monkeypatch.setattr(torch, "cat", remember)
    y = conv(x, SIZE, skip)
    assert len(made) == 1 and made[0].expired()
    y.sum().backward()
    assert len(made) == 2 and all(merged.expired() for merged in made)
