"""Target distributions of the DPM head that are Gaussians, or mixtures of them, of several sigmas.

A pixel of the head's output (cell) has several Gaussians if it covers several image pixels, or if
there are several teachers. Their windows of bins overlap mostly. So each cell has one window of
consecutive bins here, which contains those of all its Gaussians. The mass in the bins is either
dense, i.e. that in all bins, or a list of the mass in the windows (kernels/ragged.py). For a dense
result, cells with windows of about the same size are computed together, and the mixture's mass
beyond each edge is summed before the mass in the bins is computed.

Cost of a dense result: one erfc and three other operations for each Gaussian and each edge in its
cell's window, e.g. 16 Gaussians and 80 edges with stereo maps of streets at a stride of 4.
Temporary memory: that of BYTES_AT_ONCE a few times, besides the result. Not covered: GPUs, where
the host would wait for the sizes of the windows.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tiekd.kernels.ragged import entries_of_windows
from tiekd.kernels.target import DENSE_FROM

# Distance in sigmas from a Gaussian's centre beyond which bins are treated as empty, for each
# dtype. The mass there is below the rounding error of the dtype.
REACH_SIGMAS = {torch.float32: 5.5, torch.float64: 8.5}
# Number of groups of cells with windows of about the same size that are computed together, and the
# maximum bytes of one number for each of a group's Gaussians and edges.
NUM_GROUPS = 16
BYTES_AT_ONCE = 1 << 21


class Mixtures(NamedTuple):
    """Mixtures of J Gaussians with individual sigmas, one mixture per cell, in windows of bins.

    A cell is a pixel of the head's output. Its window has consecutive bins; all bins outside of it
    are more than REACH_SIGMAS sigma from the centres of all the cell's Gaussians.

    Attributes:
        centre: (B, J, h, w), each Gaussian's centre, metres, in the dtype of the bin edges; 0 if
            its share is 0.
        per_metre: (B, J, h, w), 1 / (sqrt(2) sigma) of each Gaussian, or 0 if its share is 0.
        share: (B, J, h, w), each Gaussian's weight in its cell's mixture; 0 if it isn't valid.
        first: (B, h, w) int32, index of the first edge between bins in each cell's window.
        num_edges: (B, h, w) int32, number of these edges, at least 1.
    """

    centre: Tensor
    per_metre: Tensor
    share: Tensor
    first: Tensor
    num_edges: Tensor

    def are_narrow(self, edges: Tensor) -> bool:
        """Returns True if windows have less than the fraction DENSE_FROM of all bins on average.

        Args:
            edges: (K + 1,), edges of the depth bins, metres.
        """
        return float(self.num_edges.double().mean()) + 1 < DENSE_FROM * len(edges)

    @torch.autocast("cpu", enabled=False)  # a user's loop may have it on in the backward pass
    def entries(self, image: int, rows: slice, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mass in the windows of the mixtures in some rows of one image, as a list.

        Args:
            image: index of the image in the batch.
            rows: slice of rows of the head's output.
            edges: (K + 1,), edges of the depth bins, metres.

        Returns:
            (cell, bins, mass), as `ragged.entries_of_windows` returns it, for the rows' pixels in
            row-major order.
        """
        gaussians = tuple(t[image, :, rows].flatten(1) for t in self[:3])
        first, num_edges = (t[image, rows].flatten() for t in self[3:])
        return entries_of_windows(gaussians, first, num_edges + 1, edges)

    @torch.autocast("cpu", enabled=False)  # a user's loop may have it on in the backward pass
    def mass(self, image: int, rows: slice, edges: Tensor) -> Tensor:
        """Returns the mass in all bins of the mixtures in some rows of one image.

        Args:
            image: index of the image in the batch.
            rows: slice of rows of the head's output.
            edges: (K + 1,), edges of the depth bins, metres.

        Returns:
            (K, P), the mass of P cells in K bins, for the rows' pixels in row-major order.
        """
        centre, per_metre, share = (t[image, :, rows].flatten(1).T for t in self[:3])
        first, num_edges = (t[image, rows].flatten() for t in self[3:])
        inner = edges[1:-1]
        num_cells, num_gaussians = centre.shape
        mass = edges.new_zeros(len(inner) + 1, num_cells)
        # Process cells with windows of about the same size together. Each group's windows get the
        # size of the group's largest one.
        num_edges, order = num_edges.sort()
        bytes_per_cell = num_gaussians * len(inner) * edges.element_size()
        size = max(1, min(math.ceil(num_cells / NUM_GROUPS), BYTES_AT_ONCE // bytes_per_cell))
        largest = [group[-1] for group in num_edges.split(size)]
        for cells, most in zip(order.split(size), torch.stack(largest).tolist(), strict=True):
            start = first[cells].clamp_max(len(inner) - most)
            inside = _mass_in_windows(
                inner.unfold(0, most, 1)[start], centre[cells], per_metre[cells], share[cells]
            )
            bins = start[:, None] + torch.arange(most + 1)
            indices = bins.mul_(num_cells).add_(cells[:, None])
            mass.view(-1).scatter_(0, indices.view(-1), inside.view(-1))
        return mass


def _mass_in_windows(edges: Tensor, centre: Tensor, per_metre: Tensor, share: Tensor) -> Tensor:
    """Returns the mass of mixtures of J Gaussians in E + 1 bins, for N mixtures.

    Args:
        edges: (N, E), the edges between the bins, metres, increasing.
        centre: (N, J), the Gaussians' centres, metres.
        per_metre: (N, J), 1 / (sqrt(2) sigma) of each Gaussian, or 0 if its share is 0.
        share: (N, J), the Gaussians' weights in their mixture.

    Returns:
        (N, E + 1), the mass in each bin. The first bin is everything below the first edge, the
        last bin everything above the last edge.
    """
    # Compute a mixture's mass beyond each edge, on the side away from a point in its middle. So
    # small masses don't suffer from cancellation.
    middle = (centre * share).sum(1, keepdim=True)
    distance = edges - middle
    above = distance >= 0
    side = above.to(edges.dtype).mul_(2).sub_(1)
    z = distance.abs_()[:, None] * per_metre[:, :, None]
    z.addcmul_(side[:, None], ((centre - middle) * per_metre)[:, :, None], value=-1)
    beyond = torch.bmm(share[:, None] / 2, z.erfc_())[:, 0].mul_(side)
    # The difference of this value, with the sign of (edge - middle), at an edge and at the next one
    # is the mass between them, except in the bin that contains the middle: there it is minus the
    # mass on both sides, so 1 is added.
    mass = torch.empty(len(edges), edges.shape[1] + 1, dtype=edges.dtype)
    torch.sub(beyond[:, :-1], beyond[:, 1:], out=mass[:, 1:-1]).add_(above[:, 1:] ^ above[:, :-1])
    mass[:, 0] = above[:, 0].to(edges.dtype) - beyond[:, 0]
    mass[:, -1] = beyond[:, -1] + ~above[:, -1]
    return mass.clamp_min_(0)


def mixtures(centre: Tensor, sigma: Tensor, share: Tensor, edges: Tensor) -> Mixtures:
    """Restricts mixtures of Gaussians to the bins within REACH_SIGMAS of their centres.

    Args:
        centre: (B, J, h, w), the centres of each cell's J Gaussians, metres, in the dtype of edges.
        sigma: (B, J, h, w), each Gaussian's standard deviation, metres.
        share: (B, J, h, w), each Gaussian's weight in its cell's mixture.
        edges: (K + 1,), edges of the depth bins, metres, increasing.

    Returns:
        A `Mixtures`: each mixture with its window of two or more consecutive bins.
    """
    inner = edges[1:-1]
    sigma = sigma.to(edges.dtype)
    reach = sigma * REACH_SIGMAS[edges.dtype]
    counted = share > 0
    lowest = torch.where(counted, centre - reach, torch.inf).amin(1)
    highest = torch.where(counted, centre + reach, -torch.inf).amax(1)
    # A cell without a target gets a window, too.
    first, num_edges = edges_within(inner, lowest, highest)
    # Replace what other Gaussians have: sigma may be NaN there, and NaN times a share of 0 is NaN.
    centre = torch.where(counted, centre, 0)
    per_metre = torch.where(counted, 0.5**0.5 / sigma, 0)
    return Mixtures(centre, per_metre, share, first, num_edges)


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
