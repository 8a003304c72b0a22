"""The timers of the `engine` benchmark, and the bare loop that it compares.

The phases of an iteration and each hook of a real training are timed. Blocks of the bare loop run
on the same engine in between. Costs a few clock reads per iteration. On a GPU, phases and hooks are
timed on the host, while blocks are timed with a host sync at the end.
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
    """The step as the loop sees it, with clocks around the parts of an iteration.

    Attributes:
        spent_s: seconds that the current iteration has spent in the parts.
    """

    def __init__(
        self,
        step: Step,
        micro_batches: list[Batch],
        criterion: nn.Module,
        clip_norm: float | None,
    ):
        """Wraps the step.

        Args:
            step: the run's step.
            micro_batches: of every iteration.
            criterion: the run's losses.
            clip_norm: of the bare loop, 0 for no limit; None where the engine clips by itself.
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
        """Returns a function that adds the time of `call` to `spent_s`."""

        def timed_call(*arguments):
            started = time.perf_counter()
            result = call(*arguments)
            self.spent_s += time.perf_counter() - started
            return result

        return timed_call

    def batches(self) -> Iterator[Batch]:
        """Yields the same micro-batches for ever."""
        while True:
            yield from self.micro_batches

    def bare_iteration(self) -> None:
        """Makes one iteration with DeepSpeed's own methods and nothing of ours around them."""
        engine = self._step.engine
        for batch in self.micro_batches:
            prediction = engine(batch.image, self.criterion.divergence_target(batch.teacher_depth))
            engine.backward(self.criterion(prediction, batch, batch.teacher_depth)["loss"])
            # Where the engine doesn't clip by itself, the run clips too (tiekd/engine/step.py).
            if self.clip_norm is not None and engine.is_gradient_accumulation_boundary():
                nn.utils.clip_grad_norm_(engine.module.parameters(), self.clip_norm or float("inf"))
            engine.step()


@dataclass
class TimedCriterion:
    """A criterion whose call is timed."""

    criterion: nn.Module
    call: Callable

    def divergence_target(self, teacher_depth: Tensor) -> Tensor | None:
        """Returns the criterion's target."""
        return self.criterion.divergence_target(teacher_depth)

    def __call__(self, *arguments):
        """Times the criterion."""
        return self.call(*arguments)


class TimedHook(Hook):
    """A hook whose after_iteration is timed."""

    def __init__(self, hook: Hook, watch: "Watch"):
        self.hook = hook
        self.watch = watch

    def before_train(self, state) -> None:
        """Calls the hook."""
        self.hook.before_train(state)

    def after_iteration(self, state) -> None:
        """Calls the hook and records its time."""
        started = time.perf_counter()
        self.hook.after_iteration(state)
        self.watch.note(type(self.hook).__name__, state, time.perf_counter() - started)

    def after_train(self, state) -> None:
        """Calls the hook."""
        self.hook.after_train(state)


@dataclass(eq=False)
class Watch(Hook):
    """The last hook: collects times and runs blocks of the bare loop.

    Attributes:
        block: iterations of a block.
        rounds: the number of blocks.
        board: writes images in the iterations after the last block.
        times: seconds by hook, `_loop` or `_step`, then by kind of iteration: "off", "line",
            "image".
        ours_s: seconds of each block of our loop.
        bare_s: of the bare loop.
        again_s: of the bare loop's repetition.
        ours_peaks: bytes at each block's peak.
        bare_peaks: of the bare loop's.
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
        """Records the seconds of a hook in the current iteration."""
        kind = "off" if state.iteration % self.block else "line"
        if state.iteration > self.block * self.rounds:
            kind = "image"
        if state.iteration > 1:  # the first one warms up
            self.times.setdefault(name, {"off": [], "line": [], "image": []})[kind].append(seconds)

    def before_train(self, state) -> None:
        """Warms up the bare loop and starts the first block's time."""
        # The first iterations warm up.
        for _ in range(2):
            self.bare_iteration()
        state.step.spent_s = 0.0
        self._start()

    def after_iteration(self, state) -> None:
        """Records the iteration, and after each block runs two of the bare loop."""
        self.note("_loop", state, state.time_s - state.data_time_s - state.step.spent_s)
        self.note("_step", state, state.time_s - state.data_time_s)
        if state.iteration % self.block == 0:
            self.ours_s.append(self._stop(self.ours_peaks))
            for times in (self.bare_s, self.again_s):
                self._start()
                for _ in range(self.block):
                    self.bare_iteration()
                times.append(self._stop(self.bare_peaks))
            # After the last block each iteration draws an image, whose time is wanted too.
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
