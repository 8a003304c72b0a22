"""Each loss against the published numbers, its validity and its finite gradients, and the criterion that adds them."""

import math
from types import SimpleNamespace

import pytest
import torch
from golden_rules import depth as depth_by_rule
from golden_rules import load_arrays, randn

from tiekd.errors import RecipeError
from tiekd.kernels.reference import dpm
from tiekd.losses import criterion
from tiekd.losses.dpm import DPM
from tiekd.losses.mse import MSE
from tiekd.losses.silog import SILog
from tiekd.losses.ssim import SSIM

MODULES = [MSE(), SILog(), SILog(reduce="batch"), SSIM(), SSIM("log"), SSIM("normalised"), DPM()]


def prediction(depth: torch.Tensor, divergence: torch.Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(depth=depth, divergence=divergence)


def load(case: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in load_arrays(f"losses/{case}.npz").items()}


def assert_published(value: torch.Tensor, depth: torch.Tensor, golden: dict, scale: float = 1.0) -> None:
    wanted = golden["loss"] if "loss" in golden else golden["loss_mean"]
    torch.testing.assert_close(scale * value, wanted[0], rtol=2e-5, atol=2e-7)
    (gradient,) = torch.autograd.grad(scale * value, depth)
    wanted = golden["grad_depth_pred"]
    assert (gradient - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("case", "terms"),
    [
        ("MSE_kitti", [(1.0, MSE())]),
        ("MSE_nyu", [(1.0, MSE())]),
        ("SI_kitti", [(1.0, SILog(reduce="batch"))]),
        ("SI_nyu", [(1.0, SILog(reduce="batch"))]),
        ("SI_kitti_mask", [(1.0, SILog(reduce="batch"))]),
        ("SI_kitti_maxdepth", [(10.0, SILog(80.0, "batch"))]),
        ("SI_nyu_maxdepth", [(10.0, SILog(10.0, "batch"))]),
        ("SSIM_kitti", [(1.0, SSIM(released=True))]),
        ("SSIM_nyu", [(1.0, SSIM(released=True))]),
        ("SSIM_w704_nocrop", [(1.0, SSIM(released=True))]),
        ("L_DEPTH_kitti", [(1.0, SSIM(released=True))]),
        ("L_DEPTH_nyu", [(1.0, SSIM(released=True))]),
        ("SSIM_SI_kitti", [(1.5, SSIM(released=True)), (1.0, SILog(reduce="batch"))]),
        ("SSIM_MSE_kitti", [(1.5, SSIM(released=True)), (1.0, MSE())]),
        ("SSIM_MSE_nyu", [(1.5, SSIM(released=True)), (1.0, MSE())]),
    ],
)
def test_values_and_gradients_are_the_published_ones(case, terms):
    golden = load(case)
    depth = golden["depth_pred"].requires_grad_()
    value = sum(weight * loss(prediction(depth), golden["kd_gt"]).mean() for weight, loss in terms)
    assert_published(value, depth, golden)


def test_silog_warm_up_is_the_published_one():
    golden = load("SI_warmup")
    loss = SILog(reduce="batch", warm_up=2)
    for call in range(3):
        if call == 1:
            resumed = SILog(reduce="batch", warm_up=2)
            resumed.load_state_dict(loss.state_dict())
            loss = resumed
        depth = golden["depth_pred"].clone().requires_grad_()
        value = loss(prediction(depth), golden["kd_gt"]).mean()
        now = {"loss": golden["loss"][call : call + 1], "grad_depth_pred": golden["grad_depth_pred"][call]}
        assert_published(value, depth, now)


def test_ssim_of_equal_maps_is_zero_with_zero_gradient():
    golden = load("SSIM_pred_equals_target")
    for loss in (SSIM(released=True), SSIM(), SSIM("log"), SSIM("normalised", max_depth=80.0)):
        depth = golden["depth_pred"].clone().requires_grad_()
        value = loss(prediction(depth), golden["kd_gt"])
        value.sum().backward()
        torch.testing.assert_close(value, torch.zeros(1), rtol=0, atol=1e-6)
        torch.testing.assert_close(depth.grad, torch.zeros_like(depth), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "shape", "top_crop"),
    [("TIE_KD_kitti257", (2, 257, 24, 40), 0), ("TIE_KD_w704_small", (1, 8, 128, 704), 110)],
)
def test_the_published_sum_comes_from_a_recipe(case, shape, top_crop):
    golden = load(case)
    crop = {"top_crop": top_crop}
    both = criterion.build({"dpm": {"weight": 1.0} | crop, "ssim": {"weight": 9.0, "released": True} | crop}, True)
    logits = randn(f"loss:{case}:logits", shape, 2.0).requires_grad_()
    eye = torch.eye(shape[1]).view(shape[1], shape[1], 1, 1)
    teacher = depth_by_rule(f"loss:{case}:kd_gt", (shape[0], 1, *shape[2:]), 1e-3, 80.0)
    depth, divergence = dpm(logits, eye, torch.zeros(shape[1]), golden["bin_edges"], teacher, 0.5, "released")
    values = both(prediction(depth, divergence), None, teacher)
    assert list(values) == ["decode.loss_dpm", "decode.loss_ssim", "loss"]
    torch.testing.assert_close(values["loss"], golden["e2e_loss"][0], rtol=2e-5, atol=0)
    torch.testing.assert_close(values["loss"], values["decode.loss_dpm"] + values["decode.loss_ssim"])
    values["loss"].backward()
    got, wanted = logits.grad.flatten()[golden["e2e_grad_logits_sample_idx"]], golden["e2e_grad_logits_sample"]
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_dpm_top_crop_is_the_published_mean():
    golden = load("L_DPM_w704_small")
    kept = golden["loss_map"][:, :, :18]
    uncropped = torch.cat((torch.full((1, 1, 110, 704), 5.0), kept), 2)
    value = DPM(top_crop=110)(prediction(None, uncropped), torch.ones_like(uncropped))
    torch.testing.assert_close(value, golden["loss_mean"], rtol=2e-5, atol=0)


