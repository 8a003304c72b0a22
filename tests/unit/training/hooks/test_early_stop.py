"""A run ends where its metric has stopped improving, and only there."""

import math
import re
from types import SimpleNamespace

import pytest
from support import recipes
from support.some_state import SomeState

from tiekd.config.recipe import load_recipe
from tiekd.errors import RecipeError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.tools import resume
from tiekd.training.build import build_hooks
from tiekd.training.hooks import early_stop
from tiekd.training.settings import Recipe
from tiekd.workdir import workdir

SETTINGS = EvaluationSettings()


def stopped_at(hook: early_stop.EarlyStop, values: list[float], first: int = 1) -> int | None:
    """Evaluates once an iteration; returns the iteration at which the hook stops the run."""
    state = SomeState(iteration=first - 1, total_iterations=99, stopped_early=False)
    hook.before_train(state)
    for iteration, value in enumerate(values, start=first):
        if state.stop_reason is not None:
            break
        state.iteration = iteration
        hook.after_evaluation(state, {hook.metric: value})
    assert state.stopped_early is (state.stop_reason is not None)
    return state.iteration if state.stopped_early else None


@pytest.mark.parametrize(
    ("options", "values", "iteration"),
    [
        ({"patience": 1}, [0.3, 0.2, 0.2], 3),
        ({"patience": 2}, [0.3, 0.4, 0.2, 0.3, 0.2], 5),
        ({"patience": 2}, [0.3, 0.4, 0.2, 0.3, 0.1], None),
        ({"patience": 2, "min_delta": 0.01}, [0.3, 0.295, 0.291], 3),
        ({"patience": 2, "min_delta": 0.01}, [0.3, 0.295, 0.289], None),
        ({"patience": 1, "metric": "a1"}, [0.3, 0.4, 0.4], 3),
        ({"patience": 1, "metric": "a1", "min_delta": 0.2}, [0.3, 0.4], 2),
        ({"patience": 1}, [math.nan, math.nan, 0.3, 0.2, math.inf], 5),
    ],
)
def test_early_stop_after_patience(options, values, iteration):
    """A run ends after `patience` evaluations in a row without an improvement above min_delta."""
    assert stopped_at(early_stop.build(**options, evaluation=SETTINGS), values) == iteration


def test_early_stop_resumed_equals_unbroken():
    """A run that is resumed between two evaluations stops where the unbroken run does."""
    values = [0.3, 0.2, 0.25, 0.24, 0.1]
    for cut in range(1, 4):
        hook = early_stop.build(2, evaluation=SETTINGS)
        assert stopped_at(hook, values[:cut]) is None
        again = early_stop.build(2, evaluation=SETTINGS)
        again.load_state_dict(hook.state_dict())
        assert stopped_at(again, values[cut:], first=cut + 1) == 4
        # Started again with the same patience, the run stops at once; with more it goes on.
        once_more, longer = (early_stop.build(n, evaluation=SETTINGS) for n in (2, 3))
        for each in (once_more, longer):
            each.load_state_dict(again.state_dict())
        assert stopped_at(once_more, [0.1], first=5) == 4
        assert stopped_at(longer, [0.1], first=5) is None


def test_early_stop_forgets_another_metric():
    """The best value of another metric, or of other data, isn't compared with."""
    hook = early_stop.build(1, evaluation=SETTINGS)
    stopped_at(hook, [0.1])
    of_a1 = early_stop.build(1, metric="a1", evaluation=SETTINGS)
    of_a1.load_state_dict(hook.state_dict())
    assert of_a1.best is None
    hook.forget_best()
    assert stopped_at(hook, [0.3, 0.2]) is None


def test_early_stop_names_reason_once():
    """The log and the state say which metric, its best value and its iteration."""
    told = []
    hook = early_stop.build(2, evaluation=SETTINGS, info=told.append)
    assert stopped_at(hook, [0.25, 0.3, 0.26]) == 3
    assert told == [
        "Stopped early after iteration 3: abs_rel hasn't improved by more than 0 in 2 evaluations; "
        "its best is 0.2500, of iteration 1"
    ]


