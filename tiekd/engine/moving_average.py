"""Exponential moving average of an engine's fp32 weights and of BatchNorm's statistics.

    decay(n) = min(decay, (1 + n) / (10 + n))        n = 0, 1, ... is the number of earlier updates
    average <- average + (1 - decay(n)) (weights - average)

Each rank averages the fp32 tensors that its torch optimizer updates: without ZeRO all parameters,
or in half precision their master copies; under ZeRO this rank's partition. So it costs the memory
of one more fp32 copy of these tensors. BatchNorm's running means and variances are averaged
likewise; of all other buffers the newest values are used. An update is one call of
`torch._foreach_lerp_`, without a host sync. In fp32 without ZeRO only the device knows if a step
was skipped. There the weight of the new values is a tensor, 0 for a skipped step, and PyTorch
launches one small kernel per parameter; in all other cases it launches only a few fused kernels.

The average is saved and restored by parameter name, on any number of ranks and at any ZeRO stage.
For that the average and the weights are exchanged, so that the average is gathered as weights are
(engine/full_state.py). The exchange needs additional memory for 16 MB or for the largest parameter.
Not covered: offload to NVMe.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from tiekd.engine import full_state

_CHUNK = 1 << 22  # The number of elements of a flat group that are exchanged at a time.


class MovingAverage:
    """The moving average of an engine's weights, which begins with the present weights.

    Construct it after the engine's state is restored, and before the first iteration.

    Attributes:
        engine: The DeepSpeed engine.
        decay: The largest decay, from 0 to below 1.
        warms_up: True if the decay rises from 0.1 to `decay`, by the formula at the top of this
            file; False if it is `decay` from the first iteration on.
        num_updates: The number of updates of the average, those in which the step was skipped
            included.
    """

    def __init__(self, engine, decay: float, warms_up: bool = True):
        self.engine, self.decay, self.warms_up = engine, decay, warms_up
        self.num_updates = 0
        self._weights = full_state.optimizer_tensors(engine)
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
        """The decay of the next update, i.e. the factor by which the old average is weighted."""
        if not self.warms_up:
            return self.decay
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @property
    def num_bytes(self) -> int:
        """The number of bytes that the average takes on this rank."""
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
        # Convert BatchNorm's statistics to fp32: if the network is in half precision, so are they.
        newest = [*self._weights, *(kept.float() for kept in self._statistics.values())]
        if isinstance(skipped, Tensor):
            # The host doesn't know if the step was skipped, so compute the weight of the new values
            # on the device.
            weight = new * (1 - skipped.float())
            torch._foreach_lerp_(averages, newest, [weight] * len(averages))
        elif not skipped:
            torch._foreach_lerp_(averages, newest, new)

    def weights(self) -> dict[str, Tensor]:
        """Gathers the averaged weights and buffers on rank 0. Collective.

        Returns:
            On rank 0 a dict from each name in the network to an unsharded fp32 tensor on the CPU,
            as `full_state.weights` returns for the newest weights. On other ranks an empty dict.
        """
        with self._exchanged():
            values = full_state.weights(self.engine)
        averages = zip(self._statistics, self._average_statistics, strict=True)
        return values and values | {name: average.cpu().clone() for name, average in averages}

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor], num_updates: int) -> None:
        """Sets the average to that of a checkpoint. Collective.

        Args:
            values: The dict that `weights` returned on rank 0, the same on every rank.
            num_updates: The value of the attribute `num_updates` when the checkpoint was saved.
        """
        with self._exchanged():
            full_state.set_optimizer_tensors(self.engine, values)
        for name, average in zip(self._statistics, self._average_statistics, strict=True):
            average.copy_(values[name])
        self.num_updates = num_updates

    def description(self) -> dict[str, float | bool | int]:
        """Returns the settings and the state of the average, for the file of the averaged weights.

        Returns:
            A dict with `decay`, `warms_up` and `num_updates`, which are the attributes of these
            names.
        """
        return {
            "decay": self.decay,
            "warms_up": self.warms_up,
            "num_updates": self.num_updates,
        }

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Context manager inside which the engine's fp32 weights and the average are exchanged."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            # Exchange a tensor in parts, since under ZeRO it may be as large as a rank's whole
            # partition.
            parts = (torch.atleast_1d(each).split(_CHUNK) for each in (weight, average))
            for ours, theirs in zip(*parts, strict=True):
                held = ours.clone()
                ours.copy_(theirs)
                theirs.copy_(held)