@pytest.mark.parametrize("loss", MODULES, ids=lambda m: type(m).__name__)
def test_not_valid_pixels_and_empty_images_change_nothing(loss):
    g = torch.Generator().manual_seed(0)
    target = 2 + 3 * torch.rand(3, 1, 24, 30, generator=g)
    depth = (target + 0.3 * torch.rand(target.shape, generator=g)).detach()
    divergence = torch.rand(target.shape, generator=g)
    holes = torch.zeros_like(target, dtype=torch.bool)
    holes[:, :, :6, :7] = True
    target[holes] = 0
    target[1] = 0
    whole = loss(prediction(depth, divergence), target)
    for junk in (0.0, math.nan, math.inf, -1.0):
        dirty = target.masked_fill(holes, junk)
        inputs = [depth.clone().requires_grad_(), divergence.clone().requires_grad_()]
        spoilt = [x + 7 * holes for x in inputs]
        value = loss(prediction(*spoilt), dirty)
        torch.testing.assert_close(value, whole, rtol=1e-6, atol=1e-7)
        value.sum().backward()
        gradient = inputs[1 if isinstance(loss, DPM) else 0].grad
        assert torch.isfinite(gradient).all() and (gradient[holes] == 0).all() and (gradient[1] == 0).all()
        assert (gradient[0] != 0).any()
    assert value.shape == (3,) and value.dtype == torch.float32 and (value[[0, 2]] > 0).all()
    if getattr(loss, "reduce", "image") == "image":
        assert value[1] == 0
        images = zip(depth.split(1), divergence.split(1), target.split(1), strict=True)
        alone = torch.cat([loss(prediction(d, kl), t) for d, kl, t in images])
        torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduce", ["image", "batch"])
@pytest.mark.parametrize("valid_pixels", [0, 1, 5])
def test_silog_is_finite_with_few_pixels_and_for_a_perfect_prediction(reduce, valid_pixels):
    target = torch.zeros(1, 1, 4, 5)
    target.view(-1)[:valid_pixels] = torch.arange(valid_pixels) + 3.0
    for offset in (0.0, 1.0):
        depth = (target + offset).requires_grad_()
        value = SILog(reduce=reduce)(prediction(depth), target)
        value.backward()
        value = value.detach()
        assert torch.isfinite(value).all() and torch.isfinite(depth.grad).all()
        assert bool(value > 0) == (offset > 0 and valid_pixels > 0) == bool((depth.grad != 0).any())
    if valid_pixels == 1:
        expected = math.sqrt(0.15) * math.log(4.001 / 3.001)
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_ssim_counts_only_windows_that_are_wholly_valid():
    g = torch.Generator().manual_seed(1)
    target = 5 + torch.rand(1, 1, 30, 40, generator=g)
    depth = target.clone()
    depth[..., 25:, 35:] += 5 * torch.rand(5, 5, generator=g)
    loss = SSIM()
    assert loss(prediction(depth), target) > 0.005
    # No window of 11 x 11 reaches over this frame into the corner.
    holed = target.clone()
    holed[..., 24:, 34] = 0
    holed[..., 24, 34:] = 0
    assert loss(prediction(depth), holed) == 0
    assert loss(prediction(depth[..., :10, :]), target[..., :10, :]) == 0


def test_ssim_sees_an_inverted_relief_in_any_space_unless_it_is_unsigned():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    relief = (5 * torch.sin(x / 5) * torch.sin(y / 5)).expand(1, 1, 64, 64)
    for space in ("metres", "normalised", "log"):
        signed, unsigned = (SSIM(space, signed=s)(prediction(20 - relief), 20 + relief) for s in (True, False))
        assert signed > 2.5 * unsigned
    assert SSIM(released=True)(prediction(20 - relief), 20 + relief) < 0.3
    assert SSIM()(prediction(20 - relief), 20 + relief) > 0.5


