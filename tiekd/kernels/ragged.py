"""Target distributions of the DPM head, one Gaussian per pixel with a sigma of its own, in windows.

With one sigma all windows have the same number of bins (`target.Windows`). With a map of sigmas,
windows of one size would need the size of the largest sigma's window, which often has most of the
bins. Here each Gaussian has its own number of bins. All windows are stored as one list of entries,
one for each Gaussian and bin of its window, ordered by Gaussian. This is for pixels of the head's
output that have one Gaussian each: at stride 1 and with one teacher.

Cost: about ten operations on the entries, of which there are e.g. 20 per pixel with sigma = 0.5 m
and TIE-KD's 257 bins up to 80 m; temporary memory for ten numbers per entry. Not covered: GPUs,
where the host would wait for the number of entries; and mixtures (kernels/mixtures.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Distance in sigmas from a Gaussian's centre beyond which bins are treated as empty, for each
# dtype. The mass there is below the rounding error of the dtype.
REACH_SIGMAS = {torch.float32: 5.5, torch.float64: 8.5}


class RaggedTarget(NamedTuple):
    """The target distribution q of P cells over K depth bins, stored as a list of T entries.

    A cell is a pixel of the head's output. An entry is the mass of one cell in one bin; cells
    differ in their number of entries. The class has the methods of `targets_by_rows.Target`.

    Attributes:
        bins: (T,) int32, the index of each entry's bin.
        cell: (T,) int32, the index of each entry's cell, 0 to P - 1, increasing.
        mass: (T,), the entry's mass, in the dtype of the bin edges.
        valid: (P,) bool, True for cells with a target.
    """

    bins: Tensor
    cell: Tensor
    mass: Tensor
    valid: Tensor

    def select_cells(self, cells: slice) -> "RaggedTarget":
        """Returns the targets of some of the P cells, i.e. of some pixels of the head's output.

        Args:
            cells: slice of cells, numbered 0 to P - 1; start and stop must be set.

        Returns:
            A `RaggedTarget`, in which these cells are numbered from 0.
        """
        ends = torch.tensor((cells.start, cells.stop), dtype=self.cell.dtype)
        some = slice(*torch.searchsorted(self.cell, ends).tolist())
        return RaggedTarget(
            self.bins[some],
            self.cell[some] - cells.start,
            self.mass[some],
            self.valid[cells],
        )

    def minus_entropy(self, num_bins: int) -> Tensor:  # noqa: ARG002, as `Target` has it
        """Returns the negative entropy of each cell's target q, sum_k q_k log q_k with 0 log 0 = 0.

        A cell is a pixel of the head's output.

        Args:
            num_bins: K, number of all bins, which isn't needed here.

        Returns:
            (P,), nats.
        """
        mass = self.mass
        return self._sum(mass.clamp_min(torch.finfo(mass.dtype).tiny).log_().mul_(mass))

    def expectation(self, values: Tensor) -> Tensor:
        """Returns the expectation under each cell's target distribution q, i.e. sum_k q_k values_k.

        A cell is a pixel of the head's output.

        Args:
            values: (K, P), a function of the K bins for each cell, contiguous.

        Returns:
            (P,), in the unit of `values`.
        """
        return self._sum(values.view(-1).index_select(0, self._flat_indices()).mul_(self.mass))

    def add_to(self, values: Tensor, factor: Tensor) -> None:
        """Adds factor * q to `values` in place, for each cell's target distribution q.

        A cell is a pixel of the head's output.

        Args:
            values: (K, P), one value per bin and cell, contiguous, changed in place.
            factor: (P,), one factor per cell.
        """
        terms = factor.index_select(0, self.cell).mul_(self.mass)
        values.view(-1).index_add_(0, self._flat_indices(), terms)

    def _flat_indices(self) -> Tensor:
        """Returns each entry's index in a flattened tensor (K, P) of K bins and P cells.

        An entry is the mass of one cell, i.e. of one pixel of the head's output, in one bin.

        Returns:
            (T,) int32, the indices of the T entries.
        """
        return torch.add(self.cell, self.bins, alpha=len(self.valid))

    def _sum(self, terms: Tensor) -> Tensor:
        """Sums one value per entry over the entries of each cell, i.e. pixel of the head's output.

        An entry is the mass of one cell in one bin.

        Args:
            terms: (T,), one value per entry.

        Returns:
            (P,), the sums.
        """
        return terms.new_zeros(len(self.valid)).index_add_(0, self.cell, terms)


class RaggedWindows(NamedTuple):
    """Gaussians with individual sigmas, each restricted to a window of consecutive bins.

    A pixel of the head's output has one Gaussian; the windows differ in their number of bins.

    Attributes:
        centre: (B, 1, h, w), each Gaussian's centre, metres, in the dtype of the bin edges.
        sigma: (B, 1, h, w), each Gaussian's standard deviation, metres.
        first: (B, 1, h, w) int32, index of each window's first bin.
        num_bins: (B, 1, h, w) int32, number of each window's bins, at least 2.
    """

    centre: Tensor
    sigma: Tensor
    first: Tensor
    num_bins: Tensor

    def select_rows(self, image: int, rows: slice) -> "RaggedWindows":
        """Returns the Gaussians of some rows of one image.

        Args:
            image: index of the image in the batch.
            rows: slice of rows of the head's output.

        Returns:
            A `RaggedWindows` whose attributes are (P, 1), for the P pixels in these rows.
        """
        return RaggedWindows(*(t[image, :, rows].flatten(1).T for t in self))

    def entries(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mass per bin of each window, as T entries ordered by Gaussian.

        The mass outside of a window is added to the window's first and last bin.

        Args:
            edges: (K + 1,), edges of the depth bins, metres.

        Returns:
            (gaussian, bins, mass), (T,) each, with one entry per Gaussian and bin of its window:
            the index of the Gaussian in the flattened attributes, int32; the index of the bin,
            int32; and the Gaussian's mass in this bin.
        """
        num_bins = self.num_bins.flatten()
        last = num_bins.cumsum(0, dtype=torch.int32) - 1
        start = last + 1 - num_bins
        gaussian = torch.repeat_interleave(num_bins)
        bins = (self.first.flatten() - start).index_select(0, gaussian)
        bins += torch.arange(len(bins), dtype=torch.int32)
        # Compute the distance of each bin's upper edge from the Gaussian's centre, in units of
        # sqrt(2) sigma.
        offset = edges[1:].index_select(0, bins)
        offset.sub_(self.centre.flatten().index_select(0, gaussian))
        offset.mul_((0.5**0.5 / self.sigma.flatten()).index_select(0, gaussian))
        above = offset >= 0
        # Compute the mass beyond each edge, on the side away from the Gaussian's centre, with the
        # sign of (edge - centre). The difference of this value at an edge and at the next one is
        # the mass between them, except in the bin that contains the centre: there it is minus the
        # sum of both tails, so 1 is added.
        tail = offset.abs().erfc_().copysign_(offset).mul_(0.5)
        mass = torch.empty_like(tail)
        torch.sub(tail[:-1], tail[1:], out=mass[1:]).add_(above[1:] ^ above[:-1]).clamp_min_(0)
        mass[start] = -tail[start] + above[start]
        mass[last] = tail[last - 1] + ~above[last - 1]
        return gaussian, bins, mass


