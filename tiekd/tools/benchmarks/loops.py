"""The timers of the `engine` benchmark, and the bare loop with which it compares the training loop.

The phases of an iteration and each hook of a real training run are timed. The bare loop is forward,
losses, backward, clipping and step, without hooks. After each block of the run's iterations, the
same number of iterations of the bare loop are timed, on the same engine. The timers cost a few
clock reads per iteration. On a GPU, phases and hooks are timed on the host, while blocks are timed
with a host sync at the end.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tiekd.data.batch import Batch
from tiekd.distributed import memory
from tiekd.engine.step import Step
from tiekd.training.hook import Hook
from tiekd.training.hooks.tensorboard import TensorBoard


class TimedStep:
    """Wraps a run's step object (forward, backward, optimizer) to time phases of an iteration.

    The phases are forward, losses, backward and teacher. Other attributes are those of the step
    object.

    Attributes:
        micro_batches: the micro-batches of every iteration.
        criterion: the run's losses, without a timer.
        clip_norm: maximum gradient norm in the bare loop, 0 for no limit; None if the engine clips
            gradients itself.
        forward: the step's method, with a timer.
        backward: the step's method, with a timer.
        timed_criterion: the run's losses, with a timer.
        spent_s: total seconds of the phases in the current iteration.
    """

    def __init__(
        self,
        step: Step,
        micro_batches: list[Batch],
        criterion: nn.Module,
        clip_norm: float | None,
    ):
        """Wraps a run's step object, which runs forward, backward and the optimizer.

        Args:
            step: the step object.
            micro_batches: the micro-batches of every iteration.
            criterion: the run's losses.
            clip_norm: maximum gradient norm in the bare loop, 0 for no limit; None if the engine
                clips gradients itself.
        """
        self._step = step
        self.micro_batches = micro_batches
        self.criterion = criterion
        self.clip_norm = clip_norm
        self.spent_s = 0.0
        self.forward, self.backward = self.timed(step.forward), self.timed(step.backward)
        self.timed_criterion = TimedCriterion(criterion, self.timed(criterion))

    def __getattr__(self, name: str):
        return getattr(self._step, name)

    def timed(self, call: Callable) -> Callable:
        """Returns a function that calls another one and adds the call's seconds to `spent_s`.

        Args:
            call: the function to call; its arguments and its result are passed on.
        """

        def timed_call(*arguments):
            started = time.perf_counter()
            result = call(*arguments)
            self.spent_s += time.perf_counter() - started
            return result

        return timed_call

    def batches(self) -> Iterator[Batch]:
        """Yields the micro-batches of an iteration again and again, without end."""
        while True:
            yield from self.micro_batches

    def bare_iteration(self) -> None:
        """Runs an iteration of the bare loop.

        For each micro-batch it runs DeepSpeed's forward, the losses, DeepSpeed's backward and step.
        """
        engine = self._step.engine
        for batch in self.micro_batches:
            prediction = engine(batch.image, self.criterion.divergence_target(batch.teacher_depth))
            engine.backward(self.criterion(prediction, batch, batch.teacher_depth)["loss"])
            # Clip gradients as a run does (engine/step.py), if the engine doesn't clip them.
            if self.clip_norm is not None and engine.is_gradient_accumulation_boundary():
                nn.utils.clip_grad_norm_(engine.module.parameters(), self.clip_norm or float("inf"))
            engine.step()


@dataclass
class TimedCriterion:
    """A criterion, i.e. the module that computes the losses, whose calls are timed.

    Attributes:
        criterion: the criterion.
        call: function that calls the criterion and records its time.
    """

    criterion: nn.Module
    call: Callable

    def divergence_target(self, teacher_depth: Tensor) -> Tensor | None:
        """Returns the depth from which the target of the head's divergence loss is computed.

        It calls the criterion's method, without timing it.

        Args:
            teacher_depth: (B, 1, H, W), metres, 0 where not valid.

        Returns:
            (B, 1, H, W), metres; None if no loss is a divergence.
        """
        return self.criterion.divergence_target(teacher_depth)

    def __call__(self, *arguments):
        """Calls the criterion, records the time, and returns the losses by name (0-d tensors).

        Args:
            arguments: the criterion's arguments: the prediction, the batch and the teacher's depth.
        """
        return self.call(*arguments)


class TimedHook(Hook):
    """Wraps a hook and times its `after_iteration`; its other methods aren't timed.

    Args:
        hook: the hook.
        watch: the object that records the times, under the name of the hook's class.
    """

    def __init__(self, hook: Hook, watch: "Watch"):
        self.hook = hook
        self.watch = watch

    def before_train(self, state) -> None:
        """Calls the wrapped hook's `before_train`, which isn't timed.

        Args:
            state: the run's TrainState.
        """
        self.hook.before_train(state)

    def after_iteration(self, state) -> None:
        """Calls the wrapped hook's `after_iteration` and records its time.

        Args:
            state: the run's TrainState.
        """
        started = time.perf_counter()
        self.hook.after_iteration(state)
        self.watch.note(type(self.hook).__name__, state, time.perf_counter() - started)

    def after_train(self, state) -> None:
        """Calls the wrapped hook's `after_train`, which isn't timed.

        Args:
            state: the run's TrainState.
        """
        self.hook.after_train(state)


@dataclass(eq=False)
class Watch(Hook):
    """The last of the run's hooks, which collects times and runs blocks of the bare loop.

    A block is a fixed number of iterations that are timed together.

    Attributes:
        device: the device of the engine.
        bare_iteration: function that runs one iteration of the bare loop.
        block: number of iterations in a block.
        rounds: number of blocks.
        board: the TensorBoard hook, which writes images in the iterations after the last block.
        times: seconds, first by name (a hook's class, `_loop` for the loop without the step,
            `_step` for the whole iteration without hooks), then by kind of iteration: "off"
            (neither a log line nor an image), "line" or "image".
        ours_s: seconds of each block of the training loop.
        bare_s: seconds of each block of the bare loop.
        again_s: seconds of each repeated block of the bare loop.
        ours_peaks: peak bytes in each block of the training loop.
        bare_peaks: peak bytes in each block of the bare loop, repetitions included.
    """

    device: torch.device
    bare_iteration: Callable[[], None]
    block: int
    rounds: int
    board: TensorBoard
    times: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    ours_peaks: list[int] = field(default_factory=list)
    bare_peaks: list[int] = field(default_factory=list)

    def note(self, name: str, state, seconds: float) -> None:
        """Records a time of the current iteration, unless it is the first one, which is a warm-up.

        Args:
            name: the name of the timed part: a hook's class, `_loop` or `_step`.
            state: the run's TrainState.
            seconds: the time.
        """
        kind = "off" if state.iteration % self.block else "line"
        if state.iteration > self.block * self.rounds:
            kind = "image"
        if state.iteration > 1:  # the first iteration is a warm-up
            self.times.setdefault(name, {"off": [], "line": [], "image": []})[kind].append(seconds)

    def before_train(self, state) -> None:
        """Warms up the bare loop and starts the timer of the first block.

        Args:
            state: the run's TrainState.
        """
        # Warm up with two iterations that aren't timed.
        for _ in range(2):
            self.bare_iteration()
        state.step.spent_s = 0.0
        self._start()

    def after_iteration(self, state) -> None:
        """Records the iteration's times; after each block, times two blocks of the bare loop.

        Args:
            state: the run's TrainState.
        """
        self.note("_loop", state, state.time_s - state.data_time_s - state.step.spent_s)
        self.note("_step", state, state.time_s - state.data_time_s)
        if state.iteration % self.block == 0:
            self.ours_s.append(self._stop(self.ours_peaks))
            for times in (self.bare_s, self.again_s):
                self._start()
                for _ in range(self.block):
                    self.bare_iteration()
                times.append(self._stop(self.bare_peaks))
            # Let TensorBoard write an image in each iteration after the last block, to measure
            # that, too.
            if state.iteration == self.block * self.rounds:
                self.board.image_interval = 1
            self._start()
        state.step.spent_s = 0.0

    def _start(self) -> None:
        memory.wait(self.device)
        memory.restart_peak(self.device)
        self._started = time.perf_counter()

    def _stop(self, peaks: list[int]) -> float:
        memory.wait(self.device)
        peaks.append(memory.peak_bytes(self.device))
        return time.perf_counter() - self._started
