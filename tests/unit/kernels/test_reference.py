"""The DPM head's arithmetic: the published numbers, gradients, validity, cells, half precision."""

import math

import pytest
import torch
from support.golden import load_arrays, randn

from tiekd.errors import RecipeError
from tiekd.kernels.reference import cell_target, dpm, released_divergence
from tiekd.kernels.target import bin_centres, bin_edges, gaussian_target, released_target

PUBLISHED = [
    ("L_DPM_kitti257_s0.5", (2, 257, 24, 40), 80.0, 0.5),
    ("L_DPM_nyu49_s0.5", (2, 49, 24, 40), 10.0, 0.5),
    ("L_DPM_nyu49_s0.15", (2, 49, 24, 40), 10.0, 0.15),
]


def published_logits(case: str, shape: tuple[int, ...]) -> torch.Tensor:
    return randn(f"loss:{case}:logits", shape, 2.0)


def assert_sampled_gradient(gradient: torch.Tensor, golden: dict, name: str) -> None:
    wanted = torch.from_numpy(golden[f"{name}_sample"])
    got = gradient.flatten()[torch.from_numpy(golden[f"{name}_sample_idx"])]
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def small_case(stride: int = 1, dtype: torch.dtype = torch.float64):
    """Returns features, weight, bias, uneven edges and a target.

    The target has holes, depths beyond both ends and an odd size.
    """
    g = torch.Generator().manual_seed(stride)
    edges = torch.cat((torch.tensor([0.5]), 0.5 + torch.linspace(0.6, 1.4, 12).cumsum(0))).to(dtype)
    height, width = 7, 9
    cells = math.ceil(height / stride), math.ceil(width / stride)
    features = torch.randn(2, 5, *cells, generator=g, dtype=dtype)
    weight, bias = (
        torch.randn(12, 5, 1, 1, generator=g, dtype=dtype),
        torch.randn(12, generator=g, dtype=dtype),
    )
    target = torch.rand(2, 1, height, width, generator=g) * 15 + 0.01
    target[torch.rand(target.shape, generator=g) < 0.3] = 0
    target[0, 0, :3, :3] = 0
    target[1, 0, -1, -1] = math.nan
    return features, weight, bias, edges, target


