"""The optimizer's groups: who is in which, and what the schedule makes of them."""

import pytest
from support.grouped_network import CYCLE, GROUPS, Net, optimizer

from tiekd.errors import RecipeError
from tiekd.training import schedules
from tiekd.training.optimizer import build_optimizer


def by_name(network, built) -> dict[str, tuple[float, float]]:
    """(lr, weight decay) of every parameter."""
    names = {id(p): name for name, p in network.named_parameters()}
    values = {
        names[id(p)]: (g["lr"], g["weight_decay"]) for g in built.param_groups for p in g["params"]
    }
    assert values.keys() == set(names.values())
    return values


def test_optimizer_first_matching_group_wins():
    """Each parameter takes learning rate and weight decay from its first matching group."""
    network = Net()
    assert by_name(network, optimizer(GROUPS, network)) == {
        "encoder.conv.weight": (0.01, 0.1),
        "encoder.conv.bias": (0.01, 0.0),
        "encoder.norm.weight": (0.01, 0.0),
        "encoder.norm.bias": (0.01, 0.0),
        "decoder.norm1.weight": (0.01, 0.0),
        "decoder.norm1.bias": (0.01, 0.0),
        "decoder.conv.weight": (0.1, 0.1),
    }
    assert by_name(network, optimizer(GROUPS[::-1], network))["decoder.norm1.bias"] == (0.1, 0.1)
    assert set(by_name(network, optimizer([], network)).values()) == {(0.01, 0.1)}


def test_optimizer_groups_exclude_frozen():
    """One group may match all parameters, and frozen parameters are in no group."""
    assert len(optimizer([{"match": "*", "lr_mult": 3}]).param_groups) == 1
    network = Net()
    network.encoder.requires_grad_(False)
    built = optimizer([{"match": "decoder.*", "lr_mult": 3}], network)
    assert [len(group["params"]) for group in built.param_groups] == [3]


