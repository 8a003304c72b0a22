"""A hook that times a run's iterations and stops the run when it has timed enough."""

import math
import statistics
import time

import torch

from tiekd.distributed import comm, memory
from tiekd.training.hook import Hook

_LEAST_S = 3.0  # minimum total time of the timed iterations, seconds
_MOST_S = 60.0  # after this many seconds, three timed iterations are enough
_LEAST = 5  # minimum number of timed iterations
_MOST = 50
# Iterations skipped while fp16's loss scale is searched are left out: before the first step the
# optimizer has no state whose memory could be measured.
_MOST_SKIPPED = 40
_READ_AHEAD = 2  # batches that a worker of torch's loader has ready


class Stopwatch(Hook):
    """Times each iteration, including the device's work.

    Excluded as warm-up are the first iteration, and those whose data was read before training
    began. Costs a host sync and an exchange between ranks after every iteration.
    """

    def __init__(self, device: torch.device, workers: int, accumulation: int, least: int = _LEAST):
        """Makes a stopwatch for a run.

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
        # Seconds of each iteration, and of waiting for its data.
        self.rows: list[tuple[float, float]] = []

    def before_train(self, state) -> None:
        """Starts the first iteration's time."""
        self._began = self._started = time.perf_counter()

    def after_iteration(self, state) -> None:
        """Records an iteration's time, and stops the run after enough iterations. Collective."""
        memory.wait(self.device)
        self.rows.append((time.perf_counter() - self._started, state.data_time_s))
        if bool(state.step_skipped) and state.iteration < _MOST_SKIPPED:
            self.rows.clear()
        if comm.broadcast_object(self._has_enough()):
            state.stop_reason = "it has been timed"
        self._started = time.perf_counter()

    def median_s(self) -> tuple[float, float]:
        """Returns the median seconds per iteration, and of the wait for data within it."""
        return tuple(statistics.median(column) for column in zip(*self._timed(), strict=True))

    def range_s(self) -> tuple[float, float]:
        """Returns the minimum and the maximum seconds per iteration."""
        times = [row[0] for row in self._timed()]
        return min(times), max(times)

    def _timed(self) -> list[tuple[float, float]]:
        return self.rows[self.warm_up :] or self.rows[-2:]

    def _has_enough(self) -> bool:
        timed = self.rows[self.warm_up :]
        if len(self.rows) >= min(3, self.least) and time.perf_counter() - self._began > _MOST_S:
            return True
        return len(timed) >= _MOST or (
            len(timed) >= self.least and sum(row[0] for row in timed) >= self.least_s
        )
