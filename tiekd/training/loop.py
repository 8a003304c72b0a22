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
    step: Callable[[], Tensor | float | None],
) -> None:
    """Trains from `state.iteration` to `state.total_iterations`, or to where a hook stops it.

    `step` ends a micro-batch (see tiekd/engine/step.py).
    """
    engine = state.engine
    for hook in state.hooks:
        hook.before_train(state)
    engine.train()
    while state.iteration < state.total_iterations and state.stop_reason is None:
        started = time.perf_counter()
        state.lr, state.momentum = schedule.apply(engine.optimizer, state.iteration)
        state.losses, state.data_time_s = {}, 0.0
        state.micro_losses, state.names, state.image_sums = [], [], []
        for _ in range(state.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            state.data_time_s += time.perf_counter() - asked
            teacher_depth = teacher(batch)
            prediction = engine(batch.image, criterion.divergence_target(teacher_depth), batch.counted)
            losses = criterion(prediction, batch, teacher_depth, state.iteration)
            engine.backward(losses["loss"])
            state.grad_norm = step()
            state.names.append(batch.names)
            state.image_sums.append(batch.image.flatten(1).sum(1))
            state.micro_losses.append({name: loss.detach() for name, loss in losses.items()})
            for name, loss in state.micro_losses[-1].items():
                state.losses[name] = state.losses.get(name, 0.0) + loss / state.accumulation
        state.batch, state.prediction, state.teacher_depth = batch, prediction, teacher_depth
        state.iteration += 1
        state.time_s = time.perf_counter() - started
        for hook in state.hooks:
            hook.after_iteration(state)
    for hook in state.hooks:
        hook.after_train(state)
