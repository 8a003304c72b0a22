"""Exponential moving average of an engine's fp32 weights and of BatchNorm's statistics.

    decay(n) = min(decay, (1 + n) / (10 + n))        n = 0, 1, 2, ... iterations averaged before
    average <- average + (1 - decay(n)) (weights - average)

Each rank averages the fp32 tensors that its torch optimizer updates: without ZeRO all parameters,
or in half precision their master copies; under ZeRO this rank's partition. So it costs the memory
of one more fp32 copy of these tensors. BatchNorm's running means and variances are averaged
likewise; all other buffers are the newest. An update is one call of `torch._foreach_lerp_` and no
host sync. In fp32 without ZeRO only the device knows if a step was skipped, so the weight of the
new values is a tensor there, 0 for a skipped step. PyTorch then launches one small kernel for each
parameter; in all other cases it fuses them into a few.

The average is saved and restored by parameter name, on any number of ranks and at any ZeRO stage.
For that the average and the weights are exchanged, so that the average is gathered as the weights
are (engine/full_state.py); that needs room for 16 MB or the largest parameter. Left out: offload to
NVMe.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from tiekd.engine import full_state

_CHUNK = 1 << 22  # Elements of a flat group that are exchanged at a time.


class MovingAverage:
    """The moving average of an engine's weights, which begins with the present weights.

    Construct it after the engine's state is restored, and before the first iteration.

    Attributes:
        engine: The DeepSpeed engine.
        decay: The largest decay, from 0 to below 1.
        warms_up: True if the decay starts at 0.1 and rises to `decay`, by the formula above; False
            for `decay` from the first iteration on.
        num_updates: The number of iterations that were averaged, those with a skipped step
            included.
    """

    def __init__(self, engine, decay: float, warms_up: bool = True):
        self.engine, self.decay, self.warms_up = engine, decay, warms_up
        self.num_updates = 0
        self._weights = full_state.trained(engine)
        self._statistics = {
            f"{name}.{kind}" if name else kind: getattr(norm, kind)
            for name, norm in engine.module.named_modules()
            if isinstance(norm, _NormBase) and norm.track_running_stats
            for kind in ("running_mean", "running_var")
        }
        self._averages = [weight.detach().clone() for weight in self._weights]
        self._average_statistics = [kept.float().clone() for kept in self._statistics.values()]

    @property
    def next_decay(self) -> float:
        """The decay of the next update."""
        if not self.warms_up:
            return self.decay
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @property
    def num_bytes(self) -> int:
        """The memory that the average takes on this rank."""
        tensors = [*self._averages, *self._average_statistics]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @torch.no_grad()
    def update(self, skipped: Tensor | bool) -> None:
        """Adds the present weights to the average. No host sync.

        Args:
            skipped: True if this iteration's optimizer step was skipped, so that the average stays;
                a bool, or a 0-d tensor on the device of the weights.
        """
        new = 1 - self.next_decay
        self.num_updates += 1
        averages = [*self._averages, *self._average_statistics]
        # In half precision the statistics are, too; their average is in fp32.
        newest = [*self._weights, *(kept.float() for kept in self._statistics.values())]
        if isinstance(skipped, Tensor):
            # The host doesn't know if the step was skipped, so the device computes the weight.
            weight = new * (1 - skipped.float())
            torch._foreach_lerp_(averages, newest, [weight] * len(averages))
        elif not skipped:
            torch._foreach_lerp_(averages, newest, new)

    def weights(self) -> dict[str, Tensor]:
        """Gathers the averaged weights and buffers on rank 0. Collective.

        Returns:
            On rank 0 tensors on the CPU by name, as `full_state.weights` returns the newest ones.
            Empty on other ranks.
        """
        with self._exchanged():
            values = full_state.weights(self.engine)
        averages = zip(self._statistics, self._average_statistics, strict=True)
        return values and values | {name: average.cpu().clone() for name, average in averages}

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor], num_updates: int) -> None:
        """Sets the average to that of a checkpoint. Collective.

        Args:
            values: What `weights` returned on rank 0, the same on every rank.
            num_updates: The attribute of that name when the checkpoint was saved.
        """
        with self._exchanged():
            full_state.set_trained(self.engine, values)
        for name, average in zip(self._statistics, self._average_statistics, strict=True):
            average.copy_(values[name])
        self.num_updates = num_updates

    def description(self) -> dict[str, float | bool | int]:
        """Returns what a file of averaged weights says about them, as plain values."""
        return {
            "decay": self.decay,
            "warms_up": self.warms_up,
            "num_updates": self.num_updates,
        }

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Context manager in which the engine's fp32 tensors hold the average, and vice versa."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            # A flat group is as large as a rank's whole partition, so it is exchanged in parts.
            parts = (torch.atleast_1d(each).split(_CHUNK) for each in (weight, average))
            for ours, theirs in zip(*parts, strict=True):
                held = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(held)
