"""The target that a student learns: the depth of one or several teachers, with their sigmas.

A teacher that gives one depth map returns it as a tensor. A teacher that gives several maps, or a
standard deviation for each pixel, returns a `Target`. A DPM head learns all components of a
`Target`; other heads and losses use the one map that `mean_depth` returns, which for a tensor is
the tensor itself. Not covered: estimating sigma, which teachers do, and limiting it, which the head
does.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.kernels.target import sigma_maps


class Target(NamedTuple):
    """The depths of M teachers for a batch, with their sigmas and weights.

    A component, i.e. one teacher at one pixel, is valid where its depth is > 0 and its weight isn't
    0. A DPM head learns the mixture of the valid components' Gaussians, whose weights are
    normalised over the valid components.

    Attributes:
        depth: (B, M, H, W) float32, metres, 0 where invalid.
        sigma: (B, M, H, W) float32, metres, the standard deviation of each depth's error; 0 where
            it is unknown and the head's own sigma is used. None if it is unknown everywhere.
        weight: (M,) or (B, M, H, W) float32, non-negative factors of the components; None for equal
            weights. It has no effect if M = 1.
        constants: In place of `sigma`, the standard deviation in metres of each component as one
            number, 0 if unknown. The head's target is computed much faster from numbers. None to
            use `sigma`.
    """

    depth: Tensor
    sigma: Tensor | None = None
    weight: Tensor | None = None
    constants: tuple[float, ...] | None = None

    def valid(self) -> Tensor:
        """Returns the mask of valid components, (B, M, H, W) bool."""
        valid = self.depth > 0
        return valid if self._weight() is None else valid & (self._weight() > 0)

    def mean_depth(self) -> Tensor:
        """Returns the mean depth of the components, for losses that need a single depth map.

        Returns:
            (B, 1, H, W), metres, the weighted mean of each pixel's valid components, 0 where no
            component is valid. If M = 1, it is `depth` itself.
        """
        if self.depth.shape[1] == 1:
            return self.depth
        weight = 1.0 if self._weight() is None else self._weight().to(self.depth.dtype)
        share = self.valid() * weight
        # Replace the products of invalid components by 0, because the NaN of such a component would
        # become a NaN of the sum.
        total = torch.where(share > 0, share * self.depth, 0).sum(1, keepdim=True)
        count = share.sum(1, keepdim=True)
        return torch.where(count > 0, total / count, 0)

    def component_weight(self) -> Tensor | None:
        """Returns `weight` expanded to (B, M, H, W); None for equal weights, or if M = 1."""
        weight = self._weight()
        return None if weight is None else weight.expand_as(self.depth)

    def scaled(self, factor: Tensor) -> "Target":
        """Returns the target with depth and sigma multiplied by a factor.

        Args:
            factor: A tensor that can be broadcast to (B, M, H, W), such as (B, 1, 1, 1).
        """
        sigma = self.sigma
        if self.constants is not None:
            # Expand the constants, one sigma per component, to maps, since each image has its own
            # factor.
            sigma = sigma_maps(self.constants, self.depth)
        sigma = None if sigma is None else sigma * factor
        return Target(self.depth * factor, sigma, self.weight)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Target":
        """Returns the target with its maps of depth, sigma and weight resized by a function.

        Sigmas and weights that are one number per component stay as they are.

        Args:
            change: Function that resizes a map (B, M, H, W).
        """
        has_maps = self.weight is not None and self.weight.ndim == 4
        return self._replace(
            depth=change(self.depth),
            sigma=None if self.sigma is None else change(self.sigma),
            weight=change(self.weight) if has_maps else self.weight,
        )

    def _weight(self) -> Tensor | None:
        """Returns `weight` in a shape that broadcasts with `depth`; None if it has no effect."""
        if self.weight is None or self.depth.shape[1] == 1:
            return None
        return self.weight.view(1, -1, 1, 1) if self.weight.ndim == 1 else self.weight


def mean_depth(target: Tensor | Target | None) -> Tensor | None:
    """Returns a teacher's result as one depth map, (B, 1, H, W), metres, 0 where invalid.

    Args:
        target: The teacher's result: a depth map, which is returned unchanged; a `Target`, whose
            mean depth is returned; or None, which is returned.
    """
    return target.mean_depth() if isinstance(target, Target) else target
