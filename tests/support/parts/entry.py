"""A hook that records metrics at a run's beginning and end in `<work_dir>/entered.jsonl`."""

import json
from functools import partial

from tiekd.distributed.comm import is_main
from tiekd.engine import full_state
from tiekd.evaluation.evaluate import evaluate
from tiekd.models.flip import predict
from tiekd.training.evaluation_hook import Evaluation
from tiekd.training.hook import Hook


class Entry(Hook):
    """Evaluates before training, and writes a row of metrics before and after it.

    The row has the iteration and the nine metrics; before training also the norms' running
    statistics.
    """

    def before_train(self, state) -> None:
        hook = next(hook for hook in state.hooks if isinstance(hook, Evaluation))
        hook._fill_replica(state.weights())
        predictor = partial(predict, hook.replica, flip=hook.settings.flip)
        metrics = evaluate(predictor, hook.dataset, hook.protocol, hook.device)
        newest = full_state.weights(state.engine)
        statistics = {name: t.tolist() for name, t in newest.items() if "running" in name}
        self._write(
            state, {"begins_after": state.iteration, "metrics": metrics, "statistics": statistics}
        )

    def after_train(self, state) -> None:
        self._write(state, {"ends_after": state.iteration, "metrics": state.metrics})

    def _write(self, state, row: dict) -> None:
        if is_main():
            with (state.work_dir / "entered.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")


build = Entry
