"""The targets of an image's cells, block by block, for the DPM head that works in tiles.

A `gaussian` target with one sigma is a few Gaussians per cell, each in a window of a few bins. The
windows of all cells are made at the start (two numbers a Gaussian) and turned into mass per bin a
block at a time. Every other target is made densely.
Cost: two numbers per full-resolution pixel and Gaussian, and one block's windows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.kernels import reference
from tiekd.kernels.target import Windows, gaussian_windows, shares


class Target(NamedTuple):
    """The target distribution q of P cells.

    Attributes:
        bins: (N, P) int64, the bins that have mass; None if `mass` is of all bins.
        mass: (N, P), their mass, in the dtype of edges; or (K, P) of all bins.
        valid: (P,) bool.
        overlap: True if several entries of a cell may be of one bin, as in a mixture.
    """

    bins: Tensor | None
    mass: Tensor
    valid: Tensor
    overlap: bool = False

    def part(self, cells: slice) -> "Target":
        """Returns the target of some of the cells."""
        bins = self.bins if self.bins is None else self.bins[:, cells]
        return Target(bins, self.mass[:, cells], self.valid[cells], self.overlap)

    def minus_entropy(self, num_bins: int) -> Tensor:
        """Returns sum_k q_k log q_k with 0 log 0 = 0: (P,), nats.

        torch.xlogy would take ten times as long.
        """
        mass = self.mass
        if self.overlap:
            mass = mass.new_zeros(num_bins, mass.shape[1]).scatter_add_(0, self.bins, mass)
        return mass.clamp_min(torch.finfo(mass.dtype).tiny).log_().mul_(mass).sum(0)

    def expectation(self, values: Tensor) -> Tensor:
        """Returns sum_k q_k values_k, (P,), of values (K, P)."""
        if self.bins is None:
            return (values * self.mass).sum(0)
        return values.gather(0, self.bins).mul_(self.mass).sum(0)

    def add_to(self, values: Tensor, factor: Tensor) -> None:
        """Adds factor * q to values in place; afterwards the target can't be used any more.

        Args:
            values: (K, P).
            factor: (P,).
        """
        if self.bins is None:
            values.addcmul_(self.mass, factor)
        else:
            values.scatter_add_(0, self.bins, self.mass.mul_(factor))


class Cells:
    """The targets of a batch. The cells have shape (B, h, w).

    The arguments are those of `reference.dpm`.
    """

    def __init__(
        self,
        depth: Tensor,
        sigma: float | Tensor,
        weight: Tensor | None,
        edges: Tensor,
        target: str,
        beyond: str,
        stride: int,
    ):
        self.depth = depth
        self.sigma = sigma
        self.weight = weight
        self.edges = edges
        self.target = target
        self.beyond = beyond
        self.stride = stride
        self.gaussians = self._gaussians() if target == "gaussian" else None

    @torch.no_grad()
    def of(self, image: int, rows: slice) -> Target | None:
        """Returns the target of some rows of cells; None if none of them is known to be valid.

        Args:
            image: index in the batch.
            rows: of cells.
        """
        if self.gaussians is None:
            pixels = slice(rows.start * self.stride, rows.stop * self.stride)
            maps = (
                t[image : image + 1, :, pixels] if isinstance(t, Tensor) and t.ndim == 4 else t
                for t in (self.depth, self.sigma, self.weight)
            )
            q, valid = reference.cell_target(
                *maps, self.edges, self.target, self.beyond, self.stride
            )
            return Target(None, q[0].flatten(1), valid.flatten())
        windows, share, valid = self.gaussians
        valid = valid[image, rows].flatten()
        # Elsewhere the question would be a host sync.
        if valid.device.type == "cpu" and not valid.any():
            return None
        bins, mass = windows.mass(
            *(t[image, :, rows].flatten(1) for t in (windows.first, windows.centre))
        )
        if share is not None:
            mass *= share[image, :, rows].flatten(1)[..., None]
        # (J, P, E) to (J * E, P).
        bins, mass = (t.transpose(1, 2).flatten(0, 1) for t in (bins, mass))
        return Target(bins, mass, valid, overlap=share is not None)

    @torch.no_grad()
    def _gaussians(self) -> tuple[Windows, Tensor | None, Tensor] | None:
        """Returns the windows of the J = stride * stride * M Gaussians of each cell.

        Returns:
            (windows, shares (B, J, h, w) or None for shares of 1, valid (B, h, w)); None if the
            Gaussians reach too many bins for windows.
        """
        maps = (self.depth, self.sigma, self.weight)
        windows, parts, counted = [], [], []
        for depth, sigma, weight in reference.pixels_of_cells(
            *maps, self.edges, self.beyond, self.stride
        ):
            windows.append(gaussian_windows(depth, sigma, self.edges))
            if windows[-1] is None:
                return None
            parts.append(shares(depth, weight, self.edges.dtype) if depth.shape[1] > 1 else None)
            counted.append((depth > 0).any(1, keepdim=True))
        # Of several pixels per cell, each valid one has the same part in the cell's q.
        if len(windows) == 1:
            return windows[0], parts[0], counted[0][:, 0]
        of_cell = windows[0]._replace(
            first=torch.cat([w.first for w in windows], 1),
            centre=torch.cat([w.centre for w in windows], 1),
        )
        num_valid = sum(valid.to(self.edges.dtype) for valid in counted)
        parts = [
            v / num_valid.clamp_min(1) * (1 if p is None else p)
            for p, v in zip(parts, counted, strict=True)
        ]
        return of_cell, torch.cat(parts, 1), num_valid[:, 0] > 0