def ragged_windows(centre: Tensor, sigma: Tensor, edges: Tensor) -> RaggedWindows:
    """Restricts Gaussians with individual sigmas to the bins within REACH_SIGMAS of their centres.

    Args:
        centre: (B, 1, h, w), the Gaussians' centres, metres, in the dtype of edges.
        sigma: (B, 1, h, w), each Gaussian's standard deviation, metres.
        edges: (K + 1,), edges of the depth bins, metres, increasing.

    Returns:
        A `RaggedWindows`: each Gaussian with its window of two or more consecutive bins.
    """
    inner = edges[1:-1]
    sigma = sigma.to(edges.dtype)
    reach = sigma * REACH_SIGMAS[edges.dtype]
    first, num_edges = edges_within(inner, centre - reach, centre + reach)
    return RaggedWindows(centre, sigma, first, num_edges + 1)


def edges_within(inner: Tensor, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the first edge and the number of edges from `lowest` to `highest`, both int32.

    A window gets at least one edge, even if the nearest edge is outside of it.

    Args:
        inner: (K - 1,), the edges between the depth bins, metres, increasing.
        lowest: the smallest depth of each window, metres.
        highest: the largest depth of each window, metres, of the same shape as `lowest`.
    """
    first = torch.searchsorted(inner, lowest, out_int32=True).clamp_(max=len(inner) - 1)
    stop = torch.searchsorted(inner, highest, right=True, out_int32=True)
    return first, (stop - first).clamp_min_(1)
