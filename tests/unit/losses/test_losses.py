"""Each loss against the published numbers, and the criterion that adds them.

Also its validity and its finite gradients.
"""

import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from support.golden import depth as depth_by_rule
from support.golden import load_arrays, randn

from tiekd.data.target import Target
from tiekd.errors import RecipeError
from tiekd.kernels import chunked
from tiekd.kernels.reference import dpm
from tiekd.losses.dpm import DPM
from tiekd.losses.gradient import Gradient
from tiekd.losses.log_l1 import LogL1
from tiekd.losses.mse import MSE
from tiekd.losses.silog import SILog
from tiekd.losses.ssim import SSIM
from tiekd.training import criterion

MODULES = [
    MSE(),
    LogL1(),
    Gradient(),
    SILog(),
    SILog(reduce="batch"),
    SSIM(),
    SSIM("log"),
    SSIM("normalised"),
    DPM(),
]


def prediction(depth: torch.Tensor, divergence: torch.Tensor | None = None) -> SimpleNamespace:
    return SimpleNamespace(depth=depth, divergence=divergence)


def load(case: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(value) for key, value in load_arrays(f"losses/{case}.npz").items()
    }


def assert_published(
    value: torch.Tensor, depth: torch.Tensor, golden: dict, scale: float = 1.0
) -> None:
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
        ("SSIM_kitti_w1.5", [(1.5, SSIM(released=True))]),
        ("SSIM_nyu_w1.5", [(1.5, SSIM(released=True))]),
        ("SSIM_w704_nocrop", [(1.0, SSIM(released=True))]),
        ("L_DEPTH_kitti", [(1.0, SSIM(released=True))]),
        ("L_DEPTH_nyu", [(1.0, SSIM(released=True))]),
        ("SSIM_SI_kitti", [(1.5, SSIM(released=True)), (1.0, SILog(reduce="batch"))]),
        ("SSIM_MSE_kitti", [(1.5, SSIM(released=True)), (1.0, MSE())]),
        ("SSIM_MSE_nyu", [(1.5, SSIM(released=True)), (1.0, MSE())]),
    ],
)
def test_losses_equal_published_values_and_gradients(case, terms):
    """Values and gradients of MSE, SILog, SSIM and their sums equal the published ones."""
    golden = load(case)
    depth = golden["depth_pred"].requires_grad_()
    value = sum(weight * loss(prediction(depth), golden["kd_gt"]).mean() for weight, loss in terms)
    assert_published(value, depth, golden)


def test_silog_warm_up_follows_iteration():
    """The warm-up of SILog equals the published one at each iteration, in any order."""
    golden = load("SI_warmup")
    both = criterion.build(
        {"silog": {"reduce": "batch", "warm_up": 2}, "mse": {"weight": 1e-12}}, True
    )
    for iteration in (1, 0, 2):  # a resumed run starts anywhere
        depth = golden["depth_pred"].clone().requires_grad_()
        value = both(prediction(depth), None, golden["kd_gt"], iteration)["loss"]
        now = {
            "loss": golden["loss"][iteration : iteration + 1],
            "grad_depth_pred": golden["grad_depth_pred"][iteration],
        }
        assert_published(value, depth, now)
    assert both(prediction(depth), None, golden["kd_gt"])["loss"] == value


def test_silog_of_all_pixels_equals_published():
    """SILog over all pixels equals the published value without a mask."""
    golden = load("SI_nomask")
    assert (golden["kd_gt"] == 0).any()
    depth = golden["depth_pred"].requires_grad_()
    # The published loss has no mask: a 0 is a depth, and so is one that vanishes beside the
    # logarithm's 1e-3.
    value = SILog(reduce="batch")(prediction(depth), golden["kd_gt"].clamp_min(1e-30)).mean()
    assert_published(value, depth, golden)


