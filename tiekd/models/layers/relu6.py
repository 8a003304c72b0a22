"""ReLU6 in place, with a gradient that needs no copy of its input."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu6


class ReLU6(nn.Module):
    """ReLU6 in place, as `relu6_in_place` computes it.

    Attributes:
        plain: True to use torch's own ReLU6, which saves a copy of its input for backward.
    """

    plain = False

    def forward(self, x: Tensor) -> Tensor:
        """Clamps x, of any shape, to 0..6 in place, and returns it."""
        return relu6(x, inplace=True) if self.plain else relu6_in_place(x)


class _ReLU6(torch.autograd.Function):
    """ReLU6 in place, whose gradient is computed from its result instead of its input.

    The next convolution saves the result for backward anyway, so it takes no additional memory.
    torch's own ReLU6 saves a copy of its input; these copies would be a third of the activations
    that MobileNetV2 saves for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(relu6(x, inplace=True))
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # Pass the gradient where 0 < result < 6, which holds exactly where 0 < x < 6.
        return torch.ops.aten.hardtanh_backward(grad, ctx.saved_tensors[0], 0.0, 6.0)


def relu6_in_place(x: Tensor) -> Tensor:
    """Clamps x, of any shape, to 0..6 in place, and returns it.

    For backward it saves no copy of x, unlike torch's own ReLU6. Without gradients and under
    torch.compile it calls torch's, which needs no more memory then.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return relu6(x, inplace=True)
    return _ReLU6.apply(x)
