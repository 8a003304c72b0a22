"""Target distributions of the DPM head's cells, computed one block of rows at a time.

A cell is one pixel of the head's output; it covers stride x stride pixels of the image.
`kernels/chunked.py` uses this module.

A `gaussian` target with a single sigma is a mixture of Gaussians per cell, each with mass in a
window of few bins. Centre and first bin of all windows are computed once per batch; mass per bin is
computed block by block. All other targets are computed densely, i.e. for all bins.
Cost: two numbers per full-resolution pixel and Gaussian, and the windows of one block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.kernels import reference
from tiekd.kernels.target import Windows, gaussian_windows, shares


class Target(NamedTuple):
    """The target distribution q of P cells, stored sparsely or densely over the bins.

    Attributes:
        bins: (N, P) int64, indices of each cell's N bins with mass; None if `mass` is dense.
        mass: (N, P), the mass of those bins, or (K, P), the mass of all bins; in the dtype of
            edges.
        valid: (P,) bool, True for cells with a target.
        overlap: True if `bins` may contain the same bin several times for one cell, as in a
            mixture; the bin's mass is then the sum.
    """

    bins: Tensor | None
    mass: Tensor
    valid: Tensor
    overlap: bool = False

    def part(self, cells: slice) -> "Target":
        """Returns the target of a slice of the cells, as views."""
        bins = self.bins if self.bins is None else self.bins[:, cells]
        return Target(bins, self.mass[:, cells], self.valid[cells], self.overlap)

    def minus_entropy(self, num_bins: int) -> Tensor:
        """Returns sum_k q_k log q_k with 0 log 0 = 0, the negative entropy of q: (P,), nats.

        It avoids torch.xlogy, which takes ten times as long.
        """
        mass = self.mass
        if self.overlap:
            mass = mass.new_zeros(num_bins, mass.shape[1]).scatter_add_(0, self.bins, mass)
        return mass.clamp_min(torch.finfo(mass.dtype).tiny).log_().mul_(mass).sum(0)

    def expectation(self, values: Tensor) -> Tensor:
        """Returns sum_k q_k values_k, (P,), for values (K, P)."""
        if self.bins is None:
            return (values * self.mass).sum(0)
        return values.gather(0, self.bins).mul_(self.mass).sum(0)

    def add_to(self, values: Tensor, factor: Tensor) -> None:
        """Adds factor * q to values, in place.

        It may overwrite `mass`, so it must be the last use of this target.

        Args:
            values: (K, P), changed in place.
            factor: (P,).
        """
        if self.bins is None:
            values.addcmul_(self.mass, factor)
        else:
            values.scatter_add_(0, self.bins, self.mass.mul_(factor))


class Cells:
    """The target distributions of all cells (B, h, w) of a batch.

    Args:
        depth: (B, M, H, W), metres, `target_depth` of `reference.dpm`.
        sigma: metres, a number or (B, M, H, W).
        weight: (B, M, H, W), weights of the mixture's components, or None for equal ones.
        edges: (K + 1,), metres.
        target: "gaussian" or "released".
        beyond: "clamp" or "ignore".
        stride: full-resolution pixels per side of a cell.
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
        """Returns the target of some rows of cells.

        Args:
            image: index of the image in the batch.
            rows: the rows of cells, with start and stop.

        Returns:
            The target of the rows' cells, flattened; None if, on a CPU, none of them is valid.
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
        # Skip blocks without a valid cell. On a GPU this check would force a host sync, so there
        # every block is computed.
        if valid.device.type == "cpu" and not valid.any():
            return None
        bins, mass = windows.mass(
            *(t[image, :, rows].flatten(1) for t in (windows.first, windows.centre))
        )
        if share is not None:
            mass *= share[image, :, rows].flatten(1)[..., None]
        # Reshape (J, P, bins per window) to (J * bins per window, P).
        bins, mass = (t.transpose(1, 2).flatten(0, 1) for t in (bins, mass))
        return Target(bins, mass, valid, overlap=share is not None)

    @torch.no_grad()
    def _gaussians(self) -> tuple[Windows, Tensor | None, Tensor] | None:
        """Computes the windows of the J = stride * stride * M Gaussians of each cell.

        Returns:
            (windows, shares, valid): the windows of shape (B, J, h, w); each Gaussian's weight in
            its cell's q, (B, J, h, w), or None if J = 1, so that all weights are 1; and (B, h, w)
            bool, True for cells with a target. None instead of the tuple if `gaussian_windows`
            finds no windows.
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
        # With one pixel per cell, the pixel's windows are those of the cell. Otherwise concatenate
        # the windows of a cell's pixels; the cell's q is the mean over its valid pixels.
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