def test_early_stop_leaves_an_ending_run_alone():
    """The last iteration's evaluation finishes the run; a run that a signal stops is stopped."""
    for options in ({"total_iterations": 2}, {"total_iterations": 9, "stop_reason": "SIGTERM"}):
        hook = early_stop.build(1, evaluation=SETTINGS)
        state = SomeState(iteration=2, stopped_early=False, **options)
        hook.best = 0.1
        hook.after_evaluation(state, {"abs_rel": 0.2})
        assert hook.waited == 1
        assert not state.stopped_early


def test_early_stop_leaves_a_finished_run_alone():
    """A resumed run that is at its end, or that stops already, isn't stopped a second time."""
    for options in ({"total_iterations": 2}, {"total_iterations": 9, "stop_reason": "as before"}):
        told = []
        hook = early_stop.build(1, evaluation=SETTINGS, info=told.append)
        hook.best, hook.waited = 0.1, 1
        state = SomeState(iteration=2, stopped_early=False, **options)
        hook.before_train(state)
        assert (state.stop_reason, told) == (options.get("stop_reason"), [])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"patience": 0}, r"^hooks.patience: got 0; it must be a whole number of evaluations"),
        ({}, r"^hooks \(early_stop\): needs patience"),
        ({"patience": 1, "min_delta": -0.1}, r"^hooks.min_delta: got -0.1; it must be a number"),
        ({"patience": 1, "min_delta": math.nan}, r"^hooks.min_delta: got nan; it must be"),
        ({"patience": 1, "metric": "absrel"}, r"^hooks.metric: got 'absrel'; allowed: a1, "),
    ],
)
def test_early_stop_refuses_bad_options(options, told):
    """A bad option is refused before the run starts, with its place in the recipe."""
    with pytest.raises(RecipeError, match=told):
        hooks_of({"hooks": [{"name": "early_stop", **options}]})


def test_early_stop_needs_evaluation():
    """Without validation the hook is refused: it would never be asked."""
    with pytest.raises(RecipeError, match="since train.validate is false; set train.validate=true"):
        hooks_of({"train": {"epochs": 1, "validate": False}, "hooks": [NODE]})


def test_early_stop_takes_metric_of_best_weights():
    """Without `metric` it is that of the best weights; the hook comes after the evaluation."""
    hooks = hooks_of({"evaluation": {"save_best": "rmse"}, "hooks": [NODE]})
    names = [type(hook).__name__ for hook in hooks]
    assert names.index("Evaluation") < names.index("EarlyStop") < names.index("Checkpoint")
    assert hooks[names.index("EarlyStop")].metric == "rmse"


def test_early_stopped_run_is_complete(tmp_path, capsys):
    """outcome.json says that it was stopped early, and bin/resume needn't resume it."""
    state = SimpleNamespace(work_dir=tmp_path, iteration=3, total_iterations=9, orphaned=False)
    state.stop_reason, state.stopped_early = "abs_rel hasn't improved", True
    with workdir.outcome_of(state):
        pass
    assert workdir.read_outcome(tmp_path).outcome == "stopped early"
    args = SimpleNamespace(work_dir=tmp_path, overrides=[])
    assert resume.is_finished(args)
    told = capsys.readouterr().out
    assert "was stopped early (3 of 9 iterations" in told
    # The override that the message names is one that a recipe takes.
    args.overrides = [re.search("--set '(.*)'", told)[1].replace("patience: N", "patience: 9")]
    assert not resume.is_finished(args)
    path = recipes.write_recipe(tmp_path / "recipe.yaml", {"hooks": [NODE]})
    assert load_recipe(path, args.overrides)["hooks"] == [{"name": "early_stop", "patience": 9}]


NODE = {"name": "early_stop", "patience": 1}


def hooks_of(recipe: dict) -> list:
    whole = {"network": {"max_depth": 10.0}, "train": {"epochs": 1}} | recipe
    replica = SimpleNamespace(max_depth=10.0)
    given = {"val_set": [0, 1], "replica": replica, "teacher": None, "unreadable": None}
    return build_hooks(Recipe(whole), "cpu", **given)[0]


def test_best_of_another_data_set_is_dropped():
    """A resumed run whose `evaluation.set` is another one begins its patience anew."""
    near = early_stop.build(2, evaluation=EvaluationSettings(set="near"))
    near.best, near.best_iteration, near.waited = 0.1, 5, 1
    for chosen, best in (("near", 0.1), ("far", None), (None, None)):
        hook = early_stop.build(2, evaluation=EvaluationSettings(set=chosen))
        hook.load_state_dict(near.state_dict())
        assert hook.best == best
