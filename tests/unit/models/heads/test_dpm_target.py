"""The DPM head with a `Target`: several teachers, a sigma for each pixel, and their limits."""

import pytest
import torch
from torch.nn.functional import conv2d

from tiekd.data.target import Target
from tiekd.errors import RecipeError
from tiekd.kernels import reference
from tiekd.models.heads.dpm import Dpm, DpmOptions

SIZE = (6, 7)


def head(stride: int = 1, **options) -> Dpm:
    torch.manual_seed(0)
    made = Dpm(4, 0.5, 20.0, stride, DpmOptions(num_bins=30, sigma=0.4, **options))
    torch.nn.init.normal_(made.weight)
    return made


def target(weight: torch.Tensor | None) -> Target:
    """Two teachers of different validity and sigma."""
    torch.manual_seed(1)
    depth = torch.rand(2, 2, *SIZE) * 16 + 1
    depth[0, 0, :2] = 0
    depth[:, 1, :, 5:] = 0
    return Target(depth, torch.rand(2, 2, *SIZE) * 2 + 0.5, weight)


def by_hand(made: Dpm, features: torch.Tensor, t: Target, weight: torch.Tensor) -> torch.Tensor:
    """The divergence of the mixture, from the Gaussians of one component at a time."""
    log_p = conv2d(features, made.weight, made.bias).log_softmax(1)
    valid = (t.depth > 0) * weight
    q = 0.0
    for m in range(2):
        one = slice(m, m + 1)
        mass, _ = reference.cell_target(t.depth[:, one], t.sigma[:, one], None, made.edges)
        share = valid[:, one] / valid.sum(1, keepdim=True).clamp_min(1e-9)
        q = q + share * mass
    divergence = (torch.xlogy(q, q) - q * log_p).sum(1, keepdim=True)
    return torch.where(valid.sum(1, keepdim=True) > 0, divergence, 0)


@pytest.mark.parametrize("kind", ["none", "constants", "maps"])
def test_mixture_is_that_of_the_components(kind):
    """Divergence and gradient are those of the mixture of the valid components, weighted."""
    torch.manual_seed(2)
    maps = torch.rand(2, 2, *SIZE)
    maps[1, :, 3, 3] = 0
    weight = {"none": None, "constants": torch.tensor([3.0, 1.0]), "maps": maps}[kind]
    factors = torch.ones(1, 1, 1, 1) if weight is None else weight
    factors = factors.view(1, 2, 1, 1) if factors.ndim == 1 else factors
    made, features = head(), torch.randn(2, 4, *SIZE)
    found = made(features, SIZE, target(weight)).divergence
    found.sum().backward()
    gradient, made.weight.grad = made.weight.grad, None
    wanted = by_hand(made, features, target(None), factors.expand(2, 2, *SIZE))
    wanted.sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, made.weight.grad, rtol=1e-3, atol=1e-3)
    assert (found[0, 0, :2, 5:] == 0).all(), "no teacher is valid there"


def test_one_component_without_sigma_equals_the_plain_map():
    """A target of one map is bit-equal to the map itself, whatever its weight."""
    made, features, t = head(), torch.randn(2, 4, *SIZE), target(None)
    plain = made(features, SIZE, t.depth[:, :1])
    for weight in (None, torch.tensor([0.25])):
        found = made(features, SIZE, Target(t.depth[:, :1], weight=weight))
        assert torch.equal(found.divergence, plain.divergence)
        assert torch.equal(found.depth, plain.depth)


def test_sigma_is_clamped_to_its_limits():
    """An unknown, small, large or NaN sigma becomes one between the head's sigma and sigma_max."""
    features, depth = torch.randn(1, 4, *SIZE), torch.full((1, 1, *SIZE), 9.0)

    def divergence(given: float, **options) -> torch.Tensor:
        sigma = torch.full_like(depth, given)
        return head(**options)(features, SIZE, Target(depth, sigma)).divergence

    least = divergence(0.4)
    for given in (0.0, 0.1, torch.nan):
        assert torch.equal(divergence(given), least)
    assert not torch.allclose(divergence(1.0), least)
    assert torch.equal(divergence(50.0), divergence(4.0))
    assert torch.equal(divergence(torch.inf), divergence(4.0))
    assert torch.equal(divergence(50.0, sigma_max=2.0), divergence(2.0))
    made = head(sigma_max=1e6)
    assert made.sigma_max == pytest.approx(2 * float(made.edges[-1] - made.edges[0]))
    plain = head()(features, SIZE, depth).divergence
    torch.testing.assert_close(least, plain, rtol=1e-3, atol=1e-3)


def test_coarse_cells_take_a_target():
    """With a stride the divergence is 0 in pixels where no component counts."""
    made, weight = head(stride=2), torch.ones(2, 2, *SIZE)
    weight[0, :, 4] = 0
    found = made(torch.randn(2, 4, 3, 4), SIZE, target(weight)).divergence
    assert found.shape == (2, 1, *SIZE)
    assert (found[0, 0, 4] == 0).all()
    assert (found[0, 0, 5, :5] > 0).all()


def test_released_target_refuses_several_teachers_and_sigma():
    """The published target is refused with several teachers or a sigma map, in one line."""
    made, t = head(target="released"), target(None)
    for given in (t._replace(sigma=None), Target(t.depth[:, :1], t.sigma[:, :1])):
        with pytest.raises(RecipeError, match=r"^network.head.target: released is defined for one"):
            made(torch.randn(2, 4, *SIZE), SIZE, given)
    made(torch.randn(2, 4, *SIZE), SIZE, Target(t.depth[:, :1]))


@pytest.mark.parametrize("given", [0.3, float("inf"), -1.0])
def test_sigma_max_below_sigma_is_refused(given):
    """A sigma_max under sigma or infinite is refused."""
    with pytest.raises(
        RecipeError, match=rf"^sigma_max: got {given}; metres, at least sigma \(0.4"
    ):
        head(sigma_max=given)


@pytest.mark.parametrize("stride", [1, 2])
def test_constants_are_the_same_as_maps_of_them(stride):
    """One sigma for each component has the divergence and gradient of maps of it, clamped alike."""
    made, weight = head(stride=stride), torch.tensor([2.0, 1.0])
    features = torch.randn(2, 4, *(-(-side // stride) for side in SIZE))
    depth = target(None).depth
    results = []
    for constants in ((0.6, 2.5), (0.0, 90.0), (1.5, 1.5)):
        maps = torch.tensor(constants).view(1, 2, 1, 1).expand_as(depth)
        for given in (Target(depth, maps, weight), Target(depth, None, weight, constants)):
            made.weight.grad = None
            found = made(features, SIZE, given).divergence
            found.sum().backward()
            results.append((found.detach(), made.weight.grad))
        (wanted, slope), (found, gradient) = results[-2:]
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(gradient, slope, rtol=5e-3, atol=5e-3)
    assert not torch.allclose(results[1][0], results[3][0], rtol=0.05)


def test_constants_of_a_released_target_are_refused():
    """The published target has the head's sigma alone."""
    with pytest.raises(RecipeError, match="^network.head.target: released"):
        head(target="released")(
            torch.randn(2, 4, *SIZE), SIZE, Target(target(None).depth[:, :1], constants=(1.0,))
        )
