"""What the `engine` benchmark puts around a real training: clocks for the parts of an iteration and for each hook, and
blocks of a bare loop on the same engine in between.

Costs a few calls of a clock an iteration. On a GPU the times are the host's; whole blocks wait for the device.
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


class Parts:
    """The step as the loop sees it, and what else the loop calls; `spent_s`: seconds in all of these."""

    def __init__(self, step: Step, micro_batches: list[Batch], criterion: nn.Module, clip_norm: float | None):
        """clip_norm: of the bare loop, 0 for no limit; None where the engine clips by itself."""
        self._step, self.micro_batches, self.criterion, self.clip_norm = step, micro_batches, criterion, clip_norm
        self.spent_s = 0.0
        self.forward, self.backward = self.timed(step.forward), self.timed(step.backward)
        self.timed_criterion = TimedCriterion(criterion, self.timed(criterion))

    def __getattr__(self, name: str):
        return getattr(self._step, name)

    def timed(self, call: Callable) -> Callable:
        def timed_call(*arguments):
            started = time.perf_counter()
            result = call(*arguments)
            self.spent_s += time.perf_counter() - started
            return result

        return timed_call

    def batches(self) -> Iterator[Batch]:
        while True:
            yield from self.micro_batches

    def bare_iteration(self) -> None:
        """What anybody would write: DeepSpeed's own methods, nothing of ours around them."""
        engine = self._step.engine
        for batch in self.micro_batches:
            prediction = engine(batch.image, self.criterion.divergence_target(batch.teacher_depth))
            engine.backward(self.criterion(prediction, batch, batch.teacher_depth)["loss"])
            if self.clip_norm is not None and engine.is_gradient_accumulation_boundary():
                nn.utils.clip_grad_norm_(engine.module.parameters(), self.clip_norm or float("inf"))
            engine.step()


@dataclass
class TimedCriterion:
    criterion: nn.Module
    call: Callable

    def divergence_target(self, teacher_depth: Tensor) -> Tensor | None:
        return self.criterion.divergence_target(teacher_depth)

    def __call__(self, *arguments):
        return self.call(*arguments)


class TimedHook(Hook):
    """A hook whose after_iteration is timed."""

    def __init__(self, hook: Hook, watch: "Watch"):
        self.hook, self.watch = hook, watch

    def before_train(self, state) -> None:
        self.hook.before_train(state)

    def after_iteration(self, state) -> None:
        started = time.perf_counter()
        self.hook.after_iteration(state)
        self.watch.note(type(self.hook).__name__, state, time.perf_counter() - started)

    def after_train(self, state) -> None:
        self.hook.after_train(state)


@dataclass(eq=False)
class Watch(Hook):
    """Stands last. times: by hook, `_loop` and `_step`, and by the kind of iteration, seconds each."""

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
        pictures = state.iteration > self.block * self.rounds
        kind = "picture" if pictures else "off" if state.iteration % self.block else "line"
        if state.iteration > 1:  # the first one warms up
            self.times.setdefault(name, {"off": [], "line": [], "picture": []})[kind].append(seconds)

    def before_train(self, state) -> None:
        for _ in range(2):
            self.bare_iteration()
        state.step.spent_s = 0.0
        self._start()

    def after_iteration(self, state) -> None:
        self.note("_loop", state, state.time_s - state.data_time_s - state.step.spent_s)
        self.note("_step", state, state.time_s - state.data_time_s)
        if state.iteration % self.block == 0:
            self.ours_s.append(self._stop(self.ours_peaks))
            for times in (self.bare_s, self.again_s):
                self._start()
                for _ in range(self.block):
                    self.bare_iteration()
                times.append(self._stop(self.bare_peaks))
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