def test_ssim_of_noise_on_a_flat_wall_holds_in_float32():
    wall = torch.full((1, 1, 60, 80), 20.0)
    noisy = wall + 0.02 * torch.randn(wall.shape, generator=torch.Generator().manual_seed(0))
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (taps[:, None] * taps).flatten() / taps.sum() ** 2
    patches = torch.nn.functional.unfold(noisy.double() - 20, 11)[0]
    variance = window @ (patches - window @ patches).square()
    wanted = float((variance / (variance + 9e-4)).mean())
    assert wanted == pytest.approx(0.29, abs=0.02)
    assert float(SSIM()(prediction(wall), noisy)) == pytest.approx(wanted, rel=1e-3)
    for space in ("normalised", "log"):
        assert SSIM(space)(prediction(wall), noisy) < 0.002


def test_criterion_compares_each_term_with_what_the_recipe_says():
    truth, teacher = torch.full((2, 1, 12, 12), 2.0), torch.full((2, 1, 12, 12), 3.0)
    node = {
        "mse": {"weight": 2},
        "against_truth": {"name": "mse", "weight": 1.0, "against": "ground_truth"},
    }
    values = criterion.build(node, True)(prediction(torch.ones(2, 1, 12, 12)), SimpleNamespace(depth=truth), teacher)
    assert {k: float(v) for k, v in values.items()} == {
        "decode.loss_mse": 8.0,
        "decode.loss_against_truth": 1.0,
        "loss": 9.0,
    }
    values = criterion.build({"mse": {}}, False)(
        prediction(torch.ones(2, 1, 12, 12)), SimpleNamespace(depth=truth), None
    )
    assert float(values["loss"]) == 1.0


@pytest.mark.parametrize(
    ("node", "has_teacher", "message"),
    [
        ({}, True, "^losses: got {}; give at least one term"),
        ({"mse": 3}, True, "^losses.mse: got 3; it must be a mapping"),
        ({"mse": {"weight": -0.5}}, True, "^losses.mse.weight: -0.5 is not a number > 0"),
        ({"mse": {"weight": "much"}}, True, "^losses.mse.weight: 'much' is not a number > 0"),
        ({"mse": {"weight": math.nan}}, True, "^losses.mse.weight: nan is not a number > 0"),
        ({"mse": {"against": "student"}}, True, "^losses.mse.against: 'student' is not known; there are: teacher, gr"),
        ({"mse": {"against": "teacher"}}, False, "^losses.mse.against: teacher, but the recipe has none"),
        ({"ssim": {"against": "ground_truth"}}, True, "^losses.ssim: SSIM can't be taken against sparse ground truth"),
        ({"shape": {"name": "ssim"}}, False, "^losses.shape: SSIM can't be taken against sparse ground truth"),
        ({"dpm": {"against": "ground_truth"}}, True, "^losses.dpm.against: ground_truth, but the divergence is from"),
        ({"sim": {}}, True, "^losses.sim.name: no 'sim'; there are .nearest first.: ssim"),
        ({"ssim": {"spaces": "log"}}, True, "^losses.ssim .ssim.: unknown key 'spaces'; did you mean 'space'"),
        ({"ssim": {"space": "feet"}}, True, "^losses.ssim.space: 'feet' is not known; there are: metres, normalised"),
        ({"ssim": {"released": True, "space": "log"}}, True, "^losses.ssim: released means space metres"),
        ({"ssim": {"max_depth": 80}}, True, "^losses.ssim.max_depth: 80 is only used"),
        ({"ssim": {"top_crop": 110}}, True, "^losses.ssim.top_crop: 110 is only allowed"),
        ({"silog": {"reduce": "pixel"}}, True, "^losses.silog.reduce: 'pixel' is not known; there are: image, batch"),
        ({"silog": {"max_depth": 0}}, True, "^losses.silog.max_depth: 0 is not a depth"),
        ({"dpm": {"max_depth": -1}}, True, "^losses.dpm.max_depth: -1 is not a depth"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(node, has_teacher, message):
    with pytest.raises(RecipeError, match=message) as caught:
        criterion.build(node, has_teacher)
    assert "\n" not in str(caught.value)


def test_dpm_asks_for_a_head_that_gives_a_divergence():
    target = torch.ones(1, 1, 2, 2)
    with pytest.raises(RecipeError, match="it needs `head: {name: dpm, ...}`"):
        DPM()(prediction(target), target)


def test_dpm_leaves_out_targets_beyond_its_max_depth():
    target, divergence = torch.tensor([5.0, 90.0]).view(1, 1, 1, 2), torch.tensor([0.4, 0.0]).view(1, 1, 1, 2)
    assert float(DPM(80.0)(prediction(None, divergence), target)) == pytest.approx(0.4)
    assert float(DPM()(prediction(None, divergence), target)) == pytest.approx(0.2)
