"""The loss on AdaBins' bins against all pairs of distances, its validity and its gradient."""

import math

import pytest
import torch

from tiekd.errors import RecipeError
from tiekd.losses.chamfer import Chamfer
from tiekd.models.network import Prediction
from tiekd.training import criterion


def depths(*shape, seed=0) -> torch.Tensor:
    """Metres with holes of every kind."""
    target = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 90
    target[..., ::3] = 0
    target[..., 1] = math.nan
    target[..., 2] = -1
    return target


def bins(batch: int, count: int, seed=1) -> torch.Tensor:
    return (
        (torch.rand(batch, count, generator=torch.Generator().manual_seed(seed)) * 70 + 5)
        .sort(1)
        .values
    )


def predicted(centres: torch.Tensor) -> Prediction:
    return Prediction(torch.zeros(len(centres), 1, 1, 1), bin_centres=centres)


def all_pairs(
    centres: torch.Tensor, target: torch.Tensor, max_depth: float = math.inf
) -> torch.Tensor:
    """The definition, image by image."""
    values = []
    for c, t in zip(centres, target, strict=True):
        t = t[(t > 0) & (t <= max_depth)]
        square = (t[:, None] - c[None, :]).square()
        values.append(square.amin(1).mean() + square.amin(0).mean())
    return torch.stack(values)


@pytest.mark.parametrize("max_depth", [None, 40.0])
@pytest.mark.parametrize(
    ("shape", "count"), [((3, 1, 9, 11), 20), ((2, 1, 2, 5), 64), ((1, 1, 40, 50), 2)]
)
def test_chamfer_equals_all_pairs(shape, count, max_depth):
    """Value and gradient equal those of the distances of all pairs."""
    target, centres = depths(*shape), bins(shape[0], count).requires_grad_()
    value = Chamfer(max_depth)(predicted(centres), target)
    wanted = all_pairs(centres, target, max_depth or math.inf)
    assert value.shape == shape[:1]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
    got, wanted = (torch.autograd.grad(v.sum(), centres)[0] for v in (value, wanted))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_chamfer_worked_example():
    """Three depths and two centres give the value computed by hand."""
    target = torch.tensor([2.0, 0.0, 5.0, 9.0]).view(1, 1, 2, 2)
    # Depths 2, 5, 9 to centres 3, 20: 1, 4, 36; centres to depths: 1, 121.
    centres = torch.tensor([[3.0, 20.0]])
    assert Chamfer()(predicted(centres), target).item() == pytest.approx(41 / 3 + 122 / 2)


def test_chamfer_ignores_order_of_centres():
    """The order of the bin centres doesn't change the value."""
    target, centres = depths(2, 1, 8, 9), bins(2, 16)
    mixed = centres[:, torch.randperm(16, generator=torch.Generator().manual_seed(2))]
    assert torch.equal(Chamfer()(predicted(mixed), target), Chamfer()(predicted(centres), target))


def test_chamfer_without_valid_depth_is_zero():
    """An image without a valid depth has the value 0 and a zero gradient."""
    target, centres = depths(3, 1, 4, 6), bins(3, 8).requires_grad_()
    target[1] = 0
    target[2] = math.nan
    value = Chamfer()(predicted(centres), target)
    (gradient,) = torch.autograd.grad(value.sum(), centres)
    assert value[0] > 0
    assert value[1:].tolist() == [0, 0]
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() > 0
    assert not gradient[1:].any()


def test_chamfer_one_valid_depth_draws_all_centres():
    """With one valid depth, every centre has a gradient towards it."""
    target = torch.zeros(1, 1, 3, 3)
    target[0, 0, 1, 2] = 10.0
    centres = torch.tensor([[4.0, 9.0, 12.0]], requires_grad=True)
    value = Chamfer()(predicted(centres), target)
    assert value.item() == pytest.approx(1 + (36 + 1 + 4) / 3)
    (gradient,) = torch.autograd.grad(value.sum(), centres)
    torch.testing.assert_close(gradient, torch.tensor([[-4.0, -2 - 2 / 3, 4 / 3]]))


def test_chamfer_descent_moves_bins_to_depths():
    """Minimizing the loss moves the bins onto the depths."""
    target = torch.tensor([3.0, 3.5, 30.0, 50.0]).view(1, 1, 2, 2)
    centres = torch.linspace(10, 70, 4).view(1, 4).requires_grad_()
    optimizer = torch.optim.Adam([centres], lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        value = Chamfer()(predicted(centres), target).sum()
        value.backward()
        optimizer.step()
    assert value.item() < 0.1


def test_chamfer_rejects_no_bins_or_wrong_range():
    """A prediction without bins, or a max_depth of 0, raises a RecipeError."""
    with pytest.raises(
        RecipeError, match="^the network gives no bins; it needs `head: {name: adabins"
    ):
        Chamfer()(Prediction(torch.zeros(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))
    with pytest.raises(RecipeError, match="^max_depth: 0 is not a depth"):
        Chamfer(0)


def test_criterion_weighs_chamfer():
    """A recipe's weight scales the term, which is added to the loss."""
    terms = criterion.build(
        {"silog": {"weight": 10.0}, "chamfer": {"weight": 0.1}}, has_teacher=False
    )
    target, centres = depths(2, 1, 8, 9), bins(2, 16)
    batch = type("Batch", (), {"depth": target})
    values = terms(Prediction(torch.ones_like(target), bin_centres=centres), batch, None)
    torch.testing.assert_close(values["loss_chamfer"], 0.1 * all_pairs(centres, target).mean())
    torch.testing.assert_close(values["loss"], values["loss_chamfer"] + values["loss_silog"])
