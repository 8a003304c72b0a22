"""Learned convex upsampling: by hand, its first weights, and depth without blends."""

import pytest
import torch
from torch.nn.functional import interpolate

from tiekd.models.layers.convex_upsampling import ConvexUpsampling, bilinear_weights


def layer(factor: int = 2, channels: int = 4) -> ConvexUpsampling:
    """A layer whose weights depend on the features."""
    torch.manual_seed(0)
    upsampling = ConvexUpsampling(channels, factor)
    torch.nn.init.normal_(upsampling.logits.weight, std=2.0)
    return upsampling


def test_convex_upsampling_of_one_pixel_by_hand():
    """A pixel is the weighted sum of the nine cells around its own, in RAFT's order."""
    upsampling, features = layer(3), torch.randn(1, 4, 4, 5)
    values = torch.rand(1, 1, 4, 5) * 10
    with torch.no_grad():
        fine = upsampling(values, features)
        weights = upsampling.weights(features)
    assert fine.shape == (1, 1, 12, 15)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 9, 4, 5))
    for y, x in ((4, 7), (8, 3), (5, 11)):  # rows and columns of the image, not at its border
        (row, sub_row), (column, sub_column) = divmod(y, 3), divmod(x, 3)
        around = values[0, 0, row - 1 : row + 2, column - 1 : column + 2].flatten()
        wanted = (weights[0, :, 3 * sub_row + sub_column, row, column] * around).sum()
        assert fine[0, 0, y, x].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_convex_upsampling_keeps_a_constant_to_the_border():
    """Nothing beyond the border is blended: a constant map stays constant."""
    fine = layer()(torch.full((2, 1, 3, 4), 7.0), torch.randn(2, 4, 3, 4))
    torch.testing.assert_close(fine, torch.full((2, 1, 6, 8), 7.0))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_convex_upsampling_starts_nearly_bilinear(factor):
    """The first weights are bilinear between the centres of cells, whatever the features."""
    torch.manual_seed(0)
    values = torch.rand(1, 1, 5, 6)
    wanted = interpolate(values, scale_factor=factor, mode="bilinear", align_corners=False)
    upsampling = ConvexUpsampling(4, factor)
    with torch.no_grad():
        fine = upsampling(values, torch.randn(1, 4, 5, 6))
        torch.testing.assert_close(fine, wanted, rtol=0, atol=0.03)
        upsampling.logits.weight.zero_()
        upsampling.logits.bias.copy_((bilinear_weights(factor) + 1e-30).log().flatten())
        torch.testing.assert_close(upsampling(values, torch.zeros(1, 4, 5, 6)), wanted)


def test_convex_upsampling_unblended_takes_cell_of_largest_weight():
    """Without blending each pixel has the value of one cell: the one with the largest weight."""
    upsampling, features = layer(), torch.randn(1, 4, 4, 5)
    values = torch.arange(20.0).view(1, 1, 4, 5)
    with torch.no_grad():
        fine = upsampling(values, features, blended=False)
        weights, blended = upsampling.weights(features), upsampling(values, features)
    assert torch.equal(fine, fine.round())
    assert not torch.equal(blended, blended.round())
    place = int(weights[0, :, 1, 2, 3].argmax())  # of the pixel in row 4 and column 7
    row, column = 2 + place // 3 - 1, 3 + place % 3 - 1
    assert fine[0, 0, 4, 7] == values[0, 0, row, column]
    assert len({int(v) for v in weights[0].argmax(0).flatten()}) > 2


def test_convex_upsampling_margin_between_two_largest_weights():
    """The margin is the difference of the two largest weights of a pixel."""
    upsampling, features = layer(), torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        margin, weights = upsampling.margins(features), upsampling.weights(features)
    first, second = weights[0, :, 3, 1, 2].sort(descending=True).values[:2]
    assert margin[0, 0, 3, 5].item() == pytest.approx((first - second).item())


def test_convex_upsampling_is_float32_in_low_precision():
    """Depth isn't rounded if the features are bfloat16, and gradients reach every parameter."""
    upsampling, values = layer().bfloat16(), torch.full((1, 1, 4, 4), 79.123, requires_grad=True)
    fine = upsampling(values, torch.randn(1, 4, 4, 4).bfloat16())
    assert fine.dtype == torch.float32
    torch.testing.assert_close(fine, torch.full((1, 1, 8, 8), 79.123))
    (fine * torch.randn(1, 1, 8, 8)).sum().backward()
    assert values.grad.abs().min() > 0
    upsampling = layer()
    (upsampling(torch.rand(1, 1, 4, 4), torch.randn(1, 4, 4, 4)) ** 2).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in upsampling.parameters())