@pytest.mark.parametrize(("case", "shape", "max_depth", "sigma"), PUBLISHED)
def test_dpm_released_equals_published_loss(case, shape, max_depth, sigma):
    """With the released target, depth, loss and gradient equal the published ones."""
    golden = load_arrays(f"losses/{case}.npz")
    edges = bin_edges(shape[1], 1e-3, max_depth)
    torch.testing.assert_close(edges, torch.from_numpy(golden["bin_edges"]))
    logits = published_logits(case, shape).requires_grad_()
    weight, bias = torch.eye(shape[1]).view(shape[1], shape[1], 1, 1), torch.zeros(shape[1])
    teacher = torch.from_numpy(golden["kd_gt"])
    depth, divergence = dpm(logits, weight, bias, edges, teacher, sigma, "released")
    torch.testing.assert_close(
        divergence, torch.from_numpy(golden["loss_map"]), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(depth, torch.from_numpy(golden["e2e_depth_pred"]), rtol=2e-5, atol=0)
    torch.testing.assert_close(
        divergence.mean(), torch.from_numpy(golden["e2e_loss"])[0], rtol=2e-5, atol=0
    )
    divergence.mean().backward()
    assert_sampled_gradient(logits.grad, golden, "e2e_grad_logits")


def test_released_divergence_skips_zero_probabilities():
    """Bins of probability 0 are left out of the divergence, as published."""
    golden = load_arrays("losses/L_DPM_zero_out.npz")
    edges = torch.from_numpy(golden["bin_edges"])
    p = torch.from_numpy(golden["out"]).requires_grad_()
    assert (p == 0).any()
    q = released_target(torch.from_numpy(golden["kd_gt"]), 0.5, edges, bin_centres(edges))
    divergence = released_divergence(p, q)
    torch.testing.assert_close(
        divergence, torch.from_numpy(golden["loss_map"]), rtol=1e-4, atol=1e-6
    )
    divergence.mean().backward()
    wanted = torch.from_numpy(golden["grad_out"])
    assert (p.grad - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("target", ["gaussian", "released"])
def test_dpm_gradients_pass_gradcheck(stride, target):
    """Gradients equal finite differences for each target and stride."""
    *parameters, edges, depth = small_case(stride)
    for p in parameters:
        p.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, w, b: dpm(f, w, b, edges, depth, 0.8, target, "ignore", stride),
        parameters,
        fast_mode=True,
    )


def test_dpm_divergence_zero_where_invalid():
    """Where the target is not valid, the divergence is 0 and has no gradient."""
    features, weight, bias, edges, target = small_case()
    features.requires_grad_()
    for beyond, valid in (("clamp", target > 0), ("ignore", (target > 0) & (target <= edges[-1]))):
        _, divergence = dpm(features, weight, bias, edges, target, 0.8, "gaussian", beyond)
        assert torch.equal(divergence > 0, valid)
        assert torch.equal(divergence == 0, ~valid)
        (gradient,) = torch.autograd.grad(divergence.sum(), features)
        assert torch.equal((gradient != 0).any(1, keepdim=True), valid)
    assert (target > edges[-1]).any()
    assert target.isnan().any()


def test_dpm_divergence_grows_with_error():
    """The divergence is 0 for the target itself and grows with the depth's error."""
    edges = bin_edges(49, 1e-3, 10.0)
    target = torch.tensor([0.3, 5.0, 9.9]).view(1, 1, 1, 3)
    weight, bias = torch.eye(49).view(49, 49, 1, 1), torch.zeros(49)
    divergences = []
    for shift in (0.0, 0.5, 1.0):
        logits = (
            gaussian_target((target - shift).clamp_min(0.11), 0.15, None, edges)
            .clamp_min(1e-30)
            .log()
        )
        depth, divergence = dpm(logits, weight, bias, edges, target, 0.15)
        divergences.append(divergence)
        torch.testing.assert_close(depth, (target - shift).clamp_min(0.11), rtol=1e-3, atol=0)
    assert divergences[0].abs().max() < 1e-4
    assert (divergences[1] > 0.1).all()
    assert (divergences[2] > divergences[1]).flatten()[1:].all()


@pytest.mark.parametrize("target", ["gaussian", "released"])
def test_cell_target_is_mean_of_valid_pixels(target):
    """A cell's target is the mean over the valid pixels that it covers."""
    edges = bin_edges(49, 1e-3, 10.0)
    depth = torch.full((1, 1, 5, 7), 3.0)
    depth[0, 0, 0:2, 0:2] = torch.tensor([[2.0, 8.0], [0.0, 12.0]])
    depth[0, 0, 2:4, 2:4] = 0
    depth[0, 0, 4, 6] = 7.0
    q, valid = cell_target(depth, 0.15, None, edges, target, "ignore", stride=2)
    assert q.shape == (1, 49, 3, 4)
    assert valid[0, 0].tolist() == [
        [True, True, True, True],
        [True, False, True, True],
        [True, True, True, True],
    ]

    def one(metres: float) -> torch.Tensor:
        q, _ = cell_target(torch.full((1, 1, 1, 1), metres), 0.15, None, edges, target)
        return q.flatten()

    torch.testing.assert_close(q[0, :, 0, 0], (one(2.0) + one(8.0)) / 2)
    torch.testing.assert_close(q[0, :, 0, 1], one(3.0))
    torch.testing.assert_close(q[0, :, 2, 3], one(7.0))
    clamped, _ = cell_target(depth, 0.15, None, edges, target, "clamp", stride=2)
    torch.testing.assert_close(clamped[0, :, 0, 0], (one(2.0) + one(8.0) + one(12.0)) / 3)


def test_cell_target_two_teachers_are_averaged():
    """The target of two teachers is their weighted mean."""
    features, weight, bias, edges, target = small_case(dtype=torch.float32)
    other = (target + 2) * (target > 0)
    both = torch.cat((target, other), 1)
    first, second = (cell_target(t, 0.8, None, edges)[0] for t in (target, other))
    q, valid = cell_target(both, 0.8, None, edges)
    expected = torch.where(valid, (first + second) / 2, 0)
    torch.testing.assert_close(torch.where(valid, q, 0), expected)
    weights = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(both.shape)
    alone = dpm(features, weight, bias, edges, target, 0.8)
    weighted = dpm(features, weight, bias, edges, both, 0.8, target_weight=weights)
    torch.testing.assert_close(weighted, alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dpm_half_weights_give_float32_results(dtype):
    """Half precision weights give float32 results and finite half gradients."""
    features, weight, bias, edges, target = small_case(dtype=torch.float32)
    halves = [t.to(dtype).requires_grad_() for t in (features, weight, bias)]
    depth, divergence = dpm(*halves, edges, target, 0.8)
    assert depth.dtype == divergence.dtype == torch.float32
    wanted = dpm(*(h.detach().float() for h in halves), edges, target, 0.8)
    torch.testing.assert_close((depth, divergence), wanted, rtol=0.05, atol=0.05)
    (depth.mean() + divergence.mean()).backward()
    assert all(h.grad.dtype == dtype and torch.isfinite(h.grad).all() for h in halves)


def test_dpm_without_target_has_no_divergence():
    """Without a target the divergence is None and depth is the same."""
    features, weight, bias, edges, target = small_case()
    depth, divergence = dpm(features, weight, bias, edges)
    assert divergence is None
    assert depth.shape == (2, 1, 7, 9)
    assert torch.equal(depth, dpm(features, weight, bias, edges, target, 0.8)[0])


def test_dpm_rejects_unknown_options():
    """An unknown `target` or `beyond` raises a RecipeError that lists the known ones."""
    arguments = small_case()
    with pytest.raises(
        RecipeError, match="^target: 'laplace' is not known; there are: gaussian, released$"
    ):
        dpm(*arguments, 0.8, "laplace")
    with pytest.raises(
        RecipeError, match="^beyond: 'drop' is not known; there are: clamp, ignore$"
    ):
        dpm(*arguments, 0.8, beyond="drop")


def test_golden_logits_equal_published_inputs():
    """The logits drawn here are those that the golden file was made from."""
    golden = load_arrays("losses/L_DPM_kitti257_s0.5.npz")
    p = (
        published_logits("L_DPM_kitti257_s0.5", (2, 257, 24, 40))
        .double()
        .softmax(1)
        .float()
        .flatten()
    )
    torch.testing.assert_close(
        p[torch.from_numpy(golden["grad_out_sample_idx"])], torch.from_numpy(golden["out_sample"])
    )