@pytest.mark.parametrize(
    ("case", "finite_value", "finite_gradient"),
    [
        ("SI_pred_equals_target", True, False),
        ("SI_one_valid", False, False),
        ("SI_none_valid", False, True),
    ],
)
def test_silog_finite_where_published_is_not(case, finite_value, finite_gradient):
    """SILog is finite where the published one isn't, and equal to it where it is."""
    golden = load(case)
    assert bool(golden["loss"].isfinite().all()) == finite_value
    assert bool(golden["grad_depth_pred"].isfinite().all()) == finite_gradient
    depth = golden["depth_pred"].requires_grad_()
    value = SILog(reduce="batch")(prediction(depth), golden["kd_gt"]).mean()
    value.backward()
    value = value.detach()
    assert value.isfinite()
    assert depth.grad.isfinite().all()
    if finite_value:
        torch.testing.assert_close(value, golden["loss"][0], rtol=0, atol=0)
    known = golden["grad_depth_pred"].isfinite()
    torch.testing.assert_close(depth.grad[known], golden["grad_depth_pred"][known], rtol=0, atol=0)
    only = golden["kd_gt"] > 0
    if only.sum() == 1:
        g = torch.log(depth.detach()[only].double() + 1e-3) - torch.log(
            golden["kd_gt"][only].double() + 1e-3
        )
        assert float(value) == pytest.approx(0.15**0.5 * abs(float(g)), rel=1e-5)


