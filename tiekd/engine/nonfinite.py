"""Prevents NaN and infinity in the network's weights and running statistics, without a host sync.

DeepSpeed, or without ZeRO in fp32 the fused optimizer (engine/step.py), skips a step on all ranks
if its gradient isn't finite. This isn't enough in two cases, which this module handles. First, a
loss that isn't finite may have a finite gradient: the mean over zero pixels is NaN, but its
gradient is 0. Second, BatchNorm updates its running statistics in the forward pass, before there is
a gradient, and a NaN in them would stay for ever. Cost: one addition to the smallest gradient and
four kernels per micro-batch. Not covered: statistics that are finite but wrong because of extreme
finite images.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class GradientPoison:
    """Turns a loss that isn't finite into a NaN gradient, so that all ranks skip the step.

    A hook on the smallest parameter adds NaN to its gradient, or 0 if the loss is finite, before
    ZeRO reduces the gradient. The sum over micro-batches and ranks is then NaN as well. Multiplying
    the loss by NaN would not be enough: if no pixel is valid, the gradient is an empty tensor, on
    which a factor has no effect.
    """

    def __init__(self, network: nn.Module):
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        smallest = min(trained, key=lambda p: getattr(p, "ds_numel", p.numel()))
        self._added: list[Tensor] = []
        smallest.register_hook(self._add)

    def add_where_not_finite(self, loss: Tensor) -> None:
        """Makes the gradient of the next backward pass NaN if the loss isn't finite.

        Call it before each backward pass.

        Args:
            loss: The loss of that backward pass, a 0-d tensor.
        """
        self._added[:] = [torch.where(loss.detach().isfinite(), 0.0, math.nan)]

    def _add(self, gradient: Tensor) -> Tensor:
        return gradient + self._added.pop() if self._added else gradient


class RunningStatistics:
    """Keeps the last finite running means and variances of a network's BatchNorm layers.

    The constructor copies the layers' values, which must be finite.
    """

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, _NormBase)]
        norms = [norm for norm in norms if norm.track_running_stats]
        self._buffers = [kept for norm in norms for kept in (norm.running_mean, norm.running_var)]
        self._sizes = [buffer.numel() for buffer in self._buffers]
        self._finite = torch.cat(self._buffers) if norms else None

    def keep_finite(self) -> None:
        """Replaces NaN and infinity in running means and variances by the last finite values.

        Call it after each forward pass in training.
        """
        if self._finite is None:
            return
        newest = torch.cat(self._buffers)
        self._finite = torch.where(newest.isfinite(), newest, self._finite)
        torch._foreach_copy_(self._buffers, self._finite.split(self._sizes))
