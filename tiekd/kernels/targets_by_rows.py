"""Target distributions for the pixels of the DPM head's output, computed for some rows at a time.

A cell is a pixel of the head's output; it covers stride x stride pixels of the image. The
implementation of the DPM head in `kernels/chunked.py` calls this module with blocks of rows.

If the target is `gaussian`, a cell's target is a mixture of Gaussians, each of which has mass only
in a window, i.e. in a few consecutive bins. With several sigmas, i.e. a map of them or one for each
teacher, the windows differ in size, and are used on a CPU only (kernels/mixtures.py). The
Gaussian's centre and the first bin of every window are computed once per batch, the mass per bin
only for the requested rows. Other targets, and Gaussians of one sigma with mass in most of the
bins, are computed densely, i.e. for all bins. Cost: two numbers per image pixel and Gaussian, and
the mass in the windows of the requested rows; three numbers with several sigmas.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.kernels import reference
from tiekd.kernels.mixtures import Mixtures, mixtures
from tiekd.kernels.ragged import RaggedTarget
from tiekd.kernels.target import (
    Windows,
    component_weights,
    gaussian_windows,
    shifted_centre,
)


class Target(NamedTuple):
    """The target distribution q of P cells over K depth bins, stored sparsely or densely.

    A cell is a pixel of the head's output.

    Attributes:
        bins: (N, P) int64, indices of the N bins in which each cell has mass; None if `mass` is
            dense.
        mass: (N, P), the mass in those bins; or, if dense, (K, P), the mass in all bins; in the
            dtype of the bin edges.
        valid: (P,) bool, True for cells with a target.
        overlap: True if a bin may occur several times among a cell's N bins, as in a mixture; the
            mass in it is then the sum of those entries.
    """

    bins: Tensor | None
    mass: Tensor
    valid: Tensor
    overlap: bool = False

    def select_cells(self, cells: slice) -> "Target":
        """Returns the targets of some of the P cells, i.e. of some pixels of the head's output.

        Args:
            cells: slice of cells, numbered 0 to P - 1.

        Returns:
            A `Target` whose tensors are views of this object's tensors.
        """
        bins = self.bins if self.bins is None else self.bins[:, cells]
        return Target(bins, self.mass[:, cells], self.valid[cells], self.overlap)

    def minus_entropy(self, num_bins: int) -> Tensor:
        """Returns the negative entropy of each cell's target q, sum_k q_k log q_k with 0 log 0 = 0.

        A cell is a pixel of the head's output. The method avoids torch.xlogy, which takes ten times
        as long.

        Args:
            num_bins: K, number of all bins.

        Returns:
            (P,), nats.
        """
        mass = self.mass
        if self.overlap:
            mass = mass.new_zeros(num_bins, mass.shape[1]).scatter_add_(0, self.bins, mass)
        return mass.clamp_min(torch.finfo(mass.dtype).tiny).log_().mul_(mass).sum(0)

    def expectation(self, values: Tensor) -> Tensor:
        """Returns the expectation under each cell's target distribution q, i.e. sum_k q_k values_k.

        A cell is a pixel of the head's output.

        Args:
            values: (K, P), a function of the K bins for each cell, e.g. logits.

        Returns:
            (P,), in the unit of `values`.
        """
        if self.bins is None:
            return (values * self.mass).sum(0)
        return values.gather(0, self.bins).mul_(self.mass).sum(0)

    def add_to(self, values: Tensor, factor: Tensor) -> None:
        """Adds factor * q to `values` in place, for each cell's target distribution q.

        A cell is a pixel of the head's output. The method may overwrite `mass`, so it must be the
        last use of this target.

        Args:
            values: (K, P), one value per bin and cell, changed in place.
            factor: (P,), one factor per cell.
        """
        if self.bins is None:
            values.addcmul_(self.mass, factor)
        else:
            values.scatter_add_(0, self.bins, self.mass.mul_(factor))


class CellTargets:
    """The target distributions of all B * h * w pixels of the head's output, called cells.

    Args:
        depth: (B, M, H, W), depths of M teachers, metres, 0 where not valid.
        sigma: standard deviation of the Gaussian around each depth, metres, a number, a tuple of
            one number for each teacher, or (B, M, H, W).
        weight: (B, M, H, W), weights of the teachers in the target, or None for equal weights.
        edges: (K + 1,), edges of the depth bins, metres, increasing.
        target: "gaussian", or "released" for the target of TIE-KD's released code.
        beyond: how depths above the last edge are treated: "clamp" replaces them by the last bin's
            centre, "ignore" makes them invalid.
        stride: image pixels per side of a cell.
    """

    def __init__(
        self,
        depth: Tensor,
        sigma: float | tuple[float, ...] | Tensor,
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
        # List the mass in the windows of cells with few Gaussians, unless the windows are wide.
        self.lists_windows = (
            stride == 1
            and self.gaussians is not None
            and isinstance(self.gaussians[0], Mixtures)
            and self.gaussians[0].are_narrow(edges)
        )

    @torch.no_grad()
    def target_of_rows(self, image: int, rows: slice) -> Target | RaggedTarget | None:
        """Returns the target distributions of the pixels in some rows of the head's output.

        Args:
            image: index of the image in the batch.
            rows: slice of rows of the head's output; start and stop must be set.

        Returns:
            A `Target`, or with a map of sigmas at a stride of 1 a `RaggedTarget`, with the rows'
            pixels in row-major order. On a CPU the result is None if none of these pixels has a
            target. It is never None on a GPU, where this check would force a host sync, nor for
            dense targets of one sigma, which are computed for all pixels in any case.
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
        # Skip rows without a valid target, on a CPU only: on a GPU the check would force a host
        # sync, so the target distributions of all rows are computed there.
        if valid.device.type == "cpu" and not valid.any():
            return None
        if isinstance(windows, Mixtures) and self.lists_windows:
            cell, bins, mass = windows.entries(image, rows, self.edges)
            return RaggedTarget(bins, cell, mass, valid)
        if isinstance(windows, Mixtures):
            return Target(None, windows.mass(image, rows, self.edges), valid)
        bins, mass = windows.mass(
            *(t[image, :, rows].flatten(1) for t in (windows.first, windows.centre))
        )
        if share is not None:
            mass *= share[image, :, rows].flatten(1)[..., None]
        # Concatenate the bins, and the masses, of the J Gaussians of each of P pixels of the head's
        # output: (J, P, bins per Gaussian) becomes (J * bins per Gaussian, P).
        bins, mass = (t.transpose(1, 2).flatten(0, 1) for t in (bins, mass))
        return Target(bins, mass, valid, overlap=share is not None)

    @torch.no_grad()
    def _gaussians(
        self,
    ) -> tuple[Windows | Mixtures, Tensor | None, Tensor] | None:
        """Restricts each cell's J = stride * stride * M Gaussians to windows of consecutive bins.

        A cell is a pixel of the head's output. It covers stride x stride pixels of the image, each
        with the depths of M teachers. There is one Gaussian per pixel and teacher. Bins outside of
        a window are treated as empty.

        Returns:
            (windows, shares, valid): a `Windows`, or with several sigmas a `Mixtures`, whose maps
            are (B, J, h, w); for a `Windows`, each Gaussian's weight in its cell's target, (B, J,
            h, w), or None if J = 1, because all weights are 1 then; and (B, h, w) bool, True for
            cells with a target. The result is None, i.e. no tuple, if the windows of one sigma
            would have most of the bins, with one sigma for each teacher at a stride of 1, or with
            several sigmas on a GPU.
        """
        maps = (self.depth, self.sigma, self.weight)
        pixels = reference.pixels_of_cells(*maps, self.edges, self.beyond, self.stride)
        if isinstance(self.sigma, Tensor | tuple):
            # At a stride of 1, a few Gaussians with one sigma each are as fast densely.
            few = self.stride == 1 and isinstance(self.sigma, tuple)
            if few or self.depth.device.type != "cpu":
                return None
            return self._mixtures(*zip(*pixels, strict=True))
        windows, parts, counted = [], [], []
        for depth, sigma, weight in pixels:
            windows.append(gaussian_windows(depth, sigma, self.edges))
            if windows[-1] is None:
                return None
            parts.append(
                component_weights(depth, weight, self.edges.dtype) if depth.shape[1] > 1 else None
            )
            counted.append((depth > 0).any(1, keepdim=True))
        # With a stride of 1, each pixel of the head's output has the Gaussians of one image pixel.
        # Otherwise it has those of all image pixels that it covers, which are concatenated below.
        # Its target is the mean over the valid image pixels, so each Gaussian is weighted by 1 /
        # number of valid pixels.
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

    def _mixtures(
        self,
        depth: tuple[Tensor, ...],
        sigma: tuple[Tensor, ...] | tuple[tuple[float, ...], ...],
        weight: tuple[Tensor | None, ...],
    ) -> tuple[Mixtures, None, Tensor]:
        """Restricts the cells' mixtures of Gaussians to windows of consecutive bins, on a CPU.

        A cell is a pixel of the head's output. The arguments are maps for one image pixel of each
        cell, as `reference.pixels_of_cells` yields them, of all S = stride * stride image pixels.

        Args:
            depth: S maps (B, M, h, w), depths of M teachers, metres.
            sigma: S maps (B, M, h, w), the Gaussians' standard deviation, metres; or S times the
                same M numbers.
            weight: S maps (B, M, h, w), weights of the teachers; or S times None.

        Returns:
            The result of `_gaussians`.
        """
        depth = torch.stack(depth, 1)
        counted = (depth > 0).any(2, keepdim=True)
        if isinstance(sigma[0], Tensor):
            sigma = torch.stack(sigma, 1).expand_as(depth).flatten(1, 2)
            centre = shifted_centre(depth.flatten(1, 2), sigma, self.edges)
        else:
            # Look up each teacher's centres by itself, because a table for its one sigma is faster.
            teachers = zip(depth.unbind(2), sigma[0], strict=True)
            centre = [shifted_centre(one, number, self.edges) for one, number in teachers]
            centre = torch.stack(centre, 2).flatten(1, 2)
            sigma = depth.new_tensor(sigma[0]).view(-1, 1, 1).expand_as(depth).flatten(1, 2)
        # A cell's target is the mean over its valid image pixels. So each Gaussian is weighted by
        # its weight in the pixel's mixture, divided by the number of valid pixels.
        num_valid = counted.sum(1)
        share = counted / num_valid[:, None].clamp_min(1).to(self.edges.dtype)
        if depth.shape[2] > 1:
            weight = None if weight[0] is None else torch.stack(weight, 1).flatten(0, 1)
            of_pixel = component_weights(depth.flatten(0, 1), weight, self.edges.dtype)
            share = share * of_pixel.view_as(depth)
        windows = mixtures(centre, sigma, share.flatten(1, 2), self.edges)
        return windows, None, num_valid[:, 0] > 0