def test_ssim_of_equal_maps_is_zero():
    """SSIM of equal maps is 0 with a zero gradient, in every space."""
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
def test_criterion_from_recipe_equals_published_sum(case, shape, top_crop):
    """The criterion of a recipe gives the published TIE-KD loss and its gradient."""
    golden = load(case)
    crop = {"top_crop": top_crop}
    both = criterion.build(
        {"dpm": {"weight": 1.0} | crop, "ssim": {"weight": 9.0, "released": True} | crop}, True
    )
    logits = randn(f"loss:{case}:logits", shape, 2.0).requires_grad_()
    eye = torch.eye(shape[1]).view(shape[1], shape[1], 1, 1)
    teacher = depth_by_rule(f"loss:{case}:kd_gt", (shape[0], 1, *shape[2:]), 1e-3, 80.0)
    depth, divergence = dpm(
        logits, eye, torch.zeros(shape[1]), golden["bin_edges"], teacher, 0.5, "released"
    )
    values = both(prediction(depth, divergence), None, teacher)
    assert list(values) == ["loss_dpm", "loss_ssim", "loss"]
    torch.testing.assert_close(values["loss"], golden["e2e_loss"][0], rtol=2e-5, atol=0)
    torch.testing.assert_close(values["loss"], values["loss_dpm"] + values["loss_ssim"])
    values["loss"].backward()
    got, wanted = (
        logits.grad.flatten()[golden["e2e_grad_logits_sample_idx"]],
        golden["e2e_grad_logits_sample"],
    )
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def depths_by_rule(case: str, shape: tuple, golden: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and teacher depth of a case too large to be stored."""
    depth, teacher = (
        depth_by_rule(f"loss:{case}:{name}", shape, 1e-3, 80.0) for name in ("depth_pred", "kd_gt")
    )
    at = golden["in_sample_idx"]
    torch.testing.assert_close(depth.flatten()[at], golden["depth_pred_sample"], rtol=1e-6, atol=0)
    torch.testing.assert_close(teacher.flatten()[at], golden["kd_gt_sample"], rtol=1e-6, atol=0)
    return depth.requires_grad_(), teacher


@pytest.mark.parametrize(
    ("case", "height"), [("L_DEPTH_w704_small", 128), ("L_DEPTH_w704_full", 352)]
)
def test_ssim_top_crop_equals_published(case, height):
    """SSIM with a top crop equals the published one; cropped rows have no gradient."""
    golden = load(case)
    depth, teacher = depths_by_rule(case, (1, 1, height, 704), golden)
    value = SSIM(released=True, top_crop=110)(prediction(depth), teacher).mean()
    torch.testing.assert_close(value.detach(), golden["loss_mean"][0], rtol=2e-5, atol=0)
    value.backward()
    if "grad_depth_pred" in golden:
        got, wanted = depth.grad.flatten(), golden["grad_depth_pred"].flatten()
    else:
        got, wanted = (
            depth.grad.flatten()[golden["grad_depth_pred_sample_idx"]],
            golden["grad_depth_pred_sample"],
        )
    # At the kinks of abs() single values are rounding noise.
    assert (got - wanted).abs().quantile(0.999) <= 1e-4 * wanted.abs().max()
    assert (depth.grad[:, :, :110] == 0).all()
    assert (depth.grad[:, :, 110:] != 0).any()


def test_dpm_top_crop_equals_published_mean():
    """The mean of a cropped divergence equals the published one."""
    golden = load("L_DPM_w704_small")
    kept = golden["loss_map"][:, :, :18]
    uncropped = torch.cat((torch.full((1, 1, 110, 704), 5.0), kept), 2)
    value = DPM(top_crop=110)(prediction(None, uncropped), torch.ones_like(uncropped))
    torch.testing.assert_close(value, golden["loss_mean"], rtol=2e-5, atol=0)


def test_divergence_target_zeroes_cropped_rows():
    """Rows that every DPM term crops are 0 in a copy of the divergence's target."""
    depth = torch.full((2, 1, 5, 3), 7.0)
    cropped = criterion.build({"dpm": {"top_crop": 2}}, True).divergence_target(depth)
    assert (cropped[:, :, :2] == 0).all()
    assert torch.equal(cropped[:, :, 2:], depth[:, :, 2:])
    assert (depth == 7).all()
    both = criterion.build({"dpm": {"top_crop": 2}, "all": {"name": "dpm"}}, True)
    assert both.divergence_target(depth) is depth
    assert criterion.build({"mse": {}}, True).divergence_target(depth) is None


def test_losses_of_a_target_compare_with_its_mean():
    """A Target's rows are cropped as a map's, and losses are taken against its mean."""
    depth = torch.tensor([2.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 5, 3)
    target = Target(depth, depth, torch.tensor([1.0, 3.0]))
    cropped = criterion.build({"dpm": {"top_crop": 2}}, True).divergence_target(target)
    assert (cropped.depth[:, :, :2] == 0).all()
    assert torch.equal(cropped.depth[:, :, 2:], depth[:, :, 2:])
    assert cropped.sigma is depth
    loss = criterion.build({"mse": {}}, True)
    values = loss(prediction(torch.full((1, 1, 5, 3), 4.5, requires_grad=True)), None, target)
    assert values["loss"].item() == 1.0


@pytest.mark.long
def test_dpm_top_crop_equals_published_at_full_size():
    """At 352 x 704 with 257 bins the cropped divergence equals the published one.

    64 million probabilities: one training crop with all 257 bins. 4 GB of memory.
    """
    case, shape = "L_DPM_w704_full257", (1, 257, 352, 704)
    golden = load(case)
    _, teacher = depths_by_rule(case, (1, 1, 352, 704), golden)
    logits = randn(f"loss:{case}:logits", shape, 2.0)
    eye = torch.eye(257).view(257, 257, 1, 1)
    with torch.no_grad():
        _, divergence = chunked.dpm(
            logits, eye, torch.zeros(257), golden["bin_edges"], teacher, 0.8, "released"
        )
    value = DPM(top_crop=110)(prediction(None, divergence), teacher)
    torch.testing.assert_close(value, golden["loss_mean"], rtol=2e-5, atol=0)
    # Published, the rows below the crop move up and what follows them is 0.
    moved = torch.cat((divergence[:, :, 110:], torch.zeros(1, 1, 110, 704)), 2)
    torch.testing.assert_close(
        moved.flatten()[golden["loss_map_sample_idx"]],
        golden["loss_map_sample"],
        rtol=1e-4,
        atol=1e-6,
    )
    torch.testing.assert_close(
        moved.mean((0, 1, 3)), golden["loss_map_rowmean"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("loss", MODULES, ids=lambda m: type(m).__name__)
def test_losses_nan_prediction_is_not_finite(loss):
    """A prediction of NaN at one pixel makes that image's loss not finite."""
    target = 2 + 3 * torch.rand(2, 1, 24, 30, generator=torch.Generator().manual_seed(0))
    spoilt = target + 0.1
    spoilt[1, 0, 12, 13] = math.nan
    assert not loss(prediction(spoilt, spoilt), target)[1].isfinite()


@pytest.mark.parametrize("loss", MODULES, ids=lambda m: type(m).__name__)
def test_losses_ignore_invalid_pixels_and_images(loss):
    """Invalid pixels and images without ground truth change no loss and no gradient."""
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
        assert torch.isfinite(gradient).all()
        assert (gradient[holes] == 0).all()
        assert (gradient[1] == 0).all()
        assert (gradient[0] != 0).any()
    assert value.shape == (3,)
    assert value.dtype == torch.float32
    assert (value[[0, 2]] > 0).all()
    if getattr(loss, "reduce", "image") == "image":
        assert value[1] == 0
        images = zip(depth.split(1), divergence.split(1), target.split(1), strict=True)
        alone = torch.cat([loss(prediction(d, kl), t) for d, kl, t in images])
        torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduce", ["image", "batch"])
@pytest.mark.parametrize("valid_pixels", [0, 1, 5])
def test_silog_finite_with_few_pixels(reduce, valid_pixels):
    """SILog and its gradient are finite with 0, 1 or 5 pixels and for equal maps."""
    target = torch.zeros(1, 1, 4, 5)
    target.view(-1)[:valid_pixels] = torch.arange(valid_pixels) + 3.0
    for offset in (0.0, 1.0):
        depth = (target + offset).requires_grad_()
        value = SILog(reduce=reduce)(prediction(depth), target)
        value.backward()
        value = value.detach()
        assert torch.isfinite(value).all()
        assert torch.isfinite(depth.grad).all()
        assert bool(value > 0) == (offset > 0 and valid_pixels > 0) == bool((depth.grad != 0).any())
    if valid_pixels == 1:
        expected = math.sqrt(0.15) * math.log(4.001 / 3.001)
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_ssim_counts_only_fully_valid_windows():
    """SSIM counts only windows in which every pixel is valid."""
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


def test_ssim_signed_penalizes_inverted_relief():
    """Signed SSIM penalizes an inverted relief in every space; unsigned SSIM doesn't."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    relief = (5 * torch.sin(x / 5) * torch.sin(y / 5)).expand(1, 1, 64, 64)
    for space in ("metres", "normalised", "log"):
        signed, unsigned = (
            SSIM(space, signed=s)(prediction(20 - relief), 20 + relief) for s in (True, False)
        )
        assert signed > 2.5 * unsigned
    assert SSIM(released=True)(prediction(20 - relief), 20 + relief) < 0.3
    assert SSIM()(prediction(20 - relief), 20 + relief) > 0.5


def ssim_window_by_window(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns 1 - SSIM in float64, from the deviations of every window's pixels from its means.

    It takes no difference of squares.
    """
    taps = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (taps[:, None] * taps).flatten() / taps.sum() ** 2
    x, y = (torch.nn.functional.unfold(d.double(), 11)[0] for d in (x, y))
    mean_x, mean_y = window @ x, window @ y
    var_x, var_y = window @ (x - mean_x).square(), window @ (y - mean_y).square()
    cov = window @ ((x - mean_x) * (y - mean_y))
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x.square() + mean_y.square() + 1e-4)
    return (1 - luminance * (2 * cov + 9e-4) / (var_x + var_y + 9e-4)).mean()


def test_ssim_of_noise_on_flat_wall():
    """SSIM of noise on a flat wall equals the float64 definition."""
    wall = torch.full((1, 1, 60, 80), 20.0)
    noisy = wall + 0.02 * torch.randn(wall.shape, generator=torch.Generator().manual_seed(0))
    wanted = float(ssim_window_by_window(wall, noisy))
    assert wanted == pytest.approx(0.29, abs=0.02)
    assert float(SSIM()(prediction(wall), noisy)) == pytest.approx(wanted, rel=1e-6)
    for space in ("normalised", "log"):
        assert SSIM(space)(prediction(wall), noisy) < 0.002


def test_ssim_of_two_planes_is_no_rounding_noise():
    """SSIM of a near and a far plane has the value and gradient of the definition."""
    planes = torch.full((1, 1, 60, 80), 4.0)
    planes[..., 40:] = 78.3
    first, second = (
        2e-3 * torch.rand(2, 1, 1, 60, 80, generator=torch.Generator().manual_seed(0)) - 1e-3
    ) + planes
    assert float(SSIM()(prediction(first), first)) == pytest.approx(0, abs=1e-9)
    assert float(SSIM(signed=False)(prediction(first), first)) == pytest.approx(0, abs=1e-9)
    depth = first.clone().requires_grad_()
    wanted = ssim_window_by_window(depth, second)
    (wanted_gradient,) = torch.autograd.grad(wanted, depth)
    value = SSIM()(prediction(depth), second)
    value.backward()
    assert 1e-4 < wanted < 1e-3
    torch.testing.assert_close(value[0].double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        depth.grad, wanted_gradient, rtol=1e-4, atol=float(1e-4 * wanted_gradient.abs().max())
    )


def test_criterion_term_against_teacher_or_truth():
    """Each term is taken against the teacher or the ground truth, as the recipe says."""
    truth, teacher = torch.full((2, 1, 12, 12), 2.0), torch.full((2, 1, 12, 12), 3.0)
    node = {
        "mse": {"weight": 2},
        "against_truth": {"name": "mse", "weight": 1.0, "against": "ground_truth"},
    }
    values = criterion.build(node, True)(
        prediction(torch.ones(2, 1, 12, 12)), SimpleNamespace(depth=truth), teacher
    )
    assert {k: float(v) for k, v in values.items()} == {
        "loss_mse": 8.0,
        "loss_against_truth": 1.0,
        "loss": 9.0,
    }
    values = criterion.build({"mse": {}}, False)(
        prediction(torch.ones(2, 1, 12, 12)), SimpleNamespace(depth=truth), None
    )
    assert float(values["loss"]) == 1.0


def test_criterion_negative_weight_only_if_released():
    """A negative weight is accepted for a released term and rejected for any other."""
    node = {"dpm": {"weight": 15.0}, "ssim": {"weight": -5.0, "released": True}}
    g = torch.Generator().manual_seed(0)
    depth, teacher, divergence = 1 + torch.rand(3, 2, 1, 12, 12, generator=g)
    values = criterion.build(node, True)(prediction(depth, divergence), None, teacher)
    dissimilarity = SSIM(released=True)(prediction(depth), teacher).mean()
    torch.testing.assert_close(values["loss"], 15 * divergence.mean() - 5 * dissimilarity)
    with pytest.raises(RecipeError, match="^losses.ssim.weight: -5.0 is not a number > 0"):
        criterion.build({"ssim": {"weight": -5.0}}, True)


@pytest.mark.parametrize(
    ("node", "has_teacher", "message"),
    [
        ({}, True, "^losses: got {}; give at least one term"),
        ({"mse": 3}, True, "^losses.mse: got 3; it must be a mapping"),
        ({"mse": {"weight": -0.5}}, True, "^losses.mse.weight: -0.5 is not a number > 0"),
        ({"mse": {"weight": "much"}}, True, "^losses.mse.weight: 'much' is not a number > 0"),
        ({"mse": {"weight": True}}, True, "^losses.mse.weight: True is not a number > 0"),
        (
            {"ssim": {"weight": 0, "released": True}},
            True,
            "^losses.ssim.weight: 0 is not a number > 0",
        ),
        ({"mse": {"weight": math.nan}}, True, "^losses.mse.weight: nan is not a number > 0"),
        (
            {"mse": {"against": "student"}},
            True,
            "^losses.mse.against: 'student' is not known; there are: teacher, gr",
        ),
        (
            {"mse": {"against": "teacher"}},
            False,
            "^losses.mse.against: teacher, but the recipe has none",
        ),
        (
            {"ssim": {"against": "ground_truth"}},
            True,
            "^losses.ssim: SSIM can't be taken against sparse ground truth",
        ),
        (
            {"shape": {"name": "ssim"}},
            False,
            "^losses.shape: SSIM can't be taken against sparse ground truth",
        ),
        (
            {"dpm": {"against": "ground_truth"}},
            True,
            "^losses.dpm.against: ground_truth, but the divergence is from",
        ),
        ({"sim": {}}, True, "^losses.sim.name: no 'sim'; there are .nearest first.: ssim"),
        (
            {"ssim": {"spaces": "log"}},
            True,
            "^losses.ssim .ssim.: unknown key 'spaces'; did you mean 'space'",
        ),
        (
            {"ssim": {"space": "feet"}},
            True,
            "^losses.ssim.space: 'feet' is not known; there are: metres, normalised",
        ),
        (
            {"ssim": {"released": True, "space": "log"}},
            True,
            "^losses.ssim.released: true means space metres",
        ),
        ({"ssim": {"max_depth": 80}}, True, "^losses.ssim.max_depth: 80 is only used"),
        ({"ssim": {"top_crop": 110}}, True, "^losses.ssim.top_crop: 110 is only allowed"),
        (
            {"silog": {"reduce": "pixel"}},
            True,
            "^losses.silog.reduce: 'pixel' is not known; there are: image, batch",
        ),
        ({"silog": {"max_depth": 0}}, True, "^losses.silog.max_depth: 0 is not a depth"),
        ({"dpm": {"max_depth": -1}}, True, "^losses.dpm.max_depth: -1 is not a depth"),
    ],
)
def test_criterion_rejects_invalid_terms(node, has_teacher, message):
    """An invalid term raises a RecipeError of one line that names its key."""
    with pytest.raises(RecipeError, match=message) as caught:
        criterion.build(node, has_teacher)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [DPM(top_crop=12), SSIM(released=True, top_crop=12)])
def test_losses_reject_top_crop_of_all_rows(loss):
    """A top crop that leaves no row raises a RecipeError; one row is enough."""
    message = "^top_crop: 12 rows of an image of 12 leave none; make data.augment.crop taller"
    target = torch.ones(1, 1, 12, 12)
    with pytest.raises(RecipeError, match=message):
        loss(prediction(target, target), target)
    taller = torch.ones(1, 1, 13, 12)
    assert loss(prediction(taller, taller), taller).isfinite().all()


class Returning(torch.nn.Module):
    """A loss that returns what a function makes of the errors, (B, 1, H, W)."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def forward(self, prediction, target):
        return self.returned((prediction.depth - target).abs())


def one_term(monkeypatch, loss) -> criterion.Criterion:
    """Returns the criterion of a loss from outside the project."""
    module = types.ModuleType("mine.loss")
    module.build = lambda: loss
    monkeypatch.setitem(sys.modules, "mine.loss", module)
    return criterion.build({"own": {"name": "mine.loss"}}, True)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda e: e.mean(), r"returned \(\) torch.float32 on cpu; it must be \(3,\), floating"),
        (lambda e: e, r"returned \(3, 1, 4, 5\) torch.float32 on cpu; it must be \(3,\)"),
        (lambda e: e.flatten(1).mean(1, keepdim=True), r"returned \(3, 1\) torch.float32 on cpu"),
        (lambda e: e[:2].flatten(1).mean(1), r"returned \(2,\) torch.float32 on cpu; it must be"),
        (lambda e: e.flatten(1).mean(1).long(), r"returned \(3,\) torch.int64 on cpu; it must be"),
        (lambda e: e.flatten(1).mean(1).to("meta"), r"returned \(3,\) torch.float32 on meta; it"),
        (lambda e: float(e.detach().mean()), r"returned a float; it must be \(3,\)"),
        (lambda e: {"loss": e.mean()}, r"returned a dict; it must be \(3,\)"),
        (lambda e: None, r"returned a NoneType; it must be \(3,\)"),
        (lambda e: e.detach().flatten(1).mean(1), "returned values without a gradient, so nothing"),
    ],
)
def test_criterion_refuses_what_is_no_value_per_image(monkeypatch, returned, told):
    """A loss that returns no value with a gradient for each image is named."""
    terms = one_term(monkeypatch, Returning(returned))
    depth = torch.ones(3, 1, 4, 5, requires_grad=True)
    name = r"^losses.own \(\S*test_losses.Returning\): "
    with pytest.raises(RecipeError, match=name + told) as error:
        terms(prediction(depth), None, torch.full((3, 1, 4, 5), 2.0))
    assert "\n" not in str(error.value)


def test_criterion_checks_what_a_loss_returns_once(monkeypatch):
    """Only the first result of a loss is checked, and one without gradients may be computed."""
    terms = one_term(monkeypatch, Returning(lambda e: e.flatten(1).mean(1)))
    depth, target = torch.ones(3, 1, 4, 5), torch.full((3, 1, 4, 5), 2.0)
    assert float(terms(prediction(depth), None, target)["loss"]) == 1.0
    monkeypatch.delattr(criterion, "_check_returned")
    assert float(terms(prediction(depth), None, target)["loss"]) == 1.0


class WarmUp(torch.nn.Module):
    def forward(self, prediction, target, iteration=None):
        return torch.zeros(len(target))


class Alone(torch.nn.Module):
    def forward(self, prediction):
        return prediction.depth.flatten(1).mean(1)


def test_criterion_loss_that_knows_iteration_may_be_constant(monkeypatch):
    """A loss that is given the iteration may have no gradient at the first one."""
    depth = torch.ones(3, 1, 4, 5, requires_grad=True)
    values = one_term(monkeypatch, WarmUp())(prediction(depth), None, depth.detach(), 0)
    assert float(values["loss"]) == 0.0


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda prediction, target: 0, "build made a function; it must be a torch.nn.Module whose"),
        (Alone(), r"forward takes \(prediction\); it must take \(prediction, target\), and may"),
    ],
)
def test_criterion_refuses_what_is_no_loss(monkeypatch, loss, told):
    """A loss is a module that takes a prediction and a target."""
    with pytest.raises(RecipeError, match=rf"^losses.own \(mine.loss\): {told}"):
        one_term(monkeypatch, loss)


def test_criterion_error_names_term_of_recipe():
    """A term that can't be computed is named by its key in the recipe."""
    terms, target = (
        criterion.build({"shape": {"name": "dpm"}}, has_teacher=True),
        torch.ones(1, 1, 2, 2),
    )
    with pytest.raises(RecipeError, match="^losses.shape: the network gives no divergence"):
        terms(prediction(target), None, target)


def test_dpm_without_divergence_names_head():
    """DPM without a divergence raises a RecipeError that names the head it needs."""
    target = torch.ones(1, 1, 2, 2)
    with pytest.raises(RecipeError, match="it needs `head: {name: dpm, ...}`"):
        DPM()(prediction(target), target)


def test_dpm_max_depth_excludes_far_targets():
    """Pixels whose target is beyond max_depth are left out of the mean."""
    target, divergence = (
        torch.tensor([5.0, 90.0]).view(1, 1, 1, 2),
        torch.tensor([0.4, 0.0]).view(1, 1, 1, 2),
    )
    assert float(DPM(80.0)(prediction(None, divergence), target)) == pytest.approx(0.4)
    assert float(DPM()(prediction(None, divergence), target)) == pytest.approx(0.2)


def test_log_l1_is_relative_and_ignores_invalid_pixels():
    """An error of 10 % costs log 1.1 at any depth, whichever way, and invalid pixels nothing."""
    target = torch.tensor([[[[2.0, 40.0, 0.0, torch.inf]]], [[[0.0, 0.0, 0.0, 0.0]]]])
    depth = torch.tensor([[[[2.2, 40.0 / 1.1, 7.0, 7.0]]], [[[1.0, 2.0, 3.0, 4.0]]]])
    torch.testing.assert_close(
        LogL1()(prediction(depth), target), torch.tensor([math.log(1.1), 0.0]), rtol=1e-3, atol=0
    )


def test_gradient_of_scaled_depth_is_zero():
    """A prediction that differs from the target by a factor alone costs nothing."""
    target = torch.linspace(2.0, 60.0, 384).reshape(2, 1, 12, 16)
    assert Gradient()(prediction(1.7 * target), target).max() < 1e-3


def test_gradient_counts_a_missed_step_once_per_scale():
    """A missed step of factor e between columns costs its share of the pairs, at each scale."""
    target = torch.ones(1, 1, 4, 8)
    target[..., 4:] = math.e
    # Of 4 x 7 pairs in rows and 3 x 8 in columns 4 cross the step; at half the size 2 of 6 + 4.
    wanted = 4 / 52 + 2 / 10
    torch.testing.assert_close(
        Gradient(scales=2)(prediction(torch.ones_like(target)), target),
        torch.tensor([wanted]),
        rtol=2e-3,
        atol=0,
    )


def test_gradient_leaves_out_pairs_with_an_invalid_pixel():
    """Only pairs of two valid pixels count, in the sum and in the mean."""
    target = torch.tensor([[[[1.0, math.e, 0.0, math.e, 1.0]]]])
    # The pairs 1-e and e-1 are left, each with a difference of 1.
    torch.testing.assert_close(
        Gradient(scales=1)(prediction(torch.ones_like(target)), target),
        torch.tensor([1.0]),
        rtol=2e-3,
        atol=0,
    )


def test_gradient_rejects_no_scale():
    """A gradient loss without a scale is refused."""
    with pytest.raises(RecipeError, match="^scales: got 0; it must be 1 or more"):
        Gradient(scales=0)
