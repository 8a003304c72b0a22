"""Ends a run whose metric has stopped improving.

    hooks: [{name: early_stop, patience: 5, min_delta: 0.001}]

The metric is the one that chooses the best weights (`evaluation.save_best`), unless `metric` names
another of the evaluation's metrics. Rank 0 decides after each evaluation, with one small broadcast,
so all ranks stop after the same iteration. The run then saves a checkpoint and ends with exit code
0, and outcome.json says "stopped early". Not covered: adapting the learning rate; a schedule over
the whole run, such as one_cycle, is cut off when the run stops.
"""

import math
from collections.abc import Callable

from tiekd.distributed import comm
from tiekd.errors import RecipeError
from tiekd.evaluation.evaluate import EvaluationSettings
from tiekd.evaluation.metrics import METRIC_NAMES, is_better
from tiekd.training.hook import Hook


class EarlyStop(Hook):
    """Stops a run after `patience` evaluations in a row without an improvement.

    Attributes:
        patience: The number of evaluations in a row without an improvement that end the run.
        min_delta: The smallest change of the metric that counts as an improvement, in the metric's
            unit; a change has to be larger than it.
        metric: The metric's name.
        of_set: With several data sets, the name of the one on which the metric is measured; None
            for the mean over all of them, or if there is only one.
        info: Function that writes a message to the log.
        best: The best value of the metric so far; None before the first finite one.
        best_iteration: The iteration of that value.
        waited: The number of evaluations since then.
    """

    def __init__(
        self,
        patience: int,
        min_delta: float = 0.0,
        metric: str | None = None,
        evaluation: EvaluationSettings | None = None,
        info: Callable[[str], None] = lambda _: None,
    ):
        if evaluation is None:
            raise RecipeError(
                "hooks (early_stop): there is no evaluation, since train.validate is false; set "
                "train.validate=true, or remove early_stop from hooks"
            )
        if type(patience) is not int or patience < 1:
            raise RecipeError(
                f"patience: got {patience!r}; it must be a whole number of evaluations from 1"
            )
        if not 0 <= min_delta < math.inf:
            raise RecipeError(f"min_delta: got {min_delta!r}; it must be a number from 0")
        if metric is not None and metric not in METRIC_NAMES:
            raise RecipeError(f"metric: got {metric!r}; allowed: {', '.join(METRIC_NAMES)}")
        self.patience, self.min_delta, self.info = patience, min_delta, info
        self.metric = evaluation.save_best if metric is None else metric
        self.of_set = evaluation.set
        self.best: float | None = None
        self.best_iteration, self.waited = 0, 0

    def before_train(self, state) -> None:
        """Stops a resumed run before its first iteration if `patience` was exhausted already.

        That is the case if the hook had stopped the run and it is started again with the same
        patience.

        Args:
            state: The state of the run. If the run stops, its `stop_reason` and `stopped_early` are
                set.
        """
        # Do nothing if training ends already: because it is finished, or because an evaluation that
        # was postponed to this resume has just stopped it.
        if self.best is not None and self.waited >= self.patience and not state.ends:
            self._stop(state)

    def after_evaluation(self, state, metrics: dict[str, float]) -> None:
        """Counts an evaluation, and stops the run if `patience` is exhausted. Collective.

        Args:
            state: The state of the run. If the run stops, its `stop_reason` and `stopped_early` are
                set.
            metrics: The metrics by name; those of rank 0 are used.
        """
        value = metrics[self.metric]
        if self._is_better(value):
            self.best, self.best_iteration, self.waited = value, state.iteration, 0
        elif self.best is not None:
            self.waited += 1
        # Take over rank 0's values on every rank, so that all ranks stop together.
        self.best, self.best_iteration, self.waited = comm.broadcast_object(
            (self.best, self.best_iteration, self.waited)
        )
        # Do nothing if training ends already: because it is finished, or because a signal stops it.
        if self.waited >= self.patience and not state.ends:
            self._stop(state)

    def state_dict(self) -> dict:
        """Returns the hook's state for a checkpoint, a dict of plain values.

        Its keys are the attributes `metric`, `of_set`, `best`, `best_iteration` and `waited`.
        """
        return {
            "metric": self.metric,
            "of_set": self.of_set,
            "best": self.best,
            "best_iteration": self.best_iteration,
            "waited": self.waited,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores `best`, `best_iteration` and `waited` from a checkpoint.

        Nothing is restored if the checkpoint's metric, or the data set that it is measured on,
        isn't that of this hook.

        Args:
            state_dict: The state that `state_dict` returned when the checkpoint was saved.
        """
        if (state_dict["metric"], state_dict.get("of_set")) == (self.metric, self.of_set):
            self.best, self.waited = state_dict["best"], state_dict["waited"]
            self.best_iteration = state_dict["best_iteration"]

    def forget_best(self) -> None:
        """Resets the best value, its iteration and the count of evaluations without an improvement.

        Called on a resume if later values of the metric can't be compared with the best one.
        """
        self.best, self.best_iteration, self.waited = None, 0, 0

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value) or self.best is None:
            return math.isfinite(value)
        return is_better(self.metric, value, self.best) and (
            abs(value - self.best) > self.min_delta
        )

    def _stop(self, state) -> None:
        state.stop_reason = (
            f"{self.metric} hasn't improved by more than {self.min_delta:g} in {self.waited} "
            f"evaluations; its best is {self.best:.4f}, of iteration {self.best_iteration}"
        )
        state.stopped_early = True
        self.info(f"Stopped early after iteration {state.iteration}: {state.stop_reason}")


build = EarlyStop