def test_schedule_scales_optimizer_groups():
    """Each group gets its multiple of the scheduled learning rate, and all the same momentum."""
    built = optimizer(GROUPS, batch_size=8, lr_scaling="linear", lr_batch_size=4)
    assert built.defaults["lr"] == 0.02
    schedule = schedules.build(
        CYCLE,
        base_lr=built.defaults["lr"],
        base_momentum=0.9,
        total_iterations=10,
        iterations_per_epoch=5,
    )
    for iteration, (lr, momentum) in {0: (0.005, 0.95), 2: (0.02, 0.85), 9: (0.0005, 0.95)}.items():
        lrs, momenta = schedule.apply(built, iteration)
        assert lrs == pytest.approx([lr, lr, 10 * lr])
        assert momenta == pytest.approx([momentum] * 3)
        assert [group["lr"] for group in built.param_groups] == lrs


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [{"match": "head.*"}],
            r"groups\[0\].match: no parameter fits 'head.\*'; .* such as encoder.conv.weight",
        ),
        ([{"match": ["decoder.*", "tail"]}], r"groups\[0\].match: no parameter fits 'tail'"),
        (
            [{"match": "*"}, {"match": "*norm*"}],
            r"groups\[1\].match: earlier groups have all that fits '\*norm\*'",
        ),
        ([{"lr_mult": 2}], r"groups\[0\]: needs match"),
        ([{"match": "*", "lr": 2}], r"groups\[0\]: unknown key 'lr'; .*lr_mult"),
        (
            [{"match": "*", "lr_mult": 0}],
            r"groups\[0\].lr_mult: got 0; it must be a factor above 0",
        ),
        (
            [{"match": "*", "lr_mult": "ten"}],
            r"groups\[0\].lr_mult: got 'ten'; it must be a number",
        ),
        (
            [{"match": "*", "weight_decay": -1}],
            r"groups\[0\].weight_decay: got -1; it must be 0 or more",
        ),
        ({"match": "*"}, r"optimizer.groups: got .* must be a list, each a mapping"),
    ],
)
def test_optimizer_rejects_invalid_group(groups, message):
    """An invalid or unmatched group raises an error that names its key."""
    with pytest.raises(
        RecipeError, match=f"^optimizer.{message}" if isinstance(groups, list) else message
    ):
        optimizer(groups)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": ["adam"]}, "optimizer.name: got ['adam']; allowed: adamw, adam, sgd"),
        ({"lr": None}, "optimizer.lr: got None; it must be a number"),
        ({"lr": True}, "optimizer.lr: got True; it must be a number"),
        (
            {"lr": "0.1"},
            "optimizer.lr: got '0.1'; it must be a number; write numbers without quotes",
        ),
        ({"lr": -1}, "optimizer.lr: got -1; it must be a number above 0"),
        ({"lr": 0}, "optimizer.lr: got 0; it must be a number above 0"),
        ({"lr": float("nan")}, "optimizer.lr: got nan; it must be a number above 0"),
        ({"betas": 0.9}, "optimizer.betas: got 0.9; it must be a list of 2: a number, a number"),
        ({"betas": [0.9]}, "optimizer.betas: got [0.9]; it must be a list of 2"),
        (
            {"betas": [0.9, 1.5]},
            "optimizer.betas: got [0.9, 1.5]; it must be two numbers from 0, under 1",
        ),
        ({"eps": -1e-8}, "optimizer.eps: got -1e-08; it must be 0 or more"),
        ({"weight_decay": "x"}, "optimizer.weight_decay: got 'x'; it must be a number"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay: got -0.1; it must be 0 or more"),
        ({"amsgrad": "x"}, "optimizer.amsgrad: got 'x'; it must be true or false"),
        ({"differentiable": True}, "optimizer (adamw): unknown key 'differentiable'; "),
        ({"momentum": 0.9}, "optimizer (adamw): unknown key 'momentum'; "),
        ({"lr_batch_size": 0}, "optimizer.lr_batch_size: got 0; it must be a whole number from 1"),
        (
            {"lr_batch_size": 1.5},
            "optimizer.lr_batch_size: got 1.5; it must be a whole number from 1",
        ),
        (
            {"lr_batch_size": True},
            "optimizer.lr_batch_size: got True; it must be a whole number from 1",
        ),
    ],
)
def test_optimizer_rejects_invalid_value(node, message):
    """An invalid optimizer value raises a one-line error that names its key."""
    with pytest.raises(RecipeError) as caught:
        optimizer([], **node)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momentum": 1}, "optimizer.momentum: got 1; it must be a number from 0, under 1"),
        ({"dampening": float("inf")}, "optimizer.dampening: got inf; it must be finite"),
        (
            {"nesterov": True},
            "optimizer (sgd): got {'lr': 0.1, 'nesterov': True}; torch says: Nesterov momentum ",
        ),
    ],
)
def test_optimizer_rejects_invalid_sgd_value(given, message):
    """Invalid SGD arguments raise a one-line error, with torch's own message if it has one."""
    with pytest.raises(RecipeError) as caught:
        build_optimizer({"name": "sgd", "lr": 0.1} | given, Net(), 4, "none")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_optimizer_accepts_own_arguments():
    """The adamw, adam and sgd optimizers accept their own arguments and pass them to torch."""
    adam = {
        "lr": 1,
        "betas": [0, 0.5],
        "eps": 0,
        "weight_decay": 0,
        "amsgrad": True,
        "maximize": True,
    }
    sgd = {"lr": 1, "momentum": 0.9, "nesterov": True, "dampening": 0, "weight_decay": 0.1}
    for node in ({"name": "adamw"} | adam, {"name": "adam"} | adam, {"name": "sgd"} | sgd):
        defaults = build_optimizer(node, Net(), 4, "none").defaults
        assert [defaults[key] for key in node if key not in ("name", "betas")] == [
            value for key, value in node.items() if key not in ("name", "betas")
        ]


def test_optimizer_lr_scaling_needs_lr_batch_size():
    """Linear and sqrt scaling need lr_batch_size, and sqrt scales by the root of the ratio."""
    for lr_scaling in ("linear", "sqrt"):
        with pytest.raises(
            RecipeError,
            match=f"^train.lr_scaling: got {lr_scaling}, .* give it as optimizer.lr_batch",
        ):
            optimizer([], lr_scaling=lr_scaling)
    assert optimizer([], lr_scaling="none").defaults["lr"] == 0.01
    assert optimizer([], lr_scaling="sqrt", lr_batch_size=1).defaults["lr"] == 0.02
