"""The training loop. It reads as the algorithm; everything else is a hook or is built before it."""

import time
from collections.abc import Callable, Iterator

from torch import Tensor

from tiekd.data.batch import Batch
from tiekd.training.criterion import Criterion
from tiekd.training.schedules import Schedule
from tiekd.training.state import TrainState


def train(
    state: TrainState,
    batches: Iterator[Batch],
    teacher: Callable[[Batch], Tensor],
    criterion: Criterion,
    schedule: Schedule,
) -> None:
    """Trains from `state.iteration` to `state.total_iterations`, or to where a hook stops it.

    Args:
        state: Where the run stands; `engine` and `step` are set. Changed in place.
        batches: This rank's micro-batches, `state.accumulation` an iteration.
        teacher: Gives a batch its target depth, (B, 1, H, W) float32, metres, 0 where not valid.
        criterion: Gives the terms of a micro-batch's loss, and `loss`, their sum.
        schedule: Sets the optimizer's learning rate and momentum for an iteration.
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

            teacher_depth = teacher(batch)
            target = criterion.divergence_target(teacher_depth)
            prediction = step.forward(batch.image, target, batch.counted)
            losses = criterion(prediction, batch, teacher_depth, state.iteration)
            grad_norm = step.backward(losses["loss"])
            state.record(batch, teacher_depth, prediction, losses, grad_norm)
        state.iteration += 1
        state.time_s = time.perf_counter() - started
        for hook in state.hooks:
            hook.after_iteration(state)
    for hook in state.hooks:
        hook.after_train(state)
