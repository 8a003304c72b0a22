"""A hook that times a run's iterations, and stops the run once enough of them are timed."""

import math
import statistics
import time

import torch

from tiekd.distributed import comm, memory
from tiekd.training.hook import Hook

_LEAST_S = 3.0  # minimum total time of the timed iterations, in seconds
_MOST_S = 60.0  # total time in seconds after which timing stops, even before _LEAST iterations
_LEAST = 5  # minimum number of timed iterations
_MOST = 50  # maximum number of timed iterations
# Iteration before which timing restarts after each skipped optimizer step. With fp16, steps are
# skipped until the loss scale fits, and before the first step the optimizer's state isn't
# allocated.
_MOST_SKIPPED = 40
_READ_AHEAD = 2  # number of batches that each data worker reads in advance


class Stopwatch(Hook):
    """Times each iteration, including the device's work, and stops the run after enough iterations.

    The first iteration is excluded as warm-up, and so are iterations whose data was read before
    training began. The hook costs a host sync and an exchange between ranks after every iteration.

    Attributes:
        device: this rank's device.
        least: minimum number of timed iterations.
        least_s: minimum total time of the timed iterations, seconds.
        warm_up: number of iterations at the start that are excluded.
        rows: (seconds, seconds of waiting for data) of each iteration, warm-up included.
    """

    def __init__(self, device: torch.device, workers: int, accumulation: int, least: int = _LEAST):
        """Initialises the stopwatch for a run.

        Args:
            device: this rank's device.
            workers: number of data workers.
            accumulation: micro-batches per iteration.
            least: minimum number of timed iterations; 1 to time the first one, without warm-up.
        """
        self.device = device
        self.least = least
        self.least_s = _LEAST_S if least > 1 else 0.0
        self.warm_up = 1 + math.ceil(_READ_AHEAD * workers / accumulation) if least > 1 else 0
        # One tuple for each iteration: (its seconds, its seconds of waiting for data).
        self.rows: list[tuple[float, float]] = []

    def before_train(self, state) -> None:
        """Starts the timer of the first iteration.

        Args:
            state: the run's TrainState, not used.
        """
        self._began = self._started = time.perf_counter()

    def after_iteration(self, state) -> None:
        """Records an iteration's time, and stops the run once enough iterations are timed.

        Collective: all ranks must call it, since rank 0 decides when to stop.

        Args:
            state: the run's TrainState.
        """
        memory.wait(self.device)
        self.rows.append((time.perf_counter() - self._started, state.data_time_s))
        if bool(state.step_skipped) and state.iteration < _MOST_SKIPPED:
            self.rows.clear()
        if comm.broadcast_object(self._has_enough()):
            state.stop_reason = "it has been timed"
        self._started = time.perf_counter()

    def median_s(self) -> tuple[float, float]:
        """Returns (median seconds of an iteration, median seconds of waiting for data in one).

        Iterations of the warm-up are left out, unless there are no others.
        """
        return tuple(statistics.median(column) for column in zip(*self._timed_rows(), strict=True))

    def range_s(self) -> tuple[float, float]:
        """Returns (seconds of the shortest iteration, seconds of the longest one).

        Iterations of the warm-up are left out, unless there are no others.
        """
        times = [row[0] for row in self._timed_rows()]
        return min(times), max(times)

    def _timed_rows(self) -> list[tuple[float, float]]:
        return self.rows[self.warm_up :] or self.rows[-2:]

    def _has_enough(self) -> bool:
        timed = self.rows[self.warm_up :]
        if len(self.rows) >= min(3, self.least) and time.perf_counter() - self._began > _MOST_S:
            return True
        return len(timed) >= _MOST or (
            len(timed) >= self.least and sum(row[0] for row in timed) >= self.least_s
        )
