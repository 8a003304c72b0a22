from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from tiekd.errors import RecipeError
from tiekd.training import schedules

CURVES = np.load(Path(__file__).parents[2] / "golden/schedules/curves.npz")
STUDENT = {"name": "one_cycle", "div_factor": 25, "final_div_factor": 100}
COSINE = {"name": "cosine", "min_lr_ratio": 1e-8, "warmup_ratio": 1e-3}
# Per curve: iterations, schedule, learning rate, first beta.
PUBLISHED = {
    "onecycle_student_100": (100, STUDENT, 1e-3, 0.95),
    "onecycle_student_37": (37, STUDENT, 1e-3, 0.95),
    "onecycle_student_7": (7, STUDENT, 1e-3, 0.95),
    "onecycle_student_69480": (69480, STUDENT, 1e-3, 0.95),
    "onecycle_student_100_with_momentum": (100, STUDENT | {"cycle_momentum": True}, 1e-3, 0.95),
    "onecycle_adabins_100": (100, STUDENT | {"cycle_momentum": True}, 3.57e-4, 0.9),
    "cosine_warmup30_100": (100, COSINE | {"warmup_iterations": 30}, 1e-4, 0.9),
    "cosine_depthformer_38400": (38400, COSINE | {"warmup_iterations": 12800}, 1e-4, 0.9),
}


def build(node, base_lr=1e-3, base_momentum=0.95, total_iterations=100, iterations_per_epoch=10):
    return schedules.build(
        node,
        base_lr=base_lr,
        base_momentum=base_momentum,
        total_iterations=total_iterations,
        iterations_per_epoch=iterations_per_epoch,
    )


@pytest.mark.parametrize("curve", PUBLISHED)
def test_schedule_equals_published_curves(curve):
    """Learning rate and momentum equal the published configurations' recorded curves."""
    total, node, base_lr, beta = PUBLISHED[curve]
    schedule = build(node, base_lr, beta, total)
    iterations = CURVES[f"{curve}__iters"] if f"{curve}__iters" in CURVES else np.arange(total)
    np.testing.assert_allclose(
        [schedule.lr(i) for i in iterations], CURVES[f"{curve}__lr"], rtol=1e-9
    )
    np.testing.assert_allclose(
        [schedule.momentum(i) for i in iterations], CURVES[f"{curve}__beta0"], rtol=1e-9
    )


def test_one_cycle_groups_without_lr_mult():
    """Groups without lr_mult get the same learning rate and momentum as recorded."""
    name = "onecycle_adabins_lrmult10_two_groups_69480"
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups, lr=3.57e-4, weight_decay=0.1)
    schedule = build(STUDENT | {"cycle_momentum": True}, 3.57e-4, 0.9, 69480)
    for row, iteration in enumerate(CURVES[f"{name}__iters"]):
        lrs, momenta = schedule.apply(optimizer, int(iteration))
        np.testing.assert_allclose(
            lrs, [CURVES[f"{name}__lr_group{i}"][row] for i in range(2)], rtol=1e-9
        )
        np.testing.assert_allclose(momenta, [CURVES[f"{name}__beta0"][row]] * 2, rtol=1e-9)


def test_schedule_tests_cover_all_published_curves():
    """All nine recorded curves are covered by the tests of this file."""
    names = {key.split("__")[0] for key in CURVES.files}
    assert len(names) == 9
    assert names == set(PUBLISHED) | {"onecycle_adabins_lrmult10_two_groups_69480"}


