"""Keeps numbers that are not finite out of the network: what the step itself does about them, on the device.

DeepSpeed, and the fused optimizer at stage 0 (engine/step.py), skip a step whose gradient is not finite, on all ranks.
Two ways around that are closed here: a loss that is not finite may have a finite gradient (a mean over no pixel has 0),
and running statistics of norms are changed in forward, before anybody has seen a gradient; one NaN stays in them for
ever. Cost: one addition to the smallest gradient and four kernels a micro-batch, no host sync.
Left out: statistics that became finite nonsense, which a picture without NaN or infinity can do.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def spoil_gradients_of_bad_losses(engine) -> None:
    """From now on, `engine.backward(loss)` of a loss that is not finite makes a gradient that isn't either.

    The smallest parameter's gradient gets NaN added before ZeRO takes it over, 0 otherwise; the sum over micro-batches
    and ranks does the rest. Multiplying the loss would not do: NaN times an empty gradient is nothing.
    """
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    smallest = min(trained, key=lambda parameter: getattr(parameter, "ds_numel", parameter.numel()))
    added: list[Tensor] = []
    smallest.register_hook(lambda gradient: gradient + added.pop() if added else gradient)
    backward = engine.backward

    def spoiling(loss: Tensor):
        added[:] = [torch.where(loss.detach().isfinite(), 0.0, math.nan)]
        return backward(loss)

    engine.backward = spoiling


class RunningStatistics:
    """The running means and variances of a network's norms, of which it remembers the last finite values."""

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        self._buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._finite = torch.cat(self._buffers) if norms else None

    def keep_finite(self) -> None:
        """Puts back each number that is no longer finite."""
        if self._finite is None:
            return
        newest = torch.cat(self._buffers)
        self._finite = torch.where(newest.isfinite(), newest, self._finite)
        torch._foreach_copy_(self._buffers, self._finite.split(self._sizes))
