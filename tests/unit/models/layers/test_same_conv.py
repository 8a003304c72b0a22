"""SAME padding: where the odd pixel goes, and graphs for any size."""

import pytest
import torch
from torch.nn.functional import conv2d

from tiekd.models.layers.same_conv import SameConv2d


def test_same_conv2d_pads_odd_pixel_at_end():
    """SAME padding of an even size adds its one pixel at the end."""
    x = torch.arange(1.0, 9).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    convolution = SameConv2d(1, 1, 3, stride=2)
    convolution.weight.data.fill_(1)
    # Even size: nothing is padded in front, one pixel behind. Odd size: one on each side.
    assert convolution(x)[0, 0, 1].tolist() == [18, 36, 54, 45]
    assert torch.equal(
        convolution(x[..., :7, :7]), conv2d(x[..., :7, :7], convolution.weight, stride=2, padding=1)
    )


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
def test_same_conv2d_output_size_is_rounded_up(kernel, stride):
    """The output has ceil(side / stride) pixels for even and odd sides."""
    convolution = SameConv2d(2, 3, kernel, stride)
    for height, width in ((8, 9), (9, 8), (6, 7)):
        out = convolution(torch.zeros(1, 2, height, width))
        assert tuple(out.shape) == (1, 3, -(-height // stride), -(-width // stride))


def test_same_conv2d_traces_for_any_size():
    """One traced graph pads even and odd sizes as the module does."""
    convolution = SameConv2d(1, 1, 5, stride=2).eval()
    sides = torch.export.Dim("height", min=4), torch.export.Dim("width", min=4)
    program = torch.export.export(
        convolution, (torch.zeros(1, 1, 8, 9),), dynamic_shapes=({2: sides[0], 3: sides[1]},)
    ).module()
    for size in ((8, 9), (11, 6), (7, 7)):
        x = torch.randn(1, 1, *size)
        torch.testing.assert_close(program(x), convolution(x))
