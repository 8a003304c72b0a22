"""The training loop.

Logging, evaluation and checkpoints are hooks; networks, data and engine are built before the loop.
"""

import time
from collections.abc import Callable, Iterator

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.data.target import Target, mean_depth
from tiekd.training.canonical import METRES, Targets
from tiekd.training.criterion import Criterion
from tiekd.training.schedules import Schedule
from tiekd.training.state import TrainState


def train(
    state: TrainState,
    batches: Iterator[Batch],
    teacher: Callable[[Batch], Tensor | Target],
    criterion: Criterion,
    schedule: Schedule,
    targets: Targets = METRES,
) -> None:
    """Trains from `state.iteration` to `state.total_iterations`, or until a hook stops the run.

    Args:
        state: The state of the run, with `engine` and `step` set. Changed in place.
        batches: This rank's micro-batches, `state.accumulation` per iteration.
        teacher: Function from a batch to its target depth, (B, 1, H, W) float32, metres, 0 in
            pixels that aren't valid; or to a `Target`, with several depths or a sigma per pixel.
        criterion: The weighted sum of the loss terms.
        schedule: The learning rate and momentum of each iteration.
        targets: Converts target depths from metres to the depth that the network learns: metres, or
            canonical depth (tiekd/training/canonical.py).
    """
    engine, step = state.engine, state.step
    for hook in state.hooks:
        hook.before_train(state)
    engine.train()
    while state.iteration < state.total_iterations and state.stop_reason is None:
        started = time.perf_counter()
        state.begin_iteration()
        state.lr, state.momentum = schedule.apply(engine.optimizer, state.iteration)
        for _ in range(state.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            state.data_time_s += time.perf_counter() - asked

            taught = teacher(batch)
            learned, wanted = targets(batch, taught)
            target = criterion.divergence_target(wanted)
            prediction = step.forward(batch.image, target, batch.counted)
            losses = criterion(prediction, learned, wanted, state.iteration)
            grad_norm = step.backward(losses["loss"])
            state.record(batch, mean_depth(taught), prediction, losses, grad_norm)
        state.iteration += 1
        state.time_s = time.perf_counter() - started
        for hook in state.hooks:
            hook.after_iteration(state)
    for hook in state.hooks:
        hook.after_train(state)
