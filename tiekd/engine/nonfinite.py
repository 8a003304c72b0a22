"""Keeps numbers that aren't finite out of the network: the step's own defence, on the device.

DeepSpeed, and the fused optimizer at stage 0 (engine/step.py), skip a step whose gradient isn't
finite, on all ranks. Two ways around that are closed here. A loss that isn't finite may have a
finite gradient: that of a mean over no pixel is 0. And norms change their running statistics in
forward, before there is a gradient; one NaN stays in them for ever. Cost: one addition to the
smallest gradient and four kernels a micro-batch, no host sync. Left out: statistics that became
finite nonsense, which an image without NaN or infinity can do.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class GradientPoison:
    """Makes a non-finite loss give a non-finite gradient, so that the step is skipped.

    The smallest parameter's gradient gets NaN added before ZeRO takes it over, 0 otherwise; the sum
    over micro-batches and ranks does the rest. Multiplying the loss would not do: NaN times an
    empty gradient is nothing.
    """

    def __init__(self, network: nn.Module):
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        smallest = min(trained, key=lambda p: getattr(p, "ds_numel", p.numel()))
        self._added: list[Tensor] = []
        smallest.register_hook(self._add)

    def add_where_not_finite(self, loss: Tensor) -> None:
        """Arms the poison with the 0-d loss whose backward runs next."""
        self._added[:] = [torch.where(loss.detach().isfinite(), 0.0, math.nan)]

    def _add(self, gradient: Tensor) -> Tensor:
        return gradient + self._added.pop() if self._added else gradient


class RunningStatistics:
    """The last finite values of the running means and variances of a network's norms."""

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, _NormBase)]
        norms = [norm for norm in norms if norm.track_running_stats]
        self._buffers = [kept for norm in norms for kept in (norm.running_mean, norm.running_var)]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._finite = torch.cat(self._buffers) if norms else None

    def keep_finite(self) -> None:
        """Restores each number that is no longer finite."""
        if self._finite is None:
            return
        newest = torch.cat(self._buffers)
        self._finite = torch.where(newest.isfinite(), newest, self._finite)
        torch._foreach_copy_(self._buffers, self._finite.split(self._sizes))
