"""Target distributions of the DPM head as a list with one mass per cell and bin in its window.

With one sigma all windows have the same number of bins (`target.Windows`). With a map of sigmas,
windows of one size would need the size of the largest sigma's window, which often has most of the
bins. Here each cell, i.e. each pixel of the head's output, has its own number of bins. All windows
are stored as one list of entries, ordered by cell. This is for cells with few Gaussians: at stride
1, one for each teacher. Those with many have wide windows, for which a dense result is faster
(`mixtures.Mixtures.mass`).

Cost: about ten operations on the entries for each of a cell's Gaussians; of entries there are e.g.
20 per pixel with one teacher, sigma = 0.5 m and TIE-KD's 257 bins up to 80 m. Temporary memory: ten
numbers per entry. Not covered: GPUs, where the host would wait for the number of entries.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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


def entries_of_windows(
    gaussians: tuple[Tensor, Tensor, Tensor],
    first: Tensor,
    num_bins: Tensor,
    edges: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mass of mixtures per bin of their windows, as T entries ordered by cell.

    The mass outside of a window is added to the window's first and last bin.

    Args:
        gaussians: (centre, per_metre, share), (J, P) each: the centres of J Gaussians for each of P
            cells, metres, 1 / (sqrt(2) sigma) of each, and its weight in its cell's mixture.
        first: (P,) int32, index of the first bin in each cell's window.
        num_bins: (P,) int32, number of bins in each cell's window, at least 2.
        edges: (K + 1,), edges of the depth bins, metres.

    Returns:
        (cell, bins, mass), (T,) each, with one entry per cell and bin of its window: the index of
        the cell, int32; the index of the bin, int32; and the mixture's mass in this bin.
    """
    last = num_bins.cumsum(0, dtype=torch.int32) - 1
    start = last + 1 - num_bins
    cell = torch.repeat_interleave(num_bins)
    bins = (first - start).index_select(0, cell)
    bins += torch.arange(len(bins), dtype=torch.int32)
    upper = edges[1:].index_select(0, bins)
    total = None
    for centre, per_metre, share in zip(*gaussians, strict=True):
        # Compute the distance of each bin's upper edge from the Gaussian's centre, in units of
        # sqrt(2) sigma.
        offset = upper - centre.index_select(0, cell)
        offset.mul_(per_metre.index_select(0, cell))
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
        # A single Gaussian is the whole mixture.
        if len(gaussians[0]) > 1:
            mass.mul_(share.index_select(0, cell))
        total = mass if total is None else total.add_(mass)
    return cell, bins, total
