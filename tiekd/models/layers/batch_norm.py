"""BatchNorm over all ranks on any device.

`BatchNorm2d` exists because torch's SyncBatchNorm refuses CPU tensors, and because torch's
BatchNorm fails on half-precision parameters with fp32 running statistics, as in fp16 training. With
several ranks and C channels it costs one all-gather of 2C+1 numbers in forward and one all-reduce
of 2C in backward. Not covered: norms that only some ranks run in a step; these would wait forever.
"""

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from tiekd.distributed.comm import world_size

_included: Tensor | None = None


@contextlib.contextmanager
def statistics_of(included: Tensor | None):
    """Returns a context manager that excludes pixels from the statistics of `BatchNorm2d`.

    Within the context, the means and variances that `BatchNorm2d` computes in training are those of
    the pixels that `included` marks. Excluded are e.g. the pixels of an image's padding. All pixels
    are normalised.

    Args:
        included: (B, 1, H, W) bool, True for image pixels that the statistics include. A pixel of a
            coarser feature is included if the image pixel at its centre is. None includes all
            pixels.
    """
    global _included
    before, _included = _included, included
    try:
        yield
    finally:
        _included = before


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation in fp32 whose training statistics cover the micro-batches of all ranks.

    Parameters and state dict are those of `nn.BatchNorm2d`. With several ranks, mean and biased
    variance are those of all ranks' images together, weighted by each rank's number of pixels; the
    running variance is unbiased, as in torch. Statistics are fp32 whatever the dtype of the input
    and of the parameters.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of a step's statistics in the update of the running statistics.
        sync: False to use this rank's images only.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, sync: bool = True
    ):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.sync = sync

    def _apply(self, fn, recurse=True):
        """Moves and casts the module like nn.Module, but keeps its running statistics in fp32.

        In fp16 a variance above 65504 would overflow. nn.Module calls this method for `to`, `half`
        and the like.

        Args:
            fn: function that moves or casts a tensor.
            recurse: True to apply `fn` to submodules, too.

        Returns:
            The module itself.
        """
        mean, var = self.running_mean, self.running_var
        super()._apply(fn, recurse)
        if self.running_var.dtype != torch.float32:
            device = self.running_var.device
            self.running_mean = mean.float().to(device)
            self.running_var = var.float().to(device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised features, of the shape and dtype of x.

        Args:
            x: (B, C, H, W), any float dtype.
        """
        # torch's kernels don't support fp64 inputs together with fp32 running statistics.
        if x.dtype == torch.float64:
            return self.forward(x.float()).double()
        weight, bias = self.weight.float(), self.bias.float()
        if self.training and _included is not None:
            return self._normalised_over_included(x, weight, bias)
        if not (self.training and self.sync and world_size() > 1):
            if self.training:
                self.num_batches_tracked.add_(1)
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                weight,
                bias,
                self.training,
                self.momentum,
                self.eps,
            )
        # Normalise with statistics over all ranks' images, and update the running statistics.
        y, mean, var, count = _NormaliseOverRanks.apply(x, weight, bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        return y

    def _normalised_over_included(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalises x in training, with statistics of the pixels chosen by `statistics_of`.

        Args:
            x: (B, C, H, W), the features.
            weight: (C,) fp32, factor of each normalised channel.
            bias: (C,) fp32, offset of each normalised channel.

        Returns:
            (B, C, H, W) in the dtype of x; the pixels that aren't chosen are normalised, too.
        """
        # Compute the rows and columns of the image at the centres of the feature's pixels, where
        # the mask of included image pixels is sampled.
        rows, columns = (
            ((2 * torch.arange(coarse, device=x.device) + 1) * fine) // (2 * coarse)
            for coarse, fine in zip(x.shape[2:], _included.shape[2:], strict=True)
        )
        is_synced = self.sync and world_size() > 1
        over_ranks = all_reduce if is_synced else (lambda tensor: tensor)
        mask = _included[:, :, rows][:, :, :, columns]
        if mask.numel() * (world_size() if is_synced else 1) == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {x.shape}"
            )
        num_included, num_pixels = over_ranks(
            torch.stack([mask.sum(), torch.ones_like(mask).sum()]).float()
        )
        # Include all pixels if at most one is included, since one pixel has no variance. This
        # occurs in coarse features if the included part of the images is smaller than a feature's
        # pixel.
        mask = mask | (num_included <= 1)
        count = torch.where(num_included > 1, num_included, num_pixels)

        # Compute mean and variance by differentiable operations, so that autograd gives the
        # gradient.
        values = x.float()
        mean = over_ranks(torch.where(mask, values, 0).sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        var = over_ranks(torch.where(mask, centred, 0).square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), self.momentum)
        scale = torch.rsqrt(var + self.eps) * weight
        return (centred * scale[:, None, None] + bias[:, None, None]).to(x.dtype)


class _NormaliseOverRanks(torch.autograd.Function):
    """Batch normalisation with statistics over all ranks, and its exact gradient.

    The inputs are x (B, C, H, W), weight and bias (C,) in fp32, and eps. The results are the
    normalised x; mean and biased variance, (C,) each; and the number of pixels of all ranks. The
    gradients of weight and bias are this rank's contribution; they aren't reduced over the ranks
    here. Of tensors the size of x, only x itself is saved for backward, in its own dtype.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float):
        num_channels = x.shape[1]
        # Compute this rank's mean and variance. torch's function also updates running statistics,
        # so it gets dummies: their dtype, fp32, makes the kernel compute in fp32, and a momentum of
        # 0 leaves them unchanged.
        mean, var = torch.batch_norm_update_stats(
            x, torch.zeros_like(weight), torch.ones_like(weight), momentum=0.0
        )
        local = torch.cat([mean, var, mean.new_full((1,), x.numel() / num_channels)])
        gathered = local.new_empty(world_size(), local.numel())
        dist.all_gather(list(gathered.unbind()), local)
        means = gathered[:, :num_channels]
        variances = gathered[:, num_channels:-1]
        counts = gathered[:, -1:]
        count = counts.sum()
        share = counts / count
        mean = (share * means).sum(0)
        # Combine the ranks' variances to that of all images together (Chan et al. 1979), without
        # the cancellation of E[x^2] - E[x]^2.
        var = (share * (variances + (means - mean) ** 2)).sum(0)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, var, count = ctx.saved_tensors
        inv_std = torch.rsqrt(var + ctx.eps)
        # Give grad the memory layout of x. Otherwise the CPU kernel would accumulate bf16 in bf16.
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        # Compute the gradients of weight and bias: the sums over this rank's pixels of
        # grad * (x - mean) / std and of grad.
        _, weight_grad, bias_grad = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, mean, inv_std, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([bias_grad, weight_grad])
        dist.all_reduce(sums)
        # Compute the gradient of x, which is a linear function of grad and x with one set of
        # coefficients per channel.
        by_grad = weight * inv_std
        grad_sum, product_sum = sums
        offset = -by_grad * grad_sum / count
        by_x = -by_grad * product_sum / count * inv_std
        by_grad, offset, by_x, mean = (
            each[:, None, None] for each in (by_grad, offset, by_x, mean)
        )
        x_grad = (x - mean).mul_(by_x).addcmul_(grad, by_grad).add_(offset)
        return x_grad.to(x.dtype), weight_grad, bias_grad, None
