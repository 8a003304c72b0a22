"""The hook's options, its place among the hooks, and where the average is used."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tiekd.errors import RecipeError
from tiekd.training.build import build_hooks
from tiekd.training.hooks.ema import Ema
from tiekd.training.settings import Recipe
from tiekd.training.state import TrainState


def hooks_of(*nodes: dict) -> list:
    recipe = {"network": {"max_depth": 10.0}, "train": {"epochs": 1}, "hooks": list(nodes)}
    replica = SimpleNamespace(max_depth=10.0)
    given = {"val_set": [0, 1], "replica": replica, "teacher": None, "unreadable": None}
    return build_hooks(Recipe(recipe), "cpu", **given)[0]


@pytest.mark.parametrize("decay", [1, 1.5, -0.1, float("nan")])
def test_ema_refuses_bad_decay(decay):
    """A decay of 1 would never take over a weight, and is refused like one below 0."""
    with pytest.raises(RecipeError, match=r"^hooks.decay: got .*; it must be from 0 to below 1"):
        hooks_of({"name": "ema", "decay": decay})


def test_ema_is_refused_twice():
    """Two averages would compete for the evaluation."""
    with pytest.raises(RecipeError, match="^hooks: ema is there twice"):
        hooks_of({"name": "ema"}, {"name": "ema", "decay": 0.9})


@pytest.mark.parametrize(("node", "decay"), [({}, 0.1), ({"warmup": False}, 0.999)])
def test_ema_warms_up_by_default(tmp_path, node, decay):
    """The first iteration has a decay of 0.1 unless the recipe says `warmup: false`."""
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    engine = SimpleNamespace(module=network, optimizer=optimizer, zero_optimization_stage=lambda: 0)
    state = TrainState(None, {}, tmp_path, "now", 2, 1, 9, 9, True)
    state.engine = engine
    hook = next(hook for hook in hooks_of({"name": "ema"} | node) if isinstance(hook, Ema))
    hook.before_train(state)
    assert state.average.next_decay == decay


@pytest.mark.parametrize("warmup", [1, "slow", None])
def test_ema_refuses_bad_warmup(warmup):
    """The option is true or false."""
    with pytest.raises(RecipeError, match=r"^hooks.*warmup: "):
        hooks_of({"name": "ema", "warmup": warmup})


def test_ema_comes_before_evaluation():
    """The evaluation of an iteration sees the average of the same iteration."""
    names = [
        type(hook).__name__
        for hook in hooks_of({"name": "early_stop", "patience": 1}, {"name": "ema"})
    ]
    assert names.index("Guard") < names.index("Ema") < names.index("Evaluation")
    assert names.index("Evaluation") < names.index("EarlyStop") < names.index("Checkpoint")


def test_state_gives_averaged_weights(monkeypatch, tmp_path):
    """Without an average the state gives the engine's weights, else those of the average."""
    newest, averaged = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    monkeypatch.setattr("tiekd.training.state.full_state.weights", lambda _engine: newest)
    state = TrainState(None, {}, tmp_path, "now", 2, 1, 9, 9, True)
    assert state.weights() is newest
    state.average = SimpleNamespace(weights=lambda: averaged)
    assert state.weights() is averaged
