"""Means of scalars, such as losses, over a window of iterations and over all ranks.

Each scalar is summed on its own device, and the sums are reduced over the ranks once per window. An
iteration costs a few tiny kernels and no host sync; the reduction costs one collective and one
sync. Not covered: statistics other than means of scalars.
"""

import math
import time

import torch
from torch import Tensor

from tiekd.distributed.comm import mean_over_ranks


class Window:
    """Sums of named scalars over a window, i.e. consecutive iterations, from which means follow.

    Tensors are summed on their device, without a host sync. Values that are not finite are left out
    of the sum and the count.

    The constructor's arguments `sums` and `counts` are dicts from a scalar's name to the sum of its
    finite values so far and to their number; both are empty for a new window. All arguments
    together are the state that `state_dict` returns.

    Attributes:
        iterations: The number of iterations in the window.
        time_s: The total duration of these iterations in seconds.
        data_time_s: The part of `time_s` that was spent waiting for batches.
    """

    def __init__(
        self,
        sums: dict[str, float] | None = None,
        counts: dict[str, float] | None = None,
        iterations: int = 0,
        time_s: float = 0.0,
        data_time_s: float = 0.0,
    ):
        self._sums, self._counts = dict(sums or {}), dict(counts or {})
        self._order: list[str] = []
        self._names: list[str] = []
        self._on_device: Tensor | None = None
        self.iterations, self.time_s, self.data_time_s = iterations, time_s, data_time_s

    @property
    def device(self) -> torch.device:
        """The device on which tensors are summed; the CPU if there are no tensors."""
        return torch.device("cpu") if self._on_device is None else self._on_device.device

    def add(
        self, values: dict[str, Tensor | float | None], time_s: float, data_time_s: float
    ) -> None:
        """Adds the scalars of one iteration to the sums. No host sync.

        Args:
            values: The iteration's scalars by name. 0-d tensors on the same device as the first
                tensor among them are summed there; all other values are summed on the host. None is
                treated as a missing value. With ZeRO-Offload the losses are on the GPU and the
                gradient norm is on the CPU, so reading the norm doesn't wait for the GPU.
            time_s: The duration of the iteration in seconds.
            data_time_s: The part of `time_s` that was spent waiting for batches.
        """
        device = next(
            (value.device for value in values.values() if isinstance(value, Tensor)), None
        )
        tensors = {
            k: value
            for k, value in values.items()
            if isinstance(value, Tensor) and value.device == device
        }
        # Add the finite values, and their number for each name, on the device, without a host sync.
        if tensors:
            stacked = torch.stack([value.detach().double() for value in tensors.values()])
            finite = stacked.isfinite()
            new = torch.stack([torch.where(finite, stacked, 0.0), finite.double()])
            if self._names != list(tensors):
                self._fold()
                self._names, self._on_device = list(tensors), new
            else:
                self._on_device += new
        # Sum plain numbers, and tensors on another device, on the host.
        for name in values.keys() - tensors.keys():
            value = math.nan if values[name] is None else float(values[name])
            finite = math.isfinite(value)
            self._sums[name] = self._sums.get(name, 0.0) + (value if finite else 0.0)
            self._counts[name] = self._counts.get(name, 0.0) + finite
        self._order = list(values)
        self.iterations += 1
        self.time_s += time_s
        self.data_time_s += data_time_s

    def wait_for_device(self) -> None:
        """Waits until the GPU has finished its queued kernels, and adds the wait to `time_s`.

        Kernels run asynchronously, so the time measured on the host leaves out the queued ones. On
        a CPU there is nothing to wait for.
        """
        if self.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize(self.device)
            self.time_s += time.perf_counter() - started

    def means_over_ranks(self) -> tuple[dict[str, float], int]:
        """Computes each scalar's mean over iterations and ranks. One collective and one host sync.

        Returns:
            1. The means by name, in the order of names in the last call of `add`. A mean is NaN if
               none of the scalar's values was finite.
            2. The number of iterations in which the scalar with the fewest finite values was
               missing or not finite, as a mean over the ranks, rounded up.
        """
        # Combine the sums on the host with those that are still on the device.
        sums, counts = dict(self._sums), dict(self._counts)
        if self._on_device is not None:
            for name, total, count in zip(self._names, *self._on_device.unbind(), strict=True):
                sums[name], counts[name] = (
                    sums.get(name, 0.0) + total,
                    counts.get(name, 0.0) + count,
                )
        parts = {
            (kind, name): part[name]
            for kind, part in (("sum", sums), ("count", counts))
            for name in self._order
        }
        reduced = mean_over_ranks(parts)
        means, num_broken = {}, 0
        for name in self._order:
            count = reduced["count", name]
            means[name] = reduced["sum", name] / count if count else math.nan
            num_broken = max(num_broken, math.ceil(self.iterations - count))
        return means, num_broken

    def state_dict(self) -> dict:
        """Returns this rank's window as a dict for a checkpoint. One host sync.

        The keys are the arguments of the constructor: `sums` and `counts`, each a dict by the
        scalar's name, and `iterations`, `time_s` and `data_time_s`.
        """
        self._fold()
        return {
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "iterations": self.iterations,
            "time_s": self.time_s,
            "data_time_s": self.data_time_s,
        }

    def mean_over_ranks(self) -> dict:
        """Returns the same state as `state_dict`, but with sums and counts averaged over all ranks.

        The method needs one collective. A run that resumes on another number of ranks gives this
        state to every rank.
        """
        state = self.state_dict()
        parts = {
            (kind, name): value
            for kind in ("sums", "counts")
            for name, value in state[kind].items()
        }
        reduced = mean_over_ranks(parts)
        return state | {
            kind: {name: reduced[kind, name] for name in state[kind]} for kind in ("sums", "counts")
        }

    def _fold(self) -> None:
        if self._on_device is None:
            return
        for name, total, count in zip(self._names, *self._on_device.tolist(), strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0.0) + count
        self._names, self._on_device = [], None