@pytest.mark.parametrize("by", ["epoch", "iteration"])
@pytest.mark.parametrize(
    ("node", "theirs"),
    [
        (
            {"name": "cosine", "min_lr_ratio": 0.1},
            lambda o, n: lr_scheduler.CosineAnnealingLR(o, n, eta_min=1e-4),
        ),
        ({"name": "poly", "power": 0.9}, lambda o, n: lr_scheduler.PolynomialLR(o, n, power=0.9)),
        (
            {"name": "step", "milestones": [2, 7]},
            lambda o, n: lr_scheduler.MultiStepLR(o, [2, 7], gamma=0.1),
        ),
    ],
    ids=["cosine", "poly", "step"],
)
def test_schedule_shapes_equal_torch(node, theirs, by):
    """Cosine, poly and step equal torch's schedulers by epoch and by iteration, with warm-up."""
    unit = 10 if by == "epoch" else 1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    expected = theirs(optimizer, 100 // unit)
    schedule = build({**node, "by": by, "warmup_iterations": 15, "warmup_ratio": 0.2}, 1e-3, None)
    for iteration in range(100):
        warm_up = 0.2 + 0.8 * min(iteration / 15, 1)
        assert schedule.lr(iteration) == pytest.approx(
            expected.get_last_lr()[0] * warm_up, rel=1e-9
        )
        if (iteration + 1) % unit == 0:
            optimizer.step()
            expected.step()


@pytest.mark.parametrize("total", [3, 10, 50])
def test_one_cycle_equals_torch(total):
    """One-cycle learning rates and momenta equal those of torch's OneCycleLR."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.AdamW([parameter], lr=1.0, betas=(0.95, 0.99))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        theirs, max_lr=2e-3, total_steps=total, pct_start=0.4
    )
    ours = torch.optim.AdamW([parameter], lr=2e-3, betas=(0.95, 0.99))
    schedule = build(
        {"name": "one_cycle", "pct_start": 0.4, "cycle_momentum": True},
        2e-3,
        total_iterations=total,
    )
    for iteration in range(total):
        lrs, momenta = schedule.apply(ours, iteration)
        assert lrs == pytest.approx([theirs.param_groups[0]["lr"]], rel=1e-9)
        assert momenta == pytest.approx([theirs.param_groups[0]["betas"][0]], rel=1e-9)
        theirs.step()
        scheduler.step() if iteration + 1 < total else None


def test_step_by_epoch_drops_at_epoch_start():
    """A step by epoch drops at the first iteration of its milestone epoch."""
    schedule = build({"name": "step", "milestones": [2, 5], "gamma": 0.5, "by": "epoch"}, 1.0)
    assert [schedule.lr(i) for i in (0, 19, 20, 49, 50, 99)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_poly_and_constant_values():
    """Poly with a minimum and constant with warm-up have the expected values."""
    schedule = build({"name": "poly", "power": 2, "min_lr_ratio": 0.1}, 1.0)
    assert schedule.lr(50) == pytest.approx(0.9 * 0.25 + 0.1)
    schedule = build({"name": "constant", "warmup_iterations": 4, "warmup_ratio": 0.2}, 10.0)
    assert [schedule.lr(i) for i in range(6)] == pytest.approx([2, 4, 6, 8, 10, 10])


def test_one_cycle_holds_past_end():
    """Past the end, the last iteration's learning rate holds."""
    schedule = build(STUDENT)
    assert schedule.lr(100) == schedule.lr(99) == pytest.approx(4e-7)


@pytest.mark.parametrize("total", [1, 2])
def test_one_cycle_of_tiny_run(total):
    """One-cycle values lie within their range in runs of one or two iterations."""
    schedule = build(STUDENT | {"cycle_momentum": True}, total_iterations=total)
    assert 0 < schedule.lr(total - 1) <= 1e-3
    assert 0.85 <= schedule.momentum(0) <= 0.95


def test_apply_scales_by_lr_mult():
    """Applying a schedule scales each group by its lr_mult and keeps the second beta."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))]},
        {"params": [torch.nn.Parameter(torch.zeros(1))]},
    ]
    groups[1]["lr_mult"] = 10.0
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99))
    lrs, momenta = build(STUDENT | {"cycle_momentum": True}).apply(optimizer, 29)
    assert lrs == pytest.approx([1e-3, 1e-2])
    assert momenta == pytest.approx([0.85, 0.85])
    assert [group["lr"] for group in optimizer.param_groups] == lrs
    assert optimizer.param_groups[1]["betas"] == (pytest.approx(0.85), 0.99)


def test_apply_sets_sgd_momentum():
    """Applying a schedule sets SGD's momentum, or keeps it if the schedule has none."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.5)
    assert build({"name": "constant"}, 0.1, None).apply(sgd, 3) == ([0.1], [0.5])
    assert build({"name": "constant"}, 0.1, 0.8).apply(sgd, 3) == ([0.1], [0.8])
    assert sgd.param_groups[0]["momentum"] == 0.8


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"name": "one_cycl"},
            "schedule.name: no 'one_cycl'; there are (nearest first): one_cycle, ",
        ),
        ({}, "schedule.name: no None"),
        (
            {"name": "one_cycle", "div_facto": 25},
            "unknown key 'div_facto'; did you mean 'div_factor'? ",
        ),
        ({"name": "one_cycle", "by": "epoch"}, "schedule (one_cycle): unknown key 'by'"),
        (
            {"name": "cosine", "by": "epochs"},
            "schedule.by: got 'epochs'; it must be epoch or iteration",
        ),
        (
            {"name": "step", "milestones": [20, 10]},
            "schedule.milestones: got [20, 10]; it must be a list",
        ),
        (
            {"name": "one_cycle", "pct_start": 1},
            "schedule.pct_start: got 1; it must lie between 0 and 1",
        ),
        ({"name": "cosine", "min_lr_ratio": "1e-8"}, "schedule.min_lr_ratio: got '1e-8'"),
        (
            {"name": "one_cycle", "div_factor": 0},
            "schedule.div_factor: got 0; it must be a number above 0",
        ),
    ],
)
def test_build_schedule_rejects_invalid_node(node, message):
    """An invalid schedule node raises a one-line error that states what is allowed."""
    with pytest.raises(RecipeError) as error:
        build(node)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unfinished_warmup_warns_of_short_run():
    """A run no longer than its warm-up gets a note, and longer runs get none."""
    node = COSINE | {"warmup_iterations": 100}
    assert schedules.unfinished_warmup(node, 101) is None
    assert schedules.unfinished_warmup(STUDENT, 1) is None
    for total in (100, 40):
        note = schedules.unfinished_warmup(node, total)
        assert f"takes 100 iterations, but the run has only {total}: " in note
        assert "schedule.warmup_iterations" in note
