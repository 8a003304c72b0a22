"""Times the iterations of a run that isn't meant to last: a hook that stops it when it has seen enough."""

import math
import statistics
import time

import torch

from tiekd.distributed import comm, memory
from tiekd.training.hook import Hook

_LEAST_S, _MOST_S = 3.0, 60.0  # of timed iterations; of all, after which three do
_LEAST, _MOST = 5, 50
# By a loss scale that is searched: without a step there is no optimizer state to be measured.
_MOST_SKIPPED = 40
_READ_AHEAD = 2  # batches, that a worker of torch's loader has ready


class Stopwatch(Hook):
    """Each iteration is timed until the device has done its work. The first one warms up, and so do those whose data
    was read while nobody trained.

    least: iterations that are timed at least. Waits for the device and asks the other ranks after every iteration.
    """

    def __init__(self, device: torch.device, workers: int, accumulation: int, least: int = _LEAST):
        self.device, self.least, self.least_s = device, least, _LEAST_S if least > 1 else 0.0
        self.warm_up = 1 + math.ceil(_READ_AHEAD * workers / accumulation) if least > 1 else 0
        # Seconds of an iteration, and of waiting for its data.
        self.rows: list[tuple[float, float]] = []

    def before_train(self, state) -> None:
        self._began = self._started = time.perf_counter()

    def after_iteration(self, state) -> None:
        memory.wait(self.device)
        self.rows.append((time.perf_counter() - self._started, state.data_time_s))
        if bool(state.step_skipped) and state.iteration < _MOST_SKIPPED:
            self.rows.clear()
        if comm.broadcast_object(self._has_enough()):
            state.stop_reason = "it has been timed"
        self._started = time.perf_counter()

    def median_s(self) -> tuple[float, float]:
        """Of an iteration, and of waiting for its data."""
        return tuple(statistics.median(column) for column in zip(*self._timed(), strict=True))

    def range_s(self) -> tuple[float, float]:
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
